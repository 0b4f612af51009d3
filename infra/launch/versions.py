"""The versions of two machines' packages -> where they differ.

The node of a cluster must have the Ray and the Python of the machine that submits. Other packages may differ, with a
warning: they may change the bytes of artifacts.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloze.infra.package_versions import differing
from cloze.pipeline.core import software_versions

_COMPARED = ("ray", "torch", "deepspeed", "pyarrow", "apache-beam", "tokenizers", "numpy", "pydantic")


@dataclass(frozen=True)
class Difference:
    """A package whose version here is not that of a node."""

    package: str
    here: str
    there: str | None  # None if it is not installed

    @property
    def is_error(self) -> bool:
        """Whether a job cannot run: Ray refuses other versions of itself and of Python."""
        return self.package in ("ray", "python")

    def __str__(self) -> str:
        there = f"is {self.there}" if self.there else "is not installed"
        return f"{self.package} {there}, on this machine {self.here}"


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that are compared, on this machine."""
    return software_versions.installed_versions(_COMPARED)


def probe() -> str:
    """A program for `python -c` that prints the `installed_versions` of another machine as a line of JSON."""
    function = inspect.getsource(software_versions.installed_versions)
    imports = "import importlib.metadata, json, platform\nfrom collections.abc import Iterable"
    return f"{imports}\n{function}\nprint(json.dumps(installed_versions({_COMPARED})))"


def printed_versions(output: str) -> dict[str, str] | None:
    """The versions that `probe` has printed; None if it has not."""
    for line in output.splitlines():
        if line.startswith('{"python"'):
            return json.loads(line)
    return None


def differences(there: Mapping[str, str], here: Mapping[str, str] | None = None) -> list[Difference]:
    """The packages of this machine whose version differs there. Of Python's version the patch is ignored, as are local
    versions such as +cu130."""
    return [Difference(*found) for found in differing(here or installed_versions(), there)]
