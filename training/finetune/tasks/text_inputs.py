"""Texts and pairs of texts -> token ids, for BERT [CLS] a [SEP] b [SEP]."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ragged, offsets_of
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.vectors.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def encode_texts(
    tokenizer: "Tokenizer", first: Sequence[str], second: Sequence[str] | None, max_seq_length: int
) -> tuple[TextInputs, int]:
    """The inputs of texts, or of pairs of texts, and the number of those that were truncated.

    A pair that is too long loses tokens from the end of its longer text, one at a time, as in BERT's run_classifier.py.
    """
    special = SpecialTokens.of(tokenizer)
    encoded = [
        [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        for texts in (first, second)
        if texts is not None
    ]
    room, truncated = max_seq_length - special.count(len(encoded)), 0
    if room < 0:
        raise UserError(f"max_seq_length {max_seq_length} has no room for special tokens; raise it")
    rows, segment_b = list[list[int]](), list[int]()
    for texts in zip(*encoded, strict=True):
        lengths = kept_lengths([len(ids) for ids in texts], room)
        truncated += sum(map(len, texts)) > room
        a, *b = (ids[:length] for ids, length in zip(texts, lengths, strict=True))
        start = [*special.before, *a, *(special.between if b else special.after)]
        rows.append([*start, *b[0], *special.after] if b else start)
        segment_b.append(len(start))
    offsets = offsets_of(np.array([len(row) for row in rows], np.int64))
    ids = Ragged(np.fromiter(itertools.chain(*rows), np.int64, offsets[-1]), offsets)
    return TextInputs(ids, np.array(segment_b, np.int64)), truncated


def kept_lengths(lengths: Sequence[int], room: int) -> list[int]:
    """The lengths of one or two texts after tokens are removed from the end of the longer one until `room` is enough.

    Of two texts of equal length the second is shortened first.
    """
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    a, b = lengths
    if a + b <= room:
        return [a, b]
    half = room // 2
    if a <= half:
        return [a, room - a]
    if b <= half:
        return [room - b, b]
    return [room - half, half]
