"""Predictions for masked pieces, by a model whose answers are known."""

import pytest
import torch

from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.checkpoints.fill_mask import predict_masked
from cloze.training.model.bert import BertConfig, BertForPreTraining

TOKENIZER = build_tokenizer([*SPECIAL_TOKENS, "the", "cat", "sat", "mat", "##s"])
CONFIG = BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=8
)


@pytest.fixture(scope="module")
def model() -> BertForPreTraining:
    """A model trained to predict "cat" in "the [MASK] sat" and "the" in "[MASK] mats"."""
    model = BertForPreTraining(CONFIG, 10, seed=1)
    rows = torch.tensor([[2, 5, 4, 7, 3], [2, 4, 8, 9, 3]])
    positions, labels = torch.tensor([2, 6]), torch.tensor([6, 5])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        logits, _ = model(rows, torch.zeros_like(rows), torch.ones_like(rows), positions)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_the_most_likely_pieces_come_first_with_their_probabilities(model):
    (predictions,) = predict_masked(model, TOKENIZER, "The [MASK] sat", k=3)
    assert predictions[0].piece == "cat"
    assert predictions[0].probability > 0.5
    assert len(predictions) == 3
    assert [prediction.probability for prediction in predictions] == sorted(
        (prediction.probability for prediction in predictions), reverse=True
    )
    assert sum(
        prediction.probability for prediction in predict_masked(model, TOKENIZER, "[MASK]", k=10)[0]
    ) == pytest.approx(1)


def test_every_mask_has_its_predictions_in_the_order_of_the_text(model):
    assert predict_masked(model, TOKENIZER, "[MASK] mats", k=1)[0][0].piece == "the"
    assert len(predict_masked(model, TOKENIZER, "[MASK] cat[MASK]", k=2)) == 2


def test_text_without_a_mask_or_too_long_is_an_error(model):
    with pytest.raises(ValueError, match=r"has no \[MASK\]"):
        predict_masked(model, TOKENIZER, "the cat")
    with pytest.raises(ValueError, match="has 9 pieces, the model 8 positions"):
        predict_masked(model, TOKENIZER, "the the the the the the [MASK]")
