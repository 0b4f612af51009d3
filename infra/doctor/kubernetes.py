"""A Kubernetes cluster -> whether it accepts RayJobs, and has what the pods refer to."""

from collections.abc import Iterator

from cloze.infra.doctor.check import Check, from_error, missing, ok
from cloze.infra.launch.kubernetes_api import KubernetesApi
from cloze.infra.launch.kubernetes_config import KubernetesConfig
from cloze.pipeline.core.errors import UserError

_NEEDED = (
    *(("get", "rayjobs"), ("watch", "rayjobs"), ("create", "rayjobs"), ("delete", "rayjobs")),
    *(("list", "pods"), ("get", "pods/log"), ("list", "events")),
)


def kubernetes_checks(config: KubernetesConfig, cluster_path: str) -> Iterator[Check]:
    """Raises nothing: what the API server refuses is a check that fails."""
    try:
        api = KubernetesApi(config, cluster_path)
        jobs = api.rayjobs("")
        yield ok(
            "KubeRay", f"the namespace {config.namespace} has {len(jobs)} RayJobs, which these credentials may list"
        )
        for verb, resource in _NEEDED:
            yield _permission(api, verb, resource)
        for name in (*config.env_secrets, *config.image_pull_secrets):
            yield _object(f"secret {name}", api.has_secret(name), config.namespace)
        if account := config.service_account:
            yield _object(f"service account {account}", api.has_service_account(account), config.namespace)
    except UserError as error:
        yield from_error("Kubernetes", error)


def _permission(api: KubernetesApi, verb: str, resource: str) -> Check:
    if api.may(verb, resource):
        return ok(f"{verb} {resource}", "is allowed")
    return missing(f"{verb} {resource}", f"is not allowed in {api.namespace}", "ask for a role that allows it")


def _object(name: str, exists: bool | None, namespace: str) -> Check:
    if exists:
        return ok(name, f"exists in {namespace}")
    if exists is None:
        return Check(name, "warning", "these credentials may not read it", "check that it exists")
    return missing(name, f"does not exist in {namespace}", "create it, or correct the cluster's file")
