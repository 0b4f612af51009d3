"""On a cluster that scales: request the nodes of a worker group from Ray's autoscaler, and wait for them."""

import math
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import node_resources, without_gpu_nodes
from cloze.training.cluster.elastic import ElasticSize, Placement, free_worker_slots, worker_slots

_RESERVATION = "cloze-reservation"
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 10.0  # without a new node, until a smaller group starts: nodes that join together are used together
_VIEW_SECONDS = 1.0  # until what a placement group holds is no longer listed as free
_RENEW_SECONDS = 15.0  # between two requests for the largest group


def scaling_config(placement: Placement) -> Any:
    """Ray Train's description of the group. Workers without GPUs do not use GPU nodes, if there are others."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=placement.workers,
        use_gpu=placement.gpus,
        resources_per_worker=placement.worker_resources,
        label_selector=None if placement.gpus else without_gpu_nodes(),
    )


class Reservation:
    """Placement groups that request nodes for workers from the autoscaler, and then hold them.

    They hold them until Ray Train asks for them: the autoscaler could remove idle nodes while Ray Train starts. The end
    of the context releases them in any case.
    """

    def __init__(self, placement: Placement) -> None:
        self._groups, self._earlier = list[Any](), set[str]()
        self.add(placement)

    def add(self, placement: Placement) -> None:
        """Hold nodes for this group as well: for all of its workers, or for none."""
        from ray.util import placement_group

        group = placement_group(
            [placement.worker_resources] * placement.workers,
            strategy="PACK",
            name=f"{_RESERVATION}-{uuid.uuid4().hex}",
            bundle_label_selector=scaling_config(placement)._label_selector_per_worker(placement.workers),
        )
        self._groups.append(group)

    def is_ready(self) -> bool:
        """Whether it holds the nodes."""
        from ray.util import placement_group_table

        return all(placement_group_table(group).get("state") == "CREATED" for group in self._groups)

    def __enter__(self) -> "Reservation":
        self._earlier = _other_placement_groups()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        from ray.exceptions import RayError
        from ray.util import remove_placement_group

        with suppress(RayError):  # the cluster has ended, and all its placement groups
            while self._groups:
                remove_placement_group(self._groups.pop())

    def release_on_request(self) -> None:
        """Inside the context: release the nodes as soon as Ray Train has created the workers' placement group."""
        if self._groups and _other_placement_groups() - self._earlier:
            self.release()


def _other_placement_groups() -> set[str]:
    """The ids of the placement groups that are no reservations."""
    from ray.util import placement_group_table

    groups = placement_group_table()
    return {group for group, state in groups.items() if not state["name"].startswith(_RESERVATION)}


def reserve_nodes(
    size: ElasticSize, show: Callable[[str], None], should_end: Callable[[], bool], is_needed: Callable[[], bool]
) -> Reservation | None:
    """Wait until the smallest allowed group fits on the cluster, and set the size to the largest one that fits then.

    Waits as long as it takes, and shows for how many minutes. Returns None as soon as the group is not needed any more.

    Raises KeyboardInterrupt as soon as it `should_end`, and UserError when the autoscaler cannot start so many nodes.
    """
    smallest, largest = size.smallest, size.largest
    _check_autoscaler(smallest)
    started = changed = time.monotonic()
    free, requested, reservation = 0, -math.inf, Reservation(smallest)
    try:
        while True:
            is_ready, now, before = reservation.is_ready(), time.monotonic(), free
            free = free_worker_slots(largest) + (smallest.workers if is_ready else 0)
            changed = changed if free == before else now
            settle = _SETTLE_SECONDS if free < largest.workers else _VIEW_SECONDS
            if is_ready and now - changed >= settle:
                break
            if should_end():
                raise KeyboardInterrupt
            if not is_needed():
                reservation.release()
                return None
            if now - requested > _RENEW_SECONDS:
                size.request_growth(present=0)
                requested = now
            if not is_ready or free < largest.workers:
                show(_waiting_note(largest, now - started))
            time.sleep(_POLL_SECONDS)
        size.fit(free)
        if more := size.placement.workers - smallest.workers:
            reservation.add(size.placement._replace(workers=more))
        size.request_growth(present=size.placement.workers)
        show(f"starting {size.placement}")
    except BaseException:
        reservation.release()
        raise
    return reservation


def _waiting_note(placement: Placement, seconds: float) -> str:
    kind, total = "GPU" if placement.gpus else "worker", placement.workers
    there = min(total, worker_slots(node_resources(), placement.threads, placement.gpus))
    minutes = f", {seconds // 60:.0f} min" if seconds >= 60 else ""
    return f"waiting for {total} {kind}{'s' if total > 1 else ''} ({there} of {total} there){minutes}"


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
