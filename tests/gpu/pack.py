"""make gpu-pack: constraints.txt and the quickstart's texts -> build/gpu, what a bare machine lacks to run tests.gpu.

wheels/   packages for Python 3.12 on x86-64 Linux, Ray without the parts that training does not use
corpus/   vocabulary, examples at 128 and 512, built by `cloze run`; a small labelled file for fine-tuning
pack.json versions, sizes, the commit, and a digest of the sources that the content depends on

The folder and all files that git does not ignore are what is copied to the machine: at most LIMIT_MIB.
"""

import argparse
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "build/gpu"
LIMIT_MIB = 64
LENGTHS = (128, 512)

#: Not on the bare machine (requirements.txt): the imports of training, and what these need.
PACKAGES = (
    "annotated-types",
    "deepspeed",
    "hjson",
    "jsonschema",
    "jsonschema-specifications",
    "pydantic",
    "pydantic-core",
    "ray",
    "referencing",
    "rpds-py",
    "tensorboardX",
    "typing-inspection",
)
SOURCE_ONLY = {"deepspeed", "hjson"}  # no wheels on PyPI
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
UNUSED_IN_RAY = ("ray/jars/", "ray/rllib/", "ray/dashboard/client/", "ray/cpp/", "ray/llm/")
LABELLED_ROWS = {"train": 96, "dev": 32, "test": 32}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make gpu-pack", description=__doc__)
    parser.add_argument("--books", help="glob of more text files for the corpus, for part 3 of the checks")
    options = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    build_wheels(FOLDER / "wheels")
    build_corpus(FOLDER / "corpus", options.books)
    manifest = write_manifest(FOLDER)
    size = check_size(FOLDER)
    print(f"{FOLDER}: {len(manifest['wheels'])} wheels, {manifest['bytes'] / 2**20:.0f} MiB; with the repository's")
    print(f"files {size / 2**20:.0f} of {LIMIT_MIB} MiB. Copy both to the machine, then run there: make gpu")


def pins() -> dict[str, str]:
    """The versions of PACKAGES in constraints.txt."""
    pinned = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split())
    versions = {_normalized(name): version for name, version in pinned.items()}
    return {name: versions[_normalized(name)] for name in PACKAGES}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def build_wheels(folder: Path) -> None:
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    requirements = {name: f"{name}=={version}" for name, version in pins().items()}
    binary = [requirement for name, requirement in requirements.items() if name not in SOURCE_ONLY]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    target = ["--python-version=3.12", "--implementation=cp", *platforms, "--only-binary=:all:"]
    subprocess.run([*pip, "download", "--no-deps", "-d", str(folder), *target, *binary], check=True)
    source = [requirements[name] for name in sorted(SOURCE_ONLY)]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), *source], check=True)
    for wheel in folder.glob("ray-*.whl"):
        trim(wheel)
    unexpected = [wheel.name for wheel in folder.iterdir() if not re.search(r"(none-any|x86_64)\.whl$", wheel.name)]
    if unexpected or len(list(folder.iterdir())) != len(PACKAGES):
        sys.exit(f"{folder}: needs one wheel for x86-64 of each of {', '.join(PACKAGES)}; {unexpected}")


def trim(wheel: Path) -> None:
    """Remove the parts of Ray that training does not use."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for item in old.infolist():
            if not item.filename.startswith(UNUSED_IN_RAY):
                new.writestr(item, old.read(item))
    small.replace(wheel)


def build_corpus(folder: Path, books: str | None) -> None:
    """Run the pipeline up to the examples, and copy the artifacts that training reads."""
    configs = [str(Path(__file__).with_name("corpus.yaml"))]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if books:
            source = {"kind": "books", "name": "books", "files": [books], "language": "en"}
            (root / "books.yaml").write_text(json.dumps({"extract": {"sources": [source]}}))
            configs.append(str(root / "books.yaml"))
        for length in LENGTHS:
            command = ["-m", "cloze.infra.cli", "run", *configs, f"root={root}", "--until", f"examples-{length}"]
            subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)
        for stage in ("vocab", *(f"examples-{length}" for length in LENGTHS)):
            (artifact,) = (found.parent for found in root.glob(f"{stage}/*/manifest.json"))
            shutil.copytree(artifact, folder / stage)
    with gzip.open(REPOSITORY / "configs/quickstart/authors.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.readlines()
    (folder / "labelled.jsonl").write_text("".join(labelled(lines)))


def labelled(lines: list[str]) -> list[str]:
    """LABELLED_ROWS of each split, spread over the file, which is sorted by label."""
    chosen = []
    for split, count in LABELLED_ROWS.items():
        rows = [line for line in lines if json.loads(line)["split"] == split]
        chosen += rows[:: len(rows) // count][:count]
    return chosen


def source_digest() -> str:
    """Digest of the files that the pack's content depends on: the pinned versions, the pipeline and this script."""
    digest = hashlib.sha256(json.dumps(pins()).encode())
    here = Path(__file__).parent
    for file in [*sorted((REPOSITORY / "pipeline").rglob("*.py")), here / "pack.py", here / "corpus.yaml"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_manifest(folder: Path) -> dict[str, Any]:
    git = ["git", "-C", str(REPOSITORY)]
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    manifest = {
        "built": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "commit": _output([*git, "rev-parse", "HEAD"]),
        "changed_files": len(_output([*git, "status", "--porcelain"]).splitlines()),
        "sources": source_digest(),
        "versions": pins(),
        "bytes": sum(files.values()),
        "wheels": {name: size for name, size in files.items() if name.endswith(".whl")},
        "corpus": {stage.name: _counts(stage) for stage in sorted((folder / "corpus").iterdir()) if stage.is_dir()},
    }
    (folder / "pack.json").write_text(json.dumps(manifest, indent=1))
    return manifest


def _counts(artifact: Path) -> dict[str, int]:
    return json.loads((artifact / "manifest.json").read_text())["counts"]


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def check_size(folder: Path) -> int:
    """The bytes of the folder and of the files that git does not ignore. Exits when they exceed LIMIT_MIB."""
    listed = _output(["git", "-C", str(REPOSITORY), "ls-files", "-z", "-co", "--exclude-standard"])
    repository = sum((REPOSITORY / name).lstat().st_size for name in set(filter(None, listed.split("\0"))))
    packed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if repository + packed > LIMIT_MIB * 2**20:
        sys.exit(
            f"{folder}: {packed / 2**20:.1f} MiB, and with the repository's {repository / 2**20:.1f} MiB more than "
            f"{LIMIT_MIB} MiB; give fewer --books, or add to UNUSED_IN_RAY in tests/gpu/pack.py"
        )
    return repository + packed


def state(folder: Path = FOLDER) -> str:
    """What is wrong with the pack: "missing", "stale", or "" if nothing is."""
    file = folder / "pack.json"
    if not file.exists():
        return "missing"
    return "" if json.loads(file.read_text())["sources"] == source_digest() else "stale"


if __name__ == "__main__":
    main()
