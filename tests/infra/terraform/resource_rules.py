"""Planned resources of an environment -> what breaks a rule of ours. Assertions of tests/*.tftest.hcl name a resource;
these rules hold for each of a type, also for one that somebody adds, and a type that no rule knows is a problem itself.
"""

import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Json = dict[str, Any]

#: As in tests/environments.tftest.hcl.
ACCOUNT, ADMINISTRATOR = "123456789012", "arn:aws:iam::123456789012:role/Admin"
ALLOWED_CIDRS = ["203.0.113.7/32"]
_SERVICES = {"ec2.amazonaws.com", "eks.amazonaws.com", "pods.eks.amazonaws.com", "vpc-flow-logs.amazonaws.com"}
_MANAGED_POLICIES = {
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEKSClusterPolicy",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "service-role/AmazonEBSCSIDriverPolicy",
}
_POD_TAGS = {
    f"aws:RequestTag/{tag}" for tag in ("eks-cluster-arn", "kubernetes-namespace", "kubernetes-service-account")
}
#: Types that can open, grant or cost nothing beyond what the assertions of their module say.
_PLAIN = {
    "aws_autoscaling_group_tag",
    "aws_budgets_budget",
    "aws_cloudwatch_metric_alarm",
    "aws_default_security_group",
    "aws_ecr_lifecycle_policy",
    "aws_ecr_repository",
    "aws_eip",
    "aws_eks_access_entry",
    "aws_eks_addon",
    "aws_eks_pod_identity_association",
    "aws_flow_log",
    "aws_internet_gateway",
    "aws_kms_alias",
    "aws_nat_gateway",
    "aws_placement_group",
    "aws_s3_bucket",
    "aws_s3_bucket_lifecycle_configuration",
    "aws_s3_bucket_ownership_controls",
    "aws_s3_bucket_public_access_block",
    "aws_s3_bucket_server_side_encryption_configuration",
    "aws_s3_bucket_versioning",
    "aws_route",
    "aws_route_table",
    "aws_route_table_association",
    "aws_sns_topic",
    "aws_sns_topic_subscription",
    "aws_subnet",
    "aws_vpc",
    "aws_vpc_endpoint",
    "aws_vpc_security_group_egress_rule",
}


def problems(resources: list[Json]) -> list[str]:
    """Address and problem of each resource; empty for the roots of the repository."""
    return [
        f"{one['address'].removeprefix('module.platform.')}: {problem}"
        for one in resources
        if one["mode"] == "managed"
        for problem in _problems(one["type"], one["values"])
    ]


def problems_together(resources: list[Json]) -> Iterator[str]:
    """What is missing, or too much, in the platform of an environment as a whole."""
    by_type: dict[str, list[Json]] = {}
    for one in resources:
        by_type.setdefault(one["type"], []).append(one["values"])
    if len(by_type.get("aws_nat_gateway", [])) > 1:
        yield "more than one NAT gateway"
    if not by_type.get("aws_budgets_budget"):
        yield "no budget"
    groups = [one for one in by_type["aws_eks_node_group"] if one["ami_type"].endswith("NVIDIA")]
    counted = [query for one in by_type.get("aws_cloudwatch_metric_alarm", []) for query in one["metric_query"]]
    if len([one for one in counted if one["metric"]]) != len(groups):
        yield "GPU-hours are not counted for all machines with GPUs"


def _problems(kind: str, values: Json) -> Iterator[str]:
    if kind in _RULES:
        yield from _RULES[kind](values)
    elif kind not in _PLAIN:
        yield f"no rule knows the type {kind}"


def _role(values: Json) -> Iterator[str]:
    if values["inline_policy"] or values["managed_policy_arns"]:
        yield "has policies that no rule sees"
    for statement in _statements(values["assume_role_policy"]):
        service = statement["Principal"].get("Service") if isinstance(statement["Principal"], dict) else None
        if service not in _SERVICES or len(statement["Principal"]) != 1:
            yield f"can be assumed by {statement['Principal']}"
        tags = statement.get("Condition", {}).get("StringEquals", {})
        if service == "pods.eks.amazonaws.com" and not all(tags.get(tag) for tag in _POD_TAGS):
            yield "can be had by a pod of another service account, namespace or cluster"


