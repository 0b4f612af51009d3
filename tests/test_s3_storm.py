"""Whole runs on an S3 that fails at random moments, and that signals end: each ends with the bytes of a quiet run, or
with one true line.

After such a line the same command, on an S3 that works again, ends with those bytes. CLOZE_STORM_SEED repeats a draw.
"""

import os
import random
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from cloze.pipeline.core.artifacts import Manifest
from tests.paths import REPOSITORY
from tests.s3_proxy import KINDS, Fault, Proxy
from tests.test_main_job import CLOZE, arguments, assert_same_bytes, finished, manifests  # noqa: F401

_REQUESTS = 600  # of a quiet run, about
_LINE = re.compile(
    r"throttling|internal error|connection was cut|does not answer|cut or changed on the way|have expired|is denied"
    r"|is missing|did not arrive as stored|without a reason|is damaged"
)


_SECONDS = 1500.0  # of one attempt


class Stop(NamedTuple):
    """A signal to an attempt, SIGKILL to all of its processes, if it still runs after these seconds."""

    number: signal.Signals
    seconds: float


def draw_faults(chance: random.Random) -> list[Fault]:
    """Faults of several kinds at several moments; some last longer than requests are repeated."""
    kinds = [chance.choice(KINDS) for _ in range(chance.randint(3, 8))]
    return [
        Fault(
            kind,
            times=chance.choice([1, 2, 5, 20]),
            after=chance.randrange(_REQUESTS // (10 if kind.endswith("list") else 3)),
            seconds=40.0,
        )
        for kind in kinds
    ]


def draw_stops(chance: random.Random) -> list[Stop]:
    numbers = chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], k=chance.randint(0, 3))
    return [Stop(number, chance.uniform(20, 110)) for number in numbers]


def run(root: str, proxy: Proxy, err: Path, stop: Stop | None) -> tuple[int, bool]:
    """Returns the status of one attempt, and whether it was sent the signal. `err` gets what it prints to stderr."""
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url, "CLOZE_S3_RETRY_SECONDS": "40"}
    command = [*CLOZE, *arguments(root)]
    with err.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )
    try:
        return process.wait(stop.seconds if stop else _SECONDS), False
    except subprocess.TimeoutExpired:
        assert stop, "it hangs"
        (os.killpg if stop.number == signal.SIGKILL else os.kill)(process.pid, stop.number)
        return process.wait(180), True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("number", range(5))
def test_a_storm_changes_no_byte_and_loses_nothing(
    finished: tuple[str, Mapping[str, Manifest]],  # noqa: F811
    s3_bucket: str,
    running_proxy: Proxy,
    tmp_path: Path,
    number: int,
) -> None:
    seed = int(os.environ.get("CLOZE_STORM_SEED", 0)) or random.SystemRandom().randrange(1, 2**31)
    root, chance, err = f"{s3_bucket}/storm-{seed}", random.Random(seed), tmp_path / "err"
    running_proxy.faults[:] = faults = draw_faults(chance)
    stops, stopped, lines = draw_stops(chance), list[str](), list[str]()
    while True:
        stop = stops.pop() if stops else None
        status, signalled = run(root, running_proxy, err, stop)
        if status == 0:
            break
        printed = err.read_text()
        if stop and signalled and status != 2:
            assert status == (-9 if stop.number == signal.SIGKILL else 128 + stop.number), (seed, printed)
            assert status == -9 or "\ncloze: stopped" in f"\n{printed}", (seed, printed)
            stopped.append(f"{stop.number.name} after {stop.seconds:.0f} s")
            continue
        line = printed.strip().splitlines()[-1]
        assert status == 2 and line.startswith("cloze: s3://") and _LINE.search(line), (seed, printed)
        lines.append(line)
        assert len(lines) < 4, lines
        running_proxy.faults.clear()
    running_proxy.faults.clear()
    hits = [f"{fault.hits} {fault.kind}" for fault in faults if fault.hits]
    drawn = ", ".join([*hits, *stopped]) or "no fault in time"
    print(f"drew seed {seed}: {drawn}; {len(lines)} stops with a line")
    _, quiet = finished
    stormy = manifests(root)
    assert_same_bytes(stormy, quiet)
    for stage in quiet.keys() - {"report"}:  # whose size depends on times
        assert (stormy[stage].counts, stormy[stage].drops) == (quiet[stage].counts, quiet[stage].drops), (seed, stage)
