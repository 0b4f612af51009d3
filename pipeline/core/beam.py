"""Apache Beam for the stages: without its log output, and with errors that keep their type and message."""

import base64
import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cloze.pipeline.core import cpu_time
from cloze.pipeline.core.beam_cluster import check_job_server, cluster_failure
from cloze.pipeline.core.beam_metrics import count_cpu_seconds, run_to_end
from cloze.pipeline.core.beam_ray import run_on_cluster
from cloze.pipeline.core.beam_workers import LostWorkerError, crash_note, process_runner, run_and_watch_workers
from cloze.pipeline.core.errors import DamagedFile, StorageError, UserError
from cloze.pipeline.core.ray_cluster import belongs_to_cluster
from cloze.pipeline.core.signals import interrupted

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

Item = TypeVar("Item")

_PARALLEL_CPU_SECONDS = 8.0  # of work; worker processes need 3 seconds to start

_ERROR_TYPES = {"damaged": DamagedFile, "user": UserError, "storage": StorageError, "system": OSError}
_ERROR = re.compile(r"<error:([A-Za-z0-9+/=]+)>")


class SerializedError(Exception):
    """A worker's error as text that every runner transmits, however it wraps and quotes exceptions."""


@contextlib.contextmanager
def serialized_errors(work: str = "") -> Iterator[None]:
    """In a worker, raise errors that the user can fix (UserError and OSError) as a SerializedError.

    `work` describes the work in the block: LostWorkerError names it if the process is killed there.
    """
    try:
        with crash_note(work):
            yield
    except UserError as error:
        content = ["damaged" if isinstance(error, DamagedFile) else "user", str(error)]
    except StorageError as error:
        content = ["storage", str(error)]
    except OSError as error:
        content = ["system", error.errno, error.strerror or str(error), error.filename and str(error.filename)]
    else:
        return
    raise SerializedError(f"{content[1:]} <error:{base64.b64encode(json.dumps(content).encode()).decode()}>")


@contextlib.contextmanager
def pipeline(
    options: Sequence[str] | None, max_workers: int | None = None, cpu_seconds: float = 0.0
) -> "Iterator[beam.Pipeline]":
    """Yields a Beam pipeline that runs when the block ends. Raises its workers' UserError and OSError as such.

    Without options it runs on the Ray cluster that this process belongs to, or else on this machine: in one process for
    each core if `cpu_seconds`, an estimate of the work, is enough to gain from that. It has at most `max_workers`
    workers. On a Ray cluster it may run several times: its items must skip what is finished.
    """
    with _quiet_loggers():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import DirectOptions

        on_ray = options is None and belongs_to_cluster()
        parsed, runner = _parse_options(_local_options(max_workers, cpu_seconds) if options is None else options)
        check_job_server(parsed)
        processes = not on_ray and parsed.view_as(DirectOptions).direct_running_mode == "multi_processing"
        try:
            running = beam.Pipeline(runner=process_runner(parsed) if processes else runner, options=parsed)
        except ValueError as error:  # an option that this runner requires is missing
            raise UserError(f"beam: {' '.join(str(error).split())}") from error
        yield running
        try:
            if on_ray:
                run_on_cluster(running, max_workers)
            elif processes:
                run_and_watch_workers(running)
            else:
                run_to_end(running)
        except LostWorkerError:
            raise
        except Exception as error:
            if interrupted.is_set():  # Beam makes a RuntimeError of a KeyboardInterrupt inside an item
                raise KeyboardInterrupt from error
            raise (_worker_error(error) or cluster_failure(parsed, error) or error) from error


def for_each(
    items: Sequence[Item], work: Callable[[Item], None], options: Sequence[str] | None, cpu_seconds: float = 0.0
) -> None:
    """Call work(item) for each item, distributed over the workers. Options, `cpu_seconds` and errors: as `pipeline`.

    `work` skips items that are finished: it may be called again when a worker is lost. LostWorkerError names str(item)
    if the process is killed while it works on an item.
    """
    with pipeline(options, len(items), cpu_seconds) as running:
        import apache_beam as beam

        _ = (
            running
            | "Items" >> beam.Create(items).with_output_types(Any)
            | "Spread" >> beam.Reshuffle()
            | "Work" >> beam.Map(run_item, work, cpu_time.PROCESS)
        )


def run_item(item: Item, work: Callable[[Item], None], driver: str) -> None:
    """In a worker, call work(item) and report its CPU seconds. `driver`: `cpu_time.PROCESS` of the driver."""
    with serialized_errors(str(item)), cpu_time.measured_item(count_cpu_seconds(driver)):
        work(item)


def _local_options(max_workers: int | None, cpu_seconds: float) -> list[str]:
    """Options for this machine: worker processes, if the work is enough to gain from them."""
    cores = len(os.sched_getaffinity(0))
    workers = cores if max_workers is None else min(cores, max_workers)
    if workers < 2 or cpu_seconds < _PARALLEL_CPU_SECONDS:
        return ["--runner=FnApiRunner"]
    return ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]


def _parse_options(options: Sequence[str]) -> "tuple[PipelineOptions, PipelineRunner]":
    """Returns Beam's options and runner. Raises UserError for an unknown option or an invalid value."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners.runner import create_runner

    for option in options:
        if not option.startswith("--"):
            raise UserError(f"beam: {option} is not an option; write --name=value")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed = PipelineOptions(list(options))
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options().keys()
    except SystemExit as error:  # argparse, which Beam uses, exits
        reason = printed.getvalue().rpartition("error: ")[2] if error.code else f"{options} asks for help"
        raise UserError(f"beam: {reason.strip()}; correct it") from error
    if unknown:
        names = ", ".join(f"--{name}" for name in sorted(unknown))
        raise UserError(f"beam: Beam has no option {names}; correct its name or remove it")
    name = parsed.view_as(StandardOptions).runner or StandardOptions.DEFAULT_RUNNER
    try:
        return parsed, create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"beam: --runner={name}: {error}") from error


def _worker_error(error: Exception) -> Exception | None:
    """Returns the error that a worker has raised as a SerializedError, if it is one."""
    match = _ERROR.search(str(error)) or _ERROR.search(str(error.__cause__))
    if not match:
        return None
    kind, *content = json.loads(base64.b64decode(match[1]))
    return _ERROR_TYPES[kind](*(part for part in content if part is not None))


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Suppress Beam's messages about optional packages, and its tracebacks, while a pipeline runs."""
    loggers = {logging.getLogger(): logging.CRITICAL, logging.getLogger("apache_beam"): logging.CRITICAL}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
