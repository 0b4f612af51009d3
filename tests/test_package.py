"""What is installed: one package, `cloze`, with all of its files."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.paths import REPOSITORY

FLOORS = ("pipeline", "training", "infra")
#: Folders and files of infra that are used in a clone only.
OF_THE_CLONE = ("docker", "kubernetes", "terraform", "up", "down")


def test_a_wheel_holds_every_file_of_the_three_floors_and_no_other_package(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools writes next to what it builds
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("cloze", *FLOORS):
        ignore = shutil.ignore_patterns("__pycache__", *OF_THE_CLONE)
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignore)
    files = [
        str(path.relative_to(source)) for floor in FLOORS for path in (source / floor).rglob("*") if path.is_file()
    ]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*command, "--wheel-dir", str(tmp_path)], cwd=source, check=True)
    [wheel] = tmp_path.glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert installed == {"cloze/__init__.py", *(f"cloze/{file}" for file in files)}
