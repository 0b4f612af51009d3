"""Apache Beam as the stages use it: quiet, and with errors that keep their type and their one line."""

import base64
import contextlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cloze.pipeline.core.beam_workers import LostWorkerError, noted, process_runner, run_watched
from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

Item = TypeVar("Item")

_ERROR = re.compile(r"<error:([A-Za-z0-9+/=]+)>")


class CarriedError(Exception):
    """A worker's error in letters that every runner hands on, however it wraps and quotes exceptions."""


@contextlib.contextmanager
def carried(work: str = "") -> Iterator[None]:
    """In a worker: what the user can mend (UserError, no space left, no permission) travels as a CarriedError.

    `work` says what is done in the block: it is named should the process be killed there.
    """
    try:
        with noted(work):
            yield
    except UserError as error:
        content = ["user", str(error)]
    except OSError as error:
        content = ["system", error.errno, error.strerror or str(error), error.filename and str(error.filename)]
    else:
        return
    raise CarriedError(f"{content[1:]} <error:{base64.b64encode(json.dumps(content).encode()).decode()}>")


@contextlib.contextmanager
def pipeline(options: Sequence[str]) -> "Iterator[beam.Pipeline]":
    """A Beam pipeline that runs when the block ends. Raises what its workers raised, UserError and OSError as such."""
    with _quiet():
        import apache_beam as beam
        from apache_beam.options.pipeline_options import DirectOptions

        parsed, runner = _chosen(options)
        processes = parsed.view_as(DirectOptions).direct_running_mode == "multi_processing"
        try:
            running = beam.Pipeline(runner=process_runner(parsed) if processes else runner, options=parsed)
        except ValueError as error:  # what this runner wants and was not given
            raise UserError(f"beam: {' '.join(str(error).split())}") from error
        yield running
        try:
            if processes:
                run_watched(running)
            else:
                running.run().wait_until_finish()
        except LostWorkerError:
            raise
        except Exception as error:
            raise _unwrapped(error) from error


def for_each(items: Sequence[Item], work: Callable[[Item], None], options: Sequence[str]) -> None:
    """Do the work of each item, on whatever worker is free. Raises as `pipeline` does.

    An item's text says what was being done, should its process be killed.
    """
    with pipeline(options) as running:
        import apache_beam as beam

        _ = (
            running
            | "Items" >> beam.Create(items).with_output_types(Any)
            | "Spread" >> beam.Reshuffle()
            | "Work" >> beam.Map(_do, work)
        )


def _do(item: Item, work: Callable[[Item], None]) -> None:
    with carried(str(item)):
        work(item)


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
