"""max_hours and max_cost end a run; the same command with a higher limit continues."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloze.infra import limits
from cloze.infra.limits import dollars_per_hour, spending_limited
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import NodeType
from tests.paths import QUICKSTART, REPOSITORY


def node(cpus: float, gpus: float = 0, group: str = "", alive: bool = True) -> dict[str, Any]:
    labels = {"ray.io/node-group": group} if group else {}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus, "GPU": gpus}}


def test_a_node_has_the_price_of_its_type_or_of_its_shape():
    prices = [NodeType("data", 32, 0, 4, 1.5), NodeType("gpu", 32, 8, 1, 50.0)]
    assert dollars_per_hour([node(8, group="data"), node(8, group="data", alive=False)], prices) == 1.5
    assert dollars_per_hour([node(32), node(32, 8)], prices) == 51.5
    assert dollars_per_hour([node(0, group="head"), node(4, 1)], prices) == 1.5 + 50.0, "of no known type"
    assert dollars_per_hour([], prices) == 0.0


def cloze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DAGSTER_HOME": str(folder / "dagster")}
    command = [sys.executable, "-m", "cloze.infra.cli", "run", str(QUICKSTART), f"root={folder}/runs", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_ends_at_its_hours_and_continues_with_more(tmp_path: Path):
    spent = tmp_path / "runs/runs/quickstart.spent.json"
    line = (
        "cloze: max_hours: 1e-05 hours are spent ({}); what is finished is kept: the same command with a higher "
        "max_hours continues"
    )
    ended = cloze(tmp_path, "--until", "examples-64", "max_hours=1e-5")
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1] == line.format("1 attempt")
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    again = cloze(tmp_path, "--until", "examples-64", "max_hours=1e-5")
    assert again.returncode == 2 and again.stderr == line.format("2 attempts") + "\n", "it does not start"
    before = json.loads(spent.read_text())
    assert before["attempts"] == 1 and before["hours"] >= 1e-5
    finished = cloze(tmp_path, "--until", "extract", "max_hours=1")
    assert finished.returncode == 0
    after = json.loads(spent.read_text())
    assert after["attempts"] == 2 and after["hours"] > before["hours"]


def test_a_limit_ends_a_run_whose_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    endings: list[Any] = []
    monkeypatch.setattr(limits, "interrupt_with", endings.append)
    monkeypatch.setattr(limits, "allow_seconds_to_end", lambda _: None)
    watch = limits._Watch(load(RunConfig, QUICKSTART, [f"root={tmp_path}", "max_hours=1e-9"]))
    (tmp_path / "runs/quickstart.spent.json/not-empty").mkdir(parents=True)  # the file cannot be replaced
    assert not watch.tick()
    assert [ending.status for ending in endings] == [2]


def test_a_price_limit_needs_prices(tmp_path: Path):
    config = load(RunConfig, QUICKSTART, [f"root={tmp_path}", "max_cost=5"])
    limited = spending_limited(config, whole_run=True)
    with pytest.raises(UserError, match="max_cost: 5 needs the prices of the machines"):
        limited.__enter__()
