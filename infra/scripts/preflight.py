"""What must be there before anything is created: programs, the right account, quotas, a commit to build."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cloze.infra.scripts import tools
from cloze.infra.scripts.environment import Environment
from cloze.infra.scripts.prices import NeededQuota
from cloze.pipeline.core.errors import UserError

#: How a program prints its version, and the oldest that works.
_VERSIONS = {
    "terraform": (("terraform", "version"), (1, 11)),
    "aws": (("aws", "--version"), (2, 0)),
    "helm": (("helm", "version", "--short"), (3, 0)),
}
BUILDERS = ("docker", "podman", "buildah")  # any of them; all know login, build and push


def check_tools(names: Sequence[str]) -> None:
    """Raises UserError if a program is missing or too old."""
    if missing := tools.missing(names):
        raise UserError(f"{', '.join(missing)}: not installed; docs/guide/up-and-down.md says where each comes from")
    for name in [name for name in names if name in _VERSIONS]:
        command, (major, minor) = _VERSIONS[name]
        found = re.search(r"(\d+)\.(\d+)", tools.output(*command))
        if found and (int(found[1]), int(found[2])) < (major, minor):
            raise UserError(f"{name} {found[0]}: is too old; install {major}.{minor} or later")


def builder() -> str:
    """The program that builds images. Raises UserError if there is none."""
    found = [name for name in BUILDERS if not tools.missing([name])]
    if not found:
        raise UserError(f"{', '.join(BUILDERS)}: none of them is installed; install one, to build the image")
    return found[0]


def check_account(session: boto3.Session, environment: Environment) -> None:
    """Raises UserError if the credentials are missing, or are those of another account than the environment's."""
    try:
        account = session.client("sts").get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"AWS: {error}; log in (aws sso login), or set AWS_PROFILE") from error
    if account != environment.account:
        raise UserError(
            f"AWS: the credentials are those of account {account}, and {environment.name} is in {environment.account} "
            "(terraform.tfvars); set AWS_PROFILE"
        )


def commit(clone: Path) -> str:
    """The last commit that changed a file of the image, which is built of it: what others change needs no new image.

    Raises UserError if files of the image have changed since.
    """
    built = ("constraints.txt", "pyproject.toml", "README.md", "cloze", "pipeline", "training", "infra", "configs")
    others = (":!infra/terraform", ":!infra/kubernetes")
    git = ("git", "-C", str(clone))
    changed = tools.output(*git, "status", "--porcelain", "--untracked-files=no", "--", *built, *others)
    if changed:
        raise UserError(
            f"{changed.split()[1]}: has changed since the last commit, and the image has a commit; commit it"
        )
    return tools.output(*git, "log", "-1", "--format=%H", "--", *built, *others).strip()


def check_quotas(session: boto3.Session, needed: Sequence[NeededQuota]) -> None:
    """Print the account's quotas beside what the pools need. Raises UserError if a pool could not start one machine."""
    client = session.client("service-quotas")
    too_small = []
    for quota in needed:
        found = _quota(client, quota.code)
        shown = "unknown" if found is None else f"{found:g}"
        print(f"quota {quota.code} ({quota.name}): {shown} vCPUs; the pools need {quota.all_machines} at most")
        if found is not None and found < quota.one_machine:
            too_small.append(f"{quota.code} ({found:g} of {quota.one_machine} vCPUs)")
    if too_small:
        raise UserError(
            f"quota {', '.join(too_small)}: too small for one machine; request more (aws service-quotas "
            "request-service-quota-increase), or change the pools"
        )


def _quota(client: Any, code: str) -> float | None:
    try:
        return client.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except (BotoCoreError, ClientError):  # a role may see its quotas or not: AWS itself enforces them
        return None


def bucket_exists(session: boto3.Session, name: str) -> bool:
    """Raises UserError if the bucket exists and is another account's, or may not be seen."""
    try:
        session.client("s3").head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            return False
        raise UserError(
            f"s3://{name}: {error.response['Error']['Code']}; is not yours, or you may not see it"
        ) from error
    return True
