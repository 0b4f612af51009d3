from pathlib import Path

import pytest

from cloze.infra.job_record import read_job, recorded_job
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from tests.paths import QUICKSTART


def test_the_end_of_a_job_does_not_replace_the_record_of_one_that_has_started_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(load(RunConfig, QUICKSTART, [f"root={tmp_path}"]))
    monkeypatch.setenv("CLOZE_JOB", "quickstart-a-1")
    with recorded_job(run, lambda _: 1):
        monkeypatch.setenv("CLOZE_JOB", "quickstart-b-1")
        with pytest.raises(KeyboardInterrupt), recorded_job(run, lambda _: 130):
            assert (second := read_job(run)) and (second.id, second.ended) == ("quickstart-b-1", None)
            raise KeyboardInterrupt
    assert (last := read_job(run)) and (last.id, last.exit_status) == ("quickstart-b-1", 130)
