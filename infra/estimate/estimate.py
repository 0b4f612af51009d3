"""Work x rates x machines -> what a stage takes: time, CPU- and GPU-hours, dollars, memory, disk, requests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from cloze.infra.estimate.calibration import Calibration
from cloze.infra.estimate.machines import Machines
from cloze.infra.estimate.rates import Gpu, Rates, gpus, rates
from cloze.infra.estimate.work import Corpus, File, StageWork, Training, Unknown, add_finished, stage_work
from cloze.infra.planner import PlannedStage, Run
from cloze.pipeline.core.errors import MissingFile, UserError
from cloze.training.cluster.elastic import Placement
from cloze.training.model.hardware import data_sheet_flops

_TARGET_FRACTION = 0.4  # of a card's peak, where nobody has measured: docs/concepts/several-gpus.md


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes. Seconds are of all machines together at work; None where a figure does not apply."""

    stage: str
    seconds: float | None = None
    cpu_seconds: float | None = None
    gpu_seconds: float | None = None
    dollars: float | None = None
    memory_bytes: float | None = None  # of the largest machine's processes
    gpu_bytes: float | None = None  # of each GPU
    disk_bytes: float | None = None  # that stay
    scratch_bytes: float | None = None  # more, while the stage runs
    s3_requests: float | None = None
    measured: bool = True  # whether the speed of its GPUs was
    rates: tuple[str, ...] = ()  # names of those that it rests on
    notes: tuple[str, ...] = ()

    @property
    def plain(self) -> dict[str, Any]:
        """The estimate as JSON; figures have three significant digits."""
        return {
            name: float(f"{value:.3g}") if isinstance(value, float) else value
            for name, value in asdict(self).items()
            if name != "stage"
        }


def estimate_run(
    run: Run,
    planned: Sequence[PlannedStage],
    machines: Machines,
    calibration: Calibration | None,
    sizes: Mapping[str, int],
) -> list[StageEstimate | None]:
    """One estimate for each planned stage; None for one that is skipped. `sizes` are those of sources without files."""
    corpus, found, estimator = Corpus(), list[StageEstimate | None](), _Estimator(machines, rates(), calibration)
    for one in planned:
        artifact = run.artifact(one.stage.name) if one.action == "skip" else None
        if artifact:
            add_finished(one.stage, artifact, corpus)
            found.append(None)
            continue
        try:
            estimator.rates.used.clear()
            work = stage_work(one.stage, _files(run, one, sizes), corpus, estimator.rates)
            estimate = estimator.estimate(one.stage.name, work, run.root.is_s3)
            found.append(replace(estimate, rates=tuple(sorted(estimator.rates.used))))
        except Unknown as reason:
            found.append(StageEstimate(one.stage.name, measured=False, notes=(str(reason),)))
    return found


def _files(run: Run, planned: PlannedStage, sizes: Mapping[str, int]) -> dict[str, list[File]]:
    """Input name -> the stage's source files; for a source whose size is named, its pattern with that size."""
    files: dict[str, list[File]] = {}
    for name, of_input in planned.stage.sources.items():
        if name in sizes:
            files[name] = [File(of_input.path.patterns[0], sizes[name], exists=False)]
            continue
        try:
            files[name] = [File(file.uri, file.bytes) for file in run.source_files(of_input)]
        except MissingFile:
            files[name] = []
    return files


