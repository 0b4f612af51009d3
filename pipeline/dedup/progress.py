"""The files in scratch -> how many items of the steps are finished, on all workers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup.steps import Steps

_PAGE = 1000  # files that one request lists


@contextmanager
def reporting_items(steps: Steps, counts: Mapping[str, int]) -> Iterator[None]:
    """While inside, report how many items of these steps are finished."""
    finished = FinishedItems(steps, counts)
    with steps.out.reporting_progress(finished, sum(counts.values()), "items"):
        yield
        finished.complete()


class FinishedItems:
    """Called periodically, returns the number of finished items. Makes about one request for each call.

    It lists the folder of the current step only, and after a listing of several requests it skips as many calls.
    """

    def __init__(self, steps: Steps, counts: Mapping[str, int]) -> None:
        parts = steps.out.location / "parts"
        self._remaining: list[tuple[Location, int]] = [
            (parts if step == "write" else steps.scratch / step, count) for step, count in counts.items()
        ]
        self._total, self._is_complete = sum(counts.values()), False
        self._before = 0  # items of the steps before the current one
        self._current = 0
        self._skipped_calls = 0

    def __call__(self) -> int:
        if self._is_complete:
            return self._total
        if self._skipped_calls:
            self._skipped_calls -= 1
            return self._before + self._current
        while self._remaining:
            folder, count = self._remaining[0]
            self._current = min(len(folder.files()), count)
            if self._current < count:
                self._skipped_calls = self._current // _PAGE
                break
            del self._remaining[0]
            self._before, self._current = self._before + count, 0
        return self._before + self._current

    def complete(self) -> None:
        """Count all items as finished from now on. Another thread may be in a call."""
        self._is_complete = True
