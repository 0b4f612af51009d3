"""A Pod Identity agent: an HTTP endpoint that gives out credentials, each valid for some seconds."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AUTHORIZATION = "the pod's token"


@dataclass
class Agent:
    """A running agent. `expires` has the time at which each session token that it gave out expires."""

    url: str
    lifetime: float
    expires: dict[str, float] = field(default_factory=dict)
    failures: int = 0  # of the next requests

    def is_valid(self, token: str) -> bool:
        return time.time() < self.expires.get(token, 0.0)

    def new_credentials(self) -> dict[str, str]:
        token, expires = uuid.uuid4().hex, time.time() + self.lifetime
        self.expires[token] = expires
        stamp = datetime.fromtimestamp(expires, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"AccessKeyId": "pod", "SecretAccessKey": "secret", "Token": token, "Expiration": stamp}


@contextmanager
def pod_identity(lifetime: float) -> Iterator[Agent]:
    """Yields an agent whose credentials live so many seconds."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            if agent.failures:
                agent.failures -= 1
                self.send_error(500)
            elif self.headers.get("Authorization") != AUTHORIZATION:
                self.send_error(401)
            else:
                body = json.dumps(agent.new_credentials()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        agent = Agent(f"http://127.0.0.1:{server.server_port}/v1/credentials", lifetime)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield agent
        finally:
            server.shutdown()
