"""Batches: their order depends on (seed, epoch, position) alone, nothing is lost, and little of them is padding."""

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
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Examples, Prefetched, batch, share
from tests.training.small_examples import MASK, PIECES, examples_artifact


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """40 examples in 2 shards of 5 row groups, read in windows of about 12."""
    monkeypatch.setattr(data_loader, "_WINDOW", 12)
    return Examples(examples_artifact(tmp_path), "train")


def indices(examples: Examples, seed: int, position: int, size: int, count: int) -> list[list[int]]:
    return [rows.index.tolist() for rows in islice(examples.batches(seed, position, size), count)]


def test_an_epoch_holds_every_example_once_and_the_next_has_another_order(examples: Examples) -> None:
    first, second = indices(examples, 1, 0, 40, 2)
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)


def test_the_order_depends_on_the_seed_alone(examples: Examples, tmp_path: Path) -> None:
    again = Examples(examples_artifact(tmp_path / "again"), "train")
    assert indices(examples, 1, 0, 10, 9) == indices(again, 1, 0, 10, 9)
    assert indices(examples, 1, 0, 10, 4) != indices(examples, 2, 0, 10, 4)


@pytest.mark.parametrize("position", [1, 7, 12, 39, 40, 41, 95])
def test_resuming_at_a_position_gives_the_batches_that_were_to_come(examples: Examples, position: int) -> None:
    whole = [index for rows in indices(examples, 3, 0, 7, 20) for index in rows]
    resumed = [index for rows in indices(examples, 3, position, 7, 4) for index in rows]
    assert resumed == whole[position : position + 28]


def test_resuming_reads_only_the_files_of_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loader, "_WINDOW", 4)
    artifact = examples_artifact(tmp_path, shards=10)
    assert artifact.manifest
    opened: list[str] = []
    real = Location.open
    monkeypatch.setattr(Location, "open", lambda file: opened.append(file.uri) or real(file))
    examples = Examples(artifact, "train")
    assert opened == []
    next(examples.batches(1, 39, 1))
    window = examples.windows(1, 0)[-1]
    assert len(opened) == len({examples._groups[group][0] for group in window}) < 3


def test_the_rows_of_an_index_are_those_of_the_file(examples: Examples) -> None:
    rows = next(examples.batches(5, 0, 40))
    third = rows.input_ids.values[rows.input_ids.offsets[:-1] + 1]
    assert third.tolist() == [5 + index % 90 for index in rows.index]


@pytest.mark.parametrize(("workers", "micro_batch_size"), [(1, 12), (2, 3), (3, 4), (5, 2), (12, 1)])
def test_any_workers_and_micro_batches_share_one_global_batch(
    examples: Examples, workers: int, micro_batch_size: int
) -> None:
    rows = next(examples.batches(1, 0, 12))
    shares = [share(rows, rank, workers, micro_batch_size) for rank in range(workers)]
    assert len({len(pieces) for pieces in shares}) == 1
    assert all(len(piece) <= micro_batch_size for pieces in shares for piece in pieces)
    counted = [piece for pieces in shares for piece in pieces if piece.counted]
    assert Counter(np.concatenate([piece.index for piece in counted]).tolist()) == Counter(rows.index.tolist())


def test_a_worker_without_rows_gets_one_that_counts_for_nothing(examples: Examples) -> None:
    rows = next(examples.batches(1, 0, 2))
    (idle,) = share(rows, 2, 3, 4)
    made = batch(idle)
    assert made.next_sentence_label.tolist() == [IGNORE_INDEX]
    assert made.counted.tolist() == [0]
    assert made.masked_lm_positions.numel() == 0


def test_a_batch_is_as_wide_as_its_longest_row_and_points_at_its_masks(examples: Examples) -> None:
    rows = next(examples.batches(1, 0, 12))
    made = batch(rows)
    lengths = rows.input_ids.lengths
    assert made.input_ids.shape == (12, lengths.max())
    assert made.attention_mask.sum(1).tolist() == lengths.tolist()
    assert (made.token_type_ids.sum(1) == made.attention_mask.sum(1) - 5).all()  # the second segment starts at 5
    assert (made.input_ids.flatten()[made.masked_lm_positions] == MASK).all()
    assert (made.input_ids == MASK).sum() == len(made.masked_lm_labels)
    assert not made.input_ids[made.attention_mask == 0].any()
    assert made.padded


def test_rows_of_one_length_are_known_to_have_no_padding(examples: Examples) -> None:
    rows = next(examples.batches(1, 0, 40))
    alike = batch(rows.take(np.flatnonzero(rows.input_ids.lengths == rows.input_ids.lengths[0])))
    assert len(alike.input_ids) > 1
    assert alike.attention_mask.all()
    assert alike.padded is False


