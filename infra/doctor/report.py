"""The checks -> one line each, or JSON."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from cloze.infra import named_runs
from cloze.infra.doctor.check import Check
from cloze.infra.doctor.local import local_checks
from cloze.infra.doctor.machine_checks import machine_checks
from cloze.infra.doctor.machine_facts import machine_facts
from cloze.infra.doctor.store import store_checks
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.pipeline.core.config import input_paths, load
from cloze.pipeline.core.storage import Location

_STYLES = {"ok": "green", "warning": "yellow", "missing": "red"}
_FAILED = 2  # the exit status if something is missing


def doctor(run: str | None, overrides: list[str], root: str | None, cluster_path: str | None, *, as_json: bool) -> int:
    """Print what is missing for a run, on this machine, on S3 and on a cluster. Returns the exit status: 0, or 2 if
    something is missing.
    """
    cluster = load(ClusterConfig, cluster_path) if cluster_path else None
    location, sources = Location(root or "runs").absolute(), list[str]()
    if run:
        config = named_runs.read(run, overrides, root, defaults=cluster.overrides if cluster else ())
        location = Location(config.root).absolute()
        patterns = (pattern for path in input_paths(config) if not path.mark.files_in for pattern in path.patterns)
        sources = [pattern for pattern in patterns if pattern.startswith("s3://")]
    checks = _checks(location, sources, cluster, cluster_path or "")
    found = _print_json(checks) if as_json else _print_lines(checks)
    return _FAILED if any(check.state == "missing" for check in found) else 0


def _checks(
    root: Location, sources: list[str], cluster: ClusterConfig | None, cluster_path: str
) -> Iterator[tuple[str, Check]]:
    """Each check, and where it was made."""
    facts = machine_facts()
    for check in (*machine_checks(facts), *local_checks(facts, root)):
        yield "this machine", check
    for check in store_checks(root, sources):
        yield (root.uri if root.is_s3 else "S3"), check
    if cluster:
        from cloze.infra.doctor.cluster import cluster_checks

        yield from cluster_checks(cluster, cluster_path)


def _print_lines(checks: Iterable[tuple[str, Check]]) -> list[Check]:
    console = Console(highlight=False, soft_wrap=True)
    printed, last = list[Check](), ""
    for where, check in checks:
        if where != last:
            console.print(where, style="bold", markup=False)
        state = (f"  {check.state:<8} ", _STYLES[check.state])
        console.print(Text.assemble(state, f"{check.check:<18} ", "; ".join(filter(None, (check.found, check.fix)))))
        printed.append(check)
        last = where
    return printed


def _print_json(checks: Iterable[tuple[str, Check]]) -> list[Check]:
    found = list(checks)
    print(json.dumps([{"where": where, **asdict(check)} for where, check in found], indent=1))
    return [check for _, check in found]
