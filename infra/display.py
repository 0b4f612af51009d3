"""The progress of a run, as the terminal or a log shows it: the stage, its progress and the time left."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.lease_files import Owner
from cloze.pipeline.core.manifest_facts import WarningFacts
from cloze.pipeline.core.storage import Location

# Seconds between two lines of a log: of one that makes progress, and of one that shows the same again.
_LOG_SECONDS, _UNCHANGED_SECONDS = 10.0, 60.0


class Display:
    """Prints a line for each finished stage and a live progress bar for the running one; where the output is not a
    terminal, plain lines.
    """

    def __init__(self, stages: list[str], stream: TextIO | None = None):
        self._stages = stages
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._first: tuple[float, float] | None = None  # time of the first progress report, and how much was done then
        self._printed_at, self._line = 0.0, ""  # of the last line of a log
        self._progress = ""  # the last report of the running stage, without its note

    def __call__(self, stage: str, done: float, total: float, unit: str, note: str = "") -> None:
        """Progress inside a stage: `done` of `total` `unit`."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        self._progress = f"{self._head(stage)}  {_bar(done, total)} {done:,.0f}/{total:,.0f} {unit}"
        self._show(f"{self._progress}{self._time_left(now, done, total)}  {note}".rstrip(), now, last=done >= total)

    def wait(self, note: str) -> None:
        """A request waits for S3: the running stage shows the note, which says why and how long."""
        self._show(f"{self._progress}  {note}".lstrip(), time.monotonic(), last=False)

    def start(self, stage: str, action: str, reason: str) -> None:
        """A stage starts to run or to continue."""
        self._first, self._printed_at, self._progress = None, 0.0, self._head(stage)
        self._show(f"{self._head(stage)}  {action}: {reason}", time.monotonic(), last=True)

    def show_owner(self, stage: str, owner: Owner) -> None:
        """A stage waits for another run that writes its output; with that run's progress."""
        done = owner.progress
        bar = f"{_bar(done.done, done.total)} {done.done:,.0f}/{done.total:,.0f} {done.unit}  " if done.total else ""
        line = f"{self._head(stage)}  {bar}waits for {owner.process}, at work since {owner.since}"
        self._show(f"{line}  {done.note}".rstrip(), time.monotonic(), last=False)

    def finish(self, stage: str, summary: str, warnings: Sequence[str] = ()) -> None:
        """A stage is finished, or skipped."""
        self.close()
        for line in (summary, *(f"warning: {warning}" for warning in warnings)):
            self._console.print(Text(f"{self._head(stage)}  {line}", overflow="fold"))

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _head(self, stage: str) -> str:
        width = max(map(len, self._stages))
        number = f"{self._stages.index(stage) + 1}/{len(self._stages)}"
        return f"[{number:>5}] {stage:<{width}}"

    def _time_left(self, now: float, done: float, total: float) -> str:
        assert self._first is not None
        since, before = self._first
        if done <= before or done >= total:
            return ""
        return f", {duration((now - since) / (done - before) * (total - done))} left"

    def _show(self, line: str, now: float, last: bool) -> None:
        """Update the live bar, or print a line if the last one is old enough. The `last` line of a stage's progress is
        left out of a log, as the line about the finished stage follows."""
        pause = _LOG_SECONDS if line != self._line else _UNCHANGED_SECONDS
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self._printed_at >= pause and not (last and self._printed_at):
            self._printed_at, self._line = now, line
            self._console.print(Text(line))


def _bar(done: float, total: float, width: int = 24) -> str:
    filled = int(width * min(1.0, done / total)) if total else width
    return "█" * filled + "░" * (width - filled)


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """A number of bytes in words: 999 B, 905.6 kB, 1.2 GB."""
    if count < 1000:
        return f"{count} B"
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(number, 1) < 1000:  # as printed: 999,999 bytes are 1.0 MB, not 1000.0 kB
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}"


def relative_path(location: Location) -> str:
    """A location's path relative to the current folder where it is inside it, otherwise its URI."""
    return location.uri.removeprefix(f"{Path.cwd()}/")


def summary(manifest: Manifest) -> str:
    """A stage's counts and drops in words: `1,234 documents, 56,789 words; dropped 12 redirect`."""
    drops = {reason: number for reason, number in manifest.drops.items() if number}
    return _words(manifest.counts) + (f"; dropped {_words(drops)}" if drops else "")


def warnings(manifest: Manifest) -> list[str]:
    """The stage's warnings, one line each: where its output differs from the configuration or has a low quality, and
    the fix."""
    return WarningFacts.of(manifest).warnings


def _words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in numbers.items())
