"""The software that writes an artifact: versions of packages, and the commit of Cloze's code."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

#: Environment variable with the commit of code that was copied without its repository.
GIT_COMMIT = "CLOZE_GIT_COMMIT"
_PACKAGES = ("apache-beam", "deepspeed", "numpy", "pyarrow", "ray", "tokenizers", "torch")


@cache
def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide an artifact's bytes."""
    return installed_versions(_PACKAGES)


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of Python and of those packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache
def git_commit() -> str:
    """Returns the commit of the running code, followed by "+changes" if tracked files differ; empty if unknown.

    CLOZE_GIT_COMMIT sets it.
    """
    if commit := os.environ.get(GIT_COMMIT):
        return commit
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
