"""What the weekly campaign has left behind -> verdicts, and their table."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import dagster

from cloze.infra import named_runs
from cloze.infra.planner import Run
from cloze.infra.stage_history import StageHistory
from cloze.infra.workflow.names import asset_key
from cloze.infra.workflow.outputs import is_known
from tests.weekly.corpus import NAME
from tests.weekly.service import Service

_NOT_COMPARED = ("checkpoints/", "metrics", "tensorboard/")
_UNFINISHED = {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}


class Verdict(NamedTuple):
    fact: str
    holds: bool
    figures: str


class Facts(NamedTuple):
    """What the campaign has seen itself."""

    folder: Path
    most_at_once: int
    kills: list[str]
    early_runs: int
    bad_fingerprint: str


def verdicts(facts: Facts, service: Service) -> Iterator[Verdict]:
    records = service.runs()
    statuses = [record.dagster_run.status.value for record in records]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
    yield Verdict("runs were started, and kills hit them", len(records) > 2 and bool(facts.kills), counts)
    kills = ", ".join(f"{facts.kills.count(kind)} {kind}" for kind in sorted(set(facts.kills)))
    yield Verdict("never two runs at once on the root", facts.most_at_once <= 1, f"most: {facts.most_at_once}; {kills}")
    left = [status for status in statuses if status in _UNFINISHED]
    yield Verdict("no run is left unfinished in the history", not left, f"{len(left)} left")
    yield from _outputs(facts.folder)
    yield from _history(facts.folder)
    yield from _promotions(facts)
    early = facts.early_runs
    yield Verdict("a dump that is half written starts no run", early == 0, f"{early} runs while it was written")


def _outputs(folder: Path) -> Iterator[Verdict]:
    """Compares the last outputs with those of a run that nobody has disturbed."""
    quiet = f"root={folder}/quiet"
    command = [sys.executable, "-m", "cloze.infra.cli", "run", f"{folder}/weekly.yaml", quiet]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    yield Verdict("a quiet run on the last dump succeeds", done.returncode == 0, done.stderr.strip().splitlines()[-1])
    if done.returncode == 0:
        found, expected = _files(folder), _files(folder, quiet)
        differing = [stage for stage in expected if found.get(stage) != expected[stage] and stage != "report"]
        yield Verdict(
            "the last outputs equal those of the quiet run", not differing, ", ".join(differing) or "all equal"
        )


def _files(folder: Path, *overrides: str) -> Mapping[str, Mapping[str, str]]:
    """Stage -> file -> its digest, of the outputs for the present dump; of a checkpoint (its folder has a random name)
    the digest of its weights. Files with times are not compared."""
    run = Run(named_runs.read(f"{folder}/weekly.yaml", overrides))
    found = {}
    for name in run.stages:
        if artifact := run.artifact(name):
            manifest = artifact.manifest
            found[name] = {
                "checkpoint": manifest.facts.get("checkpoint", {}).get("digest", ""),
                **{
                    file: record.sha256 for file, record in manifest.files.items() if not file.startswith(_NOT_COMPARED)
                },
            }
    return found


def _history(folder: Path) -> Iterator[Verdict]:
    run = Run(named_runs.read(f"{folder}/weekly.yaml"))
    with dagster.DagsterInstance.get() as instance:
        missing = [
            name
            for name, finished in StageHistory(run.root, NAME).outputs(run.unresolved_stages).items()
            if not is_known(instance, asset_key(NAME, name), finished.artifact.fingerprint)
        ]
    yield Verdict("the history has every stage's last output", not missing, ", ".join(missing) or "all there")


def _promotions(facts: Facts) -> Iterator[Verdict]:
    files = sorted((facts.folder / "root/promoted" / NAME).glob("*.json"))
    events = [json.loads(file.read_text()) for file in files]
    of_extract = [event["stages"]["extract"]["fingerprint"] for event in events]
    yield Verdict("models were promoted after their checks", len(set(of_extract)) > 1, f"{len(events)} promotions")
    yield Verdict(
        "the bad dump was read, failed its check and was not promoted",
        bool(facts.bad_fingerprint) and facts.bad_fingerprint not in of_extract,
        facts.bad_fingerprint[:12] or "its extract was never finished",
    )
    last = of_extract[-1:] == [_fingerprint(facts.folder)]
    yield Verdict("the model of the last dump is promoted", last, (of_extract or ["none"])[-1][:12])


def _fingerprint(folder: Path) -> str | None:
    return Run(named_runs.read(f"{folder}/weekly.yaml")).fingerprint("extract")


def print_table(found: list[Verdict]) -> None:
    width = max(len(verdict.fact) for verdict in found)
    for verdict in found:
        print(f"{'ok   ' if verdict.holds else 'WRONG'} {verdict.fact:<{width}}  {verdict.figures}")
