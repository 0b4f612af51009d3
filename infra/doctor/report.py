"""The checks -> one line each, or JSON.

This machine may lack packages: it imports the standard library only until all packages are known to be there.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain

from cloze.infra.doctor.check import Check, warning
from cloze.infra.doctor.machine_checks import machine_checks
from cloze.infra.doctor.machine_facts import machine_facts

_COLOURS = {"ok": 32, "warning": 33, "missing": 31}  # ANSI codes
_FAILED = 2  # the exit status if something is missing
_HERE = "this machine"


def doctor(
    run: str | None, overrides: Sequence[str], root: str | None, cluster_path: str | None, *, as_json: bool
) -> int:
    """Print what is missing for a run, on this machine, on S3 and on a cluster. Returns the exit status: 0, or 2 if
    something is missing. Raises UserError for an invalid configuration.
    """
    facts = machine_facts()
    checks = list(machine_checks(facts))
    if any(check.check == "packages" and check.state == "missing" for check in checks):
        checks.append(warning("other checks", "not made without these packages", "install them first"))
        others: Iterable[tuple[str, Check]] = ()
    else:
        from cloze.infra.doctor.run_checks import run_checks

        others = run_checks(_HERE, facts, run, overrides, root, cluster_path)
    found = chain(((_HERE, check) for check in checks), others)
    states = _print_json(found) if as_json else _print_lines(found)
    return _FAILED if "missing" in states else 0


def _print_lines(checks: Iterable[tuple[str, Check]]) -> set[str]:
    """Print each check when it is made. Returns the states."""
    states, last = set[str](), ""
    for where, check in checks:
        if where != last:
            print(where)
        state = f"{check.state:<8}"
        if sys.stdout.isatty():
            state = f"\033[{_COLOURS[check.state]}m{state}\033[0m"
        print(f"  {state} {check.check:<18} {'; '.join(filter(None, (check.found, check.fix)))}", flush=True)
        states.add(check.state)
        last = where
    return states


def _print_json(checks: Iterable[tuple[str, Check]]) -> set[str]:
    found = list(checks)
    print(json.dumps([{"where": where, **asdict(check)} for where, check in found], indent=1))
    return {check.state for _, check in found}
