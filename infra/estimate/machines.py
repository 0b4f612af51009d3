"""A cluster's file, or this machine -> the machines that a run can use, with their prices."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from cloze.infra.launch.cluster_config import ClusterConfig, NodeType
from cloze.infra.launch.prices import Prices, head_price


class Machines(NamedTuple):
    """The machines of a cluster, or this one."""

    name: str
    kinds: tuple[NodeType, ...]
    prices: tuple[float | None, ...]  # dollars an hour of one machine of each kind
    is_this_machine: bool
    notes: tuple[str, ...] = ()
    head_price: float | None = None  # dollars an hour of the Ray head, which is there for the whole run

    @property
    def without_gpus(self) -> list[int]:
        """The kinds that the data stages use, by number: those without GPUs where there are any."""
        return [number for number, kind in enumerate(self.kinds) if not kind.gpus] or list(range(len(self.kinds)))

    @property
    def with_gpus(self) -> list[int]:
        return [number for number, kind in enumerate(self.kinds) if kind.gpus]

    def nodes(self, used: Sequence[int]) -> list[int]:
        """How many machines of each kind there are while a stage uses all of some kinds."""
        return [kind.max_nodes if number in used else kind.min_nodes for number, kind in enumerate(self.kinds)]

    def dollars_per_hour(self, nodes: Sequence[int]) -> float | None:
        """The price of so many machines of each kind, and of the head if it has one; None if a machine has none."""
        total = self.head_price or 0.0
        for count, price in zip(nodes, self.prices, strict=True):
            if count and price is None:
                return None
            total += count * (price or 0.0)
        return total


def this_machine() -> Machines:
    """The machine that runs this process. It costs nothing that Cloze knows of."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus, name = _local_gpus()
    kind = NodeType(
        name="this-machine", cpus=len(os.sched_getaffinity(0)), memory_gb=memory, gpus=gpus, gpu=name, min_nodes=1
    )
    return Machines("this machine", (kind,), (None,), True)


def _local_gpus() -> tuple[int, str | None]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return 0, None
    return count, torch.cuda.get_device_name(0).removeprefix("NVIDIA ").replace(" ", "-")


def cluster_machines(cluster: ClusterConfig, prices: Prices | None) -> Machines:
    """The machines of a cluster at its largest. A cluster's file without `node_types` is taken for this machine."""
    if not cluster.node_types:
        note = f"the file of {cluster.name} names no node_types: estimated for this machine"
        kinds = this_machine().kinds
        if cluster.max_cpus:
            kinds = (kinds[0].model_copy(update={"cpus": cluster.max_cpus}),)
        return Machines(cluster.name, kinds, (None,), True, (note,))
    found = tuple(prices.of_node(kind) if prices else None for kind in cluster.node_types)
    notes = [
        f"{kind.name}: instance_type {kind.instance_type or 'is not set'} has no price, so there are no dollars"
        for kind, price in zip(cluster.node_types, found, strict=True)
        if price is None
    ]
    if any(kind.spot for kind in cluster.node_types):
        notes.append("spot machines are priced as on demand, so they cost less")
    return Machines(cluster.name, cluster.node_types, found, False, tuple(notes), head_price(cluster, prices))
