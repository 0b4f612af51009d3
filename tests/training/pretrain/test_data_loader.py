"""Batches: the order depends only on (seed, epoch, position), no example is lost, and there is little padding."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.masking import mask_rules
from cloze.training.pretrain import data_loader
from cloze.training.pretrain.data_loader import (
    IGNORE_INDEX,
    DynamicMasking,
    ExampleDataset,
    collate,
    has_pair_labels,
    worker_micro_batches,
)
from cloze.training.pretrain.example_arrays import ExampleArrays
from cloze.training.pretrain.prefetch import Prefetcher
from tests.training.small_examples import MASK, PIECES, examples_artifact


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExampleDataset:
    """40 examples in 2 shards of 5 row groups, read in windows of about 12."""
    monkeypatch.setattr(data_loader, "_WINDOW", 12)
    return ExampleDataset(examples_artifact(tmp_path), "train")


def indices(examples: ExampleDataset, seed: int, position: int, size: int, count: int) -> list[list[int]]:
    return [rows.index.tolist() for rows in islice(examples.batches(seed, position, size), count)]


def test_an_epoch_contains_every_example_once_and_the_next_has_another_order(examples: ExampleDataset) -> None:
    first, second = indices(examples, 1, 0, 40, 2)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)


def test_the_order_depends_only_on_the_seed(examples: ExampleDataset, tmp_path: Path) -> None:
    again = ExampleDataset(examples_artifact(tmp_path / "again"), "train")
    assert indices(examples, 1, 0, 10, 9) == indices(again, 1, 0, 10, 9)
    assert indices(examples, 1, 0, 10, 4) != indices(examples, 2, 0, 10, 4)


@pytest.mark.parametrize("position", [1, 7, 12, 39, 40, 41, 95])
def test_resuming_at_a_position_continues_with_the_same_batches(examples: ExampleDataset, position: int) -> None:
    whole = [index for rows in indices(examples, 3, 0, 7, 20) for index in rows]
    resumed = [index for rows in indices(examples, 3, position, 7, 4) for index in rows]
    assert resumed == whole[position : position + 28]


def test_resuming_reads_only_the_files_of_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loader, "_WINDOW", 4)
    artifact = examples_artifact(tmp_path, shards=10)
    assert artifact.manifest
    opened: list[str] = []
    real = Location.open
    monkeypatch.setattr(Location, "open", lambda file, **options: opened.append(file.uri) or real(file, **options))
    examples = ExampleDataset(artifact, "train")
    assert opened == []
    next(examples.batches(1, 39, 1))
    window = examples.windows(1, 0)[-1]
    assert len(opened) == len({examples._groups[group][0] for group in window}) < 3


def test_examples_are_those_of_the_file_at_their_index(examples: ExampleDataset) -> None:
    rows = next(examples.batches(5, 0, 40))
    third = rows.input_ids.values[rows.input_ids.offsets[:-1] + 1]
    assert third.tolist() == [5 + index % 90 for index in rows.index]


@pytest.mark.parametrize(("workers", "micro_batch_size"), [(1, 12), (2, 3), (3, 4), (5, 2), (12, 1)])
def test_any_workers_and_micro_batches_share_one_global_batch(
    examples: ExampleDataset, workers: int, micro_batch_size: int
) -> None:
    rows = next(examples.batches(1, 0, 12))
    micro_batches = [worker_micro_batches(rows, rank, workers, micro_batch_size) for rank in range(workers)]
    assert len({len(own) for own in micro_batches}) == 1
    assert all(len(batch) <= micro_batch_size for own in micro_batches for batch in own)
    counted = [batch for own in micro_batches for batch in own if batch.counted]
    assert Counter(np.concatenate([batch.index for batch in counted]).tolist()) == Counter(rows.index.tolist())


def test_a_worker_without_examples_gets_a_placeholder(examples: ExampleDataset) -> None:
    rows = next(examples.batches(1, 0, 2))
    (placeholder,) = worker_micro_batches(rows, 2, 3, 4)
    made = collate(placeholder)
    assert made.next_sentence_label.tolist() == [IGNORE_INDEX]
    assert made.counted.tolist() == [0]
    assert made.masked_lm_positions.numel() == 0


def test_a_batch_is_as_wide_as_its_longest_example_and_has_the_positions_of_its_masks(examples: ExampleDataset) -> None:
    rows = next(examples.batches(1, 0, 12))
    made = collate(rows)
    lengths = rows.input_ids.lengths
    assert made.input_ids.shape == (12, lengths.max())
    assert made.attention_mask.sum(1).tolist() == lengths.tolist()
    assert (made.token_type_ids.sum(1) == made.attention_mask.sum(1) - 5).all()  # the second segment starts at 5
    assert (made.input_ids.flatten()[made.masked_lm_positions] == MASK).all()
    assert (made.input_ids == MASK).sum() == len(made.masked_lm_labels)
    assert not made.input_ids[made.attention_mask == 0].any()
    assert made.padded


def test_examples_of_one_length_have_no_padding(examples: ExampleDataset) -> None:
    rows = next(examples.batches(1, 0, 40))
    alike = collate(rows.take(np.flatnonzero(rows.input_ids.lengths == rows.input_ids.lengths[0])))
    assert len(alike.input_ids) > 1
    assert alike.attention_mask.all()
    assert alike.padded is False


def test_dynamic_masks_depend_only_on_seed_epoch_and_example(tmp_path: Path) -> None:
    examples = ExampleDataset(examples_artifact(tmp_path, masked=False), "train")
    assert not examples.has_stored_masks
    rules = mask_rules(PIECES, 0.15, 3)
    first, second = islice(examples.batches(1, 0, 40), 2)  # two epochs

    def masks(rows: ExampleArrays, seed: int = 7) -> dict[int, tuple[list[int], list[int]]]:
        """Example -> its ids and labels, drawn in batches of five."""
        found = {}
        for part in np.split(np.arange(40), 8):
            made = collate(rows.take(part), DynamicMasking(seed, rules))
            row_of = made.masked_lm_positions // made.input_ids.shape[1]
            for row, index in enumerate(rows.index[part].tolist()):
                found[index] = (made.input_ids[row].tolist()[:8], made.masked_lm_labels[row_of == row].tolist())
        return found

    shuffled = first.take(np.random.default_rng(0).permutation(40))
    assert masks(first) == masks(shuffled)
    assert masks(first) != masks(second)
    assert masks(first) != masks(first, seed=8)
    assert all(1 <= len(labels) <= 3 for _, labels in masks(first).values())


def test_all_phases_must_have_the_same_objective(tmp_path: Path) -> None:
    made = {name: examples_artifact(tmp_path / name, objective=name) for name in ("mlm", "mlm+nsp", "mlm+sop")}
    assert [has_pair_labels([artifact, artifact]) for artifact in made.values()] == [False, True, True]
    with pytest.raises(UserError, match=r"different objectives \(mlm\+nsp, mlm\+sop\); create the examples of all"):
        has_pair_labels([made["mlm+sop"], made["mlm+nsp"], made["mlm+sop"]])


def test_micro_batches_of_similar_length_need_less_padding(examples: ExampleDataset) -> None:
    rows = next(examples.batches(1, 0, 40))

    def padding(batches: list[ExampleArrays]) -> float:
        masks = [collate(batch).attention_mask for batch in batches]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    in_order = [rows.take(part) for part in np.array_split(np.arange(40), 10)]
    assert padding(worker_micro_batches(rows, 0, 1, 4)) < 0.3 * padding(in_order)


@pytest.mark.parametrize("position", [0, 5, 12, 39, 41])
def test_with_length_groups_an_epoch_still_contains_every_example_once(examples: ExampleDataset, position: int) -> None:
    epoch, other = islice(examples.batches(1, 0, 40, group_size=4), 2)
    assert sorted(epoch.index) == sorted(other.index) == list(range(40))
    whole = [*epoch.index.tolist(), *other.index.tolist()]
    resumed = np.concatenate([rows.index for rows in islice(examples.batches(1, position, 5, group_size=4), 3)])
    assert resumed.tolist() == whole[position : position + 15]
    assert resumed.tolist() != np.concatenate(indices(examples, 1, position, 5, 3)).tolist()


def test_groups_have_examples_of_similar_length_and_a_random_order() -> None:
    lengths = np.random.default_rng(1).integers(5, 129, 1000)
    order = data_loader._length_grouped_order(lengths, np.random.default_rng(2), 8)
    assert sorted(order) == list(range(1000))
    groups = lengths[order].reshape(-1, 8)
    assert np.ptp(groups, axis=1).max() <= 6  # of 124 lengths, a group covers about one
    assert abs(np.corrcoef(np.arange(125), groups.mean(axis=1))[0, 1]) < 0.3
    assert (np.argsort(lengths[order], kind="stable") != np.arange(1000)).any()


def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    artifact = examples_artifact(tmp_path)
    file = artifact.files("train/")[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train/00001\.parquet: is damaged: its length of \d+ bytes differs from"):
        next(ExampleDataset(artifact, "train").batches(1, 0, 40))


def test_fewer_examples_than_a_batch_is_an_error_of_one_line(examples: ExampleDataset) -> None:
    with pytest.raises(UserError, match=r"train: contains 40 examples, fewer than global_batch_size 41; lower it"):
        examples.batches(1, 0, 41)


def test_no_examples_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no heldout examples"):
        ExampleDataset(examples_artifact(tmp_path, heldout=0), "heldout")


def test_a_sample_is_always_the_same_and_at_most_all_examples(examples: ExampleDataset) -> None:
    once, twice = (np.concatenate([rows.index for rows in examples.sample(0, 20, 6)]) for _ in range(2))
    assert once.tolist() == twice.tolist()
    assert len(set(once.tolist())) == 20
    assert [len(rows) for rows in examples.sample(0, 100, 12)] == [10, 10, 10, 10]


def test_prefetching_keeps_the_order_and_raises_the_error() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise OSError("lost")

    prefetched = Prefetcher(numbers())
    assert list(islice(prefetched, 5)) == list(range(5))
    with pytest.raises(OSError, match="lost"):
        next(prefetched)
    prefetched.close()


def test_closing_ends_the_thread_that_prefetches() -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield 0

    prefetched = Prefetcher(forever())
    next(prefetched)
    prefetched.close()
    assert not prefetched._thread.is_alive()
