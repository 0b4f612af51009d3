"""infra/scripts/up and down against a local AWS server (moto, over HTTP), with fakes of what needs an account or a
cluster: what is run in which order, that each failure ends in one line, and that the same command then completes.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.prices import load_prices
from cloze.infra.scripts import down, up
from cloze.infra.scripts.environment import read_environment
from cloze.infra.scripts.prices import estimated_cluster, idle_costs, needed_quotas
from cloze.pipeline.core.config import parse
from tests.infra.scripts.fake_tools import FakeTools
from tests.paths import REPOSITORY

REGION, ACCOUNT = "us-east-1", "123456789012"  # the account of moto
BUCKET, STATE_BUCKET = f"cloze-dev-{ACCOUNT}", f"cloze-state-{ACCOUNT}"
ENVIRONMENTS = REPOSITORY / "infra/terraform/environments"
POOLS = {
    "head": {"instance_types": ["m7i.2xlarge"], "cpus": 4, "memory_gb": 16, "max_nodes": 2},
    "cpu": {"instance_types": ["c7i.8xlarge"], "cpus": 30, "memory_gb": 56, "max_nodes": 2, "spot": True},
    "gpu": {"instance_types": ["g6.12xlarge"], "cpus": 44, "memory_gb": 180, "gpus": 4, "gpu": "L4", "max_nodes": 1},
}


def node_group(name: str, kind: str, capacity: str, desired: int, largest: int) -> dict[str, Any]:
    scaling = [{"desired_size": desired, "max_size": largest}]
    values = {"node_group_name": name, "instance_types": [kind], "capacity_type": capacity, "scaling_config": scaling}
    return {"type": "aws_eks_node_group", "values": values}


RESOURCES = [
    {"type": "aws_eks_cluster", "values": {}},
    {"type": "aws_nat_gateway", "values": {}},
    {"type": "aws_vpc", "values": {}},
    {"type": "aws_vpc_endpoint", "values": {"vpc_endpoint_type": "Gateway", "service_name": "com.amazonaws.x.s3"}},
    {"type": "aws_vpc_endpoint", "values": {"vpc_endpoint_type": "Interface", "service_name": "com.amazonaws.x.sts"}},
    node_group("system", "m7i.large", "ON_DEMAND", 1, 2),
    node_group("gpu-spot", "g6.12xlarge", "SPOT", 0, 3),
]
PLAN = {
    "planned_values": {"root_module": {"child_modules": [{"child_modules": [{"resources": RESOURCES}]}]}},
    "configuration": {
        "root_module": {"module_calls": {"platform": {"expressions": {"pools": {"constant_value": POOLS}}}}}
    },
}
OUTPUTS = {
    "cluster_name": "cloze-dev",
    "region": REGION,
    "image_repository": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/cloze-dev/cloze",
    "autoscaler_priorities": {"20": [".*-spot-.*"], "10": [".*"]},
    "cluster_file": "name: cloze-dev\nkubernetes:\n  context: cloze-dev\n  image: cloze:1\n",
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a repository with the files that the scripts read, one commit, an environment dev."""
    clone = tmp_path / "clone"
    for folder in ("infra/kubernetes", "infra/docker", "configs"):
        shutil.copytree(REPOSITORY / folder, clone / folder)
    shutil.copy(REPOSITORY / ".gitignore", clone)
    platform = clone / "infra/terraform/environments/dev/platform"
    for folder in (platform, platform.with_name("data")):
        folder.mkdir(parents=True)
    (platform / "terraform.tfvars").write_text(f'account_id = "{ACCOUNT}"\n')
    (platform.with_name("data") / "main.tf").write_text(f'provider "aws" {{\n  region = "{REGION}"\n}}\n')
    subprocess.run(["git", "-C", str(clone), "init", "-q"], check=True)
    commit(clone)
    monkeypatch.chdir(clone)
    return clone


def commit(clone: Path) -> None:
    for command in ("add .", "-c user.name=a -c user.email=a@b commit -qm Commit"):
        subprocess.run(["git", "-C", str(clone), *command.split()], check=True)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTools:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    fakes = FakeTools(tmp_path / "fakes", kubectl)
    fakes.answers(PLAN, {name: {"value": value} for name, value in OUTPUTS.items()})
    monkeypatch.setenv("PATH", str(fakes.bin), prepend=":")
    return fakes


