"""rates.yaml and gpus.yaml -> what a stage takes per amount of work, and the GPUs that are known."""

from dataclasses import dataclass, field
from functools import cache
from math import log
from pathlib import Path

from pydantic import Field

from cloze.pipeline.core.config import Config, load

_FOLDER = Path(__file__).parent

#: Where a rate comes from that nobody has measured or published.
SET = "set, not measured"


class Rate(Config):
    """One figure, and where it comes from."""

    name: str
    """What it is, such as extract.wikipedia."""
    value: float = Field(ge=0)
    """The figure."""
    unit: str
    """Its unit."""
    measured: str
    """Day of the measurement."""
    machine: str
    """Machine that it was measured on (docs/benchmarks.md), or - if it does not depend on one."""
    how: str
    """Command that measures it, or the source, or SET."""


class _RatesFile(Config):
    """rates.yaml."""

    rates: list[Rate]
    """The rates."""


@dataclass(frozen=True)
class Rates:
    """All rates, and the names of those that were used."""

    rates: tuple[Rate, ...]
    used: set[str] = field(default_factory=set)

    def value(self, name: str) -> float:
        return self.rate(name).value

    def rate(self, name: str) -> Rate:
        self.used.add(name)
        return next(rate for rate in self.rates if rate.name == name)

    def training(self, hidden_size: int, precision: str) -> Rate:
        """Operations per second of one CPU, of the measured model whose width is nearest."""
        return self.nearest(f"training.{'fp32' if precision == 'fp32' else 'bf16'}.", hidden_size)

    def nearest(self, prefix: str, size: int) -> Rate:
        """The rate whose name is the prefix and the number that is nearest to `size`, as a ratio."""
        measured = [rate for rate in self.rates if rate.name.startswith(prefix)]
        nearest = min(measured, key=lambda rate: abs(log(int(rate.name.removeprefix(prefix)) / size)))
        return self.rate(nearest.name)


class TrainingSpeed(Config):
    """The fraction of a GPU's peak that pretraining reached in one measurement."""

    hidden_size: int
    """Width of the model."""
    max_seq_length: int
    """Length of the sequences."""
    fraction: float = Field(gt=0, lt=1)
    """Operations of real tokens (BertConfig.training_flops) over the peak of the data sheet."""
    how: str
    """Command, machine and date."""


class Gpu(Config):
    """A card. Its peak is in training/model/hardware.py, whose data sheets are named here."""

    name: str
    """Name in a cluster's file, such as A100-40GB."""
    memory_gb: float = Field(gt=0)
    """Memory, in 10^9 bytes."""
    source: str
    """The vendor's data sheet."""
    measured: list[TrainingSpeed] = Field(default=[])
    """Measured training speeds; empty where nobody has measured one."""


class Gpus(Config):
    """All known cards."""

    gpus: list[Gpu]
    """The cards."""

    def find(self, name: str | None) -> Gpu | None:
        """The card of that name; a name that begins with it, such as H100-SXM5-80GB, means the same card."""
        matches = [gpu for gpu in self.gpus if name and name.replace(" ", "-").upper().startswith(gpu.name.upper())]
        return max(matches, key=lambda gpu: len(gpu.name), default=None)


def rates() -> Rates:
    """All rates, none of them used."""
    return Rates(_rates())


@cache
def _rates() -> tuple[Rate, ...]:
    return tuple(load(_RatesFile, _FOLDER / "rates.yaml").rates)


@cache
def gpus() -> Gpus:
    return load(Gpus, _FOLDER / "gpus.yaml")
