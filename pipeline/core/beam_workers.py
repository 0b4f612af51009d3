"""Processes for Beam's local runner that end with the run, and that the run does not wait for when one is lost.

Beam waits for ever when one of its worker processes is killed, or when one has not yet connected as the run fails, and
leaves them behind when it is killed itself. Ours are started through this module
(`python -m cloze.pipeline.core.beam_workers`): they end with the run that started them, and the run ends when one of
them is lost, with the name of what that one was working on.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

#: The run's process id and a folder that exists while the run does, with a file for what each worker is doing.
_ALIVE = "CLOZE_BEAM_RUN"
_GRACE = 5.0  # seconds in which a worker ends by itself when the run is over
_LEFT_BEHIND = {"beam_control_read", "read_grpc_client_inputs"}  # Beam's threads that complain of a lost worker


class LostWorkerError(RuntimeError):
    """A worker process ended before its work did."""


@contextlib.contextmanager
def noted(work: str) -> Iterator[None]:
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


def process_runner(options: "PipelineOptions") -> "PipelineRunner":
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
    # exec: the worker's parent is this process, not a shell
    command = f"exec {sys.executable} -m cloze.pipeline.core.beam_workers"
    # Beam's decorator hides the type of what it decorates.
    environment = SubprocessSDKEnvironment(command, python_sdk_capabilities())  # pyright: ignore[reportCallIssue]
    return FnApiRunner(default_environment=environment)


def run_watched(running: "beam.Pipeline") -> None:
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
