"""The data stages on a Ray cluster: on all nodes, and with the bytes of one process when nodes are lost."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import DATA, REPOSITORY
from tests.pipeline import cluster_stages

PAGES = 4000


def write_dump(file: Path) -> None:
    """Pages of random words, of which every tenth is nearly the one before it."""
    header = (DATA / "extract/nlwiki.xml").read_text().partition("<page>")[0]
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmno", k=rng.randint(2, 9))) for _ in range(3000)]
    text: list[str] = []
    with file.open("w") as dump:
        dump.write(header)
        for page in range(PAGES):
            text = [*text, "again"] if page % 10 == 9 else rng.choices(words, k=250)
            dump.write(
                f"<page><title>P{page}</title><ns>0</ns><id>{page + 1}</id><revision><id>{page + 1}</id>"
                f"<text>{' '.join(text)}.</text></revision></page>\n"
            )
        dump.write("</mediawiki>\n")


@pytest.mark.campaign
def test_stages_use_all_nodes_and_write_the_bytes_of_one_process_though_a_node_is_lost_in_each(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("here", "cluster"):
        (tmp_path / name).mkdir()
        write_dump(tmp_path / name / "dump.xml")
    monkeypatch.setattr(cluster_stages.work_units, "XML_UNIT_BYTES", cluster_stages.UNIT_BYTES)
    expected: dict[str, Any] = {}
    cluster_stages.run_stages(
        tmp_path / "here", lambda name, run: expected.update({name: cluster_stages.content(run())})
    )
    assert expected["dedup"][2]["near duplicate"] > 300
    command = [sys.executable, "-m", "tests.pipeline.cluster_stages", str(tmp_path / "cluster")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert {name: content for name, content, _, _ in found} == expected
    assert all(ended for *_, ended in found)
    assert {name: nodes for name, _, nodes, _ in found if name in ("extract", "dedup")} == {"extract": 3, "dedup": 3}
