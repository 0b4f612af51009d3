"""The packages that Cloze needs: the versions installed here, and those that constraints.txt names.

Nodes of a cluster run this, which may lack packages: it imports the standard library only.
"""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from pathlib import Path

#: The dependencies in pyproject.toml, which a job's working directory does not contain.
PACKAGES = (
    "apache-beam",
    "boto3",
    "dagster",
    "dagster-webserver",
    "deepspeed",
    "jinja2",
    "markupsafe",
    "numpy",
    "py3langid",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "ray",
    "requests",
    "rich",
    "safetensors",
    "scikit-learn",
    "tensorboardx",
    "tokenizers",
    "torch",
)
_CONSTRAINTS = Path(__file__).absolute().parents[2] / "constraints.txt"  # of a clone


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python and of those PACKAGES that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def pinned_versions() -> dict[str, str]:
    """Returns the versions of PACKAGES in constraints.txt; empty if Cloze is not run from a clone."""
    if not _CONSTRAINTS.is_file():
        return {}
    lines = (line.partition("==") for line in _CONSTRAINTS.read_text().splitlines())
    pinned = {re.sub("[-_.]+", "-", name.strip()).lower(): version.strip() for name, _, version in lines}
    return {package: pinned[package] for package in PACKAGES if package in pinned}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Returns a phrase for each package of `ours` that `theirs` lacks or has in another version.

    Versions of Python may differ in their last number, and builds of a version (2.13.0 and 2.13.0+cpu) are the same.
    """
    return [
        f"{package} {theirs[package]} instead of {version}" if package in theirs else f"{package} {version} is missing"
        for package, version in ours.items()
        if package not in theirs or comparable(package, version) != comparable(package, theirs[package])
    ]


def comparable(package: str, version: str) -> str:
    return version.rpartition(".")[0] if package == "python" else version.partition("+")[0]