@pytest.fixture
def aws(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[boto3.Session]:
    """The local AWS with what Terraform would have created: a registry, and a bucket. This has an object in two
    versions, one that is deleted, and an upload that nobody completed."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    session = boto3.Session(region_name=REGION)
    s3, ecr = session.client("s3"), session.client("ecr")
    for name in (BUCKET, STATE_BUCKET):
        s3.create_bucket(Bucket=name)
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=BUCKET, Key="runs/a", Body=b"1" * 10**6)
    s3.put_object(Bucket=BUCKET, Key="runs/a", Body=b"2" * 10**6)
    s3.put_object(Bucket=BUCKET, Key="runs/b", Body=b"3")
    s3.delete_object(Bucket=BUCKET, Key="runs/b")
    s3.create_multipart_upload(Bucket=BUCKET, Key="runs/c")
    s3.put_object(Bucket=STATE_BUCKET, Key="dev/platform.tfstate", Body=json.dumps({"resources": []}).encode())
    ecr.create_repository(repositoryName="cloze-dev/cloze")
    yield session
    ecr.delete_repository(repositoryName="cloze-dev/cloze", force=True)
    for name in {one["Name"] for one in s3.list_buckets()["Buckets"]} & {BUCKET, STATE_BUCKET}:
        listed = s3.list_object_versions(Bucket=name)
        for version in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]:
            s3.delete_object(Bucket=name, Key=version["Key"], VersionId=version["VersionId"])
        s3.delete_bucket(Bucket=name)


@pytest.fixture
def cluster(aws: boto3.Session) -> Iterator[Any]:
    """An EKS cluster with node groups of the system and of a pool."""
    eks, role = aws.client("eks"), f"arn:aws:iam::{ACCOUNT}:role/node"
    eks.create_cluster(name="cloze-dev", roleArn=role, resourcesVpcConfig={"subnetIds": ["subnet-1", "subnet-2"]})
    sizes = {"minSize": 1, "desiredSize": 1, "maxSize": 2}
    for group in ("system", "gpu-spot"):
        eks.create_nodegroup(
            clusterName="cloze-dev", nodegroupName=group, nodeRole=role, subnets=["subnet-1"], scalingConfig=sizes
        )
    yield eks
    for group in ("system", "gpu-spot"):
        eks.delete_nodegroup(clusterName="cloze-dev", nodegroupName=group)
    eks.delete_cluster(name="cloze-dev")


def steps(calls: list[str]) -> list[str]:
    """The program and the verb of each call, without folders, and without questions."""
    found = [re.sub(r" -chdir=\S*/(\w+)(?= )| --context=\S+", r" \1", call) for call in calls]
    verbs = [" ".join(call.split()[:4]) for call in found]
    return [verb for verb in verbs if not re.match(r"kubectl (get|kustomize)|terraform \w+ (show|output)", verb)]


def test_up_goes_from_the_state_to_a_job(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up.main(["dev", "--yes"]) == 0
    assert [re.sub(r"--\S+|\S*/\S+", "", step).strip() for step in steps(fakes.calls)] == [
        "terraform data init -input=false",
        "terraform data plan -input=false",
        "terraform data apply -input=false",
        "terraform platform init -input=false",
        "terraform platform plan -input=false",
        "cloze plan",
        "terraform platform apply -input=false",
        "aws eks update-kubeconfig",
        "docker login  AWS",
        "docker build",
        "docker push",
        "kubectl apply",
        "helm upgrade  kuberay-operator",
        "helm upgrade  cluster-autoscaler",
        "kubectl apply",
        "kubectl rollout status",
        "cloze submit",
    ]
    assert (clone / "configs/clusters/eks-dev.yaml").read_text() == OUTPUTS["cluster_file"]
    printed = capsys.readouterr().out
    assert "0.2558  dollars an hour while no job runs (187 a month)" in printed
    assert (
        "quota L-3819A6DF (All G and VT Spot Instance Requests): unknown vCPUs; the pools need 144 at most" in printed
    )
    (clone / "infra/kubernetes/overlays/dev/more.yaml").write_text("")
    commit(clone)
    fakes.start()
    assert up.main(["dev", "--yes"]) == 0
    # Its image is there, as the second commit changed none of its files.
    assert not [call for call in fakes.calls if call.startswith("docker")]


def test_the_manifests_have_the_digest_and_the_clusters_file(clone: Path, fakes: FakeTools, aws: boto3.Session) -> None:
    assert up.main(["dev", "--yes"]) == 0
    folder = clone / "build/infra/dev/kubernetes"
    text = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True).stdout
    image = re.escape(OUTPUTS["image_repository"])
    assert len(re.findall(rf"image: {image}@sha256:[0-9a-f]{{64}}\n", text)) == 4
    # Without the context: the pod has no kubeconfig, and submits by its service account.
    assert "cluster.yaml: |\n    name: cloze-dev\n    kubernetes:\n      image: cloze:1\n" in text


@pytest.mark.slow
def test_after_each_failure_the_same_up_completes(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capfd: pytest.CaptureFixture[str]
) -> None:
    assert up.main(["dev", "--yes"]) == 0
    calls = len(fakes.calls)
    aws.client("ecr").batch_delete_image(
        repositoryName="cloze-dev/cloze",
        imageIds=aws.client("ecr").list_images(repositoryName="cloze-dev/cloze")["imageIds"],
    )
    for failing in range(calls):
        fakes.start(failing)
        status = up.main(["dev", "--yes"])
        made, errors = fakes.calls, capfd.readouterr().err
        if status == 0:  # fewer calls than at first: the image was pushed by an earlier attempt
            assert failing >= len(made)
            continue
        assert (status, len(made)) == (2, failing + 1)
        last = errors.splitlines()[-1]
        assert re.match("up: .*: ended with status 1; fix what it says above, then repeat this command", last)
    fakes.start()
    assert up.main(["dev", "--yes"]) == 0
    assert fakes.calls[-1].startswith("cloze submit")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ("echo >> infra/docker/Dockerfile", "up: infra/docker/Dockerfile: has changed since the last commit"),
        ("rm infra/terraform/environments/dev/platform/terraform.tfvars", "is missing; copy terraform.tfvars.example"),
        (
            "sed -i s/1234/9999/ infra/terraform/environments/dev/platform/terraform.tfvars",
            "up: AWS: the credentials are those of account 123456789012, and dev is in 999956789012",
        ),
    ],
)
def test_the_preflight_refuses_in_one_line(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capfd: pytest.CaptureFixture[str], break_it: str, message: str
) -> None:
    subprocess.run(break_it, shell=True, check=True)
    assert up.main(["dev", "--yes"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert message in line
    assert fakes.calls == []


@pytest.mark.parametrize(
    ("name", "printed", "message"),
    [
        ("terraform", "Terraform v1.9.8", "up: terraform 1.9: is too old; install 1.11 or later"),
        ("aws", "aws-cli/1.33.1 Python/3.8.1", "up: aws 1.33: is too old; install 2.0 or later"),
        ("helm", "v2.17.0+ga690bad", "up: helm 2.17: is too old; install 3.0 or later"),
    ],
)
def test_programs_that_are_too_old_are_refused(
    clone: Path, fakes: FakeTools, capfd: pytest.CaptureFixture[str], name: str, printed: str, message: str
) -> None:
    fakes.have(**{name: printed})
    assert up.main(["dev", "--yes"]) == 2
    assert capfd.readouterr().err == f"{message}\n" and fakes.calls == []


def test_prod_waits_for_the_secret_of_its_login(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capfd: pytest.CaptureFixture[str]
) -> None:
    environments = clone / "infra/terraform/environments"
    (environments / "dev").rename(environments / "prod")
    fakes.start(refused="secret")
    assert up.main(["prod", "--yes"]) == 2
    assert "up: secret dagster-login: is missing in the namespace cloze" in capfd.readouterr().err
    assert not [call for call in fakes.calls if "--filename=-" in call]


def test_down_ends_jobs_then_machines_then_volumes_then_the_rest(
    clone: Path, fakes: FakeTools, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert down.main(["dev", "--yes"]) == 0
    assert [re.sub(r"--\S+|\S*/\S+", "", step).strip() for step in steps(fakes.calls)] == [
        "aws eks update-kubeconfig",
        "kubectl delete rayjobs.ray.io",
        "kubectl delete rayclusters.ray.io",
        "helm uninstall cluster-autoscaler",
        "kubectl delete ingress",
        "kubectl delete statefulset dagster",
        "kubectl delete persistentvolumeclaim",
        "terraform platform init -input=false",
        "terraform platform plan -input=false",
        "terraform platform apply -input=false",
    ]
    sizes = {
        group: cluster.describe_nodegroup(clusterName="cloze-dev", nodegroupName=group)["nodegroup"]["scalingConfig"]
        for group in ("system", "gpu-spot")
    }
    assert [sizes[group]["desiredSize"] for group in ("system", "gpu-spot")] == [1, 0]
    left = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left: ")]
    assert left == [
        f"left: arn:aws:s3:::{BUCKET} 0.0 GB in all versions, 0.00 dollars a month",
        f"left: arn:aws:s3:::{STATE_BUCKET} 0.0 GB in all versions, 0.00 dollars a month",
    ]


def test_down_deletes_the_buckets_that_are_named_and_then_nothing_is_left(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert down.main(["dev", "--yes", "--delete-data", BUCKET, STATE_BUCKET]) == 0
    assert "Uploads" not in aws.client("s3").list_multipart_uploads(Bucket=BUCKET)
    aws.client("s3").delete_bucket(Bucket=BUCKET)  # Terraform's part, and only possible as the bucket is empty
    capsys.readouterr()
    assert down.main(["dev", "--yes", "--delete-data", BUCKET, STATE_BUCKET]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"nothing with the tags of dev is left in account {ACCOUNT}"


def test_down_keeps_a_state_that_still_has_resources(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    state = json.dumps({"resources": [{"mode": "managed", "type": "aws_vpc"}]}).encode()
    aws.client("s3").put_object(Bucket=STATE_BUCKET, Key="prod/platform.tfstate", Body=state)
    assert down.main(["dev", "--yes", "--delete-data", STATE_BUCKET]) == 2
    assert "prod/platform.tfstate: still has resources" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "answers", "message"),
    [
        (["--delete-data", "other-bucket"], [], "--delete-data other-bucket: is no bucket of dev"),
        ([], ["cloze-prod"], "cloze-dev: stays, and nothing was deleted"),
        (["--delete-data", BUCKET], ["cloze-dev", "y"], f"{BUCKET}: stays, and nothing was deleted"),
    ],
)
def test_down_deletes_nothing_that_was_not_named(
    clone: Path,
    fakes: FakeTools,
    cluster: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    answers: list[str],
    message: str,
) -> None:
    remaining = iter(answers)
    monkeypatch.setattr("builtins.input", lambda prompt: next(remaining))
    assert down.main(["dev", *options]) == 2
    assert message in capsys.readouterr().err
    assert fakes.calls == []


@pytest.mark.slow
def test_after_each_failure_the_same_down_completes(
    clone: Path, fakes: FakeTools, cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["dev", "--yes", "--delete-data", BUCKET]
    assert down.main(command) == 0
    for failing in range(len(fakes.calls)):
        fakes.start(failing)
        status = down.main(command)
        made = fakes.calls
        assert (status, len(made)) == (2, failing + 1) or " get " in made[failing]
    fakes.start()
    assert down.main(command) == 0


def test_left_volumes_keys_and_buckets_have_a_price(
    clone: Path, fakes: FakeTools, aws: boto3.Session, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = [{"Key": "project", "Value": "cloze"}, {"Key": "environment", "Value": "dev"}]
    volume = aws.client("ec2").create_volume(
        AvailabilityZone="us-east-1a", Size=10, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )["VolumeId"]
    kms_tags = [{"TagKey": one["Key"], "TagValue": one["Value"]} for one in tags]
    keys = [aws.client("kms").create_key(Tags=kms_tags)["KeyMetadata"]["KeyId"] for _ in range(2)]
    aws.client("kms").schedule_key_deletion(KeyId=keys[0])
    group = "/aws/eks/cloze-dev/cluster"  # as EKS creates it again when logs arrive late
    aws.client("logs").create_log_group(logGroupName=group)
    assert down.main(["dev", "--yes"]) == 0
    printed = capsys.readouterr().out
    aws.client("logs").delete_log_group(logGroupName=group)
    assert f"log-group:{group} logs, which aws logs delete-log-group deletes, price unknown" in printed
    aws.client("ec2").delete_volume(VolumeId=volume)
    aws.client("kms").schedule_key_deletion(KeyId=keys[1])
    assert f"volume/{volume} 10 GB, 0.80 dollars a month" in printed
    assert f"key/{keys[1]} Enabled, 1.00 dollars a month" in printed
    assert keys[0] not in printed


def change_answer(monkeypatch: pytest.MonkeyPatch, operation: str, change: Callable[[dict[str, Any]], object]) -> None:
    """What the local AWS answers to an operation, such as eks.DescribeCluster, is changed on its way."""
    create = boto3.Session

    def session(**options: Any) -> boto3.Session:
        created = create(**options)
        created.events.register(f"after-call.{operation}", lambda parsed, **_: change(parsed))
        return created

    monkeypatch.setattr(boto3, "Session", session)


@pytest.mark.parametrize(
    ("status", "calls", "line"),
    [
        ("UPDATING", 0, "down: cluster cloze-dev: is UPDATING; wait until it is ACTIVE, then repeat this command\n"),
        ("CREATING", 0, "down: cluster cloze-dev: is CREATING; wait until it is ACTIVE, then repeat this command\n"),
        ("DELETING", 3, ""),  # Terraform's
        ("FAILED", 3, ""),
    ],
)
def test_down_waits_for_a_cluster_that_changes_and_does_not_connect_to_one_that_ends(
    clone: Path,
    fakes: FakeTools,
    cluster: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    calls: int,
    line: str,
) -> None:
    change_answer(monkeypatch, "eks.DescribeCluster", lambda answer: answer["cluster"].update(status=status))
    assert down.main(["dev", "--yes"]) == (2 if line else 0)
    assert capsys.readouterr().err == line
    assert [call.split()[0] for call in steps(fakes.calls)] == ["terraform"] * calls


def test_what_is_listed_by_its_tags_but_no_longer_exists_is_not_left(
    clone: Path,
    fakes: FakeTools,
    aws: boto3.Session,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = f"{REGION}:{ACCOUNT}"
    arns = ["arn:aws:s3:::cloze-gone", f"arn:aws:ec2:{place}:volume/vol-0123456789abcdef0"]
    arns.append(f"arn:aws:kms:{place}:key/12345678-1234-1234-1234-123456789012")
    listed = [{"ResourceARN": arn, "Tags": []} for arn in arns]
    change_answer(
        monkeypatch,
        "resource-groups-tagging-api.GetResources",
        lambda answer: answer["ResourceTagMappingList"].extend(listed),
    )
    assert down.main(["dev", "--yes"]) == 0
    left = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("left: ")]
    assert left == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{STATE_BUCKET}"]


def test_the_price_and_the_quotas_are_those_of_the_plan() -> None:
    prices = load_prices(str(REPOSITORY / "configs/prices.yaml"))
    assert prices
    costs = {cost.name: cost.dollars for cost in idle_costs(PLAN, prices)}
    assert costs == {
        "control plane": 0.10,
        "NAT gateway, and as much a GB": 0.045,
        "endpoint sts": 0.01,
        "1 m7i.large (system)": 0.1008,
    }
    assert {quota.code: (quota.one_machine, quota.all_machines) for quota in needed_quotas(PLAN)} == {
        "L-1216C47A": (2, 4),
        "L-3819A6DF": (48, 144),
    }


def test_each_machine_with_gpus_is_compared_with_its_own_quota() -> None:
    pools = [
        node_group(f"{kind}-{capacity}", kind, capacity, 0, 2)
        for kind in ("p5.48xlarge", "p4d.24xlarge", "g6.12xlarge")
        for capacity in ("SPOT", "ON_DEMAND")
    ]
    needed = needed_quotas({"planned_values": {"root_module": {"resources": pools}}})
    assert {quota.code: (quota.one_machine, quota.all_machines) for quota in needed} == {
        "L-C4BD4855": (192, 384),  # P5 on spot has a quota of its own
        "L-7212CCBC": (96, 192),
        "L-417A185B": (192, 576),  # on demand it has not
        "L-3819A6DF": (48, 96),
        "L-DB2E81BA": (48, 96),
    }


def test_the_planned_machines_are_a_clusters_file() -> None:
    cluster = parse(ClusterConfig, json.dumps(estimated_cluster(PLAN)).encode(), "planned")
    assert [(kind.name, kind.gpus, kind.instance_type) for kind in cluster.node_types] == [
        ("cpu", 0, "c7i.8xlarge"),
        ("gpu", 4, "g6.12xlarge"),
    ]


@pytest.mark.parametrize("name", sorted(path.name for path in ENVIRONMENTS.glob("*")))
def test_each_environment_of_the_repository_is_read(name: str, tmp_path: Path) -> None:
    shutil.copytree(ENVIRONMENTS / name, tmp_path / "infra/terraform/environments" / name)
    platform = tmp_path / "infra/terraform/environments" / name / "platform"
    (platform / "terraform.tfvars.example").rename(platform / "terraform.tfvars")
    environment = read_environment(name, tmp_path)
    assert (environment.account, environment.cluster) == (ACCOUNT, f"cloze-{name}")
    assert f'"{environment.cluster}"' in (platform / "main.tf").read_text()
    assert environment.bucket.replace(ACCOUNT, "${var.account_id}") in (environment.data / "main.tf").read_text()
    assert (REPOSITORY / "infra/kubernetes/overlays" / name).is_dir()
