"""The packages that Cloze needs: the versions installed here, and those that constraints.txt names.

Nodes of a cluster run this, which may lack packages: it imports the standard library only.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cloze.pipeline.core import software_versions

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
    return software_versions.installed_versions(PACKAGES)


def pinned_versions() -> dict[str, str]:
    """Returns the versions of PACKAGES in constraints.txt; empty if Cloze is not run from a clone."""
    if not _CONSTRAINTS.is_file():
        return {}
    lines = (line.partition("==") for line in _CONSTRAINTS.read_text().splitlines())
    pinned = {re.sub("[-_.]+", "-", name.strip()).lower(): version.strip() for name, _, version in lines}
    return {package: pinned[package] for package in PACKAGES if package in pinned}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Returns a phrase for each package of `ours` that `theirs` lacks or has in another version."""
    return [
        f"{package} {version} is missing" if other is None else f"{package} {other} instead of {version}"
        for package, version, other in differing(ours, theirs)
    ]


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[tuple[str, str, str | None]]:
    """Yields each package of `ours` that `theirs` lacks or has in another version, with both versions.

    Versions of Python may differ in their last number, and builds of a version (2.13.0 and 2.13.0+cpu) are the same.
    """
    for package, version in ours.items():
        other = theirs.get(package)
        if other is None or _comparable(package, version) != _comparable(package, other):
            yield package, version, other


def _comparable(package: str, version: str) -> str:
    return version.rpartition(".")[0] if package == "python" else version.partition("+")[0]
