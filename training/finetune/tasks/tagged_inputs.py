"""Sentences as words -> rows of token ids, and which of their positions stand for words that have a tag.

The first piece of a word carries its tag (section 5.3 of BERT's paper). Every word is predicted in exactly one row: a
sentence that is too long becomes several rows.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of
from cloze.pipeline.text.tokenizer import CLS, SEP
from cloze.training.finetune.tasks.tagged_files import TaggedSentence
from cloze.training.finetune.tasks.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class EncodedSentences:
    """The sentences of one split. Their words are numbered from 0; those without a piece are in no row."""

    texts: TextInputs
    words: Ragged  # of each row: the numbers of its words
    first_pieces: Ragged  # of each row: the positions of these words' first pieces
    targets: NDArray[np.int64]  # the index of each word's tag, -1 without one
    sentences: NDArray[np.int64]  # sentence i has the words from sentences[i] up to sentences[i + 1]

    @property
    def lengths(self) -> Ints:
        return self.texts.lengths


def encode_sentences(
    tokenizer: "Tokenizer",
    sentences: Sequence[TaggedSentence],
    targets: NDArray[np.int64],
    max_seq_length: int,
    document_context: bool,
) -> tuple[EncodedSentences, Counter[str]]:
    """The rows of a split's sentences, and the numbers of truncated and divided sentences and of words without pieces.

    `targets`: of all words. `document_context`: each row is filled with the words around it in its document, of which
    others than the sentence's have no tag here; otherwise with those of its sentence, if this is divided.
    """
    cls, sep = (np.array([tokenizer.token_to_id(piece)], np.int64) for piece in (CLS, SEP))
    room, counts = max_seq_length - 2, Counter[str](truncated=0, divided_sentences=0, words_without_pieces=0)
    pieces = _pieces_by_word(tokenizer, sentences)
    rows, words, first_pieces = list[NDArray[np.int64]](), list[Ints](), list[Ints]()
    base = 0  # the number of the document's first word
    for document in _documents(sentences):
        all_words = [word for sentence in document for word in sentence.words]
        offsets = offsets_of([min(len(pieces[word]), room) for word in all_words])  # of each word's pieces
        ids = np.fromiter(itertools.chain(*(pieces[word][:room] for word in all_words)), np.int64, offsets[-1])
        has_pieces = np.diff(offsets) > 0
        start = 0
        for sentence in document:
            stop = start + len(sentence.words)
            bounds = (0, len(all_words)) if document_context else (start, stop)
            parts = list(_parts(offsets, start, stop, room))
            counts["truncated"] += any(len(pieces[word]) > room for word in sentence.words)
            counts["divided_sentences"] += len(parts) > 1
            for part in parts:
                left, right = _with_context(offsets, part, bounds, room)
                inside = part[0] + np.flatnonzero(has_pieces[part[0] : part[1]])
                rows.append(np.concatenate([cls, ids[offsets[left] : offsets[right]], sep]))
                words.append(base + inside)
                first_pieces.append(1 + offsets[inside] - offsets[left])
            start = stop
        counts["words_without_pieces"] += int((~has_pieces).sum())
        base += len(all_words)
    ids_of_rows = _ragged(rows)
    texts = TextInputs(ids_of_rows, ids_of_rows.lengths)
    ends = offsets_of([len(sentence.words) for sentence in sentences])
    return EncodedSentences(texts, _ragged(words), _ragged(first_pieces), targets, ends), counts


def _pieces_by_word(tokenizer: "Tokenizer", sentences: Sequence[TaggedSentence]) -> dict[str, list[int]]:
    """The token ids of each distinct word by itself."""
    distinct = list(dict.fromkeys(word for sentence in sentences for word in sentence.words))
    encodings = tokenizer.encode_batch_fast(distinct, add_special_tokens=False)
    return {word: encoding.ids for word, encoding in zip(distinct, encodings, strict=True)}


def _documents(sentences: Sequence[TaggedSentence]) -> Iterator[list[TaggedSentence]]:
    """Yields the sentences of each document; a sentence whose document is unknown is one by itself."""
    keys = (number if one.document is None else str(one.document) for number, one in enumerate(sentences))
    for _, members in itertools.groupby(zip(keys, sentences, strict=True), key=lambda pair: pair[0]):
        yield [sentence for _, sentence in members]


def _parts(offsets: NDArray[np.int64], start: int, stop: int, room: int) -> Iterator[tuple[int, int]]:
    """Divides the words from `start` up to `stop` into parts of at most `room` pieces. Those without pieces are left
    out."""
    while start < stop:
        fitting = int(np.searchsorted(offsets, offsets[start] + room, side="right")) - 1
        end = min(fitting, stop)
        if offsets[end] > offsets[start]:
            yield start, end
        start = end


def _with_context(
    offsets: NDArray[np.int64], part: tuple[int, int], bounds: tuple[int, int], room: int
) -> tuple[int, int]:
    """Extends a part within `bounds` by whole words to at most `room` pieces, by equally many on both sides if there
    are."""
    first, last = (int(offsets[word]) for word in part)
    before, after = first - int(offsets[bounds[0]]), int(offsets[bounds[1]]) - last
    free = room - (last - first)
    left = min(before, max(free // 2, free - after))
    right = min(after, free - left)
    return (
        int(np.searchsorted(offsets, first - left, side="left")),
        int(np.searchsorted(offsets, last + right, side="right")) - 1,
    )


def _ragged(rows: Sequence[Ints]) -> Ragged:
    values = np.concatenate([np.empty(0, np.int64), *rows])
    return Ragged(values, offsets_of([len(row) for row in rows]))
