"""`cloze submit` and `cloze job`: what they print, and their exit statuses."""

import argparse
import json
import shlex
import sys
import time
from datetime import datetime

from cloze.infra import named_runs
from cloze.infra.display import duration
from cloze.infra.launch.backends import backend_of
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import LOST_SECONDS, Backend, JobInfo, JobRequest, JobState, Unreachable, now
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.signals import interrupting_signal

_POLL = 1.0  # seconds, at first
_LONGEST_POLL = 10.0  # as Kubernetes answers with five requests
_TAIL_CHARACTERS = 2000


def submit(options: argparse.Namespace) -> int:
    """Submit the run, or attach to the job if the same is running; follow its log. Returns the run's exit status.

    Ctrl-C detaches, leaves the job running and returns 130; SIGTERM does the same and returns 143.
    """
    cluster = _cluster(options)
    backend = backend_of(cluster, options.cluster or "")
    job, is_new = backend.submit(_request(options, cluster))
    _log(f"submitted as {job}" if is_new else f"{job} is running already; attached")
    if options.detach:
        print(job)
        return 0
    try:
        return _follow(backend, job)
    except KeyboardInterrupt:
        _log(f"\ndetached; {job} continues to run. The same command attaches again; this stops it:")
        _log(f"  {_command('stop', job, options.cluster)}")
        return 128 + interrupting_signal()


def render(options: argparse.Namespace) -> int:
    """Print the RayJob that `submit` would create, as YAML. Raises UserError without a Kubernetes cluster."""
    from cloze.infra.launch.kubernetes_jobs import render as render_rayjob

    cluster = _cluster(options)
    if not (cluster and cluster.kubernetes):
        raise UserError("--render: requires --cluster with the file of a Kubernetes cluster")
    print(render_rayjob(_request(options, cluster), cluster), end="")
    return 0


def list_jobs(options: argparse.Namespace) -> int:
    jobs = _backend(options).jobs()
    if options.json:
        print(json.dumps([info.plain() for info in jobs], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "state", "submitted", "took", "root", "", box=None, pad_edge=False, header_style="bold")
    for info in jobs:
        row = (info.id, info.state.value, _shown(info.submitted), _took(info), info.root, info.reason)
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def show_status(options: argparse.Namespace) -> int:
    info = _backend(options).info(options.job)
    if options.json:
        print(json.dumps(info.plain(), indent=1))
        return 0
    status = "" if info.exit_status is None else f", exit status {info.exit_status}"
    print(f"{info.id}: {info.state.value}{status}{f': {info.reason}' if info.reason else ''}")
    print(f"run {info.run}, root {info.root}")
    print(f"submitted {_shown(info.submitted)}, took {_took(info) or 'nothing yet'}")
    return 0


def show_logs(options: argparse.Namespace) -> int:
    for text in _backend(options).logs(options.job, follow=options.follow):
        print(text, end="", flush=True)
    return 0


def stop(options: argparse.Namespace) -> int:
    backend = _backend(options)
    info = backend.info(options.job)
    if info.state.is_terminal:
        _log(f"{options.job} has {_ENDINGS[info.state]}; there is nothing to stop")
        return 0
    backend.stop(options.job)
    if options.wait:
        info = _wait(backend, options.job)
        _log(f"{options.job} has {_ENDINGS[info.state]}")
    else:
        _log(f"{options.job} saves and ends; {_command('wait', options.job, options.cluster)} returns when it has")
    return 0


def wait(options: argparse.Namespace) -> int:
    info = _wait(_backend(options), options.job)
    if info.state is not JobState.SUCCEEDED:
        _log(f"cloze: {options.job} has {_ENDINGS[info.state]}{f': {info.reason}' if info.reason else ''}")
    return _exit_status(info)


_ENDINGS = {
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.STOPPED: "been stopped; the same command continues from the finished parts",
}


def _follow(backend: Backend, job: str) -> int:
    """Print the job's log until it ends. Returns its exit status."""
    end = ""
    for text in backend.logs(job, follow=True):
        print(text, end="", flush=True)
        end = (end + text)[-_TAIL_CHARACTERS:]
    info = _wait(backend, job)
    if info.state is JobState.STOPPED:
        _log(f"cloze: {job} was stopped; the same command continues from the finished parts")
    elif info.state is JobState.FAILED and info.reason and info.reason not in end:
        _log(f"cloze: {info.reason}")
    return _exit_status(info)


def _exit_status(info: JobInfo) -> int:
    """The exit status of the run; 130 if it was stopped, 1 if it has failed without one."""
    if info.state is JobState.SUCCEEDED:
        return 0
    return 130 if info.state is JobState.STOPPED else info.exit_status or 1


def _wait(backend: Backend, job: str) -> JobInfo:
    """The job when it has ended. Raises Unreachable after two minutes without an answer."""
    answered, pause = time.monotonic(), _POLL
    while True:
        try:
            info, answered = backend.info(job), time.monotonic()
            if info.state.is_terminal:
                return info
        except Unreachable:
            if time.monotonic() - answered > LOST_SECONDS:
                raise
        time.sleep(pause)
        pause = min(pause * 1.2, _LONGEST_POLL)


def _request(options: argparse.Namespace, cluster: ClusterConfig | None) -> JobRequest:
    defaults = cluster.overrides if cluster else ()
    config = named_runs.read(options.run, options.overrides, options.root, defaults=defaults)
    return JobRequest(config, options.until, tuple(options.force or ()))


def _backend(options: argparse.Namespace) -> Backend:
    return backend_of(_cluster(options), options.cluster or "")


def _cluster(options: argparse.Namespace) -> ClusterConfig | None:
    return load(ClusterConfig, options.cluster) if options.cluster else None


def _command(action: str, job: str, cluster: str | None) -> str:
    return f"cloze job {action} {job}" + (f" --cluster {shlex.quote(cluster)}" if cluster else "")


def _shown(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else ""


def _took(info: JobInfo) -> str:
    if info.started is None:
        return ""
    return duration(((info.ended or now()) - info.started).total_seconds())


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
