"""Worker processes for Beam's local runner: they exit with the run, and the run fails when one of them is lost.

Beam waits indefinitely when one of its worker processes is killed, or when one has not yet connected as the run fails.
When Beam itself is killed, its workers keep running. Cloze starts them through this module
(`python -m cloze.pipeline.core.beam_workers`): they exit when their run ends or is killed, and the run fails when one
of them is lost, with a message that names the work of that one.
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

from cloze.pipeline.core.beam_metrics import run_to_end
from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

#: The variable with <process id>:<folder> of the run. The folder exists while the run does, with a file for the current
#: work of each worker. The process is the parent of the workers.
RUN = "CLOZE_BEAM_RUN"
#: Name of a file in that folder, after which workers start no other work.
DRAIN = "drain"
_GRACE = 5.0  # seconds for workers to exit by themselves when the run is over
_IGNORED_THREADS = {"beam_control_read", "read_grpc_client_inputs"}  # Beam's threads that fail after a lost worker


class LostWorkerError(UserError):
    """A worker process exited before its work was finished."""


@contextlib.contextmanager
def crash_note(work: str) -> Iterator[None]:
    """Record `work` in a file while the block runs; the file stays only if the process is killed.

    Raises RuntimeError when workers must not start other work.
    """
    folder = os.environ.get(RUN, "").partition(":")[2]
    if not (work and folder):
        yield
        return
    if Path(folder, DRAIN).exists():
        raise RuntimeError("the pipeline will run again")
    note = Path(folder, f"{os.getpid()}-{threading.get_ident()}")
    with contextlib.suppress(OSError):  # the work matters more than the note
        note.write_text(work)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def process_runner(options: "PipelineOptions") -> "PipelineRunner":
    """Returns Beam's local runner, with worker processes that are started through this module."""
    from apache_beam.options.pipeline_options import DirectOptions
    from apache_beam.portability import python_urns
    from apache_beam.runners.portability.fn_api_runner import worker_handlers
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment, python_sdk_capabilities

    # Beam's decorator hides this type as well.
    class WorkerProcess(worker_handlers.SubprocessSdkWorkerHandler):  # pyright: ignore[reportGeneralTypeIssues]
        """Beam waits indefinitely for a worker that connects after the run has failed, or that is still busy."""

        def close(self) -> None:
            folder = Path(os.environ[RUN].partition(":")[2])
            threading.Timer(_GRACE, _stop_workers, [folder]).start()
            super().close()

    worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(WorkerProcess)
    options.view_as(DirectOptions).direct_running_mode = "in_memory"  # otherwise Beam would choose the worker's command
    # exec: the worker's parent is this process, not a shell
    command = f"exec {sys.executable} -m cloze.pipeline.core.beam_workers"
    # Beam's decorator hides the type of what it decorates.
    environment = SubprocessSDKEnvironment(command, python_sdk_capabilities())  # pyright: ignore[reportCallIssue]
    return FnApiRunner(default_environment=environment)


def run_and_watch_workers(running: "beam.Pipeline") -> None:
    """Run the pipeline to its end. Raises LostWorkerError as soon as a worker process is lost."""
    failed: list[Exception] = []
    lost: list[str] = []
    before = threading.excepthook

    def run() -> None:
        try:
            run_to_end(running)
        except Exception as error:
            failed.append(error)

    def on_thread_error(error: threading.ExceptHookArgs) -> None:
        name = error.thread.name if error.thread else ""
        if name == "run_worker":  # Beam's, one for each process
            lost.append(str(error.exc_value))
        elif name not in _IGNORED_THREADS:
            before(error)

    folder = Path(tempfile.mkdtemp(prefix="cloze-beam-"))
    os.environ[RUN] = f"{os.getpid()}:{folder}"
    threading.excepthook = on_thread_error
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not lost:
            thread.join(0.2)
    finally:
        if not lost:
            threading.excepthook = before
        work = _work_of_lost_workers(folder)
        _stop_workers(folder)
        del os.environ[RUN]
    if failed:
        raise failed[0]
    if lost:
        during = f" while it worked on {', '.join(work)}" if work else ""
        raise LostWorkerError(f"{lost[0]}{during}: was it killed, or out of memory? Run again: finished work is kept")


def recorded_work(folder: Path) -> list[str]:
    """Returns the notes of all workers."""
    return [work for _, work in _notes(folder)]


@contextlib.contextmanager
def connection_errors_hidden() -> Iterator[None]:
    """While inside, print no errors of Beam's threads whose connections break."""
    before = threading.excepthook

    def on_thread_error(error: threading.ExceptHookArgs) -> None:
        if error.thread is None or error.thread.name not in _IGNORED_THREADS:
            before(error)

    threading.excepthook = on_thread_error
    try:
        yield
    finally:
        threading.excepthook = before


def _work_of_lost_workers(folder: Path) -> list[str]:
    """Returns the notes of processes that no longer run."""
    return [work for process, work in _notes(folder) if not _is_running(process)]


def _notes(folder: Path) -> Iterator[tuple[int, str]]:
    """Yields each process that has noted its work, and the work."""
    for note in sorted(folder.glob("*-*")):
        with contextlib.suppress(FileNotFoundError):  # finished meanwhile
            yield int(note.name.partition("-")[0]), note.read_text()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _stop_workers(folder: Path) -> None:
    """Remove the run's folder: workers exit when it no longer exists."""
    shutil.rmtree(folder, ignore_errors=True)


def _worker_main() -> None:
    """Run Beam's worker without its log, and exit within a second of the end of the run."""
    process, _, folder = os.environ.get(RUN, "0:").partition(":")  # without the variable the run has just ended

    def exit_with_the_run() -> None:
        while os.getppid() == int(process) and Path(folder).exists():
            time.sleep(0.5)
        os._exit(0)

    threading.Thread(target=exit_with_the_run, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    _worker_main()
