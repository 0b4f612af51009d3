"""A plan of Terraform -> what it costs an hour while no job runs, the vCPUs that its machines may take, and the
machines for the estimate of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloze.infra.launch.prices import AwsPrices, Prices
from cloze.infra.scripts.terraform import planned_resources, pools

HOURS_A_MONTH = 730
_LARGE_VCPUS = 2
_XLARGE_VCPUS = 4
#: Quotas of EC2 in vCPUs, by the first letters of instance types and the kind: code and name.
QUOTAS = {
    ("g", "SPOT"): ("L-3819A6DF", "All G and VT Spot Instance Requests"),
    ("g", "ON_DEMAND"): ("L-DB2E81BA", "Running On-Demand G and VT instances"),
    ("p", "SPOT"): ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    ("p", "ON_DEMAND"): ("L-417A185B", "Running On-Demand P instances"),
    ("p5", "SPOT"): ("L-C4BD4855", "All P5 Spot Instance Requests"),
    ("p5", "ON_DEMAND"): ("L-417A185B", "Running On-Demand P instances"),
    ("", "SPOT"): ("L-34B43A08", "All Standard Spot Instance Requests"),
    ("", "ON_DEMAND"): ("L-1216C47A", "Running On-Demand Standard instances"),
}


@dataclass(frozen=True)
class Cost:
    """Something that costs money although no job runs. `dollars` an hour is None where the price is not known."""

    name: str
    dollars: float | None


@dataclass(frozen=True)
class NeededQuota:
    """vCPUs of one of EC2's quotas."""

    code: str
    name: str
    one_machine: int  # without which a pool cannot start
    all_machines: int  # of all pools at their largest


def vcpus(instance_type: str) -> int:
    """vCPUs by the size in the name: large has 2, Nxlarge has 4 N."""
    size = instance_type.partition(".")[2]
    if size == "large":
        return _LARGE_VCPUS
    return _XLARGE_VCPUS * int(size.removesuffix("xlarge") or 1)


def idle_costs(plan: Mapping[str, Any], prices: Prices) -> list[Cost]:
    """What the planned resources cost an hour before the first job and between jobs."""
    aws = prices.aws
    assert aws, "configs/prices.yaml has the prices of AWS"
    return [cost for resource in planned_resources(plan) for cost in _costs(resource, prices, aws)]


def _costs(resource: Mapping[str, Any], prices: Prices, aws: AwsPrices) -> Iterator[Cost]:
    values = resource["values"]
    match resource["type"]:
        case "aws_eks_cluster":
            yield Cost("control plane", prices.other.control_plane_dollars_per_hour)
        case "aws_nat_gateway":
            yield Cost("NAT gateway, and as much a GB", prices.other.nat_gateway_dollars_per_hour)
        case "aws_vpc_endpoint" if values.get("vpc_endpoint_type") == "Interface":
            zones = len(values.get("subnet_ids") or [None])
            service = str(values.get("service_name")).rpartition(".")[2]
            yield Cost(f"endpoint {service}", aws.interface_endpoint_dollars_per_hour * zones)
        case "aws_kms_key":
            yield Cost("key", aws.key_dollars_per_month / HOURS_A_MONTH)
        case "aws_eks_node_group" if nodes := values["scaling_config"][0]["desired_size"]:
            kind = values["instance_types"][0]
            price = prices.machines.get(kind)
            yield Cost(f"{nodes} {kind} ({values['node_group_name']})", None if price is None else nodes * price)


def needed_quotas(plan: Mapping[str, Any]) -> list[NeededQuota]:
    """The vCPUs that the planned node groups may take, by quota."""
    sizes: dict[tuple[str, str], list[tuple[int, int]]] = {}  # code and name of a quota -> of one machine, of all
    for resource in planned_resources(plan):
        if resource["type"] == "aws_eks_node_group":
            values = resource["values"]
            kind = values["instance_types"][0]
            sizes.setdefault(QUOTAS[_quota_family(kind), values["capacity_type"]], []).append(
                (vcpus(kind), vcpus(kind) * values["scaling_config"][0]["max_size"])
            )
    return [
        NeededQuota(*quota, max(one for one, _ in found), sum(all_of_them for _, all_of_them in found))
        for quota, found in sizes.items()
    ]


def _quota_family(instance_type: str) -> str:
    """The first letters by which QUOTAS knows an instance type."""
    return next(family for family in ("p5", "p", "g", "") if instance_type.startswith(family))


def estimated_cluster(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A cluster's file with the planned machines, for `cloze plan RUN --cluster FILE` before there is a cluster."""
    node_types = [
        {
            "name": name,
            "cpus": pool["cpus"],
            "memory_gb": pool["memory_gb"],
            "instance_type": pool["instance_types"][0],
            "max_nodes": pool["max_nodes"],
            **{key: pool[key] for key in ("gpus", "gpu") if pool.get(key)},
        }
        for name, pool in pools(plan).items()
        if name != "head"
    ]
    return {"name": "planned", "kubernetes": {"image": "cloze:planned"}, "node_types": node_types}
