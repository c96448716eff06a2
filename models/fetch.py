"""Fetches the ONNX Runtime library that the program loads, so that a fresh machine needs only Python 3 with pip.

    python3 models/fetch.py [--into .cache/onnxruntime] [--check]

Promises: the wheel is named by package, version and sha256, and so is the library inside it; pip downloads it from
whatever index the machine is set up for, and refuses another file. Does nothing when the right library is already there.
Writes libonnxruntime.so and the licence texts beside it, whole or not at all.
Leaves out: every platform but Linux with glibc on x86_64 and aarch64, and the rest of the wheel.
"""

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "onnxruntime", "1.32.0"
# The library does not depend on the interpreter, so one fixed wheel serves every Python that runs this script.
PYTHON, ABI = "3.12", "cp312"
PLATFORMS = {
    "x86_64": {
        "tag": "manylinux_2_28_x86_64",
        "wheel": "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8",
        "library": "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    },
    "aarch64": {
        "tag": "manylinux_2_28_aarch64",
        "wheel": "e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054",
        "library": "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
    },
}
LIBRARY_IN_WHEEL = f"onnxruntime/capi/libonnxruntime.so.{VERSION}"
LICENCES_IN_WHEEL = ("onnxruntime/LICENSE", "onnxruntime/ThirdPartyNotices.txt")
DOWNLOAD_SECONDS_MAX = 600
ROOT = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """A message for the person who ran the script; it says how to mend what went wrong."""


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def this_platform():
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if platform.system() != "Linux" or machine not in PLATFORMS:
        raise Failure(
            f"no pinned ONNX Runtime for {platform.system()} on {machine}. Install ONNX Runtime {VERSION} yourself "
            "and set ORT_DYLIB_PATH to its shared library."
        )
    return PLATFORMS[machine]


def download(wanted, folder):
    """Lets pip fetch the one wheel with the pinned checksum; returns its path."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{wanted['wheel']}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--require-hashes", "--requirement", str(requirements), "--dest", str(folder),
               "--python-version", PYTHON, "--implementation", "cp", "--abi", ABI, "--platform", wanted["tag"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"pip did not finish within {DOWNLOAD_SECONDS_MAX} s. Check the network and run this again.") from None
    if done.returncode != 0:
        raise Failure(what_pip_meant(done.stderr.strip()))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Failure(f"pip left {len(wheels)} wheels instead of one. Upgrade pip (python3 -m pip install --upgrade pip) and run this again.")
    return wheels[0]


def what_pip_meant(stderr):
    by_hand = (f"On a machine with a network: python3 -m pip download --no-deps --only-binary=:all: --python-version {PYTHON} "
               f"--implementation cp --abi {ABI} --platform {this_platform()['tag']} {PACKAGE}=={VERSION}; then give the file to this script with --wheel.")
    if "No module named pip" in stderr:
        return "this Python has no pip. Install it (Debian: apt-get install python3-pip) and run this again."
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"the index serves {PACKAGE} {VERSION} with another checksum than the pinned one, so it was refused. Check which index pip is set to (pip config list)."
    if "No matching distribution" in stderr and "Retrying" not in stderr and "Connection" not in stderr:
        return f"the index that pip is set to has no {PACKAGE} {VERSION} for this platform, or cannot be reached. Check the network and pip config list. {by_hand}"
    last = stderr.splitlines()[-1] if stderr else "pip said nothing"
    return f"pip could not download {PACKAGE} {VERSION}: {last}\nCheck the network and the proxy settings and run this again. {by_hand}"


def unpack(wheel, wanted, into):
    """Writes the library and its licences; the library last and by rename, so that half a file never stands there."""
    into.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in LICENCES_IN_WHEEL:
            (into / Path(name).name).write_bytes(archive.read(name))
        partial = into / f"libonnxruntime.so.{os.getpid()}.partial"
        try:
            partial.write_bytes(archive.read(LIBRARY_IN_WHEEL))
            found = sha256_of(partial)
            if found != wanted["library"]:
                raise Failure(f"the library in {wheel.name} has the sha256 {found}, not {wanted['library']}. Do not use it; download the wheel again.")
            partial.chmod(0o755)
            partial.replace(into / "libonnxruntime.so")
        finally:
            partial.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description="Fetch the ONNX Runtime library that Undertone loads.")
    parser.add_argument("--into", type=Path, default=ROOT / ".cache" / "onnxruntime", help="folder to write to")
    parser.add_argument("--wheel", type=Path, help="use this wheel instead of downloading it")
    parser.add_argument("--check", action="store_true", help="only say whether the right library is there")
    arguments = parser.parse_args()
    wanted = this_platform()
    library = arguments.into / "libonnxruntime.so"
    if library.is_file() and sha256_of(library) == wanted["library"]:
        print(f"ONNX Runtime {VERSION} is in {library}")
        return
    if arguments.check:
        raise Failure(f"{library} is missing or not ONNX Runtime {VERSION}. Run: python3 models/fetch.py")
    with tempfile.TemporaryDirectory() as work:
        wheel = arguments.wheel or download(wanted, Path(work))
        if sha256_of(wheel) != wanted["wheel"]:
            raise Failure(f"{wheel} is not the pinned wheel: its sha256 is {sha256_of(wheel)}, not {wanted['wheel']}.")
        unpack(wheel, wanted, arguments.into)
    print(f"fetched ONNX Runtime {VERSION} into {library}")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"models/fetch.py: {failure}")
    except OSError as error:
        sys.exit(f"models/fetch.py: {error}. Check that the folder can be written and the disk has 100 MB free.")
