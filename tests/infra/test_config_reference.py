from pathlib import Path

import pytest

from cloze.infra.cli import main
from cloze.infra.config_reference import cluster_markdown, configuration_markdown, sections, selected
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from tests.paths import REPOSITORY


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The output of `cloze config` with single spaces."""
    assert main(["config", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("page", "generated"),
    [("configuration.md", configuration_markdown()), ("cluster.md", cluster_markdown())],
    ids=["configuration", "cluster"],
)
def test_the_reference_is_the_one_of_the_code(page: str, generated: str) -> None:
    file = Path(REPOSITORY, "docs/reference", page)
    assert file.read_text(encoding="utf-8") == generated, f"{file} is stale: run `make reference` and commit it"


@pytest.mark.parametrize("config", [RunConfig, ClusterConfig])
def test_every_key_has_a_meaning(config: type[Config]) -> None:
    missing = [
        f"{section.title}: {key.name}" for section in sections(config) for key in section.keys if not key.meaning
    ]
    assert not missing, "\n".join(["write a text below these fields of the configuration classes:", *missing])


def test_a_key_is_printed_with_its_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert "vocab.size integer" in printed(capsys)
    epochs = printed(capsys, "finetune.epochs")
    assert epochs.startswith("finetune[] (kind: classification) ")
    assert " finetune[].epochs integer > 0 or list of integer > 0; default [3] Passes over the train split" in epochs
    assert "max_seq_length" not in epochs
    assert "finetune[].workers integer > 0 or null; default null" in printed(capsys, "finetune[].workers")
    assert "optimizer.learning_rate number > 0; required" in printed(capsys, "pretrain.optimizer")


def test_a_compute_key_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "finetune.threads").endswith("Does not change the result.")
    assert "Does not change" not in printed(capsys, "finetune.seed")
    assert "Does not change" not in printed(capsys, "finetune.file")  # its content does


@pytest.mark.parametrize("key", ["extract.sources.files", "extract.sources[].files", "extract.sources.enwiki.files"])
def test_the_entry_of_a_list_may_be_named_or_left_out(key: str) -> None:
    found = selected(key)
    kinds = {"kind: wikipedia", "kind: books", "kind: documents", "kind: sentences"}
    assert {section.variant for section in found} == kinds
    assert {one.path for section in found for one in section.keys} == {"extract.sources[].files"}


def test_a_key_with_keys_of_its_own_selects_them_all() -> None:
    paths = [section.path for section in selected("pretrain")]
    assert paths[:2] == ["", "pretrain"] and {"pretrain.model", "pretrain.phases[]", "pretrain.optimizer"} <= {*paths}
    assert [key.name for key in selected("pretrain")[0].keys] == ["pretrain"]


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("pretrain.optimiser", "did you mean pretrain.optimizer?"),
        ("vocab.sise", "did you mean vocab.size?"),
        ("finetune.epoch", "did you mean finetune.epochs?"),
        ("tok", "did you mean tokens?"),
        ("nonsense", "cloze config lists all keys"),
    ],
)
def test_an_unknown_key_is_an_error_of_one_line(key: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        selected(key)
    assert str(caught.value) == f"{key}: is not a configuration key; {fix}"


def test_markdown_has_a_table_for_each_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "vocab.size", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert (
        page.startswith("## `vocab`\n") and "| key | type | default | meaning |\n|---|---|---|---|\n| `size` | " in page
    )
    assert main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == configuration_markdown()