class _Estimator:
    """The rates of the machines."""

    def __init__(self, machines: Machines, of_reference: Rates, calibration: Calibration | None) -> None:
        self.machines, self.rates, self.calibration = machines, of_reference, calibration

    def estimate(self, stage: str, work: StageWork, on_s3: bool) -> StageEstimate:
        if work.training:
            return self._training(stage, work, work.training, on_s3)
        machines = self.machines
        cpu_seconds, serial = self._cpu_seconds(work.cpu), self._cpu_seconds(work.serial)
        used, cpus = machines.data_nodes()
        workers = max(1.0, min(cpus, work.items))
        seconds = serial + (cpu_seconds - serial) / workers + self.rates.value("start.seconds")
        seconds += work.requests * self.rates.value("requests.seconds") if on_s3 else 0.0
        largest = max(machines.kinds[number].cpus for number in machines.without_gpus)
        kind = stage.partition("-")[0]
        memory = self._memory(kind, "driver") + min(largest, workers) * self._memory(kind, "worker")
        return self._finish(
            StageEstimate(stage, seconds, cpu_seconds, memory_bytes=memory, notes=work.notes), work, used, on_s3
        )

    def _cpu_seconds(self, amounts: Mapping[str, float]) -> float:
        def factor(name: str) -> float:
            return self.calibration.factor(name) if self.calibration else 1.0

        return sum(amount * self.rates.value(name) * factor(name) for name, amount in amounts.items() if amount)

    def _memory(self, kind: str, process: str) -> float:
        names = {rate.name for rate in self.rates.rates}
        name = f"memory.{kind}.{process}"
        return self.rates.value(name if name in names else f"memory.other.{process}") * 1e6

    def _training(self, stage: str, work: StageWork, training: Training, on_s3: bool) -> StageEstimate:
        try:
            placement = Placement.fitting(
                self.machines.capacity,
                stage=stage,
                gpus=training.gpus,
                workers=training.workers,
                threads=training.threads,
                without_gpus=int(work.items),
            )
        except UserError as error:
            return _not_estimated(stage, work, str(error).removeprefix(f"{stage}: "))
        train = self._gpu_training if placement.gpus else self._cpu_training
        return train(stage, work, training, placement, on_s3)

    def _gpu_training(
        self, stage: str, work: StageWork, training: Training, placement: Placement, on_s3: bool
    ) -> StageEstimate:
        """Training on the GPUs of one or more kinds of machines: the slowest card sets the pace of all."""
        machines, count = self.machines, placement.workers
        used = machines.training_nodes(placement)
        kinds = [kind for kind, nodes in zip(machines.kinds, used, strict=True) if nodes]
        speeds = list[_Speed]()
        for kind in kinds:
            if (speed := _speed(kind.gpu, training)) is None:
                known = ", ".join(gpu.name for gpu in gpus().gpus)
                unknown = f"gpu of {kind.name} is {kind.gpu or 'not set'}, whose peak is not known; known: {known}"
                return _not_estimated(stage, work, unknown)
            speeds.append(speed)
        slowest = min(speeds, key=lambda speed: speed.flops)
        seconds = training.seconds or training.flops / (slowest.flops * count)
        needed = work.gpu_bytes(count) if work.gpu_bytes else None
        of_node = min(count, max(kind.gpus for kind in kinds))
        found = StageEstimate(
            stage,
            seconds + self.rates.value("start.seconds"),
            gpu_seconds=seconds * count,
            memory_bytes=self._memory("training", "driver") + of_node * self._memory("training", "worker"),
            gpu_bytes=needed,
            measured=slowest.measured or training.seconds is not None,
            notes=tuple(_training_notes(speeds, slowest, training, count, needed)),
        )
        return self._finish(found, work, used, on_s3)

    def _cpu_training(
        self, stage: str, work: StageWork, training: Training, placement: Placement, on_s3: bool
    ) -> StageEstimate:
        """Training on processors: two workers by default, or one for a fine-tuning task."""
        cores = placement.workers * placement.threads
        rate = self.rates.training(training.hidden_size, training.precision)
        factor = self.calibration.factor(rate.name) if self.calibration else 1.0
        cpu_seconds = training.flops / rate.value * factor
        seconds = training.seconds or cpu_seconds / cores
        note = f"on {cores} CPUs, as there is no GPU"
        memory = self._memory("training", "driver") + placement.workers * self._memory("training", "worker")
        found = StageEstimate(
            stage,
            seconds + self.rates.value("start.seconds"),
            seconds * cores,
            memory_bytes=memory,
            notes=(note, *work.notes),
        )
        return self._finish(found, work, self.machines.training_nodes(placement), on_s3)

    def _finish(self, found: StageEstimate, work: StageWork, used: Sequence[int], on_s3: bool) -> StageEstimate:
        """Add the dollars, the disk and the requests."""
        hours = (found.seconds or 0.0) / 3600
        per_hour = self.machines.dollars_per_hour(used)
        return replace(
            found,
            dollars=None if per_hour is None else per_hour * hours,
            disk_bytes=work.written,
            scratch_bytes=work.scratch,
            s3_requests=work.requests + hours * self.rates.value("requests.per_hour") if on_s3 else None,
        )


def _not_estimated(stage: str, work: StageWork, reason: str) -> StageEstimate:
    """A stage whose time is not known. Its disk is."""
    return StageEstimate(
        stage, disk_bytes=work.written, scratch_bytes=work.scratch, measured=False, notes=(*work.notes, reason)
    )


class _Speed(NamedTuple):
    """Operations per second that a card is expected to reach, and from what."""

    card: Gpu
    flops: float
    basis: str
    measured: bool


def _speed(gpu: str | None, training: Training) -> _Speed | None:
    """A fraction of the card's peak: of the measurement with the nearest model, or 40 % where there is none. None if
    the card is not known."""
    card, peak = gpus().find(gpu), data_sheet_flops(gpu or "", "fp32" if training.precision == "fp32" else "bf16")
    if card is None or peak is None:
        return None
    if not card.measured or training.precision == "fp32":
        note = f"{card.name}: not measured; in brackets the time at {_TARGET_FRACTION:.0%} of its peak"
        return _Speed(card, _TARGET_FRACTION * peak, note, False)
    nearest = min(card.measured, key=lambda speed: abs(speed.hidden_size - training.hidden_size))
    note = f"{card.name}: measured at {nearest.fraction:.0%} of its peak ({nearest.how})"
    return _Speed(card, nearest.fraction * peak, note, True)


def _training_notes(
    speeds: Sequence[_Speed], slowest: _Speed, training: Training, count: int, needed: float | None
) -> Iterator[str]:
    """What the time rests on, and a warning when a card has too little memory."""
    yield slowest.basis if training.seconds is None else f"its budget: {training.seconds / 3600:g} h"
    if len({speed.card.name for speed in speeds}) > 1:
        yield f"all GPUs are as fast as the slowest, {slowest.card.name}"
    if count > 1:
        yield "the exchange between GPUs is not counted: docs/concepts/several-gpus.md"
    least = min((speed.card for speed in speeds), key=lambda card: card.memory_gb)
    if needed and needed > least.memory_gb * 1e9:
        yield (
            f"needs {needed / 1e9:.0f} GB on each {least.name}, which has {least.memory_gb:g} GB: lower "
            "micro_batch_size, or set activation_checkpointing: true"
        )
