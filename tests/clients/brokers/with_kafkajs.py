"""KafkaJS: a program on it (node/kafkajs.mjs), installed as its lock file says into .cache/kafkajs."""

import os
import pathlib
import shutil
import subprocess

from scene import BROKER, PATIENCE_S, run, same

HERE = pathlib.Path(__file__).parent
INSTALLED = HERE.parents[2] / ".cache/kafkajs"


def installed():
    """Installs where the lock file is another one than the last that was installed; node looks for modules beside the program."""
    INSTALLED.mkdir(parents=True, exist_ok=True)
    lock = HERE / "node/package-lock.json"
    mark = INSTALLED / "installed"
    if not mark.exists() or mark.read_bytes() != lock.read_bytes():
        for name in ["package.json", "package-lock.json"]:
            shutil.copy(HERE / "node" / name, INSTALLED)
        subprocess.run(["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=INSTALLED, check=True)
        shutil.copy(lock, mark)
    shutil.copy(HERE / "node/kafkajs.mjs", INSTALLED)


def a_program_on_kafkajs_holds():
    done = subprocess.run(["node", "kafkajs.mjs", BROKER], cwd=INSTALLED, capture_output=True, text=True,
                          timeout=4 * PATIENCE_S, env={**os.environ, "KAFKAJS_NO_PARTITIONER_WARNING": "1"})
    print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="")
    same((done.returncode, len(done.stdout.splitlines())), (0, 4), f"the end, and what held; {done.stderr}")


if __name__ == "__main__":
    installed()
    run(a_program_on_kafkajs_holds)
