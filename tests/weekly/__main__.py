"""python -m tests.weekly [--minutes 60]: the weekly schedule as a minute cron on a tiny run, with kills and reboots.

Starts the pages and the daemon (`python -m cloze.infra.workflow`) with a run of a few hundred documents. A new dump
replaces the last one every few minutes; at random moments the run, the daemon or everything is killed with SIGKILL and
started again. Once a dump is bad: its checks must stop the promotion. At the end the schedule is switched off, and a
dump is written slowly, which the sensor for new files must not take before it is whole. Then the last outputs are
compared with those of a quiet run. Prints a table of verdicts and exits with 1 if one is wrong.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dagster

from cloze.infra import named_runs
from cloze.infra.planner import Run
from tests.weekly.corpus import CONFIG, VOCAB, Corpus
from tests.weekly.service import Service
from tests.weekly.verdicts import Facts, Verdict, print_table, verdicts

_KILLS = ("run", "run", "daemon", "reboot")
_POLL = 1.0
_AT_WORK = (dagster.DagsterRunStatus.STARTING, dagster.DagsterRunStatus.STARTED, dagster.DagsterRunStatus.CANCELING)
_UNFINISHED = (*_AT_WORK, dagster.DagsterRunStatus.QUEUED, dagster.DagsterRunStatus.NOT_STARTED)


class Campaign:
    """The hour."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._random = folder, random.Random(seed)
        self._corpus = Corpus(folder / "dump")
        (folder / "weekly.yaml").write_text(CONFIG.format(folder=folder, vocab=VOCAB))
        self.service = Service(folder)
        self._kills: list[str] = []
        self._most_at_once = 0
        self._bad_fingerprint = ""
        self._start = time.monotonic()

    def run(self, minutes: float) -> list[Verdict]:
        self._corpus.write(1)
        self.service.start()
        self.service.switch_on("schedule")
        self._cron(self._start + 60 * minutes)
        self.service.switch_off("schedule")
        self._wait_until_quiet()
        early = self._half_written()
        facts = Facts(self._folder, self._most_at_once, self._kills, early, self._bad_fingerprint)
        return list(verdicts(facts, self.service))

    def _cron(self, end: float) -> None:
        """New dumps, a bad one in the middle, and kills, until the time is over."""
        middle, had_bad = (self._start + end) / 2, False
        next_kill, stand_until = self._start + self._random.uniform(60, 150), self._start + 180
        while (now := time.monotonic()) < end:
            if now > stand_until and self._has_run():
                is_bad, had_bad = not had_bad and now > middle, had_bad or now > middle
                self._replace_dump(bad=is_bad)
                stand_until = now + self._random.uniform(120, 240)
            if now > next_kill:
                self._kill(self._random.choice(_KILLS))
                next_kill = now + self._random.uniform(90, 240)
            self._look()
        if self._corpus.is_bad:
            self._replace_dump()

    def _replace_dump(self, *, bad: bool = False) -> None:
        self._corpus.write(self._corpus.week + 1, bad=bad)
        if bad:
            self._bad_fingerprint = Run(named_runs.read(f"{self._folder}/weekly.yaml")).fingerprint("extract") or ""
        self._say(f"dump of week {self._corpus.week}{', bad' if bad else ''}")

    def _has_run(self) -> bool:
        """Whether a run has read the present dump: its first stage is finished."""
        return Run(named_runs.read(f"{self._folder}/weekly.yaml")).artifact("extract") is not None

    def _kill(self, what: str) -> None:
        if self.service.kill(what):
            self._kills.append(what)
            self._say(f"killed: {what}")

    def _half_written(self) -> int:
        """Write the next dump slowly while the sensor looks. Returns how many runs it has requested too early."""
        self.service.switch_on("sensor")
        self._wait(60)  # it may request a run of the files as they are
        self._wait_until_quiet()
        before = len(self.service.runs())
        self._say(f"dump of week {self._corpus.week + 1} is being written")
        for _ in self._corpus.write_slowly(self._corpus.week + 1, seconds=60):
            self._look()
        early = len(self.service.runs()) - before
        self._wait(180, lambda: len(self.service.runs()) > before)
        self._wait_until_quiet()
        self.service.switch_off("sensor")
        return early

    def _wait_until_quiet(self) -> None:
        """Until no run is queued or at work, for at least half a minute, in which one may be retried."""
        quiet_since = time.monotonic()

        def is_quiet() -> bool:
            nonlocal quiet_since
            if self.service.runs(*_UNFINISHED):
                quiet_since = time.monotonic()
            return time.monotonic() - quiet_since > 30

        self._wait(900, is_quiet)

    def _wait(self, seconds: float, condition: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not condition():
            self._look()

    def _look(self) -> None:
        self._most_at_once = max(self._most_at_once, len(self.service.runs(*_AT_WORK)))
        self.service.keep_running()
        time.sleep(_POLL)

    def _say(self, line: str) -> None:
        seconds = round(time.monotonic() - self._start)
        print(f"{seconds // 60:3}:{seconds % 60:02}  {line}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The weekly schedule as a minute cron, with kills.")
    parser.add_argument("--minutes", type=float, default=60, help="of the cron; some more follow (%(default)s)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the random moments")
    parser.add_argument("--folder", type=Path, help="an empty folder for everything; a temporary one by default")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="cloze-weekly-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, folder {folder}", flush=True)
    campaign = Campaign(folder, options.seed)
    try:
        found = campaign.run(options.minutes)
    finally:
        campaign.service.stop()
    print_table(found)
    return 0 if all(verdict.holds for verdict in found) else 1


if __name__ == "__main__":
    sys.exit(main())
