"""A message -> a POST of JSON to a URL of the user's, which may be secret: errors name its host alone."""

import json
import os
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cloze.pipeline.core.errors import UserError

_WAITS = (1.0, 4.0, 10.0)  # seconds before the next attempts
_TIMEOUT = 5.0  # seconds of an attempt; all of them fit into the minute that a sensor may take


def webhook_url(value: str) -> str:
    """The URL that `schedule.webhook` is, or that the environment variable of this name contains."""
    url = value if "://" in value else os.environ.get(value, "")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        where = "the URL" if "://" in value else f"the environment variable {value}"
        raise UserError(f"schedule.webhook: {where} is not an http:// or https:// URL; set it before Dagster starts")
    return url


def post(url: str, message: Mapping[str, object], waits: tuple[float, ...] = _WAITS) -> None:
    """Send the message, again while the receiver or the connection fails. Raises UserError when it cannot be sent."""
    body = json.dumps(message).encode()
    for wait in (*waits, None):
        problem = _attempt(url, body)
        if problem is None:
            return
        if wait is None or not problem.temporary:
            raise UserError(f"schedule.webhook: {urlsplit(url).hostname} {problem.text}; check its URL")
        time.sleep(wait)


class _Problem:
    def __init__(self, text: str, *, temporary: bool):
        self.text, self.temporary = text, temporary


def _attempt(url: str, body: bytes) -> _Problem | None:
    try:
        with _OPENER.open(Request(url, body, {"Content-Type": "application/json"}), timeout=_TIMEOUT):
            return None
    except HTTPError as error:
        return _Problem(f"answered {error.code}", temporary=error.code >= 500 or error.code in (408, 425, 429))
    except HTTPException as error:  # its text may have the URL
        return _Problem(f"gave an answer that is not HTTP ({type(error).__name__})", temporary=True)
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        return _Problem(f"cannot be reached ({reason})", temporary=True)


class _NoRedirects(HTTPRedirectHandler):
    """A redirected POST would become a GET without the message."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


_OPENER = build_opener(_NoRedirects)
