"""On a cluster that scales: request the nodes of a worker group from Ray's autoscaler, and wait for them."""

import time
import uuid
from collections.abc import Callable
from functools import cached_property
from typing import Any

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import without_gpu_nodes
from cloze.training.cluster.elastic import ElasticSize, Placement, free_worker_slots

_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 10.0  # without a new node, until a smaller group starts: nodes that join together are used together


def scaling_config(placement: Placement) -> Any:
    """Ray Train's description of the group. Workers without GPUs do not use GPU nodes, if there are others."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=placement.workers,
        use_gpu=placement.gpus,
        resources_per_worker=placement.worker_resources,
        label_selector=None if placement.gpus else without_gpu_nodes(),
    )


def wait_for_nodes(
    size: ElasticSize, show: Callable[[str], None], should_end: Callable[[], bool], is_needed: Callable[[], bool]
) -> bool:
    """Wait until the largest allowed group fits on the cluster, or a smaller one, and set the size to it.

    Until then the autoscaler is asked for the nodes of the largest one, by a pending placement group, for which it also
    keeps the nodes that are there already. Waits as long as it takes, and shows for how many minutes. Returns False as
    soon as the group is not needed any more.

    Raises KeyboardInterrupt as soon as it `should_end`, and UserError when the autoscaler cannot start so many nodes.
    """
    from ray.util import placement_group, remove_placement_group

    _check_autoscaler(size.smallest)
    largest, workers = size.largest, size.largest.workers
    selectors = scaling_config(largest)._label_selector_per_worker(workers)
    demand = placement_group([largest.worker_resources] * workers, "PACK", bundle_label_selector=selectors)
    started = changed = time.monotonic()
    free = 0
    try:
        while not demand.wait(_POLL_SECONDS):
            now, before, free = time.monotonic(), free, free_worker_slots(largest)
            changed = now if free != before else changed
            if should_end():
                raise KeyboardInterrupt
            if not is_needed():
                return False
            if size.smallest.workers <= free < workers and now - changed > _SETTLE_SECONDS:
                break
            show(_waiting_note(largest, min(free, workers), now - started))
        else:
            free = workers
    finally:
        remove_placement_group(demand)
    size.fit(free)
    size.request_growth()
    show(f"starting {size.placement}")
    return True


def _waiting_note(placement: Placement, free: int, seconds: float) -> str:
    kind = "GPU" if placement.gpus else "worker"
    minutes = f", {seconds / 60:.0f} min" if seconds >= 60 else ""
    plural = "s" if placement.workers > 1 else ""
    return f"waiting for {placement.workers} {kind}{plural} ({free} of {placement.workers} there){minutes}"


def _check_autoscaler(placement: Placement) -> None:
    """Raises UserError when the autoscaler's own limits are lower than those of the cluster's file."""
    from ray._private.state import state

    limits = state.get_max_resources_from_cluster_config()
    for resource, amount in placement.worker_resources.items():
        requested = int(placement.workers * amount)
        if limits and requested > (limit := limits.get(resource, 0)):
            raise UserError(
                f"{requested} {resource}s requested, but Ray's autoscaler can start {limit:g} at most; "
                f"correct max_{resource.lower()}s or node_types in the cluster's file"
            )


class GrowthRequest:
    """Requests room for more workers than a running group has. Inside the context; its end cancels the request.

    Goes through the actor that merges the requests of Ray Train and Ray Data, as each request to the autoscaler
    replaces the one before. It forgets a request that is not renewed within three minutes, so that a run that was
    killed keeps no nodes.
    """

    def __init__(self) -> None:
        self._is_sent = False

    def __enter__(self) -> "GrowthRequest":
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()

    def __call__(self, placement: Placement, more_workers: int) -> None:
        """Replace the request, or renew it."""
        if more_workers > 0:
            self._client.send_resource_request(scaling_config(placement._replace(workers=more_workers)), more_workers)
            self._is_sent = True
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._is_sent:
            self._client.cancel_resource_request()
        self._is_sent = False

    @cached_property
    def _client(self) -> Any:
        from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
            TrainAutoscalingCoordinatorClient,
        )

        return TrainAutoscalingCoordinatorClient(f"cloze-{uuid.uuid4().hex}")
