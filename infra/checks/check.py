"""What a check is: the figures that it takes from a stage's output, and how it judges each of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from cloze.infra.checks_config import ChecksConfig
from cloze.pipeline.core.artifacts import Fact, Manifest
from cloze.pipeline.core.file_digests import SourceFile


class Figure(Fact):
    """A number of a stage's output, with its 95 % interval if it is an estimate.

    `basis` tells what it was measured on, as digests by their names: figures of another basis are not compared.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    basis: dict[str, str] = Field(default={})


@dataclass(frozen=True)
class Measured:
    """A finished stage, as the checks see it."""

    manifest: Manifest
    upstream: Mapping[str, Manifest] = field(default_factory=dict)  # of all stages that it depends on, by name
    settings: Mapping[str, str] = field(default_factory=dict)  # digests of those stages' settings, by name
    reads: frozenset[str] = frozenset()  # the names of its inputs that are other stages' outputs
    sources: Callable[[], Sequence[SourceFile]] = tuple  # the user's files that it read, if they are still there


@dataclass(frozen=True)
class Verdict:
    """Whether a figure passes. `limit` is the worst value that does."""

    passed: bool
    message: str
    limit: float | None = None


@dataclass(frozen=True)
class Check:
    """A check of a stage's output.

    `measure` returns the figures of an output. `judge` compares one with its reference. `keys` are those of the
    configuration that limit it; the check is off while all are null or false. `promoted`: the reference is not that of
    the last run that passed, but the lowest or the highest of the promoted models. `absent` is the reference of a
    figure that the reference run did not have.
    """

    name: str
    keys: tuple[str, ...]
    measure: Callable[[Measured], Iterable[Figure]]
    judge: Callable[[Figure, Figure | None, ChecksConfig], Verdict]
    promoted: Literal["lowest", "highest"] | None = None
    needs_reference: bool = True
    absent: float | None = None

    def is_off(self, config: ChecksConfig) -> bool:
        limits = [getattr(config, key) for key in self.keys]
        return all(limit is None or limit is False for limit in limits)  # 0.0 is a limit


Figures = dict[str, list[Figure]]  # by the name of their check
