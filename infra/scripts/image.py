"""A commit -> its image in the environment's registry. A tag that is there already is that commit's, as tags never
change."""

import base64
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from cloze.infra.scripts import tools

_DEVICE = "cuda"  # one image for all pods of a job, those with GPUs among them


def pushed(session: boto3.Session, clone: Path, repository: str, commit: str, builder: str) -> str:
    """Build and push the image unless it is there. Returns its digest, sha256:..."""
    client, name, tag = session.client("ecr"), repository.partition("/")[2], tag_of(commit)
    if (digest := _digest(client, name, tag)) is None:
        password = base64.b64decode(client.get_authorization_token()["authorizationData"][0]["authorizationToken"])
        registry = repository.partition("/")[0]
        tools.run(
            builder,
            "login",
            "--username",
            "AWS",
            "--password-stdin",
            registry,
            text=password.decode().partition(":")[2],
        )
        with tempfile.TemporaryDirectory() as context:
            archive = subprocess.run(["git", "-C", str(clone), "archive", commit], check=True, stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", context], check=True, input=archive.stdout)
            arguments = [f"--build-arg=DEVICE={_DEVICE}", f"--build-arg=COMMIT={commit}"]
            file = f"{context}/infra/docker/Dockerfile"
            tools.run(builder, "build", "--file", file, *arguments, "--tag", f"{repository}:{tag}", context)
        tools.run(builder, "push", f"{repository}:{tag}")
        digest = _digest(client, name, tag)
    assert digest, f"{repository}:{tag} was pushed"
    print(f"image {repository}:{tag}, {digest}")
    return digest


def tag_of(commit: str) -> str:
    return f"{commit[:12]}-{_DEVICE}"


def _digest(client: Any, name: str, tag: str) -> str | None:
    try:
        found = client.describe_images(repositoryName=name, imageIds=[{"imageTag": tag}])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ImageNotFoundException":
            return None
        raise
    return found["imageDetails"][0]["imageDigest"]
