"""Whole runs on an S3 that fails at random moments: each ends with the bytes of a quiet run, or with one true line.

After such a line the same command, on an S3 that works again, ends with those bytes. CLOZE_STORM_SEED repeats a draw.
"""

import os
import random
import re
import subprocess
from collections.abc import Mapping

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


def draw(seed: int) -> list[Fault]:
    """Faults of several kinds at several moments; some last longer than requests are repeated."""
    chance = random.Random(seed)
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


def run(root: str, proxy: Proxy) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"AWS_ENDPOINT_URL": proxy.url, "CLOZE_S3_RETRY_SECONDS": "40"}
    return subprocess.run(
        [*CLOZE, *arguments(root)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("number", range(5))
def test_a_storm_changes_no_byte_and_loses_nothing(
    finished: tuple[str, Mapping[str, Manifest]],  # noqa: F811
    s3_bucket: str,
    running_proxy: Proxy,
    number: int,
) -> None:
    seed = int(os.environ.get("CLOZE_STORM_SEED", 0)) or random.SystemRandom().randrange(1, 2**31)
    root = f"{s3_bucket}/storm-{seed}"
    running_proxy.faults[:] = faults = draw(seed)
    lines = []
    while (done := run(root, running_proxy)).returncode:
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and line.startswith("cloze: s3://") and _LINE.search(line), (seed, done.stderr)
        lines.append(line)
        assert len(lines) < 4, lines
        running_proxy.faults.clear()
    running_proxy.faults.clear()
    hits = ", ".join(f"{fault.hits} {fault.kind}" for fault in faults if fault.hits)
    print(f"drew seed {seed}: {hits or 'no fault in time'}; {len(lines)} stops with a line")
    _, quiet = finished
    stormy = manifests(root)
    assert_same_bytes(stormy, quiet)
    for stage in quiet.keys() - {"report"}:  # whose size depends on times
        assert (stormy[stage].counts, stormy[stage].drops) == (quiet[stage].counts, quiet[stage].drops), (seed, stage)
