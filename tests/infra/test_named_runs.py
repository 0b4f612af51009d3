import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloze.infra import named_runs
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load, parse
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location, find_files
from tests.paths import REPOSITORY

CONFIG = "configs/quickstart.yaml"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which holds the quickstart's sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


def stored(config: RunConfig) -> RunConfig:
    return parse(RunConfig, named_runs.as_yaml(config).encode(), "stored.yaml")


def error(name: str, root: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        named_runs.read(name, root=root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fingerprints(config: RunConfig) -> dict[str, str | None]:
    return {step.stage.name: step.output and step.output.fingerprint for step in Run(config).plan()}


@pytest.mark.parametrize("name", ["quickstart", "bert-base", "bert-large", "one-gpu-day"])
def test_the_whole_configuration_is_stored_with_absolute_paths(name: str, tmp_path: Path) -> None:
    config = load(RunConfig, f"configs/{name}.yaml")
    again = stored(config)
    assert again.root == f"{tmp_path}/{config.root}"
    paths = [file for source in again.extract.sources for file in source.files] + [task.file for task in again.finetune]
    assert paths and all(path.startswith(("/", "s3://")) for path in paths)
    assert stored(again) == again

    def relative(text: str) -> str:
        return text.replace(f"{tmp_path}/", "")

    assert relative(again.model_dump_json()) == relative(config.model_dump_json())


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "probe", "of": "classification", "pooling": "cls", "columns": {"text": 2}},
        {"kind": "probe", "of": "tagging", "columns": {"split": "split"}},
        {"kind": "classification", "columns": {"split": "split"}},
        *({"kind": kind} for kind in ("classification", "regression", "multilabel", "choice", "tagging")),
    ],
)
def test_a_stored_task_is_the_same_and_names_the_column_of_the_split_only_where_the_user_has(
    task: dict[str, Any],
) -> None:
    trained = {} if task["kind"] == "probe" else {"learning_rate": 1e-4, "batch_size": 8, "epochs": 1}
    given = {"name": "task", "file": "x.tsv", "init": "model", "max_seq_length": 32, "seed": 1, **trained, **task}
    text = json.dumps({"name": "run", "finetune": [given]})
    config = parse(RunConfig, text.encode(), "run.yaml")
    again = stored(stored(config)).finetune[0]
    assert again.model_copy(update={"file": "x.tsv", "init": "model"}) == config.finetune[0]
    named = "split" in again.columns.model_fields_set  # then a file without it is an error
    assert named == ("split" in task.get("columns", {}))


def test_every_path_of_the_users_becomes_absolute_and_s3_and_digests_stay(tmp_path: Path, own_home: Path) -> None:
    overrides = [
        "extract.sources.enwiki.files=[s3://dumps/*.bz2, ~/x.xml, /data/y.xml, ../z*.xml]",
        "vocab.file=vocab.txt",
        "tokens.splitter=rules.py",
        "pretrain.init=my-bert",
    ]
    config = stored(load(RunConfig, CONFIG, overrides))
    elsewhere = ["s3://dumps/*.bz2", f"{own_home}/x.xml", "/data/y.xml", f"{tmp_path.parent}/z*.xml"]
    assert config.extract.sources[0].files == elsewhere
    assert config.vocab.file == f"{tmp_path}/vocab.txt"
    assert config.vocab.compare == f"{tmp_path}/configs/vocab/bert-base-uncased.txt"
    assert config.tokens.splitter == f"{tmp_path}/rules.py"
    assert config.pretrain.init == f"{tmp_path}/my-bert"
    digest = "pretrain.init='0123456789abcdef'"
    assert stored(load(RunConfig, CONFIG, [digest])).pretrain.init == "0123456789abcdef"
    assert stored(load(RunConfig, CONFIG, ["root=s3://bucket/runs"])).root == "s3://bucket/runs"


def test_a_folder_with_a_glob_in_its_name_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a[b]*", "ab"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.txt").write_text("")
    monkeypatch.chdir(tmp_path / "a[b]*")
    for pattern in ("1.txt", "*.txt"):
        assert find_files(named_runs.absolute(pattern)) == [Location(f"{tmp_path}/a[b]*/1.txt")]


def test_a_run_is_read_by_its_name_from_any_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(RunConfig, CONFIG, [f"root={folder}/runs", "vocab.size=500", "extract.sources.enwiki.language=no"])
    named_runs.store(config)
    before = fingerprints(config)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    read = named_runs.read("quickstart", root=f"{folder}/runs")
    assert (read.vocab.size, read.extract.sources[0].language) == (500, "no")
    assert fingerprints(read) == before and before["examples-64"]
    assert named_runs.read(f"{folder}/runs/runs/quickstart.yaml") == read  # a configuration like any other


def test_the_root_is_runs_where_none_is_given() -> None:
    config = load(RunConfig, CONFIG)
    named_runs.store(config)
    read = named_runs.read("quickstart")
    assert read.root == "runs"
    assert fingerprints(read) == fingerprints(config)


def test_a_root_that_was_moved_is_the_runs_root() -> None:
    named_runs.store(load(RunConfig, CONFIG, ["root=before"]))
    shutil.move("before", "after")
    assert named_runs.read("quickstart", root="after").root == "after"


