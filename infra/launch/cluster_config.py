"""The configuration of a cluster that runs can be submitted to."""

import sys
from typing import Any, Literal

from pydantic import Field, model_validator

from cloze.infra.launch.kubernetes_config import KubernetesConfig, Toleration
from cloze.pipeline.core.config import Config

_KUEUE_GROUPS = 6  # of workers: Kueue admits jobs of 8 sets of pods, and the head and the submitter are one each
DEFAULT_PYTHON = "python"  # on the PATH with which Ray was started, or in the environment that `pip` creates
ENTRYPOINT_KEYS = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources")
_ENVIRONMENTS = ("pip", "uv", "conda", "image_uri", "container", "py_executable")  # keys of a runtime environment


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
    """Where and how jobs run: the YAML file of `cloze submit RUN --cluster YAML`.

    With `address` they run on that Ray cluster, otherwise on this machine.
    """

    name: str
    """Name of the cluster, for messages."""
    address: str | None = Field(default=None, pattern=r"^https?://\S+$")
    """Address of the dashboard of a Ray cluster, such as http://127.0.0.1:8265. Without it, and without `kubernetes`,
    jobs run on this machine."""
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
    """The number of CPUs that the cluster can scale to, which the data stages then ask for. Unset: those of the
    `node_types` without GPUs, or else those that it has."""
    max_gpus: int | None = Field(default=None, ge=0)
    """The number of GPUs that the cluster can scale to, which training then asks for. Unset: those of `node_types`, or
    else those that it has."""
    pip: tuple[str, ...] = ()
    """Packages that Ray installs for the job, where the machines do not have them. Not together with `python`."""
    deadline_seconds: int | None = Field(default=None, gt=0)
    """Seconds after which a job is stopped, all its attempts together. It has five minutes to save, and counts as
    failed; the same command continues. On Kubernetes each attempt has this time, and 100 seconds to save."""
    retries: int = Field(default=0, ge=0)
    """How often a job starts the run again after a bug, a hardware fault or a kill; never after an error that only the
    user can fix, or after a stop. On Kubernetes each attempt has a new Ray cluster."""
    ttl_seconds: int | None = Field(default=None, ge=0)
    """Jobs that have ended longer ago are removed from the list. Unset: they are kept."""
    runtime_env: dict[str, Any] = Field(default={})
    """Ray's runtime environment of the job, passed through, such as {uv: [six]}. `env_vars` has priority over its
    variables. `working_dir` is the one that Cloze creates."""
    entrypoint_num_cpus: float | None = Field(default=None, ge=0)
    """Ray's key: CPUs reserved for the job's driver. A driver with CPUs, GPUs, memory or resources may run on any node,
    otherwise it runs on the head."""
    entrypoint_num_gpus: float | None = Field(default=None, ge=0)
    """Ray's key: GPUs reserved for the job's driver."""
    entrypoint_memory: int | None = Field(default=None, ge=0)
    """Ray's key: bytes of memory reserved for the job's driver."""
    entrypoint_resources: dict[str, float] = Field(default={})
    """Ray's key: custom resources reserved for the job's driver."""

    @model_validator(mode="after")
    def _runtime_env_sets_what_cloze_does_not(self) -> "ClusterConfig":
        if taken := sorted(self.runtime_env.keys() & {"working_dir", "py_modules"}):
            raise ValueError(f"runtime_env.{taken[0]}: Cloze sends the code and the run's files itself; remove it")
        if self.pip and "pip" in self.runtime_env:
            raise ValueError("pip and runtime_env.pip name packages twice; remove one of them")
        variables = self.runtime_env.get("env_vars", {})
        if not isinstance(variables, dict):
            raise ValueError("runtime_env.env_vars: give a mapping of names to texts, or remove it")
        if wrong := [name for name, value in variables.items() if not isinstance(value, str)]:
            raise ValueError(f"runtime_env.env_vars.{wrong[0]}: {variables[wrong[0]]} is not text; quote it")
        return self

    @model_validator(mode="after")
    def _keys_of_ray_have_a_cluster(self) -> "ClusterConfig":
        of_ray = ("pip", "runtime_env", *ENTRYPOINT_KEYS)
        if self.is_this_machine and (given := [key for key in of_ray if getattr(self, key)]):
            raise ValueError(f"{given[0]} requires a Ray cluster; give its address, or remove {given[0]}")
        return self

    @model_validator(mode="after")
    def _python_can_be_found(self) -> "ClusterConfig":
        if self.python and "/" in self.python and not self.python.startswith("/"):
            raise ValueError(
                f"python {self.python} would be relative to the job's own folder; give an absolute path, or a name"
            )
        if self.python and self.environment_key:
            raise ValueError(
                f"python selects an environment and {self.environment_key} creates another one; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _kubernetes_can_create_it(self) -> "ClusterConfig":
        if not self.kubernetes:
            return self
        if self.address:
            raise ValueError("address names a Ray cluster that runs, and kubernetes creates one; remove one of them")
        if self.shared_disk:
            raise ValueError("shared_disk: pods cannot access this machine's disk; remove it")
        if given := [key for key in ENTRYPOINT_KEYS if getattr(self, key)]:
            raise ValueError(f"{given[0]}: on Kubernetes the driver has the whole head (kubernetes.head); remove it")
        if not self.node_types:
            raise ValueError("node_types: kubernetes creates these machines; add one type at least")
        names = [kind.name for kind in self.node_types]
        reserved = {"head", "submitter"} if self.kubernetes.queue else {"head"}
        if reserved & set(names) or len(set(names)) < len(names):
            none = " or ".join(sorted(reserved))
            raise ValueError(f"node_types: {', '.join(names)}: give each type another name, and none the name {none}")
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
    def is_this_machine(self) -> bool:
        """Whether jobs are processes of this machine."""
        return self.address is None and self.kubernetes is None

    @property
    def environment_key(self) -> str | None:
        """The key with which Ray creates the job's environment; None where that of the machines is used."""
        return "pip" if self.pip else next((key for key in _ENVIRONMENTS if self.runtime_env.get(key)), None)

    @property
    def cpu_limit(self) -> int | None:
        """The number of CPUs that the cluster can scale to for the data stages; None for those that it has.

        The CPUs of machines with GPUs count only if there are no others.
        """
        if self.max_cpus is None and self.node_types:
            without_gpus = [kind for kind in self.node_types if not kind.gpus]
            return sum(kind.max_nodes * kind.cpus for kind in without_gpus or self.node_types)
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

        Where it is not, or where Ray creates an environment (`pip`), the job runs `python` and the workers run the
        interpreter that Ray was started with.
        """
        if self.python:
            return self.python
        shared = self.shared_disk or self.is_this_machine
        return sys.executable if shared and not self.environment_key else DEFAULT_PYTHON
