"""What of an environment is left in its account, found by the tags of infra/terraform, and what that costs a month."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import ClientError

from cloze.infra.launch.prices import AwsPrices
from cloze.infra.scripts.environment import Environment
from cloze.infra.scripts.preflight import bucket_exists
from cloze.infra.scripts.prices import HOURS_A_MONTH

_GONE = ("InvalidVolume.NotFound", "NoSuchBucket", "NotFoundException")


@dataclass(frozen=True)
class LeftOver:
    """A resource, and its dollars a month; None where this is not known."""

    arn: str
    note: str
    dollars: float | None


def left_over(session: boto3.Session, environment: Environment, prices: AwsPrices) -> list[LeftOver]:
    """The resources with the environment's tags, and the bucket of the states. Keys and machines that are being deleted
    are not listed: AWS does not charge for them."""
    filters = [{"Key": "project", "Values": ["cloze"]}, {"Key": "environment", "Values": [environment.name]}]
    pages = session.client("resourcegroupstaggingapi").get_paginator("get_resources").paginate(TagFilters=filters)
    arns = [one["ResourceARN"] for page in pages for one in page["ResourceTagMappingList"]]
    place = f"arn:aws:ec2:{environment.region}:{environment.account}:volume"
    arns += [f"{place}/{id}" for id in _volumes(session, environment)]
    arns += _log_groups(session, environment)
    buckets = (environment.bucket, environment.state_bucket)
    arns += [f"arn:aws:s3:::{name}" for name in buckets if bucket_exists(session, name)]
    found = (_described_if_there(session, arn, prices) for arn in dict.fromkeys(arns))
    return [one for one in found if one]


def _volumes(session: boto3.Session, environment: Environment) -> Iterator[str]:
    """Volumes that the driver of infra/kubernetes' storage class has created."""
    filters = [{"Name": "tag:project", "Values": ["cloze"]}, {"Name": "tag:environment", "Values": [environment.name]}]
    for page in session.client("ec2").get_paginator("describe_volumes").paginate(Filters=filters):
        yield from (volume["VolumeId"] for volume in page["Volumes"])


def _log_groups(session: boto3.Session, environment: Environment) -> Iterator[str]:
    """EKS creates its group again, without tags and without an end, where logs arrive after `terraform destroy`."""
    pages = session.client("logs").get_paginator("describe_log_groups")
    for page in pages.paginate(logGroupNamePrefix=f"/aws/eks/{environment.cluster}/"):
        yield from (group["arn"].removesuffix(":*") for group in page["logGroups"])


def _described_if_there(session: boto3.Session, arn: str, prices: AwsPrices) -> LeftOver | None:
    """None for what no longer exists: the tags' listing has it for a while after its deletion."""
    try:
        return _described(session, arn, prices)
    except ClientError as error:
        if error.response["Error"]["Code"] in _GONE:
            return None
        raise


def _described(session: boto3.Session, arn: str, prices: AwsPrices) -> LeftOver | None:
    service, resource = arn.split(":", 5)[2], arn.split(":", 5)[5]
    match service, resource.partition("/")[0]:
        case "s3", bucket:
            size = bucket_bytes(session, bucket)
            return LeftOver(arn, f"{size / 1e9:,.1f} GB in all versions", size / 1e9 * prices.s3_dollars_per_gb_month)
        case "kms", "key":
            state = _key_state(session, resource.partition("/")[2])
            return None if state == "PendingDeletion" else LeftOver(arn, state, prices.key_dollars_per_month)
        case "ec2", "volume":
            size = _volume_gb(session, resource.partition("/")[2])
            return LeftOver(arn, f"{size} GB", size * prices.volume_dollars_per_gb_month)
        case "logs", _:
            return LeftOver(arn, "logs, which aws logs delete-log-group deletes", None)
        case "elasticloadbalancing", _:
            return LeftOver(arn, "load balancer", prices.load_balancer_dollars_per_hour * HOURS_A_MONTH)
    return LeftOver(arn, "", None)


def bucket_bytes(session: boto3.Session, bucket: str) -> int:
    """Bytes of all versions of all objects, which all cost money."""
    pages = session.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    return sum(version["Size"] for page in pages for version in page.get("Versions", []))


def _key_state(session: boto3.Session, key: str) -> str:
    metadata: Mapping[str, Any] = session.client("kms").describe_key(KeyId=key)["KeyMetadata"]
    return metadata["KeyState"]


def _volume_gb(session: boto3.Session, volume: str) -> int:
    return session.client("ec2").describe_volumes(VolumeIds=[volume])["Volumes"][0]["Size"]
