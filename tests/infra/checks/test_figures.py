"""Manifests as the stages write them -> the figures that are compared."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from cloze.infra.checks import figures
from cloze.infra.checks.check import Check, Measured
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import stages
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import load
from cloze.pipeline.core.file_digests import SourceFile
from tests.paths import QUICKSTART


def manifest(**fields: Any) -> Manifest:
    empty: dict[str, Any] = {"stage": "", "version": 1, "fingerprint": "f", "config": {}, "inputs": {}, "counts": {}}
    empty |= {"drops": {}, "files": {}, "facts": {}, "seconds": 0.0, "finished": "", "versions": {}, "git_commit": ""}
    return Manifest(**{**empty, **fields})


def measured(check: Check, **fields: Any) -> dict[str, float]:
    return {figure.name: figure.value for figure in check.measure(Measured(manifest(**fields)))}


def test_rates_are_fractions_of_the_counts_that_the_stages_write():
    assert measured(
        figures.drop_rates_check("records"), counts={"records": 200, "documents": 150}, drops={"too short": 50}
    ) == {"records dropped as too short": 0.25}
    assert measured(figures.UNKNOWN_TOKENS, counts={"tokens": 1000, "unknown": 3}) == {"[UNK] tokens": 0.003}
    facts = {"sources": {"enwiki": {"documents": 50}, "novels": {"documents": 9}}, "residue": {"enwiki": 2}}
    assert measured(figures.RESIDUE, facts=facts) == {"documents of enwiki with left-over markup": 0.04}
    assert measured(figures.RESIDUE, facts={"sources": {}}) == {}  # of an earlier version
    assert measured(figures.UNKNOWN_WORDS, facts={"heldout": {"words": 10, "unknown_share": 0.1}}) == {
        "unknown held-out words": 0.1
    }


def test_a_loss_that_json_does_not_have_and_a_training_that_diverged_are_not_finite():
    for check, facts in (
        (figures.PRETRAINING_FINITE, {"metrics": {"train": {"loss": None}}}),
        (figures.TASK_FINITE, {"variants": {"pretrained": {"diverged_step": 7, "loss": [[1, 0.5]]}}}),
    ):
        [value] = measured(check, facts=facts).values()
        assert value != value
    assert measured(figures.TASK_FINITE, facts={"variants": {"pretrained": {"loss": [[1, 0.5], [2, 0.25]]}}}) == {
        "training loss": 0.25
    }


@pytest.mark.parametrize(
    ("path", "days"),
    [("20261101/pages.bz2", 5.0), ("new/enwiki-20261104-pages.xml.bz2", 2.0), ("99999999/other.txt", 1.0)],
)
def test_the_age_is_that_of_the_date_in_the_path_or_of_the_last_change(
    path: str, days: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 1793923200.0  # 2026-11-06 00:00 UTC
    monkeypatch.setattr(time, "time", lambda: now)
    file = tmp_path / path
    file.parent.mkdir()
    file.write_text("text")

    os.utime(file, (now - 86400, now - 86400))
    sources = [SourceFile(str(file), "", 4)]
    [age] = figures.FRESHNESS.measure(Measured(manifest(), sources=lambda: sources))
    assert age.value == pytest.approx(days)


def test_the_checks_of_a_stage_have_different_names(monkeypatch: pytest.MonkeyPatch):
    checked = {stage.name: [check.name for check in stage.checks] for stage in stages(load(RunConfig, QUICKSTART))}
    assert all(len(names) == len(set(names)) for names in checked.values())
    assert checked["extract"] == ["counts", "drop rates", "residue", "freshness"]
    assert checked["pretrain"] == ["finite loss", "held-out loss"]
    assert checked["finetune-authors"] == ["finite loss", "score"]
    assert checked["report"] == []
