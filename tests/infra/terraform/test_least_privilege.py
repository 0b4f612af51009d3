"""The policy of jobs allows what a run asks of S3, and nothing else: recorded requests, judged by moto and here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.infra.terraform.moto import authorize, client, moto_server
from tests.infra.terraform.s3_requests import Needed, allows, granted, needed, used
from tests.infra.terraform.terraform_runs import Terraform, is_missing
from tests.paths import REPOSITORY
from tests.s3_proxy import s3_proxy
from tests.test_main_job import CLOZE, arguments

pytestmark = [pytest.mark.campaign, pytest.mark.skipif(is_missing(), reason="terraform is not installed")]

BUCKET = "cloze-test"  # as in infra/terraform/tests/identity.tftest.hcl
DUMP = "configs/quickstart/enwiki-excerpt.xml.bz2"

#: What is too large to happen in a small run: a file in parts, one that fails, files that are joined, and deletion.
STORAGE = f"""
from cloze.pipeline.core import s3
root = "{BUCKET}/runs"
s3.put(f"{{root}}/large", b"x" * (33 << 20))
assert s3.find(f"{{root}}/large").size == 33 << 20
s3.join([f"{{root}}/large", f"{{root}}/large"], f"{{root}}/joined")
assert s3.find(f"{{root}}/none") is None and s3.is_folder(root)
try:
    s3._write_in_parts(f"{{root}}/failed", 1, lambda upload, number: 1 / 0, lambda etag: False)
except ZeroDivisionError:
    pass
s3.delete(f"{{root}}/joined")
s3.delete_all(root, ["large"])
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    terraform = Terraform(tmp_path_factory.mktemp("terraform") / "copy")
    terraform.init()
    return json.loads(terraform.outputs("identity")["identity"]["policies"]["jobs"])


@pytest.fixture(scope="module")
def recorded(policy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, str]]]:
    """Method and path of each request of the quickstart with fewer steps, of its promotion, of an export of what is
    promoted, and of STORAGE, by a user who has only the policy."""
    folder = tmp_path_factory.mktemp("run")
    with moto_server(folder / "moto.log") as server, s3_proxy(server) as proxy:
        s3 = client("s3", server)
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="inputs/enwiki.xml.bz2", Body=(REPOSITORY / DUMP).read_bytes())
        keys = user_of(for_moto(policy), server)
        authorize(server)
        env = (
            os.environ
            | keys
            | {"AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1", "PYTHONPATH": str(REPOSITORY)}
        )
        files = f"extract.sources.enwiki.files=[s3://{BUCKET}/inputs/*.xml.bz2]"
        root = f"s3://{BUCKET}/runs"
        for command in (
            [*CLOZE, *arguments(root), files],
            [*CLOZE, "promote", "quickstart", "--root", root, "--why", "a test"],
            [*CLOZE, "export", "quickstart@promoted", "--root", root, "--to", str(folder / "exported")],
            [sys.executable, "-c", STORAGE],
        ):
            done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        yield [(span.method, span.path) for span in proxy.spans]


def test_the_policy_allows_each_request(policy: dict[str, Any], recorded: list[tuple[str, str]]) -> None:
    refused = [need for need in needs(recorded) if not allows(policy, need)]
    assert not refused


def test_each_action_that_the_policy_allows_is_needed(policy: dict[str, Any], recorded: list[tuple[str, str]]) -> None:
    assert granted(policy) == used(needs(recorded))


def test_other_actions_and_other_objects_are_refused(policy: dict[str, Any]) -> None:
    bucket = f"arn:aws:s3:::{BUCKET}"
    for need in (
        Needed("s3:DeleteObject", f"{bucket}/inputs/enwiki.xml.bz2"),
        Needed("s3:PutObject", f"{bucket}/inputs/enwiki.xml.bz2"),
        Needed("s3:GetObject", f"{bucket}/other/file"),
        Needed("s3:GetObject", f"{bucket}-other/runs/file"),
        Needed("s3:ListBucket", bucket, ""),
        Needed("s3:ListBucket", bucket, "other/"),
        Needed("s3:DeleteObjectVersion", f"{bucket}/runs/file"),
        Needed("s3:PutBucketPolicy", bucket),
    ):
        assert not allows(policy, need), need


def test_a_policy_without_an_action_or_with_a_wildcard_is_noticed(
    policy: dict[str, Any], recorded: list[tuple[str, str]]
) -> None:
    lacks = json.loads(json.dumps(policy).replace('"s3:DeleteObject", ', ""))
    assert lacks != policy
    assert any(not allows(lacks, need) for need in needs(recorded))
    assert granted(lacks) != used(needs(recorded))
    wild = json.loads(json.dumps(policy).replace('"s3:DeleteObject"', '"s3:*"'))
    assert granted(wild) != used(needs(recorded))


def needs(recorded: list[tuple[str, str]]) -> list[Needed]:
    return [need for method, path in recorded if (need := needed(method, path))]


def user_of(policy: dict[str, Any], server: str) -> dict[str, str]:
    """The keys, as environment variables, of a new user with one policy."""
    iam = client("iam", server)
    iam.create_user(UserName="jobs")
    iam.put_user_policy(UserName="jobs", PolicyName="jobs", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="jobs")["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def for_moto(policy: dict[str, Any]) -> dict[str, Any]:
    """The policy without s3:prefix, which moto does not know and refuses; and as moto asks for s3:DeleteObject of the
    bucket where several keys are deleted at once, with that. Prefixes are judged by `allows`."""
    statements = [{key: value for key, value in one.items() if key != "Condition"} for one in policy["Statement"]]
    at_once = {"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": [f"arn:aws:s3:::{BUCKET}"]}
    return policy | {"Statement": [*statements, at_once]}
