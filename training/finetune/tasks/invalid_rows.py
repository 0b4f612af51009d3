"""What a task does with a row of its file that is not a valid example: an error, or a skip that is counted."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from cloze.pipeline.core.errors import UserError

Row = TypeVar("Row")
Result = TypeVar("Result")


class InvalidRow(UserError):
    """A row that is not a valid example. `reason` is the name under which skipped rows are counted."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def valid_rows(rows: Iterable[Row], build: Callable[[Row], Result], skipped: Counter[str] | None) -> list[Result]:
    """What `build` returns for each row.

    Rows for which it raises InvalidRow are counted in `skipped` by their reason. Without `skipped`, raises UserError.
    """
    results = list[Result]()
    for row in rows:
        try:
            results.append(build(row))
        except InvalidRow as error:
            if skipped is None:
                raise UserError(f"{error}, or set skip_invalid: true to leave out such rows") from None
            skipped[error.reason] += 1
    return results
