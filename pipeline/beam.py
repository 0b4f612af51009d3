"""Apache Beam as the stages use it: quiet, with errors that keep their type and their one line, and no hanging.

Beam's local runner with several processes waits for ever when one of them is killed, or when one has not yet connected
as the run fails, and leaves them behind when it is killed itself. Its workers are therefore started through this module
(`python -m pipeline.beam`): they end with the run that started them, and the run ends when one of them is lost, with
the name of what that one was working on.
"""

import base64
import contextlib
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import UserError

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

_ERROR = re.compile(r"<error:([A-Za-z0-9+/=]+)>")
_ALIVE = (
    "CLOZE_BEAM_RUN"  # process id and a folder that is there while the run is, with a file for what each worker does
)
_GRACE = 5.0  # seconds in which a worker ends by itself when the run is over
_LEFT_BEHIND = {"beam_control_read", "read_grpc_client_inputs"}  # Beam's threads that complain of a lost worker


class CarriedError(Exception):
    """A worker's error in letters that every runner hands on, however it wraps and quotes exceptions."""


class LostWorkerError(RuntimeError):
    """A worker process ended before its work did."""


@contextlib.contextmanager
def carried(work: str = "") -> Iterator[None]:
    """In a worker: what the user can mend (UserError, no space left, no permission) travels as a CarriedError.

    `work` says what is done in the block: it is named should the process be killed there.
    """
    try:
        with _noted(work):
            yield
    except UserError as error:
        content = ["user", str(error)]
    except OSError as error:
        content = ["system", error.errno, error.strerror or str(error), error.filename and str(error.filename)]
    else:
        return
    raise CarriedError(f"{content[1:]} <error:{base64.b64encode(json.dumps(content).encode()).decode()}>")


@contextlib.contextmanager
def _noted(work: str) -> Iterator[None]:
    """A note that only a killed process leaves behind."""
    run = os.environ.get(_ALIVE, "").partition(":")[2]
    if not (work and run):
        yield
        return
    note = Path(run, f"{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):  # a note is not worth failing for
        note.write_text(work)
    yield
    note.unlink(missing_ok=True)


@contextlib.contextmanager
def pipeline(options: Sequence[str]) -> "Iterator[beam.Pipeline]":
    """A Beam pipeline that runs when the block ends. Raises what its workers raised, UserError and OSError as such."""
    with _quiet():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import DirectOptions

        parsed, runner = _chosen(options)
        processes = parsed.view_as(DirectOptions).direct_running_mode == "multi_processing"
        try:
            running = beam.Pipeline(runner=_process_runner(parsed) if processes else runner, options=parsed)
        except ValueError as error:  # what this runner wants and was not given
            raise UserError(f"beam: {' '.join(str(error).split())}") from error
        yield running
        try:
            if processes:
                _run_watched(running)
            else:
                running.run().wait_until_finish()
        except LostWorkerError:
            raise
        except Exception as error:
            raise _unwrapped(error) from error


def _chosen(options: Sequence[str]) -> "tuple[PipelineOptions, PipelineRunner]":
    """Beam's options and runner. Raises UserError for an option that Beam does not know or a value it does not take."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    for option in options:
        if not option.startswith("--"):
            raise UserError(f"beam: {option} is no option; write --name=value")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parsed = PipelineOptions(list(options))
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options().keys()
    except SystemExit as error:  # Beam reads them as a program's arguments
        why = said.getvalue().rpartition("error: ")[2] if error.code else f"{options} asks for help"
        raise UserError(f"beam: {why.strip()}; correct it") from error
    if unknown:
        names = ", ".join(f"--{name}" for name in sorted(unknown))
        raise UserError(f"beam: Beam has no option {names}; correct its name or leave it out")
    name = parsed.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER
    try:
        return parsed, create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"beam: --runner={name}: {error}") from error


def _unwrapped(error: Exception) -> Exception:
    match = _ERROR.search(str(error)) or _ERROR.search(str(error.__cause__))
    if not match:
        return error
    kind, *content = json.loads(base64.b64decode(match[1]))
    return UserError(*content) if kind == "user" else OSError(*(part for part in content if part is not None))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Beam's notes on optional packages and its copies of tracebacks off the console while a pipeline runs."""
    loggers = {logging.getLogger(): logging.ERROR, logging.getLogger("apache_beam"): logging.CRITICAL}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def _process_runner(options: "PipelineOptions") -> "PipelineRunner":
    """Beam's local runner with our worker processes in the place of its own."""
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.portability import python_urns
    from apache_beam.runners.portability.fn_api_runner import worker_handlers
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment, python_sdk_capabilities

    # Beam's decorator hides this type as well.
    class Processes(worker_handlers.SubprocessSdkWorkerHandler):  # pyright: ignore[reportGeneralTypeIssues]
        """Beam waits without end for a worker that connects after the run has failed, or that is still at work."""

        def close(self) -> None:
            run = Path(os.environ[_ALIVE].partition(":")[2])
            threading.Timer(_GRACE, _end, [run]).start()
            super().close()

    worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(Processes)
    options.view_as(DirectOptions).direct_running_mode = "in_memory"  # else it would choose its own worker's command
    command = f"exec {sys.executable} -m pipeline.beam"  # exec: the worker's parent is this process, not a shell
    # Beam's decorator hides the type of what it decorates.
    environment = SubprocessSDKEnvironment(command, python_sdk_capabilities())  # pyright: ignore[reportCallIssue]
    return FnApiRunner(default_environment=environment)


def _run_watched(running: "beam.Pipeline") -> None:
    """Run to the end, or until a worker process is lost. Raises LostWorkerError."""
    failed: list[Exception] = []
    lost: list[str] = []
    before = threading.excepthook

    def run() -> None:
        try:
            running.run().wait_until_finish()
        except Exception as error:
            failed.append(error)

    def note(told: threading.ExceptHookArgs) -> None:
        name = told.thread.name if told.thread else ""
        if name == "run_worker":  # Beam's, one for each process
            lost.append(str(told.exc_value))
        elif name not in _LEFT_BEHIND:
            before(told)

    alive = Path(tempfile.mkdtemp(prefix="cloze-beam-"))
    os.environ[_ALIVE] = f"{os.getpid()}:{alive}"
    threading.excepthook = note
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not lost:
            thread.join(0.2)
    finally:
        if not lost:
            threading.excepthook = before
        works = _works_of_the_dead(alive)
        _end(alive)
        del os.environ[_ALIVE]
    if failed:
        raise failed[0]
    if lost:
        work = f" while it worked on {', '.join(works)}" if works else ""
        raise LostWorkerError(f"{lost[0]}{work}: was it killed, or out of memory? Run again: what is finished is kept")


def _works_of_the_dead(alive: Path) -> list[str]:
    """What the processes were at that are no more."""
    notes = [(int(note.name.partition("-")[0]), note) for note in sorted(alive.glob("*-*"))]
    return [note.read_text() for process, note in notes if not _lives(process)]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _end(alive: Path) -> None:
    """Tell the workers that the run is over."""
    shutil.rmtree(alive, ignore_errors=True)


def _work() -> None:
    """A worker process of Beam's, without its log, that ends within a second of the run it belongs to."""
    process, _, alive = os.environ[_ALIVE].partition(":")

    def end_with_the_run() -> None:
        while os.getppid() == int(process) and Path(alive).exists():
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=end_with_the_run, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    _work()
