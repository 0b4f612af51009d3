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
from tests.s3_proxy import Fault, Proxy


def node(cpus: float, gpus: float = 0, group: str = "", alive: bool = True) -> dict[str, Any]:
    labels = {"ray.io/node-group": group} if group else {}
    return {"Alive": alive, "Labels": labels, "Resources": {"CPU": cpus, "GPU": gpus}}


HEAD = {"Alive": True, "Labels": {}, "Resources": {"node:__internal_head__": 1.0}}  # of KubeRay: without CPUs


def test_a_node_has_the_price_of_its_type_or_of_its_shape():
    prices = [NodeType("data", 32, 0, 4, 1.5), NodeType("gpu", 32, 8, 1, 50.0)]
    assert dollars_per_hour([node(8, group="data"), node(8, group="data", alive=False)], prices, None) == 1.5
    assert dollars_per_hour([node(32), node(32, 8)], prices, None) == 51.5
    assert dollars_per_hour([HEAD, node(4, 1)], prices, None) == 1.5 + 50.0, "of no known type"
    assert dollars_per_hour([node(4)], prices[1:], None) == 50.0
    assert dollars_per_hour([], prices, None) == 0.0


def test_the_head_never_has_the_price_of_a_machine_with_gpus():
    data, gpu = NodeType("data", 32, 0, 4, 1.5), NodeType("gpu", 192, 8, 1, 55.04)
    assert dollars_per_hour([HEAD, node(192, 8)], [gpu], 0.4032) == 55.04 + 0.4032
    assert dollars_per_hour([HEAD, node(32), node(192, 8)], [data, gpu], 0.4032) == 55.04 + 1.5 + 0.4032
    assert dollars_per_hour([HEAD, node(192, 8)], [gpu], None) == 55.04
    running = node(32) | {"Resources": {"CPU": 32.0, **HEAD["Resources"]}}
    assert dollars_per_hour([running], [data], None) == 1.5, "a machine of a known type"


def test_ray_marks_the_head(ray_session: None):
    assert [limits._HEAD in node["Resources"] for node in limits._nodes()] == [True]


def cloze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "DAGSTER_HOME": str(folder / "dagster")}
    command = [sys.executable, "-m", "cloze.infra.cli", "run", str(QUICKSTART), f"root={folder}/runs", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_ends_at_its_hours_and_continues_with_more(tmp_path: Path):
    spent = tmp_path / "runs/runs/quickstart.spent"
    line = (
        "cloze: max_hours: 1e-05 hours are spent ({}); what is finished is kept: the same command with a higher "
        "max_hours continues"
    )
    ended = cloze(tmp_path, "--until", "examples-64", "max_hours=1e-5")
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1] == line.format("1 attempt")
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    again = cloze(tmp_path, "--until", "examples-64", "max_hours=1e-5")
    assert again.returncode == 2 and again.stderr == line.format("2 attempts") + "\n", "it does not start"
    (before,) = (json.loads(file.read_text()) for file in spent.iterdir())
    assert before["hours"] >= 1e-5
    finished = cloze(tmp_path, "--until", "extract", "max_hours=1")
    assert finished.returncode == 0
    after = [json.loads(file.read_text()) for file in spent.iterdir()]
    assert len(after) == 2 and before in after


def config(root: object, *overrides: str) -> RunConfig:
    return load(RunConfig, QUICKSTART, [f"root={root}", *overrides])


def spend(watch: limits._Watch, hours: float) -> None:
    watch._last -= 3600 * hours
    watch.count()
    watch.write()


def test_attempts_at_once_count_both_and_each_stops_at_the_sum(folder: str, monkeypatch: pytest.MonkeyPatch):
    endings: list[Any] = []
    monkeypatch.setattr(limits, "interrupt_with", lambda ending, _: endings.append(ending))
    monkeypatch.setattr(limits, "allow_seconds_to_end", lambda _: None)
    monkeypatch.setattr(limits, "_WRITE_SECONDS", 0.0)
    first, second = (limits._Watch(config(folder, "max_hours=4.9")) for _ in range(2))
    spend(first, 2)
    spend(second, 3)
    spend(first, 0)
    assert "(3 attempts)" in limits._Watch(config(folder, "max_hours=4.9")).exceeded()
    assert not limits._Watch(config(folder, "max_hours=5.1")).exceeded()
    assert first.tick() and not first.tick() and len(endings) == 1


def test_an_attempt_that_goes_on_when_another_finishes_the_run_counts_only_itself(folder: str):
    before, other = (limits._Watch(config(folder, "max_hours=9")) for _ in range(2))
    spend(before, 5)
    spend(other, 1)
    with spending_limited(config(folder, "max_hours=9"), whole_run=True):
        pass
    spend(other, 1)
    assert "(2 attempts)" in limits._Watch(config(folder, "max_hours=2")).exceeded()
    assert not limits._Watch(config(folder, "max_hours=2.1")).exceeded()


def test_an_interrupt_is_not_replaced_by_the_error_of_s3(
    s3_bucket: str, proxy: Proxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    limited = spending_limited(config(f"{s3_bucket}/{tmp_path.name}-spent", "max_hours=9"), whole_run=True)
    with pytest.raises(KeyboardInterrupt), limited:
        proxy.faults.append(Fault("denied", times=float("inf"), path=".spent"))
        raise KeyboardInterrupt
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: what this attempt has spent is not counted: s3://")


def test_a_limit_ends_a_run_whose_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    endings: list[Any] = []
    monkeypatch.setattr(limits, "interrupt_with", lambda ending, _: endings.append(ending))
    monkeypatch.setattr(limits, "allow_seconds_to_end", lambda _: None)
    watch = limits._Watch(config(tmp_path, "max_hours=1e-9"))
    Path(watch._file.path, "not-empty").mkdir(parents=True)  # the file cannot be replaced
    assert not watch.tick()
    assert [ending.status for ending in endings] == [2]


def test_a_price_limit_needs_prices(tmp_path: Path):
    limited = spending_limited(config(tmp_path, "max_cost=5"), whole_run=True)
    with pytest.raises(UserError, match="max_cost: 5 needs the prices of the machines"):
        limited.__enter__()
