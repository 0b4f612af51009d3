"""Promotions and rollbacks of a name -> files <root>/promoted/NAME/00001.json, 00002.json, ..., one for each event.

A file is never replaced: an event takes the next free number by a conditional write, so that of two that are written at
the same time both are kept, one after the other. The last event tells which model is promoted.
"""

import json
import re
from typing import Any, Literal

from pydantic import ValidationError

from cloze.infra.checks.records import StageFigures
from cloze.pipeline.core.artifacts import Fact
from cloze.pipeline.core.conditional_writes import Unsupported, create
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads

_NUMBER = re.compile(r"(\d{5,})\.json")


class PromotedStage(StageFigures):
    """The output of a stage: <root>/<folder>/<fingerprint>, with the figures that later runs are compared with."""

    folder: str


class Event(Fact):
    """A promotion, or a rollback: it has what the event that it returns to has, whose number is `restores`.

    `run` and `config` (YAML) are the run's that was promoted, `init` the digest or folder that its pretraining started
    from, `digest` its final checkpoint's. `by` is who@where, `when` in UTC.
    """

    number: int
    kind: Literal["promote", "rollback"]
    digest: str
    run: str
    stages: dict[str, PromotedStage]
    config: str
    init: str | None = None
    by: str
    when: str
    why: str = ""
    restores: int | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """The event as plain JSON, without the configuration and the figures."""
        stages = {name: {"folder": of.folder, "fingerprint": of.fingerprint} for name, of in self.stages.items()}
        return {**self.model_dump(exclude={"config", "stages"}), "stages": stages}

    def __str__(self) -> str:
        what = f"back to event {self.restores}" if self.kind == "rollback" else "promoted"
        return f"{self.number} {self.when} {what}: {self.run} {self.digest[:12]} by {self.by}{self._reason}"

    @property
    def _reason(self) -> str:
        return f": {self.why}" if self.why else ""

    def is_output_of(self, other: "Event") -> bool:
        """Whether both are the same outputs."""
        return {name: of.fingerprint for name, of in self.stages.items()} == {
            name: of.fingerprint for name, of in other.stages.items()
        }


def events(root: Location, name: str) -> list[Event]:
    """All events of a name, the oldest first. Raises UserError for one that is damaged."""
    files = [_file(root, name, number) for number in range(1, _last_number(root, name) + 1)]
    found = map_in_threads(_read, files)
    return [event for event in found if event]


def current(root: Location, name: str) -> Event | None:
    """The event that tells which model is promoted under this name; None if none is."""
    number = _last_number(root, name)
    return _read(_file(root, name, number)) if number else None


def names(root: Location) -> list[str]:
    """The names under which models are promoted."""
    return sorted(folder.name for folder in (root / "promoted").folders())


def earlier(history: list[Event]) -> Event | None:
    """The promotion that a rollback returns to: that before the promoted one, without those that were rolled back."""
    promoted = standing(history)
    return next((event for event in reversed(promoted[:-1]) if not event.is_output_of(promoted[-1])), None)


def rolled_back(history: list[Event]) -> list[Event]:
    """The promotions that were rolled back, the oldest first, without outputs that were promoted again."""
    promoted = standing(history)
    return [
        event for event in history if event.kind == "promote" and not any(event.is_output_of(past) for past in promoted)
    ]


def standing(history: list[Event]) -> list[Event]:
    """The promotions that were not rolled back, the oldest first: the last one is promoted."""
    promoted: list[Event] = []
    for event in history:
        if event.kind == "promote":
            promoted.append(event)
        else:
            promoted = [past for past in promoted if past.number <= (event.restores or 0)]
    return promoted


def append(root: Location, name: str, event: Event, after: int) -> Event | None:
    """Store an event as the one after the number `after` (0: as the first); returns it with its number.

    None if another process has stored one since: what this one was decided by may have changed.
    """
    event = event.model_copy(update={"number": after + 1})
    data = json.dumps(event.model_dump(), indent=1).encode()
    return event if _create(_file(root, name, event.number), data) else None


def _create(file: Location, data: bytes) -> bool:
    try:
        return create(file, data)
    except Unsupported:  # then nobody has promised that two at the same time are both kept
        if file.exists():
            return False
        file.write_bytes(data)
        return True


def _last_number(root: Location, name: str) -> int:
    """The highest number that is used. A listing may lag: the files after its last are looked up by their names."""
    listed = [_NUMBER.fullmatch(file.name) for file in (root / "promoted" / name).files()]
    number = max((int(match[1]) for match in listed if match), default=0)
    while _file(root, name, number + 1).is_file():
        number += 1
    return number


def _file(root: Location, name: str, number: int) -> Location:
    return root / "promoted" / name / f"{number:05}.json"


def _read(file: Location) -> Event | None:
    try:
        return Event.model_validate(json.loads(file.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, ValidationError) as error:
        raise UserError(f"{file}: is damaged; restore it, or delete it: the event before it then counts") from error
