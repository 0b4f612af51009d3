"""Masked-LM corruption. That it equals the reference draw for draw is tested with the pairs, in test_pairs.py."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.pipeline.core.keyed_random import hash64
from cloze.pipeline.text.masking import KeyedMaskDraws, MaskedBatch, MaskRules, MaskUnit, mask_batch, mask_rules

CLS, SEP, MASK, VOCAB = 2, 3, 4, 1000
CONTINUES = 500  # ids from here on go on with a word


def rules(unit: MaskUnit = "token", **changed: Any) -> MaskRules:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"p{i}" for i in range(5, CONTINUES))]
    pieces += [f"##p{i}" for i in range(CONTINUES, VOCAB)]
    return mask_rules(pieces, **{"masked_lm_prob": 0.15, "max_predictions_per_seq": 20, **changed}, unit=unit)


def batch(rows: int, width: int = 128, seed: int = 0, shortest: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] a [SEP] b [SEP] of random pieces and lengths, zeros behind."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(shortest, width + 1, rows)
    ids = draw.integers(5, VOCAB, (rows, width)).astype(np.uint16)
    ids[:, 0], ids[:, min(5, width // 2)], ids[np.arange(rows), lengths - 1] = CLS, SEP, SEP
    ids[np.arange(width) >= lengths[:, None]] = 0
    return ids, lengths


def masked(ids: np.ndarray, lengths: np.ndarray, some: MaskRules, epoch: int = 0) -> MaskedBatch:
    keys = hash64(1, epoch, np.arange(len(ids)))
    return mask_batch(ids, lengths, KeyedMaskDraws(keys, VOCAB), some)


@pytest.mark.parametrize("unit", ["token", "word", "ngram"])
def test_special_tokens_and_padding_are_never_masked(unit):
    ids, lengths = batch(500)
    result = masked(ids, lengths, rules(unit))
    special = (ids == CLS) | (ids == SEP) | (np.arange(128) >= lengths[:, None])
    assert (result.input_ids[special] == ids[special]).all()
    used = np.arange(20) < result.counts[:, None]
    assert not special[np.nonzero(used)[0], result.positions[used]].any()


@pytest.mark.parametrize(
    ("length", "limit", "count"), [(5, 20, 1), (10, 20, 2), (30, 20, 4), (50, 20, 8), (128, 19, 19), (128, 20, 19)]
)
def test_the_number_of_masked_pieces_is_that_of_the_reference(length, limit, count):
    """min(limit, max(1, round(0.15 * length))), halves to even as Python rounds: 1.5 -> 2, 4.5 -> 4, 7.5 -> 8."""
    ids, _ = batch(1, width=length, shortest=length)
    result = masked(ids, np.array([length]), rules(max_predictions_per_seq=limit))
    assert result.counts.tolist() == [count]


def test_labels_are_the_original_ids_and_all_other_ids_are_unchanged():
    ids, lengths = batch(500)
    before = ids.copy()
    result = masked(ids, lengths, rules())
    assert (ids == before).all()
    restored = result.input_ids.copy()
    for row, count in enumerate(result.counts):
        positions = result.positions[row, :count]
        assert (np.diff(positions) > 0).all()
        assert (result.labels[row, :count] == ids[row, positions]).all()
        assert not result.positions[row, count:].any()
        restored[row, positions] = result.labels[row, :count]
    assert (restored == ids).all()
    assert result.input_ids.dtype == ids.dtype


@pytest.mark.parametrize("unit", ["token", "word", "ngram"])
def test_chosen_pieces_are_masked_kept_and_replaced_80_10_10(unit):
    """About 38,000 pieces: three standard deviations of the shares are 0.006 and 0.005."""
    ids, lengths = batch(4000)
    result = masked(ids, lengths, rules(unit))
    used = np.arange(20) < result.counts[:, None]
    now = result.input_ids[np.nonzero(used)[0], result.positions[used]]
    labels = result.labels[used]
    assert len(labels) > 35_000
    assert np.mean(now == MASK) == pytest.approx(0.8 + 0.1 / VOCAB, abs=0.007)
    assert np.mean(now == labels) == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.005)
    replaced = now[(now != MASK) & (now != labels)]
    assert np.mean(replaced) == pytest.approx(VOCAB / 2, rel=0.03)  # uniform over all ids, special ones included
    assert replaced.min() < 5 or len(np.unique(replaced)) > VOCAB * 0.95


def test_every_piece_is_chosen_equally_often():
    """Each of 60 positions 3,000 times in expectation, give or take 51: five deviations."""
    ids, lengths = np.full((20_000, 63), 7), np.full(20_000, 63)
    ids[:, 0], ids[:, 30], ids[:, 62] = CLS, SEP, SEP
    result = masked(ids, lengths, rules())
    chosen = np.bincount(result.positions.reshape(-1), minlength=63)
    ordinary = np.delete(chosen, [0, 30, 62])
    assert result.counts.sum() == 9 * 20_000
    assert ordinary == pytest.approx(3000, abs=255)


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_whole_words_are_chosen_whole(unit):
    ids, lengths = batch(500)
    result = masked(ids, lengths, rules(unit))
    for row in range(len(ids)):
        chosen = set(result.positions[row, : result.counts[row]].tolist())
        for position in range(2, lengths[row]):
            if ids[row, position] >= CONTINUES and ids[row, position - 1] not in (CLS, SEP):
                assert (position in chosen) == (position - 1 in chosen)


def test_a_word_with_too_many_pieces_is_skipped():
    ids = np.array([[CLS, 7, 600, 601, 602, SEP, 8, SEP]])
    for epoch in range(30):
        result = masked(ids, np.array([8]), rules("word"), epoch)
        assert result.positions[0, : result.counts[0]].tolist() == [6]  # of two words of four and one piece, one piece


def test_pieces_without_a_word_that_fits_are_not_masked():
    ids = np.array([[CLS, 7, 600, SEP, 601, SEP]])  # one word of three pieces: that behind [SEP] goes on with it
    assert masked(ids, np.array([6]), rules("word")).counts.tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["token", "word", "ngram"]))
def test_a_row_is_masked_the_same_in_any_batch_and_at_any_width(seed, unit):
    ids, lengths = batch(12, width=64, seed=seed)
    keys = hash64(seed, np.arange(12))
    whole = mask_batch(ids, lengths, KeyedMaskDraws(keys, VOCAB), rules(unit))
    some = np.random.default_rng(seed).permutation(12)[:5]
    wider = np.pad(ids[some], ((0, 0), (0, 40)))
    part = mask_batch(wider, lengths[some], KeyedMaskDraws(keys[some], VOCAB), rules(unit))
    assert (part.input_ids[:, :64] == whole.input_ids[some]).all()
    assert (part.positions == whole.positions[some]).all()
    assert (part.labels == whole.labels[some]).all()


def test_another_epoch_has_other_masks_and_the_same_one_the_same():
    ids, lengths = batch(50, shortest=60)
    first, again, other = (masked(ids, lengths, rules(), epoch) for epoch in (0, 0, 1))
    assert (first.input_ids == again.input_ids).all()
    assert (first.positions != other.positions).any(axis=1).all()


def plain(rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Words of one piece each, a [SEP] in the middle."""
    ids, lengths = np.full((rows, length), 7), np.full(rows, length)
    ids[:, 0], ids[:, length // 2], ids[:, -1] = CLS, SEP, SEP
    return ids, lengths


def runs(result: MaskedBatch) -> list[int]:
    """The lengths of the runs of neighbours that were chosen."""
    found = []
    for positions, count in zip(result.positions, result.counts, strict=True):
        cuts = np.flatnonzero(np.diff(positions[:count]) > 1) + 1
        found += [len(run) for run in np.split(positions[:count], cuts)]
    return found


def test_ngrams_are_of_one_to_three_words_six_three_and_two_times_in_eleven():
    """Masking 2 % of 1,000 words, runs hardly ever touch. 20,000 draws: three deviations of the shares are 0.011."""
    ids, lengths = plain(800, 1001)
    result = masked(ids, lengths, rules("ngram", masked_lm_prob=0.02, max_predictions_per_seq=40))
    assert (result.counts == 20).all()
    spans = KeyedMaskDraws(hash64(1, np.arange(20)), VOCAB).span_lengths(1000, 3)
    assert [np.mean(spans == length) for length in (1, 2, 3)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.011)
    found = np.bincount(runs(result))
    shares = found[1:4] / found.sum()  # the last of a row is cut to what is left, and some touch
    assert shares == pytest.approx([0.55, 0.26, 0.15], abs=0.06)


def test_an_ngram_never_reaches_over_a_sep():
    """Three words apart, two of them chosen: any two as often. Over a [SEP] it would be 0.26. Deviation: 0.006."""
    ids, lengths = np.full((6000, 7), 7), np.full(6000, 7)
    ids[:, ::2] = SEP  # [SEP] a [SEP] b [SEP] c [SEP]
    result = masked(ids, lengths, rules("ngram", masked_lm_prob=0.3))
    assert (result.counts == 2).all()
    apart = (result.positions[:, 0] == 1) & (result.positions[:, 1] == 5)
    assert np.mean(apart) == pytest.approx(1 / 3, abs=0.03)
