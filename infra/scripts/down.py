"""`infra/scripts/down ENVIRONMENT`: ends an environment and lists what is left of it, with its price. Repeat it after
any failure. Buckets stay, unless --delete-data names them.

The order keeps nothing that costs money alive: jobs, then machines of pools, then what controllers in the cluster have
created and Terraform does not know (load balancers, volumes), then what Terraform created.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cloze.infra.launch.prices import load_prices
from cloze.infra.scripts import preflight, tools
from cloze.infra.scripts.cluster import NAMESPACE, connect, kubectl
from cloze.infra.scripts.environment import Environment, read_environment
from cloze.infra.scripts.left_over import bucket_bytes, left_over
from cloze.infra.scripts.terraform import Root, roots
from cloze.pipeline.core.errors import UserError

_TOOLS = ("terraform", "aws", "helm", "kubectl")
_WAIT = "--timeout=10m"
_VOLUME_SECONDS = 600.0
_POLL_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser(
        prog="infra/scripts/down", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", metavar="ENVIRONMENT", help="a folder of infra/terraform/environments: dev")
    parser.add_argument("--yes", action="store_true", help="end it without asking")
    parser.add_argument(
        "--delete-data", nargs="+", default=[], metavar="BUCKET", help="delete these buckets with all that is in them"
    )
    options = parser.parse_args(arguments)
    try:
        _down(options.environment, options.delete_data, asked=not options.yes)
    except (UserError, BotoCoreError, ClientError) as error:
        print(f"down: {error}", file=sys.stderr)
        return 2
    return 0


def _down(name: str, delete_data: Sequence[str], *, asked: bool) -> None:
    preflight.check_tools(_TOOLS)
    environment = read_environment(name, Path.cwd())
    session = boto3.Session(region_name=environment.region)
    preflight.check_account(session, environment)
    buckets = (environment.bucket, environment.state_bucket)
    if unknown := [bucket for bucket in delete_data if bucket not in buckets]:
        raise UserError(f"--delete-data {unknown[0]}: is no bucket of {name}; it has {' and '.join(buckets)}")
    if asked:
        _ask(session, environment, delete_data)
    _, data, platform = roots(environment, image_tag="none")
    if _cluster_exists(session, environment):
        _empty_cluster(session, environment)
    if preflight.bucket_exists(session, environment.state_bucket):
        _destroy(platform)
        if environment.bucket in delete_data:
            _empty_bucket(session, environment.bucket)
            _destroy(data)
    if environment.state_bucket in delete_data:
        _delete_state(session, environment)
    _show_left_over(session, environment)


def _ask(session: boto3.Session, environment: Environment, delete_data: Sequence[str]) -> None:
    """Raises UserError unless the user types the name of the environment, and of each bucket that is not empty."""
    for name in [environment.cluster, *delete_data]:
        content = ""
        if name in delete_data and preflight.bucket_exists(session, name):
            content = f" and its {bucket_bytes(session, name) / 1e9:,.1f} GB"
        if input(f"type {name} to delete it{content}: ").strip() != name:
            raise UserError(f"{name}: stays, and nothing was deleted; repeat this command when you want it")


def _empty_cluster(session: boto3.Session, environment: Environment) -> None:
    """End jobs and machines, then what controllers have created."""
    connect(environment)
    where = f"--namespace={NAMESPACE}"
    if tools.succeeds(*kubectl(environment, "get", "customresourcedefinition", "rayjobs.ray.io")):
        for kind in ("rayjobs.ray.io", "rayclusters.ray.io"):
            tools.run(*kubectl(environment, "delete", kind, "--all", where, "--ignore-not-found", _WAIT))
    # Before the pools, or it would start machines again.
    tools.run(
        "helm", "uninstall", "cluster-autoscaler", f"--kube-context={environment.cluster}", "--namespace=kube-system",
        "--ignore-not-found", "--wait",
    )  # fmt: skip
    _end_machines(session, environment)
    tools.run(*kubectl(environment, "delete", "ingress", "--all", "--all-namespaces", _WAIT))
    for namespace, service in _load_balancers(environment):
        tools.run(*kubectl(environment, "delete", "service", service, f"--namespace={namespace}", _WAIT))
    tools.run(*kubectl(environment, "delete", "statefulset", "dagster", where, "--ignore-not-found", _WAIT))
    tools.run(*kubectl(environment, "delete", "persistentvolumeclaim", "--all", "--all-namespaces", _WAIT))
    _wait_for_volumes(environment)


def _end_machines(session: boto3.Session, environment: Environment) -> None:
    """Scale all pools to 0; the system's machines stay for the controllers."""
    client = session.client("eks")
    for group in client.list_nodegroups(clusterName=environment.cluster)["nodegroups"]:
        if group != "system":
            print(f"node group {group}: 0 machines")
            client.update_nodegroup_config(
                clusterName=environment.cluster, nodegroupName=group, scalingConfig={"minSize": 0, "desiredSize": 0}
            )


