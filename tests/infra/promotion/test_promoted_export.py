"""NAME@promoted on the command line and in Python, with a real model whose sources are not there."""

import json
import shutil
from pathlib import Path

import pytest

import cloze
from cloze.infra import named_runs
from cloze.infra.cli import main
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import stage_files
from cloze.infra.promotion import registry
from cloze.infra.promotion.registry import Event, PromotedStage
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.storage import Location
from tests.infra.test_export import MAKERS, objective  # noqa: F401
from tests.paths import QUICKSTART, REPOSITORY


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root with a promoted model; the run's sources were deleted."""
    monkeypatch.chdir(tmp_path)
    config, root = load(RunConfig, QUICKSTART), f"{tmp_path}/root"
    stages: dict[str, PromotedStage] = {}
    for name, make in MAKERS.items():
        artifact = make(Path(root) / "made" / name, config)
        folder, _, fingerprint = artifact.location.uri.removeprefix(f"{root}/").rpartition("/")
        stages[name] = PromotedStage(folder=folder, fingerprint=fingerprint)
    event = Event(
        number=0,
        kind="promote",
        digest="d" * 64,
        run="quickstart",
        stages=stages,
        config=named_runs.as_yaml(config),
        by="ann@host",
        when="2026-11-01 03:00:00 UTC",
    )
    registry.append(Location(root), "bert", event, after=0)
    return root


def test_the_promoted_model_is_exported_predicted_and_loaded(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "bert@promoted", "--root", root, "--to", "exported"]) == 0
    assert (tmp_path / "exported/model.safetensors").is_file()
    capsys.readouterr()
    assert main(["predict", "bert@promoted", "--root", root, "--json", "a [MASK] d"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["status", "bert@promoted", "--root", root, "--json"]) == 0
    states = {stage["stage"]: stage["state"] for stage in json.loads(capsys.readouterr().out)}
    assert all(states[name] == "done" for name in MAKERS)
    assert cloze.load("bert@promoted", root=root).embed(["a d"]).shape == (1, 128)


def test_a_model_whose_documents_were_deleted_is_exported(root: str, tmp_path: Path) -> None:
    for stage in ("extract", "dedup"):
        shutil.rmtree(Path(root, "made", stage))
    assert main(["export", "bert@promoted", "--root", root, "--to", "later"]) == 0
    card = (tmp_path / "later/README.md").read_text()
    assert "The documents were deleted after training: their numbers, languages and licences are not known" in card
    assert "\nlicense:" not in card and "Licence: unknown. Files: unknown." in card


def test_a_job_receives_the_name_and_resolves_it_where_it_runs(root: str, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    cluster = ClusterConfig(name="c", address="http://127.0.0.1:8265", shared_disk=True)
    config = load(RunConfig, QUICKSTART, [f"root={root}", "pretrain.init=bert@promoted"])
    stage_files(tmp_path, config, cluster)
    assert json.loads((tmp_path / "run.yaml").read_text())["pretrain"]["init"] == "bert@promoted"
    assert "init: bert@promoted" in (tmp_path / "submitted.yaml").read_text()
