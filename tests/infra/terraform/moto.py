"""A moto server of its own for a test: with AWS's managed policies, and with authorization that can be switched on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from tests.conftest import free_port, wait_for_port


@contextmanager
def moto_server(log: Path) -> Iterator[str]:
    """Yields the address of an empty server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = os.environ | {"MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as server:
        try:
            wait_for_port(port, 120)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def client(service: str, endpoint: str) -> Any:
    """A client of the account that owns everything."""
    import boto3

    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1", **keys)


def authorize(endpoint: str) -> None:
    """From now on, each request must be signed by somebody whose policies allow it."""
    headers = {"Content-Type": "text/plain"}
    with urlopen(Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=headers)) as answer:
        assert answer.status == 200
