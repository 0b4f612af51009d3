"""A Ray session for the stages that need one: the cluster this process belongs to, or one started on this machine."""

import logging
import os
import secrets
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloze.pipeline.core.signals import reinstall_python_handler

# Workers import the package from wherever the driver found it, also when it is not installed.
_PACKAGE_ROOT = str(Path(__file__).absolute().parents[2])

#: Names the interpreter of the workers of a submitted job; without it they have the one with which Ray was started.
WORKERS_PYTHON = "CLOZE_WORKERS_PYTHON"

#: What Ray is told before it starts: no statistics sent home, no warnings that no user can mend.
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
}


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Inside, Ray runs: RAY_ADDRESS's cluster (a submitted job has one), or a local one that ends with us."""
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # "local", or Ray would join whatever cluster somebody has started on this machine.
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        # A token of its own: without one Ray leaves a file in HOME, which later clusters would ask for.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]))
    variables = {"PYTHONPATH": path, "THP_MEM_ALLOC_ENABLE": "1"}  # torch's large pages: fewer of them to clear
    environment: dict[str, Any] = {"env_vars": variables}
    if python := os.environ.get(WORKERS_PYTHON):
        environment["py_executable"] = shlex.quote(python)  # it is put into a shell's command
    ray.init(**options, runtime_env=environment)
    reinstall_python_handler(signal.SIGTERM)  # Ray's own would dump its stack
    try:
        yield
    finally:
        ray.shutdown()
