"""Estimates -> the table that `cloze plan --cluster` prints, and the lines below it."""

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cloze.infra.display import duration, size
from cloze.infra.estimate import calibration
from cloze.infra.estimate.calibration import Calibration
from cloze.infra.estimate.estimate import StageEstimate
from cloze.infra.estimate.machines import Machines
from cloze.infra.estimate.rates import SET, rates
from cloze.infra.launch.cluster_config import NodeType
from cloze.infra.launch.prices import Prices
from cloze.infra.planner import PlannedStage


def print_estimates(
    planned: Sequence[PlannedStage],
    estimates: Sequence[StageEstimate | None],
    machines: Machines,
    prices: Prices | None,
    calibrated: Calibration | None,
) -> None:
    """Print a row for each stage, the sum, what each figure rests on, and what is not counted."""
    names = ("stage", "", "time", "CPU", "GPU", "dollars", "memory", "GPU memory", "disk", "scratch", "S3 requests")
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for one, estimate in zip(planned, estimates, strict=True):
        action = "run" if one.waits_for else one.action
        table.add_row(*map(Text, _row(one.stage.name, action, estimate)))
    known = [estimate for estimate in estimates if estimate and estimate.seconds is not None]
    table.add_row(*map(Text, _row("all", "", _sum(known))))
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    console.print(table)
    for line in _lines(estimates, known, machines, prices, calibrated):
        console.print(line, soft_wrap=True, markup=False)


def _row(stage: str, action: str, estimate: StageEstimate | None) -> tuple[str, ...]:
    if estimate is None:
        return stage, action, *[""] * 9
    if estimate.seconds is None:
        return stage, action, "unknown", *[""] * 8
    time = duration(estimate.seconds)
    return (
        stage,
        action,
        time if estimate.measured else f"not measured ({time})",
        _hours(estimate.cpu_seconds),
        _hours(estimate.gpu_seconds),
        "" if estimate.dollars is None else f"{estimate.dollars:,.2f}",
        _size(estimate.memory_bytes),
        _size(estimate.gpu_bytes),
        _size(estimate.disk_bytes),
        _size(estimate.scratch_bytes),
        "" if estimate.s3_requests is None else f"{float(f'{estimate.s3_requests:.2g}'):,.0f}",
    )


def _sum(known: Sequence[StageEstimate]) -> StageEstimate:
    """All stages together; the largest of what only one stage needs at a time."""

    def values(name: str) -> list[float]:
        return [value for estimate in known if (value := getattr(estimate, name)) is not None]

    def total(name: str) -> float | None:
        return sum(values(name)) if values(name) else None

    return StageEstimate(
        "all",
        seconds=total("seconds"),
        cpu_seconds=total("cpu_seconds"),
        gpu_seconds=total("gpu_seconds"),
        dollars=total("dollars") if len(values("dollars")) == len(known) else None,
        memory_bytes=max(values("memory_bytes"), default=None),
        gpu_bytes=max(values("gpu_bytes"), default=None),
        disk_bytes=total("disk_bytes"),
        scratch_bytes=max(values("scratch_bytes"), default=None),
        s3_requests=total("s3_requests"),
        measured=all(estimate.measured for estimate in known),
    )


def _lines(
    estimates: Sequence[StageEstimate | None],
    known: Sequence[StageEstimate],
    machines: Machines,
    prices: Prices | None,
    calibrated: Calibration | None,
) -> Iterator[str]:
    yield ""
    for estimate in estimates:
        for note in estimate.notes if estimate else ():
            yield f"{estimate.stage}: {note}" if estimate else note
    if unknown := [estimate.stage for estimate in estimates if estimate and estimate.seconds is None]:
        yield f"the last row is without {', '.join(unknown)}"
    kinds = ", ".join(f"{kind.max_nodes} {kind.name} ({kind.instance_type or _shape(kind)})" for kind in machines.kinds)
    here = machines.is_this_machine
    head = "" if machines.head_price is None else f", the head at {machines.head_price:g} dollars an hour"
    yield f"this machine: {_shape(machines.kinds[0])}" if here else f"machines of {machines.name}: {kinds}{head}"
    yield from machines.notes
    yield from _rate_lines(known)
    if here:
        yield calibration.describe(calibrated) if calibrated else "cloze plan RUN --calibrate measures this machine"
    if prices and not machines.is_this_machine:
        yield from _price_lines(known, prices, "" if machines.head_price is not None else "the head; ")


def _rate_lines(known: Sequence[StageEstimate]) -> Iterator[str]:
    """When and on which machines the rates were measured that the stages used, and which were not."""
    used = [rates().rate(name) for name in sorted({name for estimate in known for name in estimate.rates})]
    if measured := sorted({f"{rate.measured} on {rate.machine}" for rate in used if rate.machine != "-"}):
        yield f"rates of CPUs and memory: measured {', '.join(measured)} (docs/benchmarks.md)"
    if not_measured := [rate.name for rate in used if rate.how == SET]:
        yield f"not measured, but set (infra/estimate/rates.yaml): {', '.join(not_measured)}"


def _price_lines(known: Sequence[StageEstimate], prices: Prices, head: str) -> Iterator[str]:
    other, hours = prices.other, sum(estimate.seconds or 0.0 for estimate in known) / 3600
    requests = sum(estimate.s3_requests or 0.0 for estimate in known)
    yield f"prices: {prices.machines_source}; {prices.machines_date}"
    yield (
        f"not in the sum (prices: {prices.other_source}): {head}S3 requests at most "
        f"{requests / 1e6 * other.s3_dollars_per_million_puts:,.2f} dollars; control plane "
        f"{hours * other.control_plane_dollars_per_hour:,.2f}; NAT gateway "
        f"{hours * other.nat_gateway_dollars_per_hour:,.2f} and {other.nat_gateway_dollars_per_gb:g} a GB; storage; "
        "machines while they start"
    )


def _shape(kind: NodeType) -> str:
    gpus = f", {kind.gpus} {kind.gpu or 'GPUs'}" if kind.gpus else ""
    return f"{kind.cpus} CPUs, {kind.memory_gb:,.0f} GB{gpus}"


def _hours(seconds: float | None) -> str:
    """12 s, or 3.4 h from six minutes on."""
    if seconds is None:
        return ""
    return duration(seconds) if seconds < 360 else f"{seconds / 3600:,.1f} h"


def _size(count: float | None) -> str:
    return "" if not count else size(round(count))
