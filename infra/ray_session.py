"""A Ray session for the stages that need one: the cluster this process belongs to, or one started on this machine."""

import logging
import os
import secrets
import shlex
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cloze.pipeline.core.signals import python_handler_kept

#: Workers and jobs import the package from this folder, also when it is not installed.
PACKAGE_ROOT = str(Path(__file__).absolute().parents[2])

#: Environment variable with the Python interpreter of a submitted job's workers; by default the one that runs Ray.
WORKERS_PYTHON = "CLOZE_WORKERS_PYTHON"

#: Set before Ray starts: no usage statistics, no warnings that a user cannot act on (one is about the number of
#: processes, of which each of several worker groups has seven).
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_maximum_startup_concurrency": str(max(16, os.cpu_count() or 1)),
}


class LazyRaySession:
    """The Ray session that the stages of a run share. It starts when the first of them needs it."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._is_started = False

    def start(self) -> None:
        """Start it, unless it is started."""
        if not self._is_started:
            self._resources.enter_context(ray_session())
            self._is_started = True

    def close(self) -> None:
        """End it, if it is started."""
        self._resources.close()
        self._is_started = False


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray: to the cluster of RAY_ADDRESS (set in a submitted job), or to a local one that ends with the
    context.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # Without "local" Ray would join any cluster that runs on this machine.
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        # Without a token Ray writes one to a file in HOME, which later clusters would require.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    path = os.pathsep.join(filter(None, [PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]))
    variables = {"PYTHONPATH": path, "THP_MEM_ALLOC_ENABLE": "1"}  # torch allocates huge pages: fewer pages to zero
    environment: dict[str, Any] = {"env_vars": variables}
    if python := os.environ.get(WORKERS_PYTHON):
        environment["py_executable"] = shlex.quote(python)  # Ray puts it into a shell command
    ended = threading.Event()
    started = _init_in_thread(ended, **options, runtime_env=environment)
    try:
        with python_handler_kept(signal.SIGTERM):  # Ray's own would dump its stack
            started.result()
        yield
    finally:
        if not started.cancel():
            ray.shutdown()
        ended.set()


def _init_in_thread(ended: threading.Event, **options: Any) -> Future[None]:
    """Call ray.init. In the main thread Ray would replace the handler of SIGTERM, and a signal would wait for it.

    The thread lives until `ended` is set: Linux kills Ray's processes with the thread that has started them. If the
    future is cancelled while Ray starts, the thread ends Ray afterwards: ray.shutdown during ray.init prints errors.
    """
    import ray

    started = Future[None]()

    def init() -> None:
        failure = None
        try:
            ray.init(**options)
        except BaseException as error:
            failure = error
        if not started.set_running_or_notify_cancel():
            ray.shutdown()
        elif failure:
            started.set_exception(failure)
        else:
            started.set_result(None)
            ended.wait()

    threading.Thread(target=init, daemon=True).start()
    return started
