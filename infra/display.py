"""What a person sees while a run works: which stage, how far, how long still."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.facts import WarningFacts
from cloze.pipeline.core.storage import Location

# Between two lines where the output is no terminal; the second when nothing has moved.
_EVERY_SECONDS, _STILL_SECONDS = 10.0, 60.0


class Display:
    """A line for each stage that is done and a live bar for the one at work; plain lines where there is no terminal."""

    def __init__(self, stages: list[str], stream: TextIO | None = None):
        self._stages = stages
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._stage = ""
        self._began = 0.0
        self._first: tuple[float, float] | None = None  # when progress was first told, and how much was done then
        self._shown, self._line = 0.0, ""

    def __call__(self, stage: str, done: float, total: float, unit: str, note: str = "") -> None:
        """Progress inside a stage: `done` of `total` `unit`."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        line = f"{self._head(stage)}  {_bar(done, total)} {done:,.0f}/{total:,.0f} {unit}{self._left(now, done, total)}"
        self._show(f"{line}  {note}".rstrip(), now, last=done >= total)

    def start(self, stage: str, action: str, reason: str) -> None:
        self._stage, self._began, self._first, self._shown = stage, time.monotonic(), None, 0.0
        self._show(f"{self._head(stage)}  {action}: {reason}", self._began, last=True)

    def finish(self, stage: str, summary: str, warnings: Sequence[str] = ()) -> None:
        self.close()
        for line in (summary, *(f"warning: {warning}" for warning in warnings)):
            self._console.print(Text(f"{self._head(stage)}  {line}", overflow="fold"))

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _head(self, stage: str) -> str:
        width = max(map(len, self._stages))
        place = f"{self._stages.index(stage) + 1}/{len(self._stages)}"
        return f"[{place:>5}] {stage:<{width}}"

    def _left(self, now: float, done: float, total: float) -> str:
        assert self._first is not None
        since, before = self._first
        if done <= before or done >= total:
            return ""
        return f", {duration((now - since) / (done - before) * (total - done))} left"

    def _show(self, line: str, now: float, last: bool) -> None:
        pause = _EVERY_SECONDS if line != self._line else _STILL_SECONDS
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, transient=True, auto_refresh=False)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif now - self._shown >= pause and not (last and self._shown):
            self._shown, self._line = now, line
            self._console.print(Text(line))


def _bar(done: float, total: float, width: int = 24) -> str:
    full = int(width * min(1.0, done / total)) if total else width
    return "█" * full + "░" * (width - full)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Bytes as a person says them: 999 B, 905.6 kB, 1.2 GB."""
    if count < 1000:
        return f"{count} B"
    number, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if round(number, 1) < 1000:  # as it will be shown: 999,999 bytes are 1.0 MB, and not 1000.0 kB
            break
        number, unit = number / 1000, larger
    return f"{number:.1f} {unit}"


def shown(location: Location) -> str:
    """A place as a person in the current folder would write it."""
    here = f"{Path.cwd()}/"
    return location.uri.removeprefix(here)


def summary(manifest: Manifest) -> str:
    """A stage's counts and drops in words: `1,234 documents, 56,789 words; dropped 12 redirects`."""
    drops = {reason: number for reason, number in manifest.drops.items() if number}
    return _words(manifest.counts) + (f"; dropped {_words(drops)}" if drops else "")


def warnings(manifest: Manifest) -> list[str]:
    """What came out otherwise than the configuration asks for, or worse than it should: a line each, with the mend."""
    return WarningFacts.of(manifest).warnings


def _words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in numbers.items())
