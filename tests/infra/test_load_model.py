"""`cloze.load`: the model of a run or of a folder, filling masks and embedding texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

import cloze
from cloze.infra.cli import main
from cloze.infra.run_config import RunConfig
from tests.infra.test_export import CONFIG, objective, own_folder, run  # noqa: F401

TEXTS = ["a", "d ab d", "", "ab d a x " * 200]


@pytest.fixture
def exported(run: RunConfig, tmp_path: Path) -> str:  # noqa: F811
    assert main(["export", CONFIG, "--to", str(tmp_path / "exported")]) == 0
    return str(tmp_path / "exported")


def test_a_run_and_its_exported_folder_are_the_same_model(exported: str) -> None:
    of_run, of_folder = cloze.load(CONFIG), cloze.load(exported)
    assert np.array_equal(of_run.embed(TEXTS), of_folder.embed(TEXTS))
    assert of_run.fill_mask("a [MASK] d", top=3) == of_folder.fill_mask("a [MASK] d", top=3)
    [best] = of_run.fill_mask("a [MASK] d", top=3)
    assert len(best) == 3 and best[0].probability > best[1].probability


def test_an_embedding_is_the_mean_over_tokens_that_transformers_gives(exported: str) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(exported), BertModel.from_pretrained(exported).eval()
    encoded = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    vectors = cloze.load(exported).embed(TEXTS)
    assert vectors.shape == (len(TEXTS), hidden.shape[-1])
    assert vectors == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_text_has_the_same_vector_in_any_company(run: RunConfig) -> None:  # noqa: F811
    model = cloze.load(CONFIG)
    together = model.embed(TEXTS)
    assert together == pytest.approx(np.concatenate([model.embed([text]) for text in TEXTS]), abs=1e-5)
    assert model.embed([]).shape == (0, model.config.hidden_size)


def test_what_cannot_be_loaded_is_named_with_its_fix(exported: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere: is not a run under .*/none, .*, its root with root=, or the path"):
        cloze.load("nowhere", root=str(tmp_path / "none"))
    for name in ("vocab.txt", "tokenizer.json"):
        Path(exported, name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"exported: has no vocab.txt or tokenizer.json; add"):
        cloze.load(exported)
