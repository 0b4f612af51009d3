"""`cloze promote`: what it prints."""

import argparse
import json
import re
from typing import Any

from cloze.infra import named_runs
from cloze.infra.planner import Run
from cloze.infra.promote import history_of, promote, promote_again, roll_back
from cloze.infra.promotion import registry
from cloze.infra.promotion.registry import Event
from cloze.pipeline.core.config import NAME
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


def promote_run(options: argparse.Namespace, run: Run) -> int:
    name = _checked(options.name or run.config.name)
    before = registry.current(run.root, name)
    return _print_promotion(options, name, before, promote(run, name, options.why))


def promote_event(options: argparse.Namespace) -> int:
    root, name = _root_and_name(options)
    before = registry.current(root, name)
    return _print_promotion(options, name, before, promote_again(root, name, options.event, options.why))


def _print_promotion(options: argparse.Namespace, name: str, before: Event | None, event: Event) -> int:
    if options.json:
        return _print(event.summary)
    if before and event.number == before.number:
        print(f"{event.run} {event.digest[:12]} is promoted as {name} already, since {event.when}")
    else:
        was = f"; before: {before.run} {before.digest[:12]}" if before else ""
        print(f"promoted {event.run} {event.digest[:12]} as {name}{was}")
    return 0


def roll_back_run(options: argparse.Namespace) -> int:
    root, name = _root_and_name(options)
    before = registry.current(root, name)
    event = roll_back(root, name, options.why)
    if options.json:
        return _print(event.summary)
    promoted = next(past for past in registry.events(root, name) if past.number == event.restores)
    was = f"; no longer: {before.run} {before.digest[:12]}" if before else ""
    print(f"{name} is again {event.run} {event.digest[:12]}, promoted {promoted.when} by {promoted.by}{was}")
    return 0


def list_events(options: argparse.Namespace) -> int:
    root, name = _root_and_name(options)
    history = history_of(root, name)
    if options.json:
        return _print([event.summary for event in history])
    for event in history:
        print(event)
    return 0


def _root_and_name(options: argparse.Namespace) -> tuple[Location, str]:
    """The root, and the name of promoted models: RUN itself if models were promoted under it, as with --as."""
    where = Location(options.root or named_runs.DEFAULT_ROOT).absolute()
    if not options.name and not options.overrides and options.run in registry.names(where):
        return where, options.run
    config = named_runs.read(options.run, options.overrides, options.root)
    return Location(config.root).absolute(), _checked(options.name or config.name)


def _checked(name: str) -> str:
    if re.fullmatch(NAME, name):
        return name
    raise UserError(f"--as {name}: is not a name; give letters, digits, - and _")


def _print(value: Any) -> int:
    print(json.dumps(value, indent=1))
    return 0