def _role_policy(values: Json) -> Iterator[str]:
    for statement in _statements(values["policy"]):
        if statement.keys() & {"NotAction", "NotResource", "NotPrincipal"} or statement["Effect"] != "Allow":
            yield "says what it does not allow"
            continue
        actions, resources = _list(statement["Action"]), _list(statement["Resource"])
        for action in actions:
            if "*" in action or action.startswith(("iam:", "sts:")):
                yield f"allows {action}"
            reads = re.match("(autoscaling|ec2|eks):(Describe|Get)", action)
            if not reads and "Condition" not in statement and any(one.strip("*") == "" for one in resources):
                yield f"allows {action} of everything"


def _attachment(values: Json) -> Iterator[str]:
    if values["policy_arn"].partition(":policy/")[2] not in _MANAGED_POLICIES:
        yield f"attaches {values['policy_arn']}"


def _key(values: Json) -> Iterator[str]:
    if not values["enable_key_rotation"] or values["deletion_window_in_days"] != 7:
        yield "does not rotate, or lingers for longer than it must"
    yield from _resource_policy(values)


def _resource_policy(values: Json) -> Iterator[str]:
    """A policy of a resource: the account's IAM decides, or a service for this account."""
    for statement in _statements(values["policy"]):
        if statement["Effect"] == "Deny" or statement["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}:
            continue
        source = statement.get("Condition", {}).get("StringEquals", {}).get("aws:SourceAccount")
        if source != ACCOUNT or not isinstance(statement["Principal"], dict) or "AWS" in statement["Principal"]:
            yield f"is open to {statement['Principal']}"


def _ingress(values: Json) -> Iterator[str]:
    for cidr in filter(None, (values["cidr_ipv4"], values["cidr_ipv6"])):
        if not ipaddress.ip_network(cidr).is_private:
            yield f"lets in {cidr}"
        if (values["ip_protocol"], values["from_port"], values["to_port"]) != ("tcp", 443, 443):
            yield "lets in more than HTTPS"


def _security_group(values: Json) -> Iterator[str]:
    if values["ingress"] or values["egress"]:
        yield "has rules that no rule sees"


def _cluster(values: Json) -> Iterator[str]:
    network = values["vpc_config"][0]
    if network["endpoint_public_access"] and network["public_access_cidrs"] != ALLOWED_CIDRS:
        yield f"its API server is open to {network['public_access_cidrs'] or 'everybody'}"


def _access_policy(values: Json) -> Iterator[str]:
    if values["principal_arn"] != ADMINISTRATOR:
        yield f"lets {values['principal_arn']} administer the cluster"


def _node_group(values: Json) -> Iterator[str]:
    scaling, is_system = values["scaling_config"][0], values["node_group_name"] == "system"
    if values["remote_access"]:
        yield "its machines can be entered by SSH"
    if not is_system and (scaling["min_size"] or scaling["desired_size"]):
        yield "keeps machines though no job runs"
    if not is_system and [one["effect"] for one in values["taint"]] != ["NO_SCHEDULE"]:
        yield "has no taint"


def _launch_template(values: Json) -> Iterator[str]:
    if values["key_name"]:
        yield "its machines can be entered by SSH"
    if any(one.get("associate_public_ip_address") == "true" for one in values["network_interfaces"]):
        yield "its machines have public addresses"
    for one in values["tag_specifications"]:
        if missing := {"project", "environment"} - (one["tags"] or {}).keys():
            yield f"{one['resource_type']}: has no tag {min(missing)}, by which `down` finds what is left"
    if {one["resource_type"] for one in values["tag_specifications"]} < {"instance", "volume"}:
        yield "machines or disks have no tags"


def _log_group(values: Json) -> Iterator[str]:
    if not values["retention_in_days"]:
        yield "keeps its logs for ever"


_RULES: dict[str, Callable[[Json], Iterator[str]]] = {
    "aws_cloudwatch_log_group": _log_group,
    "aws_eks_access_policy_association": _access_policy,
    "aws_eks_cluster": _cluster,
    "aws_eks_node_group": _node_group,
    "aws_iam_role": _role,
    "aws_iam_role_policy": _role_policy,
    "aws_iam_role_policy_attachment": _attachment,
    "aws_kms_key": _key,
    "aws_launch_template": _launch_template,
    "aws_s3_bucket_policy": _resource_policy,
    "aws_security_group": _security_group,
    "aws_sns_topic_policy": _resource_policy,
    "aws_vpc_security_group_ingress_rule": _ingress,
}


def _statements(document: str) -> list[Json]:
    return json.loads(document)["Statement"]


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
