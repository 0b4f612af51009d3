"""A stage that a test adds as a developer would: its key in the configuration, its module's parts and its entry.

No other part of infra/ knows it, and it is planned, checked, run, shown in Dagster and submitted to a cluster.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import dagster
import pytest

from cloze.infra import stages as entries
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import stage_files
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stage_inputs import StageOutput
from cloze.infra.stages import Stage
from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import Compute, Config, InputPath, identity, load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from tests.paths import REPOSITORY

VERSION = 1


class CensusConfig(Config):
    """Counts how often each word of a list occurs in some texts."""

    words: Annotated[str, InputPath()]
    texts: Annotated[list[str], InputPath()]
    lowercase: bool = True
    workers: Annotated[int, Compute] = 1


def check(config: CensusConfig, sources: Mapping[str, Any]) -> None:
    words: SourceFile = sources["words"]
    if not words.location.read_bytes().strip():
        raise UserError(f"{words.uri}: has no word; write one per line")


def run(config: CensusConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    words = inputs["words"].location.read_text().split()
    texts = [file.location.read_text() for file in inputs["texts"]]
    found = {word: sum(text.lower().count(word) for text in texts) for word in words}
    part = out.commit("census", {"census.json": json.dumps(found).encode()}, {"found": sum(found.values())})
    fingerprints = {"words": inputs["words"].identity}
    return out.finish([part], identity(config), fingerprints, facts={"inputs": sorted(inputs)})


class WithCensus(RunConfig):
    census: CensusConfig


def stages(config: RunConfig) -> list[Stage]:
    """A run's own stages, with the census before them and one that reads it after them."""
    assert isinstance(config, WithCensus)
    census = Stage("census", config.census, VERSION, run, check=check, description="a census", kinds=("text",))
    reader = Stage("reader", config.census, VERSION, run, reads={"census": StageOutput("census")})
    return [census, *entries.stages(config), reader]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WithCensus:
    """The quickstart with a census of two texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cloze.infra.planner.stages", stages)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    Path("words.txt").write_text("whale\nsea\n")
    for name in ("one", "two"):
        Path(f"{name}.text").write_text("The whale, the sea, the Whale.")
    Path("census.yaml").write_text("census:\n  words: words.txt\n  texts: ['*.text']\n")
    return load(WithCensus, "configs/quickstart.yaml", ["census.yaml"])


def test_it_is_run_with_its_files_and_then_skipped(config: WithCensus) -> None:
    assert Run(config).plan("census")[0].reason == "no output yet"
    assert materialize(Run(config), "cloze run", until="census") == 0
    planned = Run(config).plan("census")[0]
    assert planned.action == "skip" and planned.output
    assert json.loads((planned.output.location / "census.json").read_bytes()) == {"whale": 4, "sea": 2}
    artifact = Run(config).artifact("census")
    assert artifact and artifact.manifest.facts["inputs"] == ["texts", "words"]


def test_the_plan_names_its_changed_keys_and_inputs(config: WithCensus) -> None:
    Run(config).execute("census")
    changed = config.model_copy(update={"census": config.census.model_copy(update={"lowercase": False, "workers": 7})})
    assert Run(changed).plan("census")[0].reason == "census.lowercase: true -> false"
    Path("one.text").write_text("The sea.")
    assert Run(config).plan("census")[0].reason == "input texts changed"


def test_the_paths_of_its_files_change_nothing(config: WithCensus) -> None:
    Run(config).execute("census")
    Path("words.txt").rename("elsewhere.txt")
    moved = config.model_copy(update={"census": config.census.model_copy(update={"words": "elsewhere.txt"})})
    assert Run(moved).plan("census")[0].action == "skip"


def test_its_files_are_checked_before_any_work(config: WithCensus) -> None:
    Path("words.txt").write_text("")
    with pytest.raises(UserError, match=r"words\.txt: has no word; write one per line"):
        materialize(Run(config), "cloze run")
    Path("words.txt").unlink()
    with pytest.raises(UserError, match=r"words\.txt: no such file"):
        materialize(Run(config), "cloze run")
    assert not Path("runs/census").exists()


def test_a_key_for_one_file_that_names_several_is_refused(config: WithCensus) -> None:
    several = config.model_copy(update={"census": config.census.model_copy(update={"words": "*.text"})})
    with pytest.raises(UserError, match=r"^\*\.text: matches 2 files \(.*/one\.text, \.\.\.\); name one$"):
        Run(several).check()


def test_it_is_an_asset_that_depends_on_the_stages_it_reads(config: WithCensus) -> None:
    graph = definitions(ConfiguredRun(config)).resolve_asset_graph()
    census, reader = (graph.get(dagster.AssetKey(["quickstart", name])) for name in ("census", "reader"))
    files = {dagster.AssetKey(["quickstart", "files", "census", name]) for name in ("words", "texts")}
    assert (census.description, census.kinds, census.parent_keys) == ("a census", {"text"}, files)
    assert reader.parent_keys == {census.key, *files}  # it has the same paths


@pytest.mark.parametrize("shared_disk", [True, False])
def test_its_files_are_uploaded_with_a_job_that_runs_it(config: WithCensus, shared_disk: bool) -> None:
    cluster = ClusterConfig(name="a", address="http://10.0.0.1:8265", shared_disk=shared_disk)
    config = config.model_copy(update={"root": "s3://bucket/runs"})
    folder = Path("sent")
    stage_files(folder, config, cluster, until="census")
    sent = load(WithCensus, folder / "run.yaml").census
    if shared_disk:
        assert (sent.words, sent.texts) == (f"{Path.cwd()}/words.txt", [f"{Path.cwd()}/*.text"])
    else:
        assert (folder / sent.words).read_text() == "whale\nsea\n"
        assert [(folder / text).name for text in sent.texts] == ["one.text", "two.text"]
        assert (folder / sent.texts[0]).read_text() == "The whale, the sea, the Whale."
