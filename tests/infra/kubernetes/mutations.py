"""Changes of the manifests and of a RayJob that each break a rule, and what is then said."""

from collections.abc import Callable
from typing import Any

from tests.infra.kubernetes.manifests import Json, find, rayjob_pods

Mutation = Callable[[list[Json]], Any]


def dagster(objects: list[Json]) -> Json:
    return find(objects, "StatefulSet", "dagster")["spec"]["template"]["spec"]


def container(objects: list[Json], name: str = "daemon") -> Json:
    return next(one for one in dagster(objects)["containers"] if one["name"] == name)


def spec(kind: str, name: str) -> Callable[[list[Json]], Json]:
    return lambda objects: find(objects, kind, name)["spec"]


def removed(kind: str, name: str) -> Mutation:
    return lambda objects: objects.remove(find(objects, kind, name))


def added(kind: str, spec: Json) -> Mutation:
    return lambda objects: objects.append({"kind": kind, "metadata": {"name": "more"}, "spec": spec})


MUTATIONS: dict[str, tuple[Mutation, str]] = {
    "a pod as root": (lambda all: dagster(all)["securityContext"].pop("runAsNonRoot"), "dagster: may run as root"),
    "a container as root": (
        lambda all: container(all)["securityContext"].update(runAsUser=0),
        "dagster: daemon: may run as root",
    ),
    "no seccomp": (lambda all: dagster(all)["securityContext"].pop("seccompProfile"), "dagster: no seccomp profile"),
    "the machine's network": (
        lambda all: dagster(all).update(hostNetwork=True),
        "dagster: shares the machine's namespaces",
    ),
    "privileges": (
        lambda all: container(all)["securityContext"].pop("allowPrivilegeEscalation"),
        "dagster: daemon: may gain privileges",
    ),
    "capabilities": (
        lambda all: container(all)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["SYS_PTRACE"]}),
        "dagster: daemon: keeps capabilities",
    ),
    "a root file system to write to": (
        lambda all: container(all)["securityContext"].pop("readOnlyRootFilesystem"),
        "dagster: daemon: can write to its root file system",
    ),
    "no limits": (lambda all: container(all)["resources"].pop("limits"), "dagster: daemon: has no limits"),
    "no probe": (lambda all: container(all).pop("livenessProbe"), "dagster: daemon: has no livenessProbe"),
    "latest": (
        lambda all: container(all).update(image="cloze:latest"),
        "dagster: daemon: its image cloze:latest changes",
    ),
    "no service account": (removed("ServiceAccount", "dagster"), "dagster: its service account does not exist"),
    "no denial": (removed("NetworkPolicy", "deny-all"), "no network policy denies Egress"),
    "only ingress is denied": (
        lambda all: spec("NetworkPolicy", "deny-all")(all).update(policyTypes=["Ingress"]),
        "no network policy denies Egress",
    ),
    "everybody reaches Ray": (
        lambda all: spec("NetworkPolicy", "ray")(all)["ingress"].append({}),
        "NetworkPolicy ray: lets in what is outside of the named namespaces",
    ),
    "the metadata service": (
        lambda all: spec("NetworkPolicy", "https-and-pod-identity")(all)["egress"][0]["to"][0]["ipBlock"].pop("except"),
        "NetworkPolicy https-and-pod-identity: lets pods reach the machine's metadata service",
    ),
    "a load balancer": (
        lambda all: spec("Service", "dagster-login")(all).update(type="LoadBalancer"),
        "Service dagster-login: is reached from outside of the cluster",
    ),
    "GPUs without a quota": (
        lambda all: spec("ResourceQuota", "jobs")(all)["hard"].pop("requests.nvidia.com/gpu"),
        "no quota of requests.nvidia.com/gpu",
    ),
    "a namespace for any pod": (
        lambda all: find(all, "Namespace", "cloze")["metadata"]["labels"].pop("pod-security.kubernetes.io/enforce"),
        "the namespace admits pods that are not restricted",
    ),
    "a container without seccomp": (
        lambda all: container(all)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
        "dagster: daemon: no seccomp profile",
    ),
    "a port of the machine": (
        lambda all: container(all).update(ports=[{"containerPort": 3000, "hostPort": 3000}]),
        "dagster: daemon: opens a port of the machine",
    ),
    "a path of the machine": (
        lambda all: dagster(all)["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
        "dagster: mounts a path of the machine",
    ),
    "a privileged container": (
        lambda all: container(all)["securityContext"].update(privileged=True),
        "dagster: daemon: may gain privileges",
    ),
    "an address from outside": (
        lambda all: spec("Service", "dagster-login")(all).update(externalIPs=["203.0.113.7"]),
        "Service dagster-login: is reached from outside of the cluster",
    ),
    "an Ingress around the login": (
        added("Ingress", {"defaultBackend": {"service": {"name": "dagster", "port": {"number": 3000}}}}),
        "Ingress more: leads around the login",
    ),
    "a login for some paths": (
        lambda all: container(all, "login")["args"].append("--skip-auth-route=.*"),
        "StatefulSet dagster: the login lets pass whom it should not: --skip-auth-route=.*",
    ),
    "everybody reaches the login": (
        lambda all: spec("NetworkPolicy", "login")(all)["ingress"][0].update({"from": []}),
        "NetworkPolicy login: lets in what is outside of the named namespaces",
    ),
    "namespaces without a label": (
        lambda all: spec("NetworkPolicy", "login")(all)["ingress"][0]["from"][0].update(
            namespaceSelector={"matchExpressions": [{"key": "private", "operator": "DoesNotExist"}]}
        ),
        "NetworkPolicy login: lets in what is outside of the named namespaces",
    ),
    "all pods reach Ray": (
        lambda all: spec("NetworkPolicy", "ray")(all)["ingress"][0]["from"][0].update(podSelector={}),
        "NetworkPolicy ray: lets in any pod of the namespace",
    ),
    "the operator reaches any port": (
        lambda all: spec("NetworkPolicy", "ray")(all)["ingress"][1].pop("ports"),
        "NetworkPolicy ray: lets another namespace reach any port",
    ),
    "any port of the internet": (
        lambda all: spec("NetworkPolicy", "https-and-pod-identity")(all)["egress"][0].pop("ports"),
        "NetworkPolicy https-and-pod-identity: lets pods reach 0.0.0.0/0 by more than HTTPS",
    ),
    "the metadata service in half of the internet": (
        lambda all: spec("NetworkPolicy", "https-and-pod-identity")(all)["egress"][0].update(
            to=[{"ipBlock": {"cidr": "0.0.0.0/1"}}, {"ipBlock": {"cidr": "128.0.0.0/1"}}]
        ),
        "NetworkPolicy https-and-pod-identity: lets pods reach the machine's metadata service",
    ),
    "egress to everything": (
        lambda all: spec("NetworkPolicy", "dns")(all)["egress"].append({}),
        "NetworkPolicy dns: lets pods reach 0.0.0.0/0 by more than HTTPS",
    ),
    "no names": (removed("NetworkPolicy", "dns"), "no network policy lets pods reach names"),
    "secrets": (
        lambda all: find(all, "Role", "submitter")["rules"][1]["resources"].append("secrets"),
        "Role submitter: grants get secrets",
    ),
    "commands in pods": (
        lambda all: find(all, "Role", "submitter")["rules"].append(
            {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}
        ),
        "Role submitter: grants create pods/exec",
    ),
    "all verbs": (
        lambda all: find(all, "Role", "submitter")["rules"][0].update(verbs=["*"]),
        "Role submitter: grants * rayjobs",
    ),
    "a job that cannot be stopped": (
        lambda all: find(all, "Role", "submitter")["rules"][0]["verbs"].remove("delete"),
        "Role submitter: lacks delete rayjobs",
    ),
    "everybody submits": (
        lambda all: find(all, "RoleBinding", "submitters")["subjects"].append(
            {"kind": "Group", "name": "system:authenticated"}
        ),
        "RoleBinding submitters: binds Group system:authenticated",
    ),
    "an administrator": (
        lambda all: find(all, "RoleBinding", "submitters")["roleRef"].update(kind="ClusterRole", name="cluster-admin"),
        "RoleBinding submitters: binds a role that is not among these",
    ),
    "a role of the cluster": (added("ClusterRoleBinding", {}), "ClusterRoleBinding more: is of the whole cluster"),
    "two daemons": (
        lambda all: spec("StatefulSet", "dagster")(all).update(replicas=2),
        "StatefulSet dagster: more than one pod writes the history",
    ),
    "a disk in clear": (
        lambda all: find(all, "StorageClass", "cloze-gp3")["parameters"].update(encrypted="false"),
        "StorageClass cloze-gp3: disks are not encrypted",
    ),
    "a disk that stays": (
        lambda all: find(all, "StorageClass", "cloze-gp3").update(reclaimPolicy="Retain"),
        "StorageClass cloze-gp3: disks stay when their claims are deleted",
    ),
    "a disk without tags": (
        lambda all: find(all, "StorageClass", "cloze-gp3")["parameters"].pop("tagSpecification_1"),
        "StorageClass cloze-gp3: disks have no tags, by which `down` finds what is left",
    ),
    "no quota": (removed("ResourceQuota", "jobs"), "no quota of pods"),
    "a machine that no upgrade can drain": (
        lambda all: spec("PodDisruptionBudget", "dagster")(all).update(maxUnavailable=0),
        "a disruption budget admits no disruption: no machine below it can be upgraded",
    ),
    "heads without a budget": (
        removed("PodDisruptionBudget", "ray-heads"),
        "no disruption budget keeps the Ray heads",
    ),
    "a budget that Kubernetes cannot compute": (
        lambda all: [
            spec("PodDisruptionBudget", "ray-heads")(all).pop("minAvailable"),
            spec("PodDisruptionBudget", "ray-heads")(all).update(maxUnavailable=0),
        ],
        "no disruption budget keeps the Ray heads",
    ),
}


RAYJOB_MUTATIONS: dict[str, tuple[Callable[[Json], Any], str]] = {
    "a head on spot": (
        lambda one: rayjob_pods(one)[0][1]["spec"]["nodeSelector"].update({"karpenter.sh/capacity-type": "spot"}),
        "head: may run on a spot machine ({'karpenter.sh/capacity-type': 'spot'})",
    ),
    "a head anywhere": (
        lambda one: rayjob_pods(one)[0][1]["spec"].pop("nodeSelector"),
        "head: may run on a spot machine ({})",
    ),
    "workers as root": (
        lambda one: rayjob_pods(one)[1][1]["spec"]["securityContext"].update(runAsUser=0),
        "cpu: may run as root",
    ),
    "workers without a policy": (
        lambda one: rayjob_pods(one)[2][1]["metadata"]["labels"].pop("cloze/run"),
        "gpu: the network policy ray does not select it",
    ),
    "workers with a token": (
        lambda one: rayjob_pods(one)[1][1]["spec"].pop("automountServiceAccountToken"),
        "cpu: has a token of the API server, which it does not need",
    ),
    "another service account": (
        lambda one: rayjob_pods(one)[0][1]["spec"].update(serviceAccountName="default"),
        "head: its service account is default",
    ),
}
