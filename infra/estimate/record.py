"""A run that starts -> its estimate under the root, which the report shows next to what it took; and the disk check."""

import shutil
import sys
from collections.abc import Sequence

from cloze.infra.display import size
from cloze.infra.estimate import calibration
from cloze.infra.estimate.estimate import StageEstimate, estimate_run
from cloze.infra.estimate.machines import this_machine
from cloze.infra.planner import Run
from cloze.infra.run_estimate import read_estimates, write_estimates
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import belongs_to_cluster
from cloze.pipeline.core.storage import Location, nearest_existing


def estimate_start(run: Run, until: str | None, force: Sequence[str]) -> None:
    """Estimate the stages that the run will execute, and store that. Raises UserError when the disk is too small.

    A stage that continues has no estimate: what its earlier attempts took is not known.
    """
    planned = run.plan(until, force)
    if all(one.action == "skip" or one.stage.publish for one in planned):
        return
    estimates = estimate_run(run, planned, this_machine(), calibration.stored(), {})
    check_disk(run.root, [found for found in estimates if found])
    stored = read_estimates(run.root, run.config.name)
    for one, found in zip(planned, estimates, strict=True):
        if found is None:
            continue
        stored.pop(one.stage.name, None)
        is_known = found.seconds is not None or found.disk_bytes is not None
        is_new = one.action == "run" and one.output and is_known
        if is_new and one.output:
            seconds = None if belongs_to_cluster() else found.seconds
            stored[one.stage.name] = {**found.plain, "seconds": seconds, "fingerprint": one.output.fingerprint}
    write_estimates(run.root, run.config.name, stored)


def check_disk(root: Location, estimates: Sequence[StageEstimate]) -> None:
    """Raises UserError when the stages would fill the disk of a local root; warns when they may.

    A run that fits must not be refused, and the ratios are estimates: so an error is for twice the free bytes.
    """
    if root.local_path is None:
        return
    folder = nearest_existing(root.local_path)
    stays = sum(found.disk_bytes or 0.0 for found in estimates)
    needed = stays + max((found.scratch_bytes or 0.0 for found in estimates), default=0.0)
    free = shutil.disk_usage(folder).free
    message = (
        f"{root}: the run needs about {size(round(needed))}, but the disk of {folder} has {size(free)} free; free "
        "some, or set root= to another disk"
    )
    if needed / 2 > free:
        raise UserError(message)
    if needed > free:
        print(f"warning: {message}", file=sys.stderr)
