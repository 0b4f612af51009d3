"""The result of a check of a stage's output, and the error that stops a run whose stage has failed one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cloze.pipeline.core.errors import UserError


@dataclass(frozen=True)
class CheckResult:
    """Whether a finished stage passes one check. `message` is one line, for people.

    `reference` is what `value` was compared with, and `limit` the worst value that passes; None if there was nothing to
    compare with, or the check has none.
    """

    stage: str
    name: str  # unique in its stage; it stays the same between runs
    passed: bool
    message: str
    value: float | None = None
    reference: float | None = None
    limit: float | None = None

    @property
    def plain(self) -> dict[str, Any]:
        """The result as plain JSON."""
        return asdict(self)


class ChecksFailed(UserError):
    """A finished stage failed checks: the run stops there. `results` are those of all its checks."""

    def __init__(self, results: Sequence[CheckResult]):
        failed = [result for result in results if not result.passed]
        more = f" (and {len(failed) - 1} more: see cloze status)" if len(failed) > 1 else ""
        super().__init__(f"{failed[0].stage}: {failed[0].message}{more}")
        self.results = tuple(results)


def require_passed(results: Sequence[CheckResult]) -> None:
    """Raises ChecksFailed when a check of the stage failed."""
    if not all(result.passed for result in results):
        raise ChecksFailed(results)
