"""A Kubernetes API server on this machine, for one namespace: RayJobs, pods with logs, and events.

It does what Kubernetes does where a client can notice it: authentication and permissions, the CRD's schema on every
RayJob, resource versions and their conflicts, lists with selectors, watches that continue from a version and can be cut
or too old (410), foreground deletion with finalizers. Tests act as the operator and the kubelet (`set_status`, ...).
"""

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.infra.launch.kuberay import schema_errors, unknown_fields

Json = dict[str, Any]
TOKEN = "the-token"
_PATH = re.compile(
    r"/(?:apis/ray\.io/v1|api/v1)/namespaces/([^/]+)/(rayjobs|pods|events|secrets|serviceaccounts)(?:/([^/]+))?"
    r"(?:/(log|status))?"
)
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Refused(Exception):
    """An answer other than 2xx: a Status object."""

    def __init__(self, code: int, reason: str, message: str, **details: Any):
        super().__init__(message)
        self.code = code
        self.status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
        self.status |= {"reason": reason, "message": message, "details": details}


class ApiServer(ThreadingHTTPServer):
    """What the namespace contains, and the faults that requests meet."""

    daemon_threads = True
    namespace = "ml"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], Json] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}  # pod -> (time, line)
        self.ended_logs: set[str] = set()
        self.events: list[tuple[int, str, str, Json]] = []  # (version, ADDED..., kind, object)
        self.oldest_version = 0  # watches from before it are too old
        self.has_crd, self.quota = True, 100
        self.forbidden: set[tuple[str, str]] = set()  # (verb, resource)
        self.requests: list[str] = []
        self.cuts = 0  # raised to cut all watches and logs that are open
        self.changed = threading.Condition()
        self._last_time = 0  # of a line, in nanoseconds

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, kind: str, item: Json) -> Json:
        with self.changed:
            name = item["metadata"]["name"]
            if (kind, name) in self.objects:
                raise Refused(409, "AlreadyExists", f'{kind}.ray.io "{name}" already exists', name=name, kind=kind)
            metadata = {"uid": str(uuid.uuid4()), "creationTimestamp": _now(), **item["metadata"]}
            return self._store("ADDED", kind, {**item, "metadata": metadata})

    def update(self, kind: str, item: Json) -> Json:
        """Replace an object that nobody has changed since it was read."""
        with self.changed:
            current = self.get(kind, item["metadata"]["name"])
            if item["metadata"].get("resourceVersion") not in (None, current["metadata"]["resourceVersion"]):
                raise Refused(409, "Conflict", "the object has been modified; please apply your changes to the latest")
            return self._store("MODIFIED", kind, item)

    def get(self, kind: str, name: str) -> Json:
        if (kind, name) not in self.objects:
            raise Refused(404, "NotFound", f'{kind} "{name}" not found', name=name, kind=kind)
        return copy.deepcopy(self.objects[kind, name])

    def delete(self, kind: str, name: str, foreground: bool) -> Json:
        with self.changed:
            item = self.get(kind, name)
            finalizers = item["metadata"].get("finalizers", []) + (["foregroundDeletion"] if foreground else [])
            if not finalizers:
                return self.remove(kind, name)
            item["metadata"] |= {"finalizers": finalizers, "deletionTimestamp": _now()}
            return self._store("MODIFIED", kind, item)

    def remove(self, kind: str, name: str) -> Json:
        """The end of a deletion: what the object owned has ended."""
        with self.changed:
            item = self.objects[kind, name]
            self._store("DELETED", kind, item)
            return self.objects.pop((kind, name))

    def set_status(self, name: str, **status: Any) -> None:
        job = self.get("rayjobs", name)
        self.update("rayjobs", {**job, "status": {**job.get("status", {}), **status}})

    def add_pod(self, name: str, labels: dict[str, str], **status: Any) -> None:
        pod = {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Running", **status}}
        self.create("pods", pod)
        if status.get("phase", "Running") != "Pending":
            self.logs[name] = []

    def add_event(self, about: str, message: str) -> None:
        event = {"metadata": {"name": f"{about}.{uuid.uuid4()}"}, "involvedObject": {"name": about}}
        self.create("events", {**event, "type": "Warning", "message": message, "lastTimestamp": _now()})

    def print(self, pod: str, *lines: str) -> None:
        with self.changed:
            for line in lines:
                self._last_time = max(self._last_time + 1, time.time_ns())
                seconds, nanoseconds = divmod(self._last_time, 10**9)
                moment = datetime.fromtimestamp(seconds, UTC)
                self.logs[pod].append((f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z", line))
            self.changed.notify_all()

    def end_log(self, pod: str) -> None:
        with self.changed:
            self.ended_logs.add(pod)
            self.changed.notify_all()

    def cut(self) -> None:
        """Cut all watches and logs that are open."""
        with self.changed:
            self.cuts += 1
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all events: watches from an earlier version are too old."""
        with self.changed:
            self.oldest_version = int(self._version)

    @property
    def _version(self) -> str:
        return str(len(self.events))

    def _store(self, event: str, kind: str, item: Json) -> Json:
        version = len(self.events) + 1
        stored = copy.deepcopy(item)
        stored["metadata"] |= {"resourceVersion": str(version)}
        self.objects[kind, item["metadata"]["name"]] = stored
        self.events.append((version, event, kind, copy.deepcopy(stored)))
        self.changed.notify_all()
        return stored


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_PUT(self) -> None:
        self._answer("update")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        try:
            self._route(verb, url.path, {key: values[0] for key, values in parse_qs(url.query).items()}, body)
        except Refused as refused:
            self._send(refused.code, refused.status)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _route(self, verb: str, path: str, query: dict[str, str], body: bytes) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        if path == _REVIEW:
            asked = json.loads(body)["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
            return self._send(201, {"status": {"allowed": (asked["verb"], resource) not in self.server.forbidden}})
        match = _PATH.fullmatch(path)
        if not match or (match[2] == "rayjobs" and not self.server.has_crd):
            return self._send_text(404, "404 page not found\n")
        namespace, kind, name, part = match.groups()
        resource = f"{kind}/log" if part == "log" else kind
        verb = ("watch" if query.get("watch") in ("true", "True") else "list") if verb == "get" and not name else verb
        if (verb, resource) in self.server.forbidden:
            message = (
                f'{kind} is forbidden: User "ann" cannot {verb} resource "{resource}" in the namespace "{namespace}"'
            )
            raise Refused(403, "Forbidden", message)
        if namespace != self.server.namespace and verb == "create":
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found', name=namespace, kind="namespaces")
        if part == "log":
            return self._send_log(name, query)
        if verb == "watch":
            return self._send_events(kind, query)
        if verb == "list":
            items = [item for (of, _), item in self.server.objects.items() if of == kind and _selected(item, query)]
            version = {"resourceVersion": self.server._version}
            return self._send(200, {"kind": "List", "metadata": version, "items": items})
        if verb == "create":
            return self._send(201, self._created(kind, json.loads(body), query))
        if verb == "update":
            return self._send(200, self.server.update(kind, json.loads(body)))
        if verb == "delete":
            return self._send(200, self.server.delete(kind, name, query.get("propagationPolicy") == "Foreground"))
        return self._send(200, self.server.get(kind, name))

    def _created(self, kind: str, item: Json, query: dict[str, str]) -> Json:
        name = item["metadata"]["name"]
        if unknown := unknown_fields(item) if query.get("fieldValidation") == "Strict" else []:
            fields = ", ".join(f'unknown field "{field}"' for field in unknown)
            raise Refused(
                400, "BadRequest", f'RayJob in version "v1" cannot be handled: strict decoding error: {fields}'
            )
        if errors := schema_errors(item):
            causes = [{"reason": "FieldValueInvalid", "field": field, "message": text} for field, text in errors]
            raise Refused(422, "Invalid", f'RayJob.ray.io "{name}" is invalid', name=name, kind="RayJob", causes=causes)
        if sum(of == kind for of, _ in self.server.objects) >= self.server.quota:
            quota = f"count/rayjobs.ray.io={self.server.quota}"
            message = f'rayjobs.ray.io "{name}" is forbidden: exceeded quota: team, requested: 1, used: {quota}'
            raise Refused(403, "Forbidden", message)
        return self.server.create(kind, item)

    def _send_events(self, kind: str, query: dict[str, str]) -> None:
        server, version = self.server, int(query.get("resourceVersion") or 0)
        end, cuts = time.monotonic() + float(query.get("timeoutSeconds", 60)), server.cuts
        if version < server.oldest_version:
            gone = Refused(410, "Expired", f"too old resource version: {version} ({server.oldest_version})").status
            return self._send(200, {"type": "ERROR", "object": gone})
        self._start_stream("application/json")
        while True:
            with server.changed:
                new = [event for event in server.events if event[0] > version and event[2] == kind]
                if not new and server.cuts == cuts and time.monotonic() < end:
                    server.changed.wait(min(0.5, end - time.monotonic()))
                    continue
            for number, event, _, item in new:
                version = number
                if _selected(item, query):
                    self._send_chunk(json.dumps({"type": event, "object": item}) + "\n")
            if server.cuts != cuts:
                return self._cut()
            if not new:
                return self._send_chunk("")

    def _send_log(self, pod: str, query: dict[str, str]) -> None:
        server, sent, cuts = self.server, 0, self.server.cuts
        if server.get("pods", pod) and pod not in server.logs:
            message = f'container "{query["container"]}" in pod "{pod}" is waiting to start: ContainerCreating'
            raise Refused(400, "BadRequest", message)
        oldest = time.time() - float(query.get("sinceSeconds", 1e9))
        self._start_stream("text/plain")
        while True:
            with server.changed:
                new, is_last = (
                    server.logs[pod][sent:],
                    query.get("follow") not in ("true", "True") or pod in server.ended_logs,
                )
                if not new and server.cuts == cuts and not is_last:
                    server.changed.wait(0.5)
                    continue
            for timestamp, line in new:
                if datetime.fromisoformat(timestamp).timestamp() >= oldest:
                    self._send_chunk(f"{timestamp} {line}\n")
            sent += len(new)
            if server.cuts != cuts:
                return self._cut()
            if is_last:
                return self._send_chunk("")

    def _send(self, code: int, answer: Json) -> None:
        self._send_text(code, json.dumps(answer), "application/json")

    def _send_text(self, code: int, text: str, kind: str = "text/plain") -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _start_stream(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _send_chunk(self, text: str) -> None:
        """The empty text is the end."""
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True


def _selected(item: Json, query: dict[str, str]) -> bool:
    labels = item["metadata"].get("labels", {})
    fields = {
        "metadata.name": item["metadata"]["name"],
        "involvedObject.name": item.get("involvedObject", {}).get("name"),
        "type": item.get("type"),
    }
    for selector, values in ((query.get("labelSelector", ""), labels), (query.get("fieldSelector", ""), fields)):
        for part in filter(None, selector.split(",")):
            key, equals, value = part.partition("=")
            if key not in values or (equals and values[key] != value):
                return False
    return True


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A running server."""
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.cut()
            server.shutdown()
            thread.join()


def kubeconfig(server: str, token: str = TOKEN, context: str = "here") -> str:
    """The text of a kubeconfig with one context."""
    cluster = {"name": "c", "cluster": {"server": server}}
    user = {"name": "u", "user": {"token": token}}
    contexts = [{"name": context, "context": {"cluster": "c", "user": "u"}}]
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [user], "contexts": contexts}
    return json.dumps({**config, "current-context": context})
