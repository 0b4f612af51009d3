"""`cloze plan RUN --cluster YAML`: the options -> a table of estimates, or the plan's JSON with them."""

import re
import sys
from collections.abc import Sequence

from cloze.infra.display import size
from cloze.infra.estimate import calibration
from cloze.infra.estimate.estimate import StageEstimate, estimate_run
from cloze.infra.estimate.machines import Machines, cluster_machines, this_machine
from cloze.infra.estimate.table import print_estimates
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.prices import load_prices
from cloze.infra.planner import PlannedStage, Run
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError

_MAX_BYTES = 10**14  # the list of shards is built in memory
_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def parse_sizes(words: Sequence[str], sources: Sequence[str]) -> dict[str, int]:
    """["enwiki=24GB"] -> the bytes of each source. Raises UserError for an unknown source or unit."""
    sizes = {}
    for word in words:
        match = re.fullmatch(r"([^=]+)=([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", word)
        if not match or match[3].upper() not in _UNITS:
            raise UserError(f"--size {word}: is not SOURCE=SIZE; write for example enwiki=24GB")
        if match[1] not in sources:
            known = ", ".join(dict.fromkeys(sources))
            raise UserError(f"--size {word}: {match[1]} is not an input of this run; it has {known}")
        sizes[match[1]] = int(float(match[2]) * _UNITS[match[3].upper()])
        if sizes[match[1]] > _MAX_BYTES:
            raise UserError(f"--size {word}: is more than {size(_MAX_BYTES)}, which no rate covers; give a smaller one")
    return sizes


def stage_estimates(
    run: Run,
    planned: Sequence[PlannedStage],
    cluster: str | None = None,
    prices: str | None = None,
    sizes: Sequence[str] = (),
    *,
    calibrate: bool = False,
    show: bool = True,
) -> list[StageEstimate | None]:
    """The estimates of the planned stages on a cluster, by default on this machine; prints the table."""
    known_prices = load_prices(prices)
    machines: Machines = cluster_machines(load(ClusterConfig, cluster), known_prices) if cluster else this_machine()
    if calibrate:
        calibrated = calibration.calibrate(lambda piece: print(f"calibrating: {piece}", file=sys.stderr))
    else:
        calibrated = calibration.stored()
    used = calibrated if machines.is_this_machine else None
    names = [name for one in planned for name in one.stage.sources]
    found = estimate_run(run, planned, machines, used, parse_sizes(sizes, names))
    if show:
        print_estimates(planned, found, machines, known_prices, calibrated)
    return found