def _load_balancers(environment: Environment) -> list[tuple[str, str]]:
    """(namespace, name) of each service for which a controller has created a load balancer."""
    services = json.loads(tools.output(*kubectl(environment, "get", "services", "--all-namespaces", "--output=json")))
    return [
        (one["metadata"]["namespace"], one["metadata"]["name"])
        for one in services["items"]
        if one["spec"].get("type") == "LoadBalancer"
    ]


def _wait_for_volumes(environment: Environment) -> None:
    """Until the driver has deleted the volumes of the claims. Raises UserError after some minutes."""
    end = time.monotonic() + _VOLUME_SECONDS
    while names := _volumes(environment):
        if time.monotonic() > end:
            raise UserError(f"volume {names[0]}: its driver has not deleted it; see `kubectl describe pv {names[0]}`")
        time.sleep(_POLL_SECONDS)


def _volumes(environment: Environment) -> list[str]:
    volumes = json.loads(tools.output(*kubectl(environment, "get", "persistentvolumes", "--output=json")))
    return [
        one["metadata"]["name"] for one in volumes["items"] if one["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    ]


def _destroy(root: Root) -> None:
    root.init()
    root.plan(destroy=True)
    root.apply()


def _empty_bucket(session: boto3.Session, name: str) -> None:
    """Delete all versions of all objects, and unfinished uploads."""
    if preflight.bucket_exists(session, name):
        print(f"s3://{name}: deleting all versions of all objects")
        client = session.client("s3")
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=name):
            for upload in page.get("Uploads", []):
                client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
            versions = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in versions]
            if keys and (errors := client.delete_objects(Bucket=name, Delete={"Objects": keys}).get("Errors")):
                raise UserError(f"s3://{name}/{errors[0]['Key']}: {errors[0]['Code']}; it could not be deleted")


def _delete_state(session: boto3.Session, environment: Environment) -> None:
    """Delete the bucket of the states. Raises UserError while an environment of the account has resources in one."""
    name = environment.state_bucket
    if not preflight.bucket_exists(session, name):
        return
    client = session.client("s3")
    for key in (one["Key"] for one in client.list_objects_v2(Bucket=name).get("Contents", [])):
        if key.endswith(".tfstate"):
            state = json.loads(client.get_object(Bucket=name, Key=key)["Body"].read())
            if any(one.get("mode") == "managed" for one in state.get("resources", [])):
                raise UserError(
                    f"s3://{name}/{key}: still has resources, which only it knows; end that environment first"
                )
    _empty_bucket(session, name)
    client.delete_bucket(Bucket=name)


def _cluster_exists(session: boto3.Session, environment: Environment) -> bool:
    """Whether there is a cluster to be emptied. Raises UserError while it cannot be."""
    client, name = session.client("eks"), environment.cluster
    try:
        status = client.describe_cluster(name=name)["cluster"]["status"]
    except client.exceptions.ResourceNotFoundException:
        return False
    if status not in ("ACTIVE", "DELETING", "FAILED"):
        raise UserError(f"cluster {name}: is {status}; wait until it is ACTIVE, then repeat this command")
    return status == "ACTIVE"


def _show_left_over(session: boto3.Session, environment: Environment) -> None:
    prices = load_prices(str(environment.clone / "configs/prices.yaml"))
    assert prices and prices.aws
    found = left_over(session, environment, prices.aws)
    for one in found:
        price = "price unknown" if one.dollars is None else f"{one.dollars:.2f} dollars a month"
        print(f"left: {one.arn} {one.note}, {price}")
    if not found:
        print(f"nothing with the tags of {environment.name} is left in account {environment.account}")


if __name__ == "__main__":
    sys.exit(main())
