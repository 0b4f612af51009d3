"""Kubernetes objects -> what lets traffic in or out that our rules do not."""

import ipaddress
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_METADATA_SERVICES = ("169.254.169.254", "fd00:ec2::254")
_LOGIN = "dagster-login"
_PASSES = ("--skip-auth", "--skip-jwt", "--trusted-ip", "--email-domain", "--cookie-secure=false")


def network_problems(objects: list[Json]) -> Iterator[str]:
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    denied = {
        way
        for policy in policies
        if not policy["podSelector"] and not policy.get("ingress") and not policy.get("egress")
        for way in policy["policyTypes"]
    }
    if missing := {"Ingress", "Egress"} - denied:
        yield f"no network policy denies {min(missing)}"
    for port, what in ((53, "names"), (443, "S3 and the API server"), (80, "Pod Identity's agent")):
        if not any(port in _ports(rule) for policy in policies for rule in policy.get("egress", [])):
            yield f"no network policy lets pods reach {what}"
    for one in objects:
        yield from (f"{one['kind']} {one['metadata']['name']}: {problem}" for problem in _of_object(one))


def _of_object(one: Json) -> Iterator[str]:
    match one["kind"]:
        case "NetworkPolicy":
            for rule in one["spec"].get("ingress", []):
                yield from _ingress(rule)
            for rule in one["spec"].get("egress", []):
                yield from _egress(rule)
        case "Service":
            if one["spec"].get("type", "ClusterIP") != "ClusterIP" or one["spec"].get("externalIPs"):
                yield "is reached from outside of the cluster"
        case "Ingress":
            paths = [path for rule in one["spec"].get("rules", []) for path in rule["http"]["paths"]]
            backends = [path["backend"] for path in paths] + [one["spec"].get("defaultBackend")]
            if any(backend and backend["service"]["name"] != _LOGIN for backend in backends):
                yield "leads around the login"
        case "StatefulSet":
            for container in one["spec"]["template"]["spec"]["containers"]:
                for argument in container.get("args", []) if container["name"] == "login" else ():
                    if argument.startswith(_PASSES):
                        yield f"the login lets pass whom it should not: {argument}"


def _ingress(rule: Json) -> Iterator[str]:
    for peer in rule.get("from") or [{}]:  # without peers everybody
        if "podSelector" not in peer or "namespaceSelector" in peer:
            if not peer.get("namespaceSelector", {}).get("matchLabels"):
                yield "lets in what is outside of the named namespaces"
            elif not _ports(rule):
                yield "lets another namespace reach any port"
        elif not peer["podSelector"]:
            yield "lets in any pod of the namespace"


def _egress(rule: Json) -> Iterator[str]:
    for peer in rule.get("to") or [{"ipBlock": {"cidr": "0.0.0.0/0"}}]:
        if "ipBlock" in peer:
            yield from _addresses(peer["ipBlock"], _ports(rule))
        elif not any(peer.get(key) for key in ("podSelector", "namespaceSelector")):
            yield "lets pods reach any other"


def _addresses(block: Json, ports: set[int]) -> Iterator[str]:
    network = ipaddress.ip_network(block["cidr"])
    excepted = [ipaddress.ip_network(cidr) for cidr in block.get("except", [])]
    for address in map(ipaddress.ip_address, _METADATA_SERVICES):
        if address in network and not any(address in one for one in excepted):
            yield "lets pods reach the machine's metadata service"
    if network.num_addresses > 1 and ports != {443}:
        yield f"lets pods reach {block['cidr']} by more than HTTPS"


def _ports(rule: Json) -> set[int]:
    return {one["port"] for one in rule.get("ports", []) if "endPort" not in one}
