"""Hidden states of every layer: equal to transformers', for Cloze's own models and those that transformers runs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from cloze.pipeline.text.tokenizer import build_tokenizer
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors import hidden_states as module
from cloze.training.vectors.hidden_states import batches, hidden_states
from cloze.training.vectors.text_inputs import TextInputs
from tests.training.checkpoints.published_folders import PIECES, STORED, write_config, write_weights
from tests.training.finetune.encoders.test_transformers_encoder import read_encoder, sentences
from tests.training.finetune.encoders.transformers_folders import MODEL_TYPES, write_folder


def small_bert(folder: Path) -> Path:
    """A BERT as transformers saves it, with two layers of 16."""
    folder.mkdir(parents=True)
    write_config(folder, vocab_size=len(PIECES), model_type="bert", max_position_embeddings=20)
    write_weights(STORED, folder / "model.safetensors")
    build_tokenizer(PIECES).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def write(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / model_type
        return small_bert(folder) if model_type == "bert" else write_folder(folder, model_type)

    return cache(write)


def encoded(encoder: PretrainedEncoder) -> TextInputs:
    texts = [sentence[: 5 + 3 * number] for number, sentence in enumerate(sentences(70)[:12])]
    return encode_texts(encoder.tokenizer(), texts[::-1], texts, 20)[0]


@pytest.mark.parametrize("model_type", ["bert", *MODEL_TYPES])
def test_hidden_states_are_those_of_transformers(model_type: str, folder_of: Any, tmp_path: Path) -> None:
    encoder = read_encoder(folder_of(model_type), tmp_path)
    reference = AutoModel.from_pretrained(folder_of(model_type)).eval()
    has_segments = model_type in ("bert", "albert")
    found = encoder.layered_encoder(0, pretrained=True)
    for _, (ids, segments, mask), states in hidden_states(found, encoded(encoder)):
        options = {"token_type_ids": segments} if has_segments else {}
        padded = ids.masked_fill(~mask, reference.config.pad_token_id)
        with torch.inference_mode():
            expected = reference(
                input_ids=padded, attention_mask=mask.long(), output_hidden_states=True, **options
            ).hidden_states
        assert len(states) == len(expected) == found.num_layers + 1 == encoder.num_layers + 1
        for one, other in zip(states, expected, strict=True):
            assert one.shape[-1] == found.hidden_size
            np.testing.assert_allclose(one[mask], other[mask], atol=1e-5)


def test_random_weights_are_keyed_by_the_seed(folder_of: Any, tmp_path: Path) -> None:
    for model_type in ("bert", "albert"):
        encoder = read_encoder(folder_of(model_type), tmp_path)

        def first(seed: int, encoder: PretrainedEncoder = encoder) -> torch.Tensor:
            _, _, states = next(hidden_states(encoder.layered_encoder(seed, pretrained=False), encoded(encoder)))
            return states[-1]

        assert torch.equal(first(3), first(3)) and not torch.equal(first(3), first(4))


def test_batches_have_every_row_once_and_rows_of_similar_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_TOKENS", 40)
    lengths = np.random.default_rng(0).integers(2, 60, 200)
    found = list(batches(lengths))
    assert sorted(np.concatenate(found)) == [*range(200)]
    assert (np.diff(lengths[np.concatenate(found)]) >= 0).all()
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 40 for rows in found)
    assert list(batches(lengths[:0])) == []
