"""The description of held-out metrics: a model that is no better than a baseline is not praised."""

from typing import Any

import pytest

from cloze.infra.heldout import describe
from cloze.training.model.batch_totals import Totals
from cloze.training.pretrain.baselines import Baseline
from cloze.training.pretrain.metrics import MetricsRecorder


def evaluation(right: int, ones: int, answers: int, pairs: int = 640, mlm_loss: float = 3.0) -> dict[str, Any]:
    """Returns an evaluation with ten masked tokens per pair, half of them predicted correctly."""
    recorder = MetricsRecorder()
    masked = Totals(mlm_loss=10 * pairs * mlm_loss, mlm_correct=5 * pairs, masked=10 * pairs, examples=pairs)
    pair_totals = Totals(nsp_loss=0.68 * pairs, nsp_correct=right, labels=pairs, labels_1=ones, answers_1=answers)
    recorder.add_heldout_row(600, masked + pair_totals, Baseline(6.5, 0.05))
    return recorder.rows[0]


NOT_LEARNED = "it has not learned this objective yet"


def test_a_constant_model_is_reported_next_to_the_majority_baseline() -> None:
    text = describe(evaluation(right=371, ones=371, answers=640), "mlm+nsp")[1]
    assert text == (
        "Held-out next-sentence accuracy is 58.0 % of 640 pairs (95 % interval 54.1 to 61.7; loss 0.680); always "
        f'answering "NotNext" reaches 58.0 % (loss 0.680). The model is no better: {NOT_LEARNED}. It answers "NotNext" '
        "for all 640 pairs."
    )


def test_a_constant_model_with_the_rarer_answer_is_reported_as_worse() -> None:
    text = describe(evaluation(right=269, ones=371, answers=0), "mlm+nsp")[1]
    assert f"The model is worse: {NOT_LEARNED}" in text
    assert text.endswith('It answers "IsNext" for all 640 pairs.')


@pytest.mark.parametrize(("right", "better"), [(371, False), (380, False), (395, False), (396, True), (640, True)])
def test_a_model_is_better_only_if_its_whole_interval_is_above_the_majority(right: int, better: bool) -> None:
    text = describe(evaluation(right=right, ones=371, answers=400), "mlm+nsp")[1]
    assert (NOT_LEARNED not in text) == better
    assert "for all 640 pairs" not in text


@pytest.mark.parametrize(
    ("objective", "one", "zero"),
    [("mlm+nsp", "NotNext", "IsNext"), ("mlm+sop", "swapped", "in order"), (None, "1", "0")],
)
def test_answers_have_the_names_of_the_objective(objective: str | None, one: str, zero: str) -> None:
    assert f'always answering "{one}"' in describe(evaluation(right=400, ones=321, answers=640), objective)[1]
    text = describe(evaluation(right=320, ones=320, answers=0), objective)[1]  # equally many of both
    assert f'always answering "{zero}"' in text and f'It answers "{zero}" for all' in text


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.0, "The model's loss is 53.8 % lower."),
        (6.4, "The model's loss is only 1.5 % lower: it makes little use of context yet."),
        (6.6, "The model's loss is no better."),
        (float("nan"), "The model's loss is no better."),
    ],
)
def test_the_loss_is_compared_with_that_of_a_unigram_model(loss: float, expected: str) -> None:
    text = describe(evaluation(400, 371, 400, mlm_loss=loss), "mlm+nsp")[0]
    assert f"masked-token accuracy is 50.0 % of 6,400 tokens (loss {loss:.3f})" in text
    assert f"which only knows token frequencies, reaches 5.0 % (loss 6.500). {expected}" in text


def test_the_constant_answer_has_no_loss_if_all_pairs_have_one_label() -> None:
    for ones in (0, 640):
        text = describe(evaluation(right=640, ones=ones, answers=ones), "mlm+nsp")[1]
        assert "reaches 100.0 % (loss 0.000). The model is no better" in text


@pytest.mark.parametrize(
    ("right", "interval", "end"),
    [
        (3852.5, "59.4 to 61.8", ""),
        (3178, "48.8 to 51.2", " That is no better than chance."),
        (3000, "46.0 to 48.4", " That is below chance."),
    ],
)
def test_the_choice_between_tokens_of_the_same_frequency_is_compared_with_chance(
    right: float, interval: str, end: str
) -> None:
    recorder = MetricsRecorder()
    totals = Totals(mlm_loss=6.0, masked=7000, examples=1, choices=6357, choices_correct=right)
    recorder.add_heldout_row(1, totals, Baseline(6.5, 0.05))
    [row] = recorder.rows
    assert (row["choices"], row["choice_accuracy_baseline"]) == (6357, 0.5)
    assert describe(row, "mlm")[1] == (
        f"The model picks the true token over one of the same frequency in {100 * right / 6357:.1f} % of 6,357 masks "
        f"(95 % interval {interval}; chance 50).{end}"
    )


def test_without_pairs_only_masked_tokens_are_described() -> None:
    recorder = MetricsRecorder()
    recorder.add_heldout_row(1, Totals(mlm_loss=6.0, masked=1, examples=1), Baseline(6.5, 0.05))
    [row] = recorder.rows
    assert len(describe(row, "mlm")) == 1 and not any("choice" in key for key in row)
