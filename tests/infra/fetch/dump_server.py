"""A local server with the layout of dumps.wikimedia.org, which can fail in the ways of a bad connection."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: (handler, the file's bytes, start, end) -> whether it has answered
Fault = Callable[[BaseHTTPRequestHandler, bytes, int, int], bool]


@dataclass
class DumpServer:
    """Its dumps, and what has been asked for. `faults` are used once each, by the next requests of a file."""

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)  # path -> content
    refused: set[str] = field(default_factory=set)  # paths that are answered with 403
    faults: list[Fault] = field(default_factory=list)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)  # path, start, end of each request of a file
    agents: set[str] = field(default_factory=set)
    most_at_once: int = 0
    delay: float = 0.0  # seconds that the answer to a request of a file takes

    def add_dump(self, wiki: str, date: str, files: dict[str, bytes], status: str = "done") -> None:
        entries = {
            name: {"size": len(data), "url": f"/{wiki}/{date}/{name}", "sha1": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        }
        job = {"status": status, "files": entries}
        self.pages[f"/{wiki}/{date}/dumpstatus.json"] = json.dumps({"jobs": {"articlesmultistreamdump": job}}).encode()
        self.pages |= {f"/{wiki}/{date}/{name}": data for name, data in files.items()}
        dates = sorted({path.split("/")[2] for path in self.pages if path.startswith(f"/{wiki}/2")})
        links = "".join(f'<a href="{one}/">{one}/</a>' for one in dates)
        self.pages[f"/{wiki}/"] = f'<a href="../">../</a>{links}<a href="latest/">latest/</a>'.encode()


@contextmanager
def dump_server() -> Iterator[DumpServer]:
    state, lock, at_once = DumpServer(), threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal at_once
            state.agents.add(self.headers["User-Agent"])
            data = state.pages.get(self.path)
            if data is None or self.path in state.refused:
                self.send_error(404 if data is None else 403)
                return
            if "Range" not in self.headers:
                self.answer(200, data)
                return
            start, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            with lock:
                at_once += 1
                state.most_at_once = max(state.most_at_once, at_once)
                state.ranges.append((self.path, start, last + 1))
                fault = state.faults.pop(0) if state.faults else None
            try:
                time.sleep(state.delay)
                if not (fault and fault(self, data, start, last + 1)):
                    content_range = f"bytes {start}-{last}/{len(data)}"
                    self.answer(206, data[start : last + 1], {"Content-Range": content_range})
            finally:
                with lock:
                    at_once -= 1

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def overloaded(handler: BaseHTTPRequestHandler, *_: object) -> bool:
    handler.answer(503, b"", {"Retry-After": "1"})  # pyright: ignore[reportAttributeAccessIssue]
    return True


def cut(handler: BaseHTTPRequestHandler, data: bytes, start: int, end: int) -> bool:
    """Half of the range, then the connection is closed."""
    handler.send_response(206)
    handler.send_header("Content-Length", str(end - start))
    handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    handler.end_headers()
    handler.wfile.write(data[start : (start + end) // 2])
    handler.close_connection = True
    return True


def another_range(handler: BaseHTTPRequestHandler, data: bytes, start: int, end: int) -> bool:
    content_range = {"Content-Range": f"bytes {start + 1}-{end}/{len(data)}"}
    handler.answer(206, data[start:end], content_range)  # pyright: ignore[reportAttributeAccessIssue]
    return True


def no_ranges(handler: BaseHTTPRequestHandler, data: bytes, *ranges: object) -> bool:
    """The whole file, which does not end within the test."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    with suppress(OSError):  # the client has closed the connection
        for _ in range(10_000):
            handler.wfile.write(data)
            time.sleep(0.01)
    handler.close_connection = True
    return True


def wrong_byte(handler: BaseHTTPRequestHandler, data: bytes, start: int, end: int) -> bool:
    body = bytes([data[start] ^ 1]) + data[start + 1 : end]
    content_range = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    handler.answer(206, body, content_range)  # pyright: ignore[reportAttributeAccessIssue]
    return True


def replaced(handler: BaseHTTPRequestHandler, data: bytes, start: int, end: int) -> bool:
    content_range = {"Content-Range": f"bytes {start}-{end - 1}/{len(data) + 5}"}
    handler.answer(206, data[start:end], content_range)  # pyright: ignore[reportAttributeAccessIssue]
    return True
