"""Vectors of texts and tokens: what each choice of layers and pooling means, in the order of the input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors import hidden_states as batching
from cloze.training.vectors.hidden_states import LayeredEncoder
from cloze.training.vectors.pooling import Vectors, text_vectors, token_vectors
from cloze.training.vectors.representation import LAYER_NAMES, Representation, layer_numbers
from cloze.training.vectors.text_inputs import TextInputs
from tests.training.finetune.encoders.test_transformers_encoder import read_encoder
from tests.training.finetune.encoders.transformers_folders import texts, write_folder

TEXTS = [text[: 7 * (number % 9) + 3] for number, text in enumerate(texts())][:40]
LAYERS = 5


class Given:
    """An ALBERT with five layers, and texts as its inputs."""

    def __init__(self, root: Path) -> None:
        self.folder = write_folder(root / "albert", "albert", num_hidden_layers=LAYERS)
        encoder = read_encoder(self.folder, root)
        self.encoder = encoder.layered_encoder(0, pretrained=True)
        self.tokenizer = encoder.tokenizer()
        self.special = SpecialTokens.of(self.tokenizer).ids
        self.inputs = self.encode(TEXTS)

    def encode(self, texts: list[str]) -> TextInputs:
        return encode_texts(self.tokenizer, texts, None, 64)[0]

    def vectors(self, *representations: Representation) -> list[Vectors]:
        return text_vectors(self.encoder, self.inputs, representations, self.special)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def states(given: Given) -> list[torch.Tensor]:
    """For each text [layers + 1, seq, hidden] by transformers, without padding."""
    model = AutoModel.from_pretrained(given.folder).eval()
    found = []
    for row in range(len(TEXTS)):
        ids = torch.from_numpy(given.inputs.ids.slice(row, row + 1).values)[None]
        with torch.inference_mode():
            found.append(torch.cat(model(input_ids=ids, output_hidden_states=True).hidden_states))
    return found


#: Choice of layers -> what it is, from [layers + 1, seq, hidden].
EXPECTED = {
    0: lambda all_layers: all_layers[0],
    2: lambda all_layers: all_layers[2],
    "last": lambda all_layers: all_layers[5],
    "second-to-last": lambda all_layers: all_layers[4],
    "sum-all": lambda all_layers: all_layers[1:].sum(0),
    "sum-last-4": lambda all_layers: all_layers[2:].sum(0),
    "concat-last-4": lambda all_layers: torch.cat([*all_layers[2:]], -1),
}


def test_every_choice_of_layers_and_pooling_is_what_its_name_says(given: Given, states: list[torch.Tensor]) -> None:
    assert {*LAYER_NAMES} == {name for name in EXPECTED if isinstance(name, str)}
    for layers, choose in EXPECTED.items():
        chosen = [choose(one) for one in states]
        expected = {
            ("mean", True): [one.mean(0) for one in chosen],
            ("mean", False): [one[1:-1].mean(0) for one in chosen],
            ("cls", True): [one[0] for one in chosen],
        }
        for (pooling, special), vectors in expected.items():
            one = Representation(layers=layers, pooling=pooling, special_tokens=special)
            [found] = given.vectors(one)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, torch.stack(vectors), atol=1e-5)


def test_several_representations_are_computed_together(given: Given) -> None:
    choices = [Representation(), Representation(layers="concat-last-4", pooling="cls"), Representation(layers=1)]
    together = given.vectors(*choices)
    for choice, found in zip(choices, together, strict=True):
        np.testing.assert_array_equal(found, given.vectors(choice)[0])


def test_the_other_texts_of_a_batch_change_a_vector_by_rounding_only(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = [Representation(layers=layers, special_tokens=False) for layers in EXPECTED]
    together = given.vectors(*choices)
    monkeypatch.setattr(batching, "_BATCH_TOKENS", 1)  # each text by itself
    for one, other in zip(together, given.vectors(*choices), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_mean_over_no_token_is_zero(given: Given) -> None:
    empty = given.encode(["", "a"])
    [found] = text_vectors(given.encoder, empty, [Representation(special_tokens=False)], given.special)
    assert not found[0].any() and found[1].any()


def test_progress_counts_the_texts(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_BATCH_TOKENS", 100)
    reports = list[int]()
    text_vectors(given.encoder, given.inputs, [Representation()], given.special, reports.append)
    assert len(reports) > 5 and reports == sorted(reports) and reports[-1] == len(TEXTS)


def test_token_vectors_are_those_at_the_positions(given: Given, states: list[torch.Tensor]) -> None:
    rows = [np.arange(length)[1 : 1 + number % 4] for number, length in enumerate(given.inputs.lengths)]
    positions = Ragged(np.concatenate(rows), offsets_of([len(row) for row in rows]))
    found = token_vectors(given.encoder, given.inputs, [*EXPECTED], positions)
    for vectors, choose in zip(found, EXPECTED.values(), strict=True):
        expected = [choose(state)[row] for state, row in zip(states, rows, strict=True)]
        np.testing.assert_allclose(vectors, torch.cat(expected), atol=1e-5)


def test_too_few_layers_are_an_error_that_names_both_numbers() -> None:
    with pytest.raises(UserError, match=r"^layers 7: the encoder has 6 layers; give a number from 0 to 6$"):
        layer_numbers(7, 6)
    assert layer_numbers(6, 6) == layer_numbers("last", 6) == [6]
    for name in ("sum-last-4", "concat-last-4"):
        with pytest.raises(UserError, match=f"^layers {name}: the encoder has only 3 layers; give another choice"):
            layer_numbers(name, 3)
        assert layer_numbers(name, 4) == [1, 2, 3, 4]


def test_too_few_layers_are_found_before_any_text_is_computed(given: Given) -> None:
    def never(*_: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError

    unused = LayeredEncoder(given.encoder.encoder, never, 2, 32)
    with pytest.raises(UserError, match="layers 3"):
        text_vectors(unused, given.inputs, [Representation(), Representation(layers=3)], given.special)


@pytest.mark.parametrize("wrong", [{"layers": -1}, {"layers": "first"}, {"layers": True}, {"pooling": "max"}])
def test_other_choices_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Representation.model_validate(wrong)
