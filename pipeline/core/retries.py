"""One retry policy for all requests to S3: exponential backoff with full jitter, for minutes.

Throttling, failures of the server, cut and silent connections end by themselves, usually within minutes. Waiting is
cheaper than a failed run. The policy counts time, not attempts: under throttling, attempts are short.
"""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.signals import interrupted

Result = TypeVar("Result")

#: Answers of an HTTP server that a later attempt may not get.
TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
SETTING = "CLOZE_S3_RETRY_SECONDS"  # an environment variable: workers inherit it
_DEFAULT_SECONDS = 300.0
_FIRST_CONTACT_SECONDS = 30.0  # for a server that has never answered: its address is probably wrong
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 20.0
_NOTE_SECONDS = 2.0  # shorter waits are not reported
_POLL = 0.5  # seconds after which a wait notices that it is to end

_jitter = random.SystemRandom()  # never the state that training seeds
_listeners: list[Callable[[str], object]] = []
_answered = threading.Event()  # whether any server has answered in this process, or in the one that has started it
_ended: ContextVar[threading.Event | None] = ContextVar("_ended", default=None)  # of this thread's work


class Failure(NamedTuple):
    """A failed attempt. `error` is raised when no further attempt is made; `cause` is shown while waiting."""

    error: Exception
    cause: str
    is_temporary: bool
    is_unreachable: bool = False


def retry_seconds() -> float:
    """Returns how long a request is repeated. Raises UserError when the setting is not a number of seconds."""
    text = os.environ.get(SETTING, "")
    with suppress(ValueError):
        seconds = float(text) if text else _DEFAULT_SECONDS
        if 0 <= seconds < math.inf:
            return seconds
    raise UserError(f"{SETTING}={text}: is not a number of seconds; write for example {SETTING}=300")


def retrying(attempt: Callable[[], Result], classify: Callable[[Exception, float], Failure]) -> Result:
    """Call `attempt` until it succeeds; raise the error of a failure that is permanent or lasts too long.

    `classify(error, seconds)` describes the failure of an attempt; `seconds` have passed since the first one. After an
    interrupt, or the event of `not_repeated_after`, no further attempt is made.
    """
    patience, started, delay = retry_seconds(), 0.0, _FIRST_DELAY
    while True:
        try:
            result = attempt()
        except Exception as error:
            now = time.monotonic()
            started = started or now
            failure = classify(error, now - started)
            if not failure.is_unreachable:
                _answered.set()
            limit = patience if _answered.is_set() else min(patience, _FIRST_CONTACT_SECONDS)
            wait = min(_jitter.uniform(0, delay), limit - (now - started))
            if not failure.is_temporary or wait <= 0 or _is_ended(0):
                raise failure.error from error
            if now - started > _NOTE_SECONDS:
                _notify(f"{failure.cause}, retrying for {now - started:.0f} s (up to {limit:.0f} s)")
            if _is_ended(wait):
                raise failure.error from error
            delay = min(2 * delay, _LONGEST_DELAY)
        else:
            _answered.set()
            return result


@contextmanager
def not_repeated_after(event: threading.Event) -> Iterator[None]:
    """While inside the block, this thread repeats no request once the event is set: its work has ended."""
    before = _ended.set(event)
    try:
        yield
    finally:
        _ended.reset(before)


@contextmanager
def not_repeated() -> Iterator[None]:
    """While inside the block, this thread repeats no request."""
    at_once = threading.Event()
    at_once.set()
    with not_repeated_after(at_once):
        yield


def _is_ended(seconds: float) -> bool:
    """Wait; returns early, and True, when no further attempt is to be made."""
    events = [interrupted, *filter(None, [_ended.get()])]
    end = time.monotonic() + seconds
    while not any(event.is_set() for event in events):
        if (left := end - time.monotonic()) <= 0:
            return False
        interrupted.wait(min(left, _POLL))
    return True


def expect_answers() -> None:
    """The server has answered another process of this run: its address is right."""
    _answered.set()


def _notify(note: str) -> None:
    for listener in _listeners[-1:]:
        listener(note)


@contextmanager
def reporting_waits(listener: Callable[[str], object]) -> Iterator[None]:
    """While inside the block, call `listener` with a line whenever a request of this process waits for S3.

    It is called in the thread that waits. The innermost block's listener receives the lines.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