def test_overrides_hold_for_a_name_as_for_a_file() -> None:
    named_runs.store(load(RunConfig, CONFIG))
    Path("more.yaml").write_text("vocab: {size: 700}\n")
    for run in ("quickstart", CONFIG):
        read = named_runs.read(run, ["pretrain.seed=7", "more.yaml"])
        assert (read.pretrain.seed, read.vocab.size) == (7, 700)
        with pytest.raises(UserError, match=r"^vocab\.sise=9: vocab\.sise: unknown key; did you mean size\?"):
            named_runs.read(run, ["vocab.sise=9"])


def test_of_several_roots_the_one_with_the_highest_priority_holds() -> None:
    named_runs.store(load(RunConfig, CONFIG, ["root=a"]))
    named_runs.store(load(RunConfig, CONFIG))
    for run in ("quickstart", CONFIG):
        assert named_runs.read(run, defaults=["root=cluster"]).root == "cluster"
        assert named_runs.read(run, root="a", defaults=["root=cluster"]).root == "a"
        assert named_runs.read(run, ["root=b"], root="a", defaults=["root=cluster"]).root == "b"


def test_the_configuration_of_the_last_start_is_stored_and_written_only_when_it_changes() -> None:
    named_runs.store(load(RunConfig, CONFIG))
    file = Path("runs/runs/quickstart.yaml")
    os.utime(file, (1, 1))
    named_runs.store(load(RunConfig, CONFIG))
    assert file.stat().st_mtime == 1
    named_runs.store(load(RunConfig, CONFIG, ["pretrain.seed=7"]))
    assert file.stat().st_mtime > 1
    assert named_runs.read("quickstart").pretrain.seed == 7
    assert [path.name for path in Path("runs/runs").iterdir()] == ["quickstart.yaml"]


def test_an_unknown_name_is_an_error_that_lists_the_runs(folder: str) -> None:
    root = f"{folder}/runs"
    assert error("quickstart", root) == (
        f"quickstart: is not a run under {root}, which has no runs; give another name, its root with --root, or the "
        "path of its YAML file"
    )
    for name in ("b", "a"):
        named_runs.store(load(RunConfig, CONFIG, [f"root={root}", f"name={name}"]))
    assert error("quickstart", root).startswith(f"quickstart: is not a run under {root}, whose runs are a, b; give ")


def test_a_word_without_slash_and_yaml_is_a_name_even_if_there_is_such_a_file() -> None:
    shutil.copy(CONFIG, "mine")
    assert error("mine").endswith("its root with --root, or ./mine")
    assert named_runs.read("./mine") == load(RunConfig, CONFIG)
    shutil.copy(CONFIG, "mine.yaml")
    assert named_runs.read("mine.yaml") == load(RunConfig, CONFIG)


def test_a_run_of_a_version_that_stored_nothing_requires_its_file_once(folder: str) -> None:
    (Location(folder) / "runs/quickstart.json").write_text("{}")
    line = rf"quickstart: was run under {re.escape(folder)} by a version that .* cloze run CONFIG --root {folder}: .*"
    assert re.fullmatch(line, error("quickstart", folder))
    named_runs.store(load(RunConfig, CONFIG, [f"root={folder}"]))
    assert named_runs.read("quickstart", root=folder).name == "quickstart"


def test_a_stored_file_that_is_no_longer_valid_is_named_with_its_line() -> None:
    named_runs.store(load(RunConfig, CONFIG))
    file = Path("runs/runs/quickstart.yaml")
    file.write_text(file.read_text().replace("lowercase:", "lower:"))
    assert re.match(r"runs/runs/quickstart\.yaml:\d+: vocab\.lower: unknown key", error("quickstart"))
    file.write_bytes(b"\xff")
    assert error("quickstart").startswith("runs/runs/quickstart.yaml: is not UTF-8 text; ")


def test_a_missing_file_on_s3_is_named(s3_bucket: str) -> None:
    assert error(f"{s3_bucket}/gone.yaml").startswith(f"{s3_bucket}/gone.yaml: does not exist; ")


def test_a_job_stores_the_configuration_that_was_submitted_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(RunConfig, CONFIG)
    Path("submitted.yaml").write_text(named_runs.as_yaml(config))
    monkeypatch.setenv(named_runs.SUBMITTED_CONFIG, "submitted.yaml")
    here = ["extract.sources.novels.files=[here/*.txt]", "finetune.authors.file=here.gz", "vocab.compare=here.txt"]
    named_runs.store(load(RunConfig, CONFIG, here))
    assert named_runs.read("quickstart") == stored(config).model_copy(update={"root": "runs"})
    for other in (["vocab.size=500"], ["name=other"]):
        named_runs.store(load(RunConfig, CONFIG, other))
    assert named_runs.read("quickstart").vocab.size == 500
    assert named_runs.read("other").name == "other"


def test_from_a_folder_with_brackets_files_folders_and_patterns_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "[x]"
    (here / "books [1]").mkdir(parents=True)
    for name in ("books [1]/one.txt", "books [1]/two [2].txt"):
        (here / name).touch()
    monkeypatch.chdir(here)
    assert named_runs.absolute("books [1]/two [2].txt") == f"{here}/books [1]/two [2].txt"
    assert named_runs.absolute("books [1]") == f"{here}/books [1]"  # such as the folder of a model
    found = find_files(named_runs.absolute("*/one.txt"))
    assert [file.path for file in found] == [f"{here}/books [1]/one.txt"]
