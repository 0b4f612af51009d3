"""The toy run as a job of this machine: an interpreter for a cluster's file, which runs it in place of `cloze run`.

    python -m tests.infra.toy_job ROOT SOURCE -m cloze.infra.cli run CONFIG ...

Files beside SOURCE steer it: while SOURCE.wait-STAGE exists, the stage waits; SOURCE.fail-STAGE has the text of a
UserError that it raises; SOURCE.crash-STAGE kills the process there, once.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cloze.infra.cli import main
from cloze.pipeline.core.errors import UserError
from tests.infra import toy_run
from tests.paths import REPOSITORY


def interpreter(file: Path, root: Path, source: Path) -> Path:
    """Write the interpreter, a shell script; returns its path."""
    job = f"exec {sys.executable} -m tests.infra.toy_job {root} {source}"
    other = f'[ "$2" = cloze.infra.cli ] || exec {sys.executable} "$@"'  # the supervisor
    file.write_text(f'#!/bin/sh\nexport PYTHONPATH={REPOSITORY}\n{other}\n{job} "$@"\n')
    file.chmod(0o755)
    return file


def _before_part(source: Path, stage: str) -> None:
    while source.with_suffix(f".wait-{stage}").exists():
        time.sleep(0.02)
    if (error := source.with_suffix(f".fail-{stage}")).exists():
        raise UserError(error.read_text())
    if (crash := source.with_suffix(f".crash-{stage}")).exists():
        crash.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _main(root: str, source: str, _module: str, _cli: str, *arguments: str) -> int:
    toy_run.before_part = lambda stage, _: _before_part(Path(source), stage)
    with pytest.MonkeyPatch.context() as patch:
        toy_run.toy_run(patch, root, source)
        return main(arguments)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
