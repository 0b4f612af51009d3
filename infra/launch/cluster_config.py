"""The configuration of a cluster that runs can be submitted to."""

import sys
from typing import Literal

from pydantic import Field, model_validator

from cloze.infra.launch.kubernetes_config import KubernetesConfig, Toleration
from cloze.pipeline.core.config import Config

_KUEUE_GROUPS = 7  # of workers, that Kueue admits in one job
DEFAULT_PYTHON = "python"  # on the PATH with which Ray was started, or in the environment that `pip` creates


class NodeType(Config):
    """A kind of machine that a cluster has, or can scale to."""

    name: str = Field(pattern="^[a-z]([a-z0-9-]{0,20}[a-z0-9])?$")
    """Name of the group of such machines: small letters, digits and -."""
    cpus: int = Field(gt=0)
    """CPUs of one machine that Ray may use."""
    memory_gb: float = Field(gt=0)
    """Memory of one machine that Ray may use, in 10^9 bytes."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of one machine."""
    gpu: str | None = None
    """Name of its GPU, such as A100-40GB, whose rates `cloze plan` looks up."""
    instance_type: str | None = None
    """The cloud's name of the machine, such as g6.12xlarge, whose price `cloze plan` looks up."""
    spot: bool = False
    """Whether these are spot machines, which the cloud may take back after a notice."""
    min_nodes: int = Field(default=0, ge=0)
    """Machines that are always there."""
    max_nodes: int = Field(default=1, gt=0)
    """Machines that there can be."""
    node_selector: dict[str, str] = Field(default={})
    """On Kubernetes, labels of the machines that the pods of this type may run on, in addition to those for
    `instance_type` and `spot`."""
    tolerations: tuple[Toleration, ...] = ()
    """On Kubernetes, taints that the pods of this type tolerate. Those with GPUs also tolerate nvidia.com/gpu."""

    @model_validator(mode="after")
    def _range_is_ordered(self) -> "NodeType":
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes {self.min_nodes} is more than max_nodes {self.max_nodes}; lower it")
        return self


class ClusterConfig(Config):
    """A Ray cluster that runs can be submitted to: the YAML file of `cloze submit RUN --cluster YAML`."""

    name: str
    """Name of the cluster, for messages."""
    address: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Address of the dashboard of a Ray cluster that is running, such as http://127.0.0.1:8265."""
    kubernetes: KubernetesConfig | None = None
    """A Kubernetes cluster, on which each job gets a Ray cluster of its own. Not together with `address`."""
    auth: Literal["token", "disabled"] = "token"
    """Authentication: token sends the token in RAY_AUTH_TOKEN or ~/.ray/auth_token; disabled sends none."""
    shared_disk: bool = False
    """Whether the cluster's machines see this machine's files under the same paths. Otherwise `root` must be on S3, and
    local input files are uploaded with the job."""
    overrides: tuple[str, ...] = ()
    """Overrides (key=value) for runs on this cluster; those of the command line have priority."""
    env_vars: dict[str, str] = Field(default={})
    """Environment variables of the job, such as AWS_ENDPOINT_URL."""
    python: str | None = Field(default=None, min_length=1)
    """Python interpreter of the job and its workers: a path or a name that is valid on all machines. By default the one
    that runs cloze if the disk is shared, otherwise `python`."""
    node_types: tuple[NodeType, ...] = ()
    """The machines of a cluster that scales: what it has at least, and what it can have."""
    max_cpus: int | None = Field(default=None, gt=0)
    """The number of CPUs that the cluster can scale to, which the data stages then ask for. Unset: those of
    `node_types`, or else those that it has."""
    max_gpus: int | None = Field(default=None, ge=0)
    """The number of GPUs that the cluster can scale to, which training then asks for. Unset: those of `node_types`, or
    else those that it has."""
    pip: tuple[str, ...] = ()
    """Packages that Ray installs for the job, where the machines do not have them. Not together with `python`."""
    deadline_seconds: int | None = Field(default=None, gt=0)
    """Time that a job may take."""
    retries: int = Field(default=0, ge=0)
    """How often a failed job is started again; it continues from its finished parts."""
    ttl_seconds: int | None = Field(default=None, ge=0)
    """Time after its end at which a job is removed from the list."""

    @model_validator(mode="after")
    def _python_can_be_found(self) -> "ClusterConfig":
        if self.python and "/" in self.python and not self.python.startswith("/"):
            raise ValueError(
                f"python {self.python} would be relative to the job's own folder; give an absolute path, or a name"
            )
        if self.python and self.pip:
            raise ValueError("python selects an environment and pip creates another one; remove one of them")
        return self

    @model_validator(mode="after")
    def _kubernetes_can_create_it(self) -> "ClusterConfig":
        if not self.kubernetes:
            return self
        if self.address:
            raise ValueError("address names a Ray cluster that runs, and kubernetes creates one; remove one of them")
        if self.shared_disk:
            raise ValueError("shared_disk: pods cannot access this machine's disk; remove it")
        if not self.node_types:
            raise ValueError("node_types: kubernetes creates these machines; add one type at least")
        names = [kind.name for kind in self.node_types]
        if "head" in names or len(set(names)) < len(names):
            raise ValueError(f"node_types: {', '.join(names)}: give each type another name, and none the name head")
        if self.kubernetes.queue and len(names) > _KUEUE_GROUPS:
            raise ValueError(f"node_types: Kueue admits jobs with at most {_KUEUE_GROUPS} types; remove some")
        scaling = [kind.name for kind in self.node_types if kind.min_nodes < kind.max_nodes]
        if self.kubernetes.queue and scaling:
            raise ValueError(
                f"node_types: Kueue admits clusters of a fixed size; set min_nodes of {scaling[0]} to its max_nodes, "
                "or remove kubernetes.queue"
            )
        return self

    @property
    def cpu_limit(self) -> int | None:
        """The number of CPUs that the cluster can scale to; None for those that it has."""
        if self.max_cpus is None and self.node_types:
            return sum(kind.max_nodes * kind.cpus for kind in self.node_types)
        return self.max_cpus

    @property
    def gpu_limit(self) -> int | None:
        """The number of GPUs that the cluster can scale to; None for those that it has."""
        if self.max_gpus is None and self.node_types:
            return sum(kind.max_nodes * kind.gpus for kind in self.node_types)
        return self.max_gpus

    @property
    def interpreter(self) -> str:
        """The Python interpreter of the job and its workers: `python`, or this process's where the disk is shared.

        Where it is not, or where `pip` creates an environment, the job runs `python` and the workers run the
        interpreter that Ray was started with.
        """
        if self.python:
            return self.python
        return sys.executable if self.shared_disk and not self.pip else DEFAULT_PYTHON
