"""The estimate of a run's start next to what its stages took, on the report page."""

from pathlib import Path
from typing import Any

from cloze.infra.report.data_stages import estimated_stages
from cloze.infra.report.page import render
from cloze.infra.report.read_run import KnownStage, read_stages
from cloze.infra.run_estimate import read_estimates, write_estimates
from cloze.pipeline.core import cpu_time
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location


def finished_stage(root: Path, stage: str, *, with_items: bool) -> KnownStage:
    out = Output(Location(str(root / stage / "f")), stage, 1, "f")
    if with_items:
        cpu_time.add_worker_seconds(100.0)
    out.finish([], {}, {})
    return KnownStage(stage, "done", out.location, "f")


def test_the_page_sets_the_estimate_next_to_what_a_stage_took(tmp_path: Path):
    known = [finished_stage(tmp_path, "dedup", with_items=True), finished_stage(tmp_path, "encode", with_items=False)]
    estimate: dict[str, Any] = {"cpu_seconds": 90.0, "seconds": 4.0, "fingerprint": "f"}
    root = Location(str(tmp_path))
    write_estimates(root, "mine", {"dedup": estimate, "encode": estimate, "gone": estimate})
    stages = read_stages(known, root, read_estimates(root, "mine"))
    dedup, encode = estimated_stages(stages)
    assert (dedup.estimated_cpu, dedup.cpu, dedup.estimated_time) == ("1 min 30 s", "1 min 40 s", "4.0 s")
    assert (encode.estimated_cpu, encode.cpu, encode.time) == ("", "", "0.0 s"), "it measures no CPU seconds"
    assert "<h3>Estimated and taken</h3>" in render("mine", stages)


def test_an_estimate_of_other_settings_is_not_shown(tmp_path: Path):
    known = [finished_stage(tmp_path, "dedup", with_items=True)]
    stages = read_stages(known, Location(str(tmp_path)), {"dedup": {"cpu_seconds": 1.0, "fingerprint": "e"}})
    assert estimated_stages(stages) == [] and "Estimated and taken" not in render("mine", stages)
    assert read_estimates(Location(str(tmp_path)), "mine") == {}
