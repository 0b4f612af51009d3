"""What is said of held-out figures: nothing that a unigram model or a constant answer has as well is praised."""

from typing import Any

import pytest

from cloze.infra.heldout import verdict
from cloze.training.model.totals import Totals
from cloze.training.pretrain.baselines import Baseline
from cloze.training.pretrain.metrics import MetricsRecorder


def row(right: int, ones: int, answers: int, pairs: int = 640, mlm_loss: float = 3.0) -> dict[str, Any]:
    """An evaluation of ten masked pieces a pair, half of which a model names."""
    recorder = MetricsRecorder()
    masked = Totals(mlm_loss=10 * pairs * mlm_loss, mlm_correct=5 * pairs, masked=10 * pairs, examples=pairs)
    of_pairs = Totals(nsp_loss=0.68 * pairs, nsp_correct=right, labels=pairs, labels_1=ones, answers_1=answers)
    recorder.add_heldout_row(600, masked + of_pairs, Baseline(6.5, 0.05))
    return recorder.rows[0]


NOTHING = "nothing that it has learnt of pairs shows yet"
SAME = "to every one of the 640 pairs, as a constant would."


def test_one_answer_to_every_pair_is_called_a_constant_beside_the_share_of_the_majority() -> None:
    said = verdict(row(right=371, ones=371, answers=640), "mlm+nsp")[1]
    assert said == (
        "It answers right in 58.0 % of 640 pairs (95 %: 54.1 to 61.7; loss 0.680), where always answering "
        f'"random" is right in 58.0 % (loss 0.680). It is no better than that: {NOTHING}. It answers "random" {SAME}'
    )


def test_one_answer_that_is_the_rarer_one_is_worse_and_a_constant_too() -> None:
    said = verdict(row(right=269, ones=371, answers=0), "mlm+nsp")[1]
    assert f"worse than that: {NOTHING}" in said
    assert said.endswith(f'It answers "is next" {SAME}')


@pytest.mark.parametrize(("right", "shows"), [(371, False), (380, False), (395, False), (396, True), (640, True)])
def test_better_than_the_majority_is_what_lies_above_it_with_its_whole_interval(right: int, shows: bool) -> None:
    said = verdict(row(right=right, ones=371, answers=400), "mlm+nsp")[1]
    assert (NOTHING not in said) == shows
    assert SAME not in said


@pytest.mark.parametrize(
    ("objective", "one", "zero"),
    [("mlm+nsp", "random", "is next"), ("mlm+sop", "swapped", "in order"), (None, "1", "0")],
)
def test_the_answers_are_those_of_the_objective(objective: str | None, one: str, zero: str) -> None:
    assert f'always answering "{one}"' in verdict(row(right=400, ones=321, answers=640), objective)[1]
    said = verdict(row(right=320, ones=320, answers=0), objective)[1]  # as many of both
    assert f'always answering "{zero}"' in said and f'It answers "{zero}" to every one' in said


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (3.0, "Its loss is 53.8 % lower."),
        (6.4, "Its loss is 1.5 % lower: of the pieces around a masked one it makes little yet."),
        (6.6, "By its loss it is no better than that."),
        (float("nan"), "By its loss it is no better than that."),
    ],
)
def test_a_loss_stands_beside_that_of_a_unigram_model(loss: float, said: str) -> None:
    masked = verdict(row(400, 371, 400, mlm_loss=loss), "mlm+nsp")[0]
    assert f"names 50.0 % of 6,400 masked pieces (loss {loss:.3f})" in masked
    assert f"and nothing else, names 5.0 % (loss 6.500). {said}" in masked


def test_of_pairs_that_are_all_alike_the_constant_answer_has_no_loss() -> None:
    for ones in (0, 640):
        said = verdict(row(right=640, ones=ones, answers=ones), "mlm+nsp")[1]
        assert "is right in 100.0 % (loss 0.000). It is no better than that" in said


def test_without_pairs_nothing_is_said_of_them() -> None:
    recorder = MetricsRecorder()
    recorder.add_heldout_row(1, Totals(mlm_loss=6.0, masked=1, examples=1), Baseline(6.5, 0.05))
    assert len(verdict(recorder.rows[0], "mlm")) == 1
