"""The operations that examples need, and the rows of metrics."""

import math

import pytest

from cloze.training.model.batch_totals import Totals
from cloze.training.model.bert import BertConfig
from cloze.training.pretrain.baselines import Baseline
from cloze.training.pretrain.metrics import MetricsRecorder

VOCAB_SIZE = 30522
BASE = BertConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def sequence(length: int, predictions: int, slots: int = 0) -> Totals:
    return Totals(masked=predictions, examples=1, tokens=length, slots=slots or length, squares=length**2)


@pytest.mark.parametrize(
    ("model", "length", "predictions", "gigaflops"),
    [(BASE, 128, 20, 69.925), (BASE, 512, 80, 301.445), (LARGE, 128, 20, 240.636), (LARGE, 512, 80, 1020.528)],
)
def test_the_operations_of_a_sequence_are_as_computed_by_hand(
    model: BertConfig, length: int, predictions: int, gigaflops: float
) -> None:
    assert round(model.training_flops(sequence(length, predictions), VOCAB_SIZE) / 1e9, 3) == gigaflops


def test_padding_needs_no_operations_and_sequences_do_not_attend_to_each_other() -> None:
    def flops(totals: Totals) -> float:
        return BASE.training_flops(totals, VOCAB_SIZE)

    long, short = sequence(128, 20), sequence(32, 5, slots=128)
    assert flops(short) == flops(sequence(32, 5))
    assert flops(long + short) == flops(long) + flops(short)
    assert flops(long) > 4 * flops(short)


def test_a_row_has_the_flops_utilization_since_the_previous_row() -> None:
    recorder = MetricsRecorder()
    for examples in (3, 1):
        recorder.add_step(Totals(examples=examples), seconds=2.0, waited=0.0)
    recorder.add_train_row(2, lambda totals: 10 * totals.examples, 50.0)
    recorder = MetricsRecorder(recorder.to_json())
    recorder.add_step(Totals(examples=5), seconds=2.0, waited=0.0)
    recorder.add_train_row(3, lambda totals: 10 * totals.examples, 50.0)
    assert [row["mfu"] for row in recorder.rows] == [40 / 4 / 50, 50 / 2 / 50]


def test_a_heldout_row_has_the_baselines_of_the_evaluated_examples() -> None:
    recorder, unigram = MetricsRecorder(), Baseline(6.5, 0.05)
    masked = Totals(mlm_loss=60.0, mlm_correct=1, masked=10, examples=4)
    recorder.add_heldout_row(7, masked, unigram)
    recorder.add_heldout_row(
        8, masked + Totals(nsp_loss=2.8, nsp_correct=3, labels=4, labels_1=3, answers_1=4), unigram
    )
    alone, paired = ({key: row[key] for key in row if "baseline" in key} for row in recorder.rows)
    assert alone == {"loss_baseline": 6.5, "mlm_loss_baseline": 6.5, "mlm_accuracy_baseline": 0.05}
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert paired == alone | {
        "loss_baseline": pytest.approx(6.5 + entropy),
        "nsp_loss_baseline": pytest.approx(entropy),
        "nsp_accuracy_baseline": 0.75,
    }
    counts = ("masked", "pairs", "pairs_1", "answers_1")
    assert [[row.get(key) for key in counts] for row in recorder.rows] == [[10, None, None, None], [10, 4, 3, 4]]