def test_masks_that_are_not_stored_depend_on_seed_epoch_and_example_alone(tmp_path: Path) -> None:
    examples = Examples(examples_artifact(tmp_path, masked=False), "train")
    assert not examples.masked
    rules = mask_rules(PIECES, 0.15, 3)
    first, second = islice(examples.batches(1, 0, 40), 2)  # two epochs

    def masks(rows: data_loader.Rows, seed: int = 7) -> dict[int, tuple[list[int], list[int]]]:
        """Example -> its ids and labels, drawn in batches of five."""
        found = {}
        for piece in np.split(np.arange(40), 8):
            made = batch(rows.take(piece), data_loader.Masking(seed, rules))
            row_of = made.masked_lm_positions // made.input_ids.shape[1]
            for row, index in enumerate(rows.index[piece].tolist()):
                found[index] = (made.input_ids[row].tolist()[:8], made.masked_lm_labels[row_of == row].tolist())
        return found

    shuffled = first.take(np.random.default_rng(0).permutation(40))
    assert masks(first) == masks(shuffled)
    assert masks(first) != masks(second)
    assert masks(first) != masks(first, seed=8)
    assert all(1 <= len(labels) <= 3 for _, labels in masks(first).values())


def test_phases_of_one_objective_alone_make_a_model(tmp_path: Path) -> None:
    made = {name: examples_artifact(tmp_path / name, objective=name) for name in ("mlm", "mlm+nsp", "mlm+sop")}
    assert [data_loader.paired([artifact, artifact]) for artifact in made.values()] == [False, True, True]
    with pytest.raises(UserError, match=r"of the objectives mlm\+nsp, mlm\+sop; make those of all phases with one exa"):
        data_loader.paired([made["mlm+sop"], made["mlm+nsp"], made["mlm+sop"]])


def test_micro_batches_of_like_length_are_padded_less(examples: Examples) -> None:
    rows = next(examples.batches(1, 0, 40))

    def padding(pieces: list[data_loader.Rows]) -> float:
        masks = [batch(piece).attention_mask for piece in pieces]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    in_order = [rows.take(part) for part in np.array_split(np.arange(40), 10)]
    assert padding(share(rows, 0, 1, 4)) < 0.3 * padding(in_order)


@pytest.mark.parametrize("position", [0, 5, 12, 39, 41])
def test_in_groups_of_like_length_an_epoch_still_holds_every_example_once(examples: Examples, position: int) -> None:
    epoch, other = islice(examples.batches(1, 0, 40, group=4), 2)
    assert sorted(epoch.index) == sorted(other.index) == list(range(40))
    whole = [*epoch.index.tolist(), *other.index.tolist()]
    resumed = np.concatenate([rows.index for rows in islice(examples.batches(1, position, 5, group=4), 3)])
    assert resumed.tolist() == whole[position : position + 15]
    assert resumed.tolist() != np.concatenate(indices(examples, 1, position, 5, 3)).tolist()


def test_groups_hold_rows_of_like_length_and_come_in_random_order() -> None:
    lengths = np.random.default_rng(1).integers(5, 129, 1000)
    order = data_loader._order(lengths, np.random.default_rng(2), 8)
    assert sorted(order) == list(range(1000))
    groups = lengths[order].reshape(-1, 8)
    assert np.ptp(groups, axis=1).max() <= 6  # of 124 lengths, a group covers about one
    assert abs(np.corrcoef(np.arange(125), groups.mean(axis=1))[0, 1]) < 0.3
    assert (np.argsort(lengths[order], kind="stable") != np.arange(1000)).any()


def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    artifact = examples_artifact(tmp_path)
    file = artifact.files("train/")[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train/00001\.parquet: is damaged; run its stage again with --force"):
        next(Examples(artifact, "train").batches(1, 0, 40))


def test_fewer_examples_than_a_batch_is_an_error_of_one_line(examples: Examples) -> None:
    with pytest.raises(UserError, match=r"train: holds 40 examples, fewer than global_batch_size 41; lower it"):
        examples.batches(1, 0, 41)


def test_no_examples_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no heldout examples"):
        Examples(examples_artifact(tmp_path, heldout=0), "heldout")


def test_a_sample_is_the_same_each_time_and_all_there_is_if_that_is_less(examples: Examples) -> None:
    once, twice = (np.concatenate([rows.index for rows in examples.sample(0, 20, 6)]) for _ in range(2))
    assert once.tolist() == twice.tolist()
    assert len(set(once.tolist())) == 20
    assert [len(rows) for rows in examples.sample(0, 100, 12)] == [10, 10, 10, 10]


def test_prefetching_keeps_the_order_and_hands_on_the_error() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise OSError("gone")

    prefetched = Prefetched(numbers())
    assert list(islice(prefetched, 5)) == list(range(5))
    with pytest.raises(OSError, match="gone"):
        next(prefetched)
    prefetched.close()


def test_closing_ends_the_thread_that_prefetches() -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield 0

    prefetched = Prefetched(forever())
    next(prefetched)
    prefetched.close()
    assert not prefetched._thread.is_alive()
