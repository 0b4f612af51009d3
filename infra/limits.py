"""`max_hours` and `max_cost`: what the attempts of a run have spent so far, and the end of the run at a limit.

At a limit this process stops as at SIGTERM: training saves, and finished parts are kept. What each attempt has spent is
stored in a file of its own in the folder ROOT/runs/NAME.spent, so that two at once lose nothing of each other. The next
attempt continues to count from their sum. The folder is deleted when the run is finished.
"""

import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import ValidationError

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import NODE_GROUP, NodeType, head_price, node_types
from cloze.pipeline.core.signals import Ending, allow_seconds_to_end, interrupt_with
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import run_periodically

_POLL_SECONDS, _WRITE_SECONDS = 2.0, 30.0
_HEAD = "node:__internal_head__"  # the resource with which Ray marks the head
_SAVE_SECONDS = 300.0  # that training may take to save at a limit: nothing kills the process then


class Spent(Config, strict=False):
    """What an attempt of a run has spent."""

    hours: float = 0.0
    """Hours by the clock."""
    dollars: float = 0.0
    """Dollars for the nodes of the cluster, while they were there."""


@contextmanager
def spending_limited(config: RunConfig, *, whole_run: bool) -> Iterator[None]:
    """While inside, interrupt the main thread with SIGTERM when the run has spent `max_hours` or `max_cost`.

    `whole_run`: a block that ends without an exception has finished the run. Raises UserError when the limit is already
    spent, and for `max_cost` when the prices of the nodes are not known. What is spent is stored at the end if the disk
    or S3 does it: the error of the block is the one to see.
    """
    if config.max_hours is None and config.max_cost is None:
        yield
        return
    watch = _Watch(config)
    if message := watch.exceeded():
        raise UserError(message)
    try:
        with run_periodically(watch.tick, _POLL_SECONDS):
            yield
    finally:
        watch.count()
        try:
            watch.write()
        except (OSError, UserError) as error:
            print(f"warning: what this attempt has spent is not counted: {error}", file=sys.stderr)
    if whole_run:
        watch.folder.delete()


class _Watch:
    """Adds up what this attempt spends, and what the others of the run have spent."""

    def __init__(self, config: RunConfig):
        self._config = config
        self.folder = Location(config.root).absolute() / "runs" / f"{config.name}.spent"
        self._file = self.folder / f"{uuid.uuid4().hex}.json"
        self._own, self._others = Spent(), self._read_others()
        types = node_types()
        self._priced_types = types if all(kind.dollars_per_hour is not None for kind in types) else []
        if config.max_cost is not None and not self._priced_types:
            raise UserError(
                f"max_cost: {config.max_cost:g} needs the prices of the machines, which are known only in a job whose "
                "cluster's file names the instance_type of its node_types (configs/prices.yaml); set max_hours instead"
            )
        self._last = self._written = time.monotonic()

    def count(self) -> None:
        """Add what was spent since the last call."""
        now = time.monotonic()
        hours, self._last = (now - self._last) / 3600, now
        dollars = hours * dollars_per_hour(_nodes(), self._priced_types, head_price()) if self._priced_types else 0.0
        self._own = Spent(hours=self._own.hours + hours, dollars=self._own.dollars + dollars)

    def tick(self) -> bool:
        """Count, and interrupt the run at a limit. Returns whether to continue."""
        self.count()
        if message := self.exceeded():
            self._end_run(message)
            return False
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self.write()
            self._others = self._read_others()
        return True

    def exceeded(self) -> str:
        """The message about the limit that is spent; empty if none is."""
        all_spent = [self._own, *self._others]
        attempts = f"{len(all_spent)} attempt{'s' if len(all_spent) > 1 else ''}"
        for key, limit, spent, unit in (
            ("max_hours", self._config.max_hours, sum(one.hours for one in all_spent), "hours"),
            ("max_cost", self._config.max_cost, sum(one.dollars for one in all_spent), "dollars"),
        ):
            if limit is not None and spent >= limit:
                return (
                    f"{key}: {limit:g} {unit} are spent ({attempts}); what is finished is kept: the same command "
                    f"with a higher {key} continues"
                )
        return ""

    def write(self) -> None:
        self._written = time.monotonic()
        self._file.write_text(self._own.model_dump_json(indent=1))

    def _read_others(self) -> list[Spent]:
        """What the other attempts have stored, those that are at work now included. Raises UserError."""
        return [*filter(None, map(_read, (file for file in self.folder.files() if file != self._file)))]

    def _end_run(self, message: str) -> None:
        allow_seconds_to_end(_SAVE_SECONDS)
        interrupt_with(Ending(f"cloze: {message}", 2), signal.SIGTERM)
        with suppress(OSError):  # of a full disk, or of S3
            self.write()


def _read(file: Location) -> Spent | None:
    try:
        return Spent.model_validate_json(file.read_bytes())
    except FileNotFoundError:  # another attempt has just finished the run
        return None
    except ValidationError as error:
        raise UserError(f"{file}: is damaged; delete it to count without that attempt") from error


def dollars_per_hour(nodes: Sequence[dict[str, Any]], types: Sequence[NodeType], of_head: float | None) -> float:
    """The price of the nodes that are there, whose types have prices.

    A node of no known type has the highest price of those with GPUs, or of those without. The head is not counted if
    neither its own price nor that of a type without GPUs is known: the price of a machine with GPUs is many times its.
    """

    def of_node(node: dict[str, Any]) -> float:
        group, resources = node.get("Labels", {}).get(NODE_GROUP), node["Resources"]
        is_head = _HEAD in resources
        if is_head and of_head is not None:
            return of_head
        shape = (resources.get("CPU", 0), resources.get("GPU", 0))
        named = [kind for kind in types if kind.name == group]
        matching = named or [kind for kind in types if (kind.cpus, kind.gpus) == shape]
        similar = [kind for kind in types if bool(kind.gpus) == bool(shape[1])]
        priced = matching or similar or ([] if is_head else types)
        return max((kind.dollars_per_hour or 0.0 for kind in priced), default=0.0)

    return sum(of_node(node) for node in nodes if node["Alive"]) if types else 0.0


def _nodes() -> list[dict[str, Any]]:
    import ray
    from ray.exceptions import RayError

    with suppress(RayError):  # the session has just ended
        return ray.nodes() if ray.is_initialized() else []
    return []
