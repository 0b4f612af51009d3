"""What other machines have: facts that a process with another environment finds, and changed facts of this one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache

from cloze.infra.doctor.check import Check
from cloze.infra.doctor.machine_checks import machine_checks
from cloze.infra.doctor.machine_facts import MachineFacts, machine_facts
from tests.paths import REPOSITORY

_CODE = """
import json
from dataclasses import asdict
from cloze.infra.doctor.machine_facts import machine_facts
print(json.dumps(asdict(machine_facts())))
"""


@cache
def this_machine() -> MachineFacts:
    return machine_facts()


def facts_with(
    *paths: object,
    python: str = sys.executable,
    prepare: Callable[[], None] | None = None,
    **variables: str,
) -> MachineFacts:
    """The facts of a process with these environment variables, whose packages are first searched in `paths`."""
    env = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(map(str, (*paths, REPOSITORY)))}
    command = [python, "-c", _CODE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60, preexec_fn=prepare)
    return MachineFacts.from_json(json.loads(done.stdout))


def result(name: str, facts: MachineFacts) -> Check:
    """The check of that name."""
    [check] = [check for check in machine_checks(facts) if check.check == name]
    return check
