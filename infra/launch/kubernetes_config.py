"""The configuration of a Kubernetes cluster on which each job gets a Ray cluster of its own."""

import re
from typing import Literal

from pydantic import Field, field_validator

from cloze.pipeline.core.config import Config

_DNS_LABEL = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Toleration(Config):
    """A taint of machines on which the pods may run all the same."""

    key: str = Field(min_length=1)
    """Key of the taint."""
    value: str | None = None
    """Value of the taint. Unset: any value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint."""


class HeadConfig(Config):
    """The machine of the Ray head: Ray's own services and the run's process, which starts Beam and Ray's workers
    elsewhere. It is on demand where other machines are spot.
    """

    cpus: int = Field(default=4, gt=0)
    """CPUs of the head."""
    memory_gb: float = Field(default=16.0, gt=0)
    """Memory of the head, in 10^9 bytes."""
    instance_type: str | None = None
    """The cloud's name of the machine, such as m7i.2xlarge, whose price `cloze plan` and `max_cost` look up. Unset: any
    that has room."""
    node_selector: dict[str, str] = Field(default={})
    """Labels of the machines that the head may run on."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the head tolerates."""


class KubernetesConfig(Config):
    """A Kubernetes cluster with KubeRay 1.7 or later. Each job is a RayJob, which creates its own Ray cluster from
    `node_types`, and deletes it at the end.
    """

    image: str = Field(min_length=1, pattern=r"^\S+$")
    """Container image with Cloze's packages, Ray and, unless `code` is upload, Cloze: name@sha256:DIGEST, or name:TAG
    with a tag other than latest."""
    code: Literal["image", "upload"] = "image"
    """Where the job's code is from: image runs the Cloze that the image contains; upload sends this machine's Cloze
    with the job."""
    namespace: str = Field(default="default", pattern=_DNS_LABEL)
    """Namespace of the jobs."""
    context: str | None = None
    """Context of the kubeconfig (KUBECONFIG or ~/.kube/config). Unset: its current one, or the pod's own service
    account where cloze runs in a pod."""
    service_account: str | None = None
    """Service account of the pods, which gives them access to S3."""
    env_secrets: tuple[str, ...] = ()
    """Names of secrets whose keys become environment variables of the pods, such as AWS_ACCESS_KEY_ID."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of secrets for the image's registry."""
    queue: str | None = None
    """Kueue's local queue that admits the job. Its Ray cluster then has a fixed size: min_nodes equals max_nodes."""
    head: HeadConfig = HeadConfig()
    """The machine of the Ray head."""
    capacity_label: str = "karpenter.sh/capacity-type"
    """Label of machines whose value is spot or on-demand. Selected if any of `node_types` is spot."""
    shm_gb: float | None = Field(default=None, gt=0)
    """Shared memory (/dev/shm) of each pod, in 10^9 bytes; it is a part of the pod's memory. Unset: 40 % of that."""
    pending_deadline_seconds: int = Field(default=1800, gt=0)
    """Time in which the head and min_nodes of each type must be ready; the job fails otherwise."""

    @field_validator("image")
    @classmethod
    def _image_does_not_change(cls, image: str) -> str:
        name, _, digest = image.partition("@")
        if digest and not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            raise ValueError("a digest is sha256: and 64 hexadecimal digits; copy it from the registry")
        _, _, tag = name.rpartition("/")[2].partition(":")
        if not digest and tag in ("", "latest"):
            raise ValueError("names another image after the next push; give its digest (name@sha256:...) or a version")
        return image
