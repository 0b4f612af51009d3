"""Commands of other programs: their output goes to the terminal, their failure becomes one line."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from cloze.pipeline.core.errors import UserError

_SHOWN = 110  # characters of a command


def run(*command: str, text: str | None = None) -> None:
    """Run a command; `text` is its standard input. Raises UserError if it fails."""
    print(f"+ {_short(command)}", flush=True)
    _checked(command, subprocess.run(command, input=text, text=True))


def output(*command: str) -> str:
    """What a command prints. Raises UserError if it fails."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    _checked(command, ended)
    return ended.stdout


def succeeds(*command: str) -> bool:
    """Whether a command succeeds, for questions; its output is not shown."""
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def missing(names: Sequence[str]) -> list[str]:
    """The programs that are not installed."""
    return [name for name in names if shutil.which(name) is None]


def _checked(command: Sequence[str], ended: subprocess.CompletedProcess[str]) -> None:
    if ended.returncode:
        raise UserError(
            f"{_short(command)}: ended with status {ended.returncode}; fix what it says above, then repeat this command"
        )


def _short(command: Sequence[str]) -> str:
    line = shlex.join(command)
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
