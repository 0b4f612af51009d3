"""Texts and pairs of texts as the model's inputs."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.text_inputs import encode_texts, kept_lengths

TOKENIZER = build_tokenizer([*SPECIAL_TOKENS, "red", "blue", "green"])
LENGTHS = st.integers(0, 300)


@given(LENGTHS, LENGTHS, LENGTHS)
def test_a_pair_that_is_too_long_loses_tokens_of_its_longer_text(first: int, second: int, room: int) -> None:
    expected = [first, second]
    while sum(expected) > room:  # as in run_classifier.py, one token at a time
        expected[0 if expected[0] > expected[1] else 1] -= 1
    assert kept_lengths([first, second], room) == expected


@given(LENGTHS, LENGTHS)
def test_a_text_that_is_too_long_loses_its_end(length: int, room: int) -> None:
    assert kept_lengths([length], room) == [min(length, room)]


def test_a_pair_has_two_segments_and_is_padded_to_the_longest_row() -> None:
    texts, truncated = encode_texts(TOKENIZER, ["red red", "blue"], ["green", "green " * 9], max_seq_length=8)
    assert truncated == 1 and texts.lengths.tolist() == [6, 8]
    input_ids, token_type_ids, attention_mask = texts.batch(np.array([0, 1]), torch.device("cpu"))
    assert input_ids.tolist() == [[2, 5, 5, 3, 7, 3, 0, 0], [2, 6, 3, 7, 7, 7, 7, 3]]
    assert token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert attention_mask.int().tolist() == [[1] * 6 + [0] * 2, [1] * 8]
