"""The cloze choice: its distractors, its chance of 0.5, and its score in evaluations."""

import math
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS
from cloze.training.finetune.metrics.estimates import wilson
from cloze.training.model.batch_totals import Totals
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.pretrain.baselines import training_counts
from cloze.training.pretrain.cloze_choice import Distractors
from cloze.training.pretrain.data_loader import Batch, ExampleDataset, ShapeMultiples, collate, worker_micro_batches
from cloze.training.pretrain.example_arrays import ExampleArrays, StoredMasks
from cloze.training.pretrain.objective import Objective, choice_sums
from tests.training.small_examples import PIECES, VOCAB_SIZE, examples_artifact

#: Like the pieces of a language, of which the first is a twentieth: neighbours in the ranking differ by up to a half.
ZIPF = np.array([-1, 900, -1, -1, -1, *(10_000_000 // np.arange(1, VOCAB_SIZE - 6)), 0, 0])


def masked_examples(labels: np.ndarray, masks: int = 20) -> ExampleArrays:
    """Examples with these true pieces, `masks` each."""
    count = len(labels) // masks
    offsets = offsets_of(np.full(count, masks))
    found = StoredMasks(Ragged(np.tile(np.arange(masks), count), offsets), Ragged(labels, offsets))
    zeros = np.zeros(count, np.int64)
    return ExampleArrays(np.arange(count), zeros, Ragged(np.zeros(len(labels), np.int64), offsets), zeros, zeros, found)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """200,000 true pieces with the frequencies of ZIPF, and their distractors."""
    frequencies = np.maximum(ZIPF, 0) / np.maximum(ZIPF, 0).sum()
    labels = np.random.default_rng(1).choice(len(ZIPF), 200_000, p=frequencies)
    return labels, Distractors(ZIPF, PIECES).of_masks(masked_examples(labels))


def test_a_distractor_is_another_used_piece_of_a_similar_rank(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, distractors = drawn
    offered = distractors != IGNORE_INDEX
    apart = np.abs(labels - distractors)[offered]  # ids are in the order of the frequencies here
    assert set(apart.tolist()) == {1, 2, 3, 4}
    special = [PIECES.index(token) for token in SPECIAL_TOKENS]
    assert not offered[np.isin(labels, special)].any() and not np.isin(distractors, special).any()
    assert distractors.max() < VOCAB_SIZE - 2 and (ZIPF[distractors[offered]] > 0).all()  # the last two are never used
    assert 0.6 < offered.mean() < 0.9


def test_a_piece_is_offered_against_another_as_often_as_the_other_against_it(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    pairs = Counter(zip(*(ids.tolist() for ids in drawn), strict=True))
    both_ways = [(pairs[true, other], pairs[other, true]) for true, other in pairs if IGNORE_INDEX < other < true]
    chi_square = sum((one - other) ** 2 / (one + other) for one, other in both_ways)
    assert len(both_ways) > 300 and chi_square < len(both_ways) + 3 * math.sqrt(2 * len(both_ways))
    one_way = sum(one for one, _ in both_ways)  # without the acceptance, twice as often the more frequent one is true
    assert abs(one_way - sum(other for _, other in both_ways)) < 0.01 * one_way


def test_a_model_that_knows_frequencies_alone_is_right_half_of_the_time(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    labels, distractors = map(torch.from_numpy, drawn)
    by_frequency = torch.from_numpy(ZIPF).double().expand(len(labels), -1)
    by_id = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(2)).double().expand(len(labels), -1)
    for logits in (by_frequency, -by_frequency, by_id):
        choices, correct = (float(value) for value in choice_sums(logits, labels, distractors))
        low, high = wilson(round(correct), round(choices))
        assert choices > 100_000 and low < 0.5 < high
    equal = torch.zeros_like(by_id)
    choices, correct = choice_sums(equal, labels, distractors)
    assert correct == choices / 2  # ties
    knows = torch.nn.functional.one_hot(labels, VOCAB_SIZE)
    choices, correct = choice_sums(knows, labels, distractors)
    assert correct == choices


def test_a_draw_depends_on_its_example_and_position_alone(tmp_path: Path) -> None:
    """Not on the batch, its order, the workers, padding, or the run."""
    artifact = examples_artifact(tmp_path, heldout=40)
    counts = training_counts(ExampleDataset(artifact, "train"), PIECES)
    [whole] = ExampleDataset(artifact, "heldout").sample(0, 40, 40)
    assert whole.masks

    def drawn(parts: list[ExampleArrays]) -> dict[tuple[int, int], int]:
        found = dict[tuple[int, int], int]()
        for part in parts:
            assert part.masks
            batch = collate(part, multiples=ShapeMultiples(masked=8), distractors=Distractors(counts, PIECES))
            assert batch.distractors is not None
            count = len(part.masks.labels.values)
            assert (batch.distractors[count:] == IGNORE_INDEX).all()
            examples = np.repeat(part.index, part.masks.positions.lengths).tolist()
            keys = zip(examples, part.masks.positions.values.tolist(), strict=True)
            found |= dict(zip(keys, batch.distractors[:count].tolist(), strict=True))
        return found

    alone = drawn([whole])
    assert len(alone) == len(whole.masks.labels.values) and len(set(alone.values())) > 5
    for workers in (1, 3):
        parts = [part for rank in range(workers) for part in worker_micro_batches(whole, rank, workers, 4)]
        assert drawn(parts) == alone


def test_random_weights_are_right_half_of_the_time_and_training_batches_have_no_choices(tmp_path: Path) -> None:
    """On average over the weights: each model prefers some pieces, and which of these are frequent here is chance."""
    artifact = examples_artifact(tmp_path, train=200, heldout=800)
    counts = training_counts(ExampleDataset(artifact, "train"), PIECES)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    sample = ExampleDataset(artifact, "heldout").sample(0, 800, 400)
    batches = [collate(arrays, distractors=Distractors(counts, PIECES)) for arrays in sample]
    accuracies = list[float]()
    for seed in range(20):
        model = BertForPreTraining(config, VOCAB_SIZE, seed).eval()
        totals, fused = (evaluated(Objective(model, "fp32", fused_loss=fused), batches) for fused in (False, True))
        assert totals == fused and 800 < totals.choices < totals.masked
        assert totals.means()["choice_accuracy"] == totals.choices_correct / totals.choices
        accuracies.append(totals.means()["choice_accuracy"])
    assert abs(fmean(accuracies) - 0.5) < 3 * stdev(accuracies) / math.sqrt(len(accuracies))
    trained = evaluated(Objective(model, "fp32"), [collate(arrays) for arrays in sample])
    assert (trained.choices, trained.mlm_loss) == (0, totals.mlm_loss)
    assert "choice_accuracy" not in trained.means()


@torch.inference_mode()
def evaluated(objective: Objective, batches: list[Batch]) -> Totals:
    one = torch.ones(())
    return sum((Totals(*objective(batch, one, one)[1].tolist()) for batch in batches), Totals())
