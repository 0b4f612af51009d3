"""A proxy before an S3 server that fails, delays, cuts and lies, as it is told."""

import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KINDS = (
    *("503", "500", "SlowDown", "reset", "hang", "cut", "lost answer", "stale list", "partial list"),
    *("flipped", "expired", "denied"),
)  # and "no conditions", which forwards requests without their conditions, and any status and code, such as "507 Full"
_ERRORS = {
    "503": (503, "ServiceUnavailable"),
    "500": (500, "InternalError"),
    "SlowDown": (503, "SlowDown"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}
_LISTED = re.compile(rb"<Contents>.*?</Contents>|<CommonPrefixes>.*?</CommonPrefixes>", re.S)
_OWN_HEADERS = ("transfer-encoding", "connection", "content-length", "expect")


@dataclass
class Fault:
    """What happens to the next `times` requests of some methods whose path contains `path`, after the first `after`."""

    kind: str
    times: float = 1
    path: str = ""
    methods: str = "GET PUT HEAD POST DELETE"
    after: int = 0
    seconds: float = 60.0  # of silence, when it hangs
    matched: int = 0
    hits: int = 0

    def takes(self, method: str, path: str) -> bool:
        lists = self.kind.endswith("list")
        if method not in self.methods.split() or self.path not in path or lists != (lists and "list-type=2" in path):
            return False
        if self.kind in ("cut", "flipped") and method != "GET":
            return False
        if self.kind == "lost answer" and method not in ("PUT", "POST"):
            return False
        self.matched += 1
        if not self.after < self.matched <= self.after + self.times:
            return False
        self.hits += 1
        return True


class Span(NamedTuple):
    """A request that was answered: its times, and the port of the client's connection, which names its process."""

    method: str
    path: str
    is_range: bool
    port: int
    start: float
    end: float


@dataclass
class Proxy:
    """A running proxy. `requests` are (method, path) in the order of arrival, `spans` in the order of the answers."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    is_valid: Callable[[str], bool] = lambda token: True  # whether a session token is not expired
    lock: Any = field(default_factory=threading.Lock)
    listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = field(default_factory=dict)

    def fault(self, method: str, path: str, token: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            if not self.is_valid(token):
                return Fault("expired")
            return next((fault for fault in self.faults if fault.takes(method, path)), None)


@contextmanager
def s3_proxy(upstream: str) -> Iterator[Proxy]:
    """Yields a proxy before the server at that URL."""
    host = upstream.partition("://")[2]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def forward(self) -> None:
            start = time.monotonic()
            self.handle_request()
            span = (self.command, self.path, "Range" in self.headers, self.client_address[1], start, time.monotonic())
            proxy.spans.append(Span(*span))

        def handle_request(self) -> None:
            data = self.body()
            token = self.headers.get("X-Amz-Security-Token", "")
            fault = proxy.fault(self.command, self.path, token)
            kind = fault.kind if fault else ""
            status, _, code = kind.partition(" ")
            if kind in _ERRORS or status.isdigit():
                self.answer_error(*_ERRORS.get(kind) or (int(status), code))
                return
            if kind == "reset":
                self.hang_up()
                return
            if fault and kind == "hang":
                time.sleep(fault.seconds)
                self.hang_up()
                return
            if kind == "stale list" and self.path in proxy.listings:
                self.answer(*proxy.listings[self.path])
                return
            status, headers, out = self.upstream(data, unconditional=kind == "no conditions")
            if "list-type=2" in self.path:
                proxy.listings.setdefault(self.path, (status, headers, out))
            if kind == "partial list":
                for entry in re.findall(rb"<Contents>.*?</Contents>|<CommonPrefixes>.*?</CommonPrefixes>", out, re.S)[
                    -1:
                ]:
                    out = out.replace(entry, b"")
            if kind == "flipped" and out:
                out = out[: len(out) // 2] + bytes([out[len(out) // 2] ^ 0xFF]) + out[len(out) // 2 + 1 :]
            if kind == "lost answer":
                self.hang_up()
                return
            self.answer(status, headers, out, cut=kind == "cut")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out

        def upstream(self, data: bytes, unconditional: bool) -> tuple[int, list[tuple[str, str]], bytes]:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
            if unconditional:
                headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
            connection = http.client.HTTPConnection(host, timeout=300)
            connection.request(self.command, self.path, data, {**headers, "Content-Length": str(len(data))})
            answer = connection.getresponse()
            result = answer.status, answer.getheaders(), answer.read()
            connection.close()
            return result

        def answer(self, status: int, headers: list[tuple[str, str]], out: bytes, cut: bool = False) -> None:
            self.send_response(status)
            length = str(len(out))
            for name, value in headers:
                if name.lower() == "content-length" and self.command == "HEAD":
                    length = value
                if name.lower() not in _OWN_HEADERS:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(out[: len(out) // 2] if cut else out)
            if cut:
                self.wfile.flush()
                self.hang_up()

        def answer_error(self, status: int, code: str) -> None:
            text = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.answer(status, [("Content-Type", "application/xml")], text)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None: ...  # clients hang up, too

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
