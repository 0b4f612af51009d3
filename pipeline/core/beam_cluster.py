"""Failures of a cluster that runs Beam pipelines, such as Flink, in one line each: what is missing, and the fix."""

import re
import socket
from typing import TYPE_CHECKING

from cloze.pipeline.core.errors import UserError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_CONNECT_SECONDS = 10.0
_FAILED = re.compile(r"failed in state (\w+)")
_POOL_COMMAND = "python -m apache_beam.runners.worker.worker_pool_main"


def check_job_server(options: "PipelineOptions") -> None:
    """Raises UserError when nothing answers at the job endpoint, on which Beam would wait for a minute."""
    endpoint = _endpoint(options)
    host, colon, port = endpoint.rpartition(":")
    if not colon or not port.isdigit():  # "embed": a server in this process
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"beam: no job server answers at --job_endpoint={endpoint} ({error.strerror or error}); "
            "start Beam's job server there, or correct the option"
        ) from error


def cluster_failure(options: "PipelineOptions", error: Exception) -> UserError | None:
    """Returns the line for a job that ended because of its cluster; None for another error."""
    text = str(error)
    if not _endpoint(options) or not _FAILED.search(text):
        return None
    from apache_beam.options.pipeline_options import PortableOptions

    pool = options.view_as(PortableOptions).environment_config
    if "Connection refused" in text or "UnknownHost" in text or "UNAVAILABLE" in text or "DEADLINE_EXCEEDED" in text:
        return UserError(
            f"beam: no worker pool answers at --environment_config={pool}; start one next to every TaskManager "
            f"({_POOL_COMMAND} --service_port=...), or correct the option; finished parts are kept"
        )
    if "CANCELLED" in text:
        return UserError(
            f"beam: the worker pool at --environment_config={pool}, or one of its workers, has died: was it killed, or "
            "out of memory? Start it again, then run again: finished parts are kept"
        )
    return None


def _endpoint(options: "PipelineOptions") -> str:
    from apache_beam.options.pipeline_options import PortableOptions

    return options.view_as(PortableOptions).job_endpoint or ""
