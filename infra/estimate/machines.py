"""A cluster's file, or this machine -> the machines that a run can use, with their prices."""

import os
from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

from cloze.infra.launch.cluster_config import ClusterConfig, NodeType
from cloze.infra.launch.prices import Prices, head_price, priced_node_types
from cloze.training.cluster.elastic import Capacity, Placement, scaled_capacity, worker_slots


class Machines(NamedTuple):
    """The machines of a cluster, or this one."""

    name: str
    kinds: tuple[NodeType, ...]
    prices: tuple[float | None, ...]  # dollars an hour of one machine of each kind
    is_this_machine: bool
    capacity: Capacity  # of training
    max_cpus: int | None = None  # of the data stages
    notes: tuple[str, ...] = ()
    head_price: float | None = None  # dollars an hour of the Ray head, which is there for the whole run

    @property
    def without_gpus(self) -> list[int]:
        """The kinds that the data stages use, by number: those without GPUs where there are any."""
        return [number for number, kind in enumerate(self.kinds) if not kind.gpus] or list(range(len(self.kinds)))

    @property
    def with_gpus(self) -> list[int]:
        return [number for number, kind in enumerate(self.kinds) if kind.gpus]

    def data_nodes(self) -> tuple[list[int], int]:
        """How many machines of each kind a data stage uses, and the CPUs."""
        most = sum(self.kinds[number].cpus * self.kinds[number].max_nodes for number in self.without_gpus)
        always = sum(self.kinds[number].cpus * self.kinds[number].min_nodes for number in self.without_gpus)
        cpus = most if self.max_cpus is None else max(always, min(most, self.max_cpus))
        return self._nodes_for(cpus, {number: self.kinds[number].cpus for number in self.without_gpus}), cpus

    def training_nodes(self, placement: Placement) -> list[int]:
        """How many machines of each kind these workers train on: first the kind with most GPUs."""

        def slots(number: int) -> int:
            kind = self.kinds[number]
            return worker_slots([{"CPU": kind.cpus, "GPU": kind.gpus}], placement.threads, placement.gpus)

        kinds = self.with_gpus if placement.gpus else self.without_gpus
        by_size = sorted(kinds, key=lambda number: -self.kinds[number].gpus * self.kinds[number].max_nodes)
        return self._nodes_for(placement.workers, {number: slots(number) for number in by_size})

    def _nodes_for(self, wanted: int, each: Mapping[int, int]) -> list[int]:
        """The machines of each kind that together have so many units, of which a machine has `each`."""
        nodes = [0] * len(self.kinds)
        for number, units in each.items():
            nodes[number] = min(self.kinds[number].max_nodes, ceil(wanted / units)) if units else 0
            wanted = max(0, wanted - nodes[number] * units)
        return nodes

    def dollars_per_hour(self, used: Sequence[int]) -> float | None:
        """The price of so many machines of each kind, of those that are always there, and of the head if it has one;
        None if a machine has none."""
        total = self.head_price or 0.0
        for kind, nodes, price in zip(self.kinds, used, self.prices, strict=True):
            count = max(kind.min_nodes, nodes)
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
    return _one_machine("this machine", kind)


def _one_machine(name: str, kind: NodeType, *notes: str) -> Machines:
    capacity = Capacity([{"CPU": kind.cpus, "GPU": kind.gpus}])
    return Machines(name, (kind,), (None,), True, capacity, notes=notes)


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
        limits = {"cpus": cluster.max_cpus, "gpus": cluster.max_gpus}
        set_limits = {key: limit for key, limit in limits.items() if limit is not None}
        return _one_machine(cluster.name, this_machine().kinds[0].model_copy(update=set_limits), note)
    found = tuple(prices.of_node(kind) if prices else None for kind in cluster.node_types)
    notes = [
        f"{kind.name}: instance_type {kind.instance_type or 'is not set'} has no price, so there are no dollars"
        for kind, price in zip(cluster.node_types, found, strict=True)
        if price is None
    ]
    of_types = cluster.model_copy(update={"max_cpus": None, "max_gpus": None})
    for key, limit, most, unit in (
        ("max_cpus", cluster.max_cpus, of_types.cpu_limit or 0, "CPUs for the data stages"),
        ("max_gpus", cluster.max_gpus, of_types.gpu_limit or 0, "GPUs"),
    ):
        if limit is not None and limit < most:
            notes.append(f"{key}: {limit} of the {most} {unit} are used")
    if any(kind.spot for kind in cluster.node_types):
        notes.append("spot machines are priced as on demand, so they cost less")
    return Machines(
        cluster.name,
        cluster.node_types,
        found,
        False,
        scaled_capacity(priced_node_types(cluster, prices), cluster.gpu_limit),
        cluster.cpu_limit,
        tuple(notes),
        head_price(cluster, prices),
    )
