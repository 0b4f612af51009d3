"""Requests to a public server: few at once, with a user agent, repeated while the server or the connection fails."""

import os
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.retries import SETTING, TEMPORARY_STATUSES, Failure, retry_seconds, retrying
from cloze.pipeline.core.signals import interrupted

if TYPE_CHECKING:
    from requests import Response

Result = TypeVar("Result")

CONNECTIONS = 2  # at once, as https://dumps.wikimedia.org/ asks for
#: An environment variable: whom the server's operators can ask, https://foundation.wikimedia.org/wiki/Policy:User-Agent_policy
CONTACT = "CLOZE_CONTACT"
_TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two packets


class NotFound(UserError):
    """The server has no such page (status 404)."""


class _WrongAnswer(Exception):
    """An answer that is not what was asked for."""


class Http:
    """A server's pages and files. Requests that fail temporarily are repeated for minutes (core/retries.py).

    Raises NotFound, and UserError for other failures.
    """

    def __init__(self) -> None:
        import requests

        self._session = requests.Session()
        self._session.headers["User-Agent"] = _user_agent()
        self._session.headers["Accept-Encoding"] = "identity"  # the bytes whose digests are published

    def text(self, url: str) -> str:
        return self._get(url, {}, lambda answer: answer.text)

    def read_range(self, url: str, start: int, end: int, size: int) -> bytes:
        """Returns the bytes from `start` to `end` of a file that has `size` bytes."""

        def read(answer: "Response") -> bytes:
            if answer.status_code != 206:
                raise UserError(f"{url}: the server ignores ranges, which resuming requires; give another --mirror")
            received = answer.headers.get("Content-Range", "")
            if received != f"bytes {start}-{end - 1}/{size}":
                total = re.fullmatch(r"bytes \d+-\d+/(\d+)", received)
                if total and int(total[1]) != size:
                    raise UserError(f"{url}: has {total[1]} bytes instead of {size}; was it replaced? Run again")
                raise _WrongAnswer(f"answered with the range {received!r}")
            if len(answer.content) != end - start:
                raise _WrongAnswer(f"sent {len(answer.content)} bytes instead of {end - start}")
            return answer.content

        return self._get(url, {"Range": f"bytes={start}-{end - 1}"}, read)

    def _get(self, url: str, headers: dict[str, str], read: "Callable[[Response], Result]") -> Result:
        def attempt() -> Result:
            # A server that ignores ranges sends the whole file: the body is not read before the headers are checked.
            with self._session.get(url, headers=headers, timeout=_TIMEOUT, stream=True) as answer:
                if answer.status_code in TEMPORARY_STATUSES:
                    interrupted.wait(min(_requested_delay(answer), retry_seconds()))
                answer.raise_for_status()
                return read(answer)

        return retrying(attempt, lambda error, seconds: _failure(url, error, seconds))


def _user_agent() -> str:
    contact = os.environ.get(CONTACT, "")
    if contact and not re.fullmatch(r"[!-~]*(@|://)[!-~]*", contact):  # what a header may contain
        raise UserError(f"{CONTACT} is {contact!r}; give an e-mail address or a URL")
    comment = f" ({contact})" if contact else ""
    return f"cloze/{version('cloze')}{comment} python-requests/{version('requests')}"


def _requested_delay(answer: "Response") -> float:
    """Returns the seconds after which the server wants to be asked again (Retry-After; dates are ignored)."""
    delay = answer.headers.get("Retry-After", "")
    return float(delay) if delay.isdecimal() else 0.0


def _failure(url: str, error: Exception, seconds: float) -> Failure:
    import requests

    if isinstance(error, UserError):
        return Failure(error, "", False)
    answer = error.response if isinstance(error, requests.HTTPError) else None
    status = None if answer is None else answer.status_code
    if status == 404:
        return Failure(NotFound(f"{url}: does not exist (404)"), "", False)
    if status and status not in TEMPORARY_STATUSES:
        return Failure(UserError(f"{url}: the server refuses it ({status}); give another --mirror"), "", False)
    if not isinstance(error, requests.RequestException | _WrongAnswer):
        return Failure(error, "", False)
    if isinstance(error, ValueError | requests.TooManyRedirects):  # ValueError: no address, or without https://
        return Failure(UserError(f"{url}: cannot be requested ({error}); give another --mirror"), "", False)
    kinds = {
        requests.exceptions.SSLError: "encryption fails (behind a proxy, REQUESTS_CA_BUNDLE names its certificates)",
        requests.ConnectTimeout: "does not answer",
        requests.ReadTimeout: "is silent",
        _WrongAnswer: str(error),
    }
    cause = next((text for kind, text in kinds.items() if isinstance(error, kind)), "the connection fails")
    cause = f"the server fails ({status})" if status else cause
    fix = f"run again to continue; {SETTING} is how long a request is repeated"
    unreachable = isinstance(error, requests.ConnectionError) and not isinstance(error, requests.ReadTimeout)
    return Failure(UserError(f"{url}: {cause}, for {seconds:.0f} s; {fix}"), f"{url}: {cause}", True, unreachable)
