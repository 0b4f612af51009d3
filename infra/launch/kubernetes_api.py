"""One namespace of a Kubernetes cluster: its RayJobs, pods, logs and events, through the kubernetes client library.

Every fault becomes a UserError of one line.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloze.infra.launch.jobs import Unreachable
from cloze.infra.launch.kubernetes_config import KubernetesConfig
from cloze.pipeline.core.errors import UserError

Json = dict[str, Any]

_RAYJOBS = ("ray.io", "v1")
_TIMEOUT = (10.0, 30.0)  # seconds to connect, and between bytes
_LOG_TIMEOUT = (10.0, 300.0)  # a stage may print nothing for minutes


class AlreadyExists(UserError):
    """An object of that name exists."""


class NotFound(UserError):
    """No object of that name exists."""


class KubernetesApi:
    """Requests to one namespace. `file` is the cluster's file, for errors."""

    def __init__(self, config: KubernetesConfig, file: str):
        try:
            from kubernetes import client
        except ImportError as error:
            raise UserError(f"{file}: kubernetes requires a package; pip install 'cloze[kubernetes]'") from error
        self.namespace = config.namespace
        self._file = file
        connection = _connection(config, file)
        self._server = connection.configuration.host
        self._custom = client.CustomObjectsApi(connection)
        self._core = client.CoreV1Api(connection)

    def create(self, rayjob: Json) -> Json:
        """Raises AlreadyExists when there is a RayJob of that name."""
        # Strict: KubeRay of an earlier version would drop, in silence, the keys that it does not know.
        return self._rayjobs(self._custom.create_namespaced_custom_object, body=rayjob, field_validation="Strict")

    def get(self, name: str) -> Json:
        """Raises NotFound when there is no RayJob of that name."""
        return self._rayjobs(self._custom.get_namespaced_custom_object, name=name)

    def rayjobs(self, labels: str) -> list[Json]:
        return self._rayjobs(self._custom.list_namespaced_custom_object, label_selector=labels)["items"]

    def delete(self, name: str) -> None:
        """Delete a RayJob. It exists until its Ray cluster has ended."""
        self._rayjobs(self._custom.delete_namespaced_custom_object, name=name, propagation_policy="Foreground")

    def wait_for_change(self, rayjob: Json, seconds: int) -> tuple[str, Json] | None:
        """The next event about the RayJob after it was read, as (ADDED, MODIFIED or DELETED; the object).

        None after `seconds`, and earlier if the watch is cut, refused or too old (410 Gone): the caller reads the
        object again.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        metadata, start = rayjob["metadata"], time.monotonic()
        try:
            response: Any = self._custom.list_namespaced_custom_object(
                *_RAYJOBS,
                self.namespace,
                "rayjobs",
                watch=True,
                field_selector=f"metadata.name={metadata['name']}",
                resource_version=metadata["resourceVersion"],
                timeout_seconds=seconds,
                _preload_content=False,
                _request_timeout=(_TIMEOUT[0], float(seconds + 10)),
            )
            try:
                for event in map(json.loads, _lines(response) if response.status < 400 else ()):
                    if event["type"] != "ERROR":
                        return event["type"], event["object"]
            finally:
                response.close()
        except (ApiException, HTTPError, OSError, ValueError):
            pass
        time.sleep(max(0.0, min(1.0, seconds - (time.monotonic() - start))))
        return None

    def may(self, verb: str, resource: str) -> bool:
        """Whether these credentials allow the verb on a resource of the namespace, such as pods or pods/log."""
        from kubernetes import client

        name, _, part = resource.partition("/")
        group = _RAYJOBS[0] if name == "rayjobs" else ""
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        authorization = client.AuthorizationV1Api(self._core.api_client)
        return bool(self._call(authorization.create_self_subject_access_review, review)["status"]["allowed"])

    def has_secret(self, name: str) -> bool | None:
        """Whether there is such a secret; None if these credentials may not read it."""
        return self._has(self._core.read_namespaced_secret, "secrets", name)

    def has_service_account(self, name: str) -> bool | None:
        """Whether there is such a service account; None if these credentials may not read it."""
        return self._has(self._core.read_namespaced_service_account, "serviceaccounts", name)

    def _has(self, read: Callable[..., Any], resource: str, name: str) -> bool | None:
        if not self.may("get", resource):
            return None
        try:
            self._call(read, name, self.namespace)
        except NotFound:
            return False
        return True

    def pods(self, labels: str) -> list[Json]:
        """The oldest first."""
        pods = self._call(self._core.list_namespaced_pod, self.namespace, label_selector=labels)["items"]
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def warnings(self, name: str) -> list[str]:
        """The messages of warning events about the object of that name, the newest last."""
        selector = f"involvedObject.name={name},type=Warning"
        events = self._call(self._core.list_namespaced_event, self.namespace, field_selector=selector)["items"]
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return [event.get("message", "") for event in events]

    def log(self, pod: str, container: str, *, follow: bool, since_seconds: int | None) -> Iterator[tuple[str, str]]:
        """The times and lines of a container's log, until it ends or the connection is cut.

        Raises NotFound for a pod that has not started, or no longer exists.
        """
        from urllib3.exceptions import HTTPError

        response = self._request(
            self._core.read_namespaced_pod_log,
            pod,
            self.namespace,
            container=container,
            follow=follow,
            timestamps=True,
            since_seconds=since_seconds,
            _request_timeout=_LOG_TIMEOUT,
        )
        try:
            for line in _lines(response):
                timestamp, _, text = line.decode("utf-8", errors="replace").partition(" ")
                yield timestamp, text
        except (HTTPError, OSError):
            return
        finally:
            response.close()

    def _rayjobs(self, request: Callable[..., Any], **options: Any) -> Any:
        return self._call(request, *_RAYJOBS, self.namespace, "rayjobs", **options)

    def _call(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return json.loads(self._request(request, *arguments, _request_timeout=_TIMEOUT, **options).read())

    def _request(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        # The library's own types would refuse what a later Kubernetes adds.
        try:
            response = request(*arguments, _preload_content=False, **options)
            if response.status >= 400:
                raise ApiException(http_resp=response, body=response.read().decode("utf-8", errors="replace"))
            return response
        except ApiException as error:
            raise self._explained(error) from error
        except (HTTPError, OSError) as error:
            raise Unreachable(
                f"{self._file}: the API server {self._server} does not answer ({_one_line(error)}); correct "
                "kubernetes.context, or connect to its network"
            ) from error

    def _explained(self, error: Any) -> UserError:
        """The error of the API server as one line with the fix."""
        try:
            status = json.loads(error.body or "")
        except ValueError:
            status = {}
        message = " ".join(str(status.get("message") or error.body or error.reason).split())[:500]
        where = f"{self._file}: "
        match error.status:
            case 401:
                return UserError(
                    f"{where}the API server {self._server} refuses the credentials; renew those of the kubeconfig "
                    "(kubectl get rayjobs shows the same)"
                )
            case 403 if "exceeded quota" in message:
                return UserError(f"{where}{message}; wait until other jobs have ended, or ask for a larger quota")
            case 403:
                return UserError(
                    f"{where}{message}; ask for a role that may get, list, watch, create and delete rayjobs, and get "
                    "and list pods, pods/log and events there"
                )
            case 404 if (status.get("details") or {}).get("kind") in ("rayjobs", "pods", "secrets", "serviceaccounts"):
                return NotFound(f"{where}{message}")
            case 404 if (status.get("details") or {}).get("kind") == "namespaces":
                return UserError(f"{where}{message}; correct kubernetes.namespace, or create it")
            case 404:
                return UserError(f"{where}the cluster has no RayJobs ({message}); install KubeRay 1.7 or later")
            case 409 if status.get("reason") == "AlreadyExists":
                return AlreadyExists(f"{where}{message}")
            case 400 if "waiting to start" in message:
                return NotFound(f"{where}{message}")
            case 400 if "unknown field" in message:
                return UserError(f"{where}{message}: the cluster's KubeRay is too old; install KubeRay 1.7 or later")
            case 422:
                causes = (status.get("details") or {}).get("causes") or []
                fields = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes)
                return UserError(f"{where}the cluster refuses the job: {fields or message}; correct the cluster's file")
            case 0 | 429 | 500 | 502 | 503 | 504:
                return Unreachable(
                    f"{where}the API server {self._server} cannot answer now ({error.status} {message}); run the same "
                    "command again later"
                )
        return UserError(f"{where}the API server answers {error.status}: {message}; correct the cluster's file")


def _connection(config: KubernetesConfig, file: str) -> Any:
    """The library's client for the context of the kubeconfig, or for the pod's own cluster."""
    from kubernetes import client
    from kubernetes.config import ConfigException, load_incluster_config, new_client_from_config

    try:
        if not config.context and "KUBERNETES_SERVICE_HOST" in os.environ and not _kubeconfig_exists():
            load_incluster_config()
            return client.ApiClient()
        # The library reads KUBECONFIG only once, when it is imported.
        return new_client_from_config(os.environ.get("KUBECONFIG"), context=config.context)
    except (ConfigException, OSError) as error:
        raise UserError(
            f"{file}: kubernetes: no kubeconfig can be used ({_one_line(error)}); set KUBECONFIG, or "
            "kubernetes.context to one of kubectl config get-contexts"
        ) from error


def _kubeconfig_exists() -> bool:
    return "KUBECONFIG" in os.environ or (Path.home() / ".kube/config").exists()


def _lines(response: Any) -> Iterator[bytes]:
    """The lines of a streamed response as they arrive, without their ends; the last one may be cut."""
    rest = b""
    for data in response.stream(None):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
