"""The result of one check, which `cloze doctor` prints as one line."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "missing"]


@dataclass(frozen=True)
class Check:
    """A result. `missing`: runs fail there until the fix; `warning`: they are slower, or some of them fail."""

    check: str
    state: State
    found: str
    fix: str = ""  # empty if the state is ok


def ok(check: str, found: str) -> Check:
    return Check(check, "ok", found)


def warning(check: str, found: str, fix: str) -> Check:
    return Check(check, "warning", found, fix)


def missing(check: str, found: str, fix: str) -> Check:
    return Check(check, "missing", found, fix)


def from_error(check: str, error: Exception) -> Check:
    """An error whose message is "what is wrong; the fix", as those of Cloze are."""
    found, _, fix = str(error).partition("; ")
    return missing(check, found, fix)
