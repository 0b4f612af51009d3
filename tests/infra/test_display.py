import io
from pathlib import Path

import pytest

from cloze.infra import display
from cloze.infra.display import Display, duration, relative_path, size, summary
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def test_without_a_terminal_there_is_a_line_every_ten_seconds_with_the_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(["extract", "dedup"], stream)
    display.start("dedup", "run", "no output yet")
    for _ in range(30):
        clock.now += 1
        display("dedup", clock.now - 1000, 100, "files", "a.txt")
    display.finish("dedup", "done in 30 s")
    assert stream.getvalue().splitlines() == [
        "[  2/2] dedup    run: no output yet",
        "[  2/2] dedup    ██░░░░░░░░░░░░░░░░░░░░░░ 10/100 files, 1 min 30 s left  a.txt",
        "[  2/2] dedup    ████░░░░░░░░░░░░░░░░░░░░ 20/100 files, 1 min 20 s left  a.txt",
        "[  2/2] dedup    ███████░░░░░░░░░░░░░░░░░ 30/100 files, 1 min 10 s left  a.txt",
        "[  2/2] dedup    done in 30 s",
    ]


def test_unchanged_progress_is_printed_once_a_minute(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(["pretrain"], stream)
    for _ in range(125):
        clock.now += 1
        display("pretrain", 0, 600, "steps", "starting workers")
    assert len(stream.getvalue().splitlines()) == 3


def test_the_time_left_counts_from_where_an_interrupted_stage_continues(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(["pretrain"], stream)
    display("pretrain", 500, 600, "steps")
    clock.now += 10
    display("pretrain", 510, 600, "steps")
    assert stream.getvalue().splitlines()[-1].endswith("510/600 steps, 1 min 30 s left")


def test_warnings_follow_the_line_of_the_finished_stage(clock: Clock) -> None:
    stream = io.StringIO()
    Display(["vocab"], stream).finish("vocab", "done in 30 s", ["vocab.size: 9 cannot be reached", "fix it"])
    assert stream.getvalue().splitlines() == [
        "[  1/1] vocab  done in 30 s",
        "[  1/1] vocab  warning: vocab.size: 9 cannot be reached",
        "[  1/1] vocab  warning: fix it",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (905_600, "905.6 kB"),
        (999_949, "999.9 kB"),
        (999_999, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (999_999_999_999, "1.0 TB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert size(count) == words


def test_a_summary_omits_drops_of_zero(tmp_path: Path) -> None:
    output = Output(Location(str(tmp_path)), "extract", 1, "0123")
    drops = {"redirect": 12, "too_short": 0}
    assert summary(output.finish([], {}, {}, {"documents": 1234, "train_words": 56789}, drops)) == (
        "1,234 documents, 56,789 train words; dropped 12 redirect"
    )
    assert summary(output.finish([], {}, {}, {"documents": 1})) == "1 documents"


def test_a_location_is_shown_relative_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_path(Location("runs/a").absolute()) == "runs/a"
    assert relative_path(Location("s3://bucket/runs/a")) == "s3://bucket/runs/a"
    assert relative_path(Location("/elsewhere/a")) == "/elsewhere/a"
