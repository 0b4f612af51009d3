"""The status of a pod -> one line that says why it does not run."""

from typing import Any

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_STARTS = ("ContainerCreating", "PodInitializing")


def pod_problem(pod: dict[str, Any]) -> str:
    """ "" for a pod that runs, starts or has succeeded."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if status.get("phase") == "Failed" and status.get("reason"):
        return f"pod {name} was lost: {_joined(status['reason'], status.get('message'))}"
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _IMAGE:
            return (
                f"pod {name} cannot pull its image: {_joined(reason, waiting.get('message'))}; correct kubernetes.image"
            )
        if reason and reason not in _STARTS:
            return f"pod {name} cannot start: {_joined(reason, waiting.get('message'))}"
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return f"pod {name} used more than its memory (OOMKilled); raise memory_gb of its node type"
    for condition in status.get("conditions", []):
        if (condition.get("type"), condition.get("status")) == ("PodScheduled", "False"):
            return f"pod {name} has no machine: {_joined(condition.get('reason'), condition.get('message'))}"
    return ""


def _joined(reason: str | None, message: str | None) -> str:
    return ": ".join(" ".join(text.split())[:300] for text in (reason, message) if text)
