"""What a task does with a row of its file that is not a valid example: an error, or a skip that is counted."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from cloze.pipeline.core.errors import UserError


class SplitRow(Protocol):
    """A row of a split; the split is empty if the file is still to be divided."""

    @property
    def split(self) -> str: ...

    @property
    def where(self) -> str:
        """The file, or the file and the row, for error messages."""
        ...


Row = TypeVar("Row", bound=SplitRow)
Result = TypeVar("Result")


class InvalidRow(UserError):
    """A row that is not a valid example. `reason` is the name under which skipped rows are counted."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def valid_rows(rows: Iterable[Row], build: Callable[[Row], Result], skipped: Counter[str] | None) -> list[Result]:
    """What `build` returns for each row.

    Rows for which it raises InvalidRow are counted in `skipped` by their reason. Raises UserError for such a row if
    `skipped` is None, and when all rows of a split are skipped: the task would otherwise have another division.
    """
    results, kept = list[Result](), set[str]()
    first_skipped, reasons = dict[str, Row](), dict[str, Counter[str]]()
    for row in rows:
        try:
            results.append(build(row))
            kept.add(row.split)
        except InvalidRow as error:
            if skipped is None:
                raise UserError(f"{error}, or set skip_invalid: true to leave out such rows") from None
            skipped[error.reason] += 1
            first_skipped.setdefault(row.split, row)
            reasons.setdefault(row.split, Counter())[error.reason] += 1
    for split, row in first_skipped.items():
        if split not in kept:
            raise UserError(
                f"{row.where}: skip_invalid leaves no row{f' of {split}' if split else ''}, as all are invalid "
                f"({reasons_in_words(reasons[split])}); correct some, or leave them out"
            )
    return results


def reasons_in_words(skipped: Counter[str]) -> str:
    """How many rows were skipped for each reason."""
    return ", ".join(f"{count:,} of {reason!r}" for reason, count in sorted(skipped.items()))
