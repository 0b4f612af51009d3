"""What a moto server can create is applied there, is found as it was described, and is destroyed without a trace."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.infra.terraform.moto import client, moto_server
from tests.infra.terraform.terraform_runs import Terraform, is_missing

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(is_missing(), reason="terraform is not installed")]

ROOT = "tests/moto"
STATE = "cloze-state-123456789012"

#: What moto does not report as it was asked to, by resource: Terraform would change that again, and nothing else.
FORGOTTEN = {
    "module.cluster.aws_eks_cluster.this": {"access_config", "upgrade_policy"},
    "module.network.aws_vpc_security_group_egress_rule.efa[0]": {"description"},
    "module.network.aws_vpc_security_group_ingress_rule.efa[0]": {"description"},
    "module.nodes.aws_eks_node_group.system": {"node_repair_config", "remote_access", "update_config"},
    "module.nodes.aws_launch_template.system": {"tag_specifications"},
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with moto_server(tmp_path_factory.mktemp("moto") / "log") as address:
        client("s3", address).create_bucket(Bucket=STATE)
        yield address


@pytest.fixture(scope="module")
def applied(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    terraform = Terraform(tmp_path_factory.mktemp("terraform") / "copy")
    backend = {
        "bucket": STATE,
        "region": "us-east-1",
        "access_key": "testing",
        "secret_key": "testing",
        "use_path_style": True,
        "skip_credentials_validation": True,
        "skip_requesting_account_id": True,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in backend.items()]
    file = terraform.copy / "backend.hcl"
    file.write_text("\n".join([*lines, f'endpoints = {{ s3 = "{endpoint}" }}', ""]))
    terraform.init(ROOT, f"-backend-config={file}")
    terraform.succeed("plan", "-out=saved.tfplan", "-input=false", f"-var=endpoint={endpoint}", folder=ROOT)
    terraform.succeed("apply", "-input=false", "-no-color", "saved.tfplan", folder=ROOT)
    return terraform


def test_an_account_is_filled_and_emptied(applied: Terraform, endpoint: str) -> None:
    assert_as_described(endpoint)
    assert_a_second_plan_is_empty(applied, endpoint)
    assert_the_state_can_be_locked(applied, endpoint)
    applied.succeed("destroy", "-auto-approve", "-input=false", f"-var=endpoint={endpoint}", folder=ROOT)
    assert leftovers(endpoint) == {}


def assert_as_described(endpoint: str) -> None:
    s3, eks = client("s3", endpoint), client("eks", endpoint)
    bucket = "cloze-moto-123456789012"
    rules = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
    for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]:
        assert "Days" not in rule.get("Expiration", {})
        assert not any(rule.get("Filter", {}).values()), "for the whole bucket"
    assert eks.describe_cluster(name="cloze-moto")["cluster"]["version"] == "1.35"
    group = eks.describe_nodegroup(clusterName="cloze-moto", nodegroupName="system")["nodegroup"]
    assert group["labels"] == {"cloze/pool": "system", "cloze/capacity-type": "on-demand"}


def assert_a_second_plan_is_empty(terraform: Terraform, endpoint: str) -> None:
    terraform.succeed("plan", "-out=second.tfplan", "-input=false", f"-var=endpoint={endpoint}", folder=ROOT)
    plan = json.loads(terraform.succeed("show", "-json", "second.tfplan", folder=ROOT))
    assert len(plan["resource_changes"]) > 40
    changed = {one["address"]: differences(one["change"]) for one in plan["resource_changes"]}
    assert {address: keys for address, keys in changed.items() if keys} == FORGOTTEN


def differences(change: dict[str, Any]) -> set[str]:
    """The attributes that a change of a resource would give another value, unless that is known only afterwards."""
    before, after, unknown = change["before"], change["after"], change["after_unknown"]
    known = [key for key in after if not has_true(unknown.get(key))]
    return {key for key in known if (before[key] or after[key]) and before[key] != after[key]}


def has_true(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(has_true(one) for one in (value.values() if isinstance(value, dict) else value))
    return bool(value)


def assert_the_state_can_be_locked(terraform: Terraform, endpoint: str) -> None:
    s3 = client("s3", endpoint)
    lock = {
        "ID": "another",
        "Operation": "OperationTypeApply",
        "Who": "somebody@elsewhere",
        "Created": "2026-01-01T00:00:00Z",
    }
    s3.put_object(Bucket=STATE, Key="test/moto.tfstate.tflock", Body=json.dumps(lock))
    refused = terraform.run("plan", "-input=false", "-no-color", f"-var=endpoint={endpoint}", folder=ROOT)
    assert refused.returncode == 1
    assert "Error acquiring the state lock" in refused.stderr
    assert "somebody@elsewhere" in refused.stderr
    s3.delete_object(Bucket=STATE, Key="test/moto.tfstate.tflock")


def leftovers(endpoint: str) -> dict[str, list[Any]]:
    """What the account still has of ours, by its kind; a key is only scheduled for deletion, as on AWS."""
    ec2, iam, kms = (client(service, endpoint) for service in ("ec2", "iam", "kms"))
    ours = [{"Name": "tag:project", "Values": ["cloze-moto"]}]
    keys = [kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"] for key in kms.list_keys()["Keys"]]
    found = {
        "VPCs": ec2.describe_vpcs(Filters=ours)["Vpcs"],
        "endpoints": [one for one in ec2.describe_vpc_endpoints()["VpcEndpoints"] if one["State"] != "deleted"],
        "NAT gateways": [one for one in ec2.describe_nat_gateways()["NatGateways"] if one["State"] != "deleted"],
        "addresses": ec2.describe_addresses()["Addresses"],
        "security groups": ec2.describe_security_groups(Filters=ours)["SecurityGroups"],
        "launch templates": ec2.describe_launch_templates()["LaunchTemplates"],
        "clusters": client("eks", endpoint).list_clusters()["clusters"],
        "repositories": client("ecr", endpoint).describe_repositories()["repositories"],
        "roles": [role["RoleName"] for role in iam.list_roles()["Roles"] if role["RoleName"].startswith("cloze-moto")],
        "log groups": client("logs", endpoint).describe_log_groups()["logGroups"],
        "buckets": [one["Name"] for one in client("s3", endpoint).list_buckets()["Buckets"] if one["Name"] != STATE],
        "keys": [key["KeyId"] for key in keys if key["KeyState"] != "PendingDeletion"],
    }
    return {kind: things for kind, things in found.items() if things}
