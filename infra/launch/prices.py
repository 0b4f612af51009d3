"""configs/prices.yaml -> dollars an hour, for estimates and for `max_cost`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cloze.infra.launch.cluster_config import ClusterConfig, NodeType
from cloze.infra.launch.kubernetes_config import HeadConfig
from cloze.pipeline.core import ray_cluster
from cloze.pipeline.core.config import Config, load

_FILE = "configs/prices.yaml"  # in the current folder, or in the clone that this is
_CLONE = Path(__file__).absolute().parents[3]

_Dollars = Annotated[float, Field(ge=0)]


class OtherPrices(Config):
    """Prices of everything that is not a machine."""

    s3_dollars_per_million_gets: _Dollars
    """Dollars for a million requests that read from S3."""
    s3_dollars_per_million_puts: _Dollars
    """Dollars for a million requests that write to S3 or list it."""
    control_plane_dollars_per_hour: _Dollars
    """Dollars an hour for the Kubernetes control plane."""
    nat_gateway_dollars_per_hour: _Dollars
    """Dollars an hour for a NAT gateway."""
    nat_gateway_dollars_per_gb: _Dollars
    """Dollars for 10^9 bytes through a NAT gateway."""


class AwsPrices(Config):
    """Prices of what an account has beside machines while no job runs."""

    interface_endpoint_dollars_per_hour: _Dollars
    """Dollars an hour for an interface endpoint in one zone."""
    load_balancer_dollars_per_hour: _Dollars
    """Dollars an hour for a load balancer."""
    key_dollars_per_month: _Dollars
    """Dollars a month for a key of KMS."""
    s3_dollars_per_gb_month: _Dollars
    """Dollars a month for 10^9 bytes on S3."""
    volume_dollars_per_gb_month: _Dollars
    """Dollars a month for 10^9 bytes of a volume (gp3)."""


class Prices(Config):
    """Prices with their source and date."""

    machines_source: str
    """Where the machines' prices come from."""
    machines_date: str
    """The date of the machines' prices."""
    machines: dict[str, _Dollars]
    """Dollars an hour by instance type."""
    other_source: str
    """Where the other prices come from."""
    other: OtherPrices
    """The other prices."""
    aws: AwsPrices | None = None
    """Prices for infra/scripts/up and down."""

    def of_node(self, kind: NodeType | HeadConfig) -> float | None:
        """Dollars an hour of a machine; None if its type has no price. Spot machines cost less, by how much varies."""
        return self.machines.get(kind.instance_type or "")


def load_prices(path: str | None) -> Prices | None:
    """The prices in a file; by default those of configs/prices.yaml, None if there is no such file."""
    if path is None:
        files = (folder / _FILE for folder in (Path(), _CLONE))
        path = next((str(file) for file in files if file.is_file()), None)
    return None if path is None else load(Prices, path)


def priced_node_types(cluster: ClusterConfig, prices: Prices | None) -> list[ray_cluster.NodeType]:
    """The machines of a cluster as its jobs are told of them, with their prices, which `max_cost` needs."""
    return [
        ray_cluster.NodeType(kind.name, kind.cpus, kind.gpus, kind.max_nodes, prices.of_node(kind) if prices else None)
        for kind in cluster.node_types
    ]


def head_price(cluster: ClusterConfig, prices: Prices | None) -> float | None:
    """Dollars an hour of the head of a job on Kubernetes; None if it has no price. On a Ray cluster that runs, the head
    may be one of its `node_types`, or a machine that the file does not name."""
    return prices.of_node(cluster.kubernetes.head) if prices and cluster.kubernetes else None
