"""dev and prod as they are planned on a mocked provider: the rules of resource_rules.py and mutations that break each,
what Cloze reads of them, and what other files say of them."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.prices import load_prices
from cloze.infra.launch.rayjob import Submission, rayjob
from cloze.infra.scripts.prices import HOURS_A_MONTH, idle_costs
from cloze.infra.scripts.terraform import planned_resources
from cloze.pipeline.core.config import load
from tests.infra.terraform.resource_rules import Json, problems, problems_together
from tests.infra.terraform.terraform_runs import SOURCE, Terraform, is_missing
from tests.paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(is_missing(), reason="terraform is not installed")]

ENVIRONMENTS = ("dev", "prod")
KUBERNETES = REPOSITORY / "infra/kubernetes"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    terraform = Terraform(tmp_path_factory.mktemp("terraform") / "copy")
    terraform.init()
    return terraform.states("environments")


def resources(state: Json) -> list[Json]:
    return [dict(one) for one in planned_resources({"planned_values": state})]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_rule_holds(environment: str, states: dict[str, Json]) -> None:
    assert all_problems(resources(states[environment])) == []


def test_each_rule_holds_for_buckets(states: dict[str, Json]) -> None:
    for run in ("data_of_dev", "data_of_prod", "state"):
        assert problems(resources(states[run])) == []


def all_problems(platform: list[Json]) -> list[str]:
    return [*problems(platform), *problems_together(platform)]


def changed(kind: str, **values: Any) -> Callable[[list[Json]], None]:
    """A mutation: other values of the first resource of a type."""
    return lambda all: next(one for one in all if one["type"] == kind)["values"].update(values)


def added(kind: str, **values: Any) -> Callable[[list[Json]], None]:
    """A mutation: one more resource of a type, as the first one but for some values."""

    def add(all: list[Json]) -> None:
        found = next((one["values"] for one in all if one["type"] == kind), {})
        all.append({"address": "more", "mode": "managed", "type": kind, "values": {**found, **values}})

    return add


def policy(**statement: Any) -> str:
    return json.dumps({"Statement": [{"Effect": "Allow", **statement}]})


PODS = {"Service": "pods.eks.amazonaws.com"}
ANYBODY = {"AWS": "*"}
MUTATIONS: dict[str, tuple[Callable[[list[Json]], None], str]] = {
    "a role for anybody": (
        added("aws_iam_role", assume_role_policy=policy(Principal=ANYBODY, Action="sts:AssumeRole")),
        "more: can be assumed by {'AWS': '*'}",
    ),
    "a role for any pod": (
        added("aws_iam_role", assume_role_policy=policy(Principal=PODS, Action="sts:AssumeRole")),
        "more: can be had by a pod of another service account, namespace or cluster",
    ),
    "a role with a policy inside": (added("aws_iam_role", inline_policy=[{}]), "more: has policies that no rule sees"),
    "a user": (added("aws_iam_user"), "more: no rule knows the type aws_iam_user"),
    "an administrator": (
        added("aws_iam_role_policy_attachment", policy_arn="arn:aws:iam::aws:policy/AdministratorAccess"),
        "more: attaches arn:aws:iam::aws:policy/AdministratorAccess",
    ),
    "all but": (
        added("aws_iam_role_policy", policy=policy(NotAction=["iam:*"], Resource=["*"])),
        "more: says what it does not allow",
    ),
    "other roles": (
        added("aws_iam_role_policy", policy=policy(Action=["iam:PassRole"], Resource=["arn:aws:iam::1:role/x"])),
        "more: allows iam:PassRole",
    ),
    "a wildcard": (
        added("aws_iam_role_policy", policy=policy(Action="s3:*", Resource="arn:aws:s3:::b/*")),
        "more: allows s3:*",
    ),
    "any machine": (
        added("aws_iam_role_policy", policy=policy(Action=["ec2:TerminateInstances"], Resource=["*"])),
        "more: allows ec2:TerminateInstances of everything",
    ),
    "any object": (
        added("aws_iam_role_policy", policy=policy(Action=["s3:GetObject"], Resource=["*"])),
        "more: allows s3:GetObject of everything",
    ),
    "a bucket's access list": (added("aws_s3_bucket_acl"), "more: no rule knows the type aws_s3_bucket_acl"),
    "a bucket for anybody": (
        added("aws_s3_bucket_policy", policy=policy(Principal="*", Action="s3:GetObject", Resource="*")),
        "more: is open to *",
    ),
    "a key that stays the same": (
        added("aws_kms_key", enable_key_rotation=False),
        "more: does not rotate, or lingers for longer than it must",
    ),
    "a key for anybody": (
        added("aws_kms_key", policy=policy(Principal=ANYBODY, Action="kms:*", Resource="*")),
        "more: is open to {'AWS': '*'}",
    ),
    "alarms by anybody": (
        added("aws_sns_topic_policy", policy=policy(Principal="*", Action="sns:Publish", Resource="*")),
        "more: is open to *",
    ),
    "the internet": (
        added("aws_vpc_security_group_ingress_rule", cidr_ipv4="0.0.0.0/0"),
        "more: lets in 0.0.0.0/0",
    ),
    "the internet by IPv6": (
        added("aws_vpc_security_group_ingress_rule", cidr_ipv4=None, cidr_ipv6="::/0"),
        "more: lets in ::/0",
    ),
    "any port": (
        added("aws_vpc_security_group_ingress_rule", ip_protocol="-1"),
        "more: lets in more than HTTPS",
    ),
    "rules inside of a group": (
        added("aws_security_group", ingress=[{"cidr_blocks": ["0.0.0.0/0"]}]),
        "more: has rules that no rule sees",
    ),
    "an open API server": (
        changed("aws_eks_cluster", vpc_config=[{"endpoint_public_access": True, "public_access_cidrs": ["0.0.0.0/1"]}]),
        "module.cluster.aws_eks_cluster.this: its API server is open to ['0.0.0.0/1']",
    ),
    "submitters who administer": (
        added("aws_eks_access_policy_association", principal_arn="arn:aws:iam::123456789012:role/Data"),
        "more: lets arn:aws:iam::123456789012:role/Data administer the cluster",
    ),
    "SSH": (added("aws_eks_node_group", remote_access=[{}]), "more: its machines can be entered by SSH"),
    "SSH by the template": (added("aws_launch_template", key_name="key"), "more: its machines can be entered by SSH"),
    "machines without tags": (
        added("aws_launch_template", tag_specifications=[{"resource_type": "volume", "tags": {"project": "cloze"}}]),
        "more: volume: has no tag environment, by which `down` finds what is left",
    ),
    "a machine that is always there": (
        added("aws_eks_node_group", node_group_name="more", scaling_config=[{"min_size": 0, "desired_size": 1}]),
        "more: keeps machines though no job runs",
    ),
    "machines for all": (added("aws_eks_node_group", node_group_name="more", taint=[]), "more: has no taint"),
    "logs for ever": (added("aws_cloudwatch_log_group", retention_in_days=0), "more: keeps its logs for ever"),
    "a second gateway": (added("aws_nat_gateway"), "more than one NAT gateway"),
    "GPUs that nobody counts": (
        added("aws_eks_node_group", ami_type="BOTTLEROCKET_x86_64_NVIDIA"),
        "GPU-hours are not counted for all machines with GPUs",
    ),
    "a public registry": (added("aws_ecr_repository_policy"), "more: no rule knows the type aws_ecr_repository_policy"),
}


def test_each_mutation_is_caught(states: dict[str, Json]) -> None:
    for name, (mutate, expected) in MUTATIONS.items():
        mutated = copy.deepcopy(resources(states["dev"]))
        mutate(mutated)
        assert expected in all_problems(mutated), name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_jobs_of_an_environment_find_its_machines(environment: str, states: dict[str, Json], tmp_path: Path) -> None:
    file = tmp_path / "eks.yaml"
    file.write_text(states[environment]["outputs"]["cluster_file"]["value"])
    cluster = load(ClusterConfig, file)
    submission = Submission(
        "weekly", "s3://bucket/runs", "0123abcd", "cloze run weekly", {}, {"working_dir": "s3://b/z"}
    )
    spec = rayjob("weekly-0123abcd-1", submission, cluster)["spec"]["rayClusterSpec"]
    pods = {"head": spec["headGroupSpec"]["template"]["spec"]}
    pods |= {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    assert set(pods) == {"head", "cpu", "gpu"}
    for pool, pod in pods.items():
        machine = {"cloze/pool": pool, "node.kubernetes.io/instance-type": _instance_type(environment, pool)}
        taint = {"key": "nvidia.com/gpu", "value": "present"} if pool == "gpu" else {"key": "cloze/pool", "value": pool}
        assert pod["nodeSelector"].items() <= machine.items(), pool  # no label that a spot machine alone would have
        assert any(_tolerates(one, taint) for one in pod["tolerations"]), pool
        assert pod["serviceAccountName"] == "cloze"


def test_jobs_have_no_more_machines_than_the_groups(states: dict[str, Json]) -> None:
    for environment in ENVIRONMENTS:
        cluster = yaml.safe_load(states[environment]["outputs"]["cluster_file"]["value"])
        groups = {
            one["values"]["labels"]["cloze/pool"]: one["values"]["scaling_config"][0]["max_size"]
            for one in resources(states[environment])
            if one["type"] == "aws_eks_node_group"
        }
        assert {kind["name"]: kind["max_nodes"] for kind in cluster["node_types"]}.items() <= groups.items()


def test_the_cluster_has_the_service_accounts_that_the_roles_are_for(states: dict[str, Json]) -> None:
    objects = yaml.safe_load_all((KUBERNETES / "base/access.yaml").read_text())
    there = {
        (one["metadata"]["namespace"], one["metadata"]["name"]) for one in objects if one["kind"] == "ServiceAccount"
    }
    chart = yaml.safe_load((KUBERNETES / "charts/cluster-autoscaler.yaml").read_text())
    there.add(("kube-system", chart["rbac"]["serviceAccount"]["name"]))
    for environment in ENVIRONMENTS:
        accounts = states[environment]["outputs"]["service_accounts"]["value"].values()
        assert {(one["namespace"], one["name"]) for one in accounts} == there


def test_the_guide_has_the_costs_of_the_environments(states: dict[str, Json]) -> None:
    guide = (REPOSITORY / "docs/guide/aws.md").read_text()
    prices = load_prices(str(REPOSITORY / "configs/prices.yaml"))
    assert prices
    for column, environment in enumerate(ENVIRONMENTS, start=1):
        months: dict[str, float] = {}
        for cost in idle_costs({"planned_values": states[environment]}, prices):
            assert cost.dollars is not None, cost.name
            part = next(part for part, word in PARTS.items() if word in cost.name)
            months[part] = months.get(part, 0) + cost.dollars * HOURS_A_MONTH
        del months["keys"]  # in a row with what has no price here
        for part, dollars in months.items():
            assert f"{dollars:.0f}" == _row(guide, part)[column].split()[0], f"{environment}: {part}"


def test_old_versions_are_kept_as_long_as_the_guide_says(states: dict[str, Json]) -> None:
    days = {
        run: rule["noncurrent_version_expiration"][0]["noncurrent_days"]
        for run in ("data_of_dev", "data_of_prod", "state")
        for one in resources(states[run])
        if one["type"] == "aws_s3_bucket_lifecycle_configuration"
        for rule in one["values"]["rule"]
        if rule["noncurrent_version_expiration"]
    }
    assert days == {"data_of_dev": 7, "data_of_prod": 30, "state": 365}
    assert "for 7 days (dev) or 30 (prod)" in (REPOSITORY / "docs/guide/aws.md").read_text()


#: The first words of a row of the guide's table of costs -> a word of the cost.
PARTS = {
    "EKS control plane": "control plane",
    "system pool": "(system)",
    "NAT gateway": "NAT",
    "interface endpoints": "endpoint",
    "keys": "key",
}


def _row(guide: str, part: str) -> list[str]:
    [line] = re.findall(rf"(?m)^\| {part}.*$", guide)
    return [cell.strip() for cell in line.strip("|").split("|")]


def _instance_type(environment: str, pool: str) -> str:
    text = (SOURCE / f"environments/{environment}/platform/main.tf").read_text()
    found = re.search(rf'^ *{pool} += {{ instance_types = \["([a-z0-9.]+)"\]', text, re.MULTILINE)
    assert found, pool
    return found[1]


def _tolerates(toleration: dict[str, str], taint: dict[str, str]) -> bool:
    matches: dict[str, Callable[[], bool]] = {
        "Exists": lambda: True,
        "Equal": lambda: toleration["value"] == taint["value"],
    }
    return (
        toleration["key"] == taint["key"] and toleration["effect"] == "NoSchedule" and matches[toleration["operator"]]()
    )
