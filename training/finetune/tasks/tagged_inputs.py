"""Sentences as words -> rows of token ids, and the positions of the words whose tags a row predicts.

The first piece of a word carries its tag (section 5.3 of BERT's paper). Every word is predicted in exactly one row: a
sentence that is too long becomes several rows.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.finetune.tasks.tagged_files import TaggedSentence
from cloze.training.vectors.text_inputs import TextInputs

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

    `targets`: those of all words. `document_context`: each row is filled with the words around it in its document,
    whose tags other rows predict. Without it, only the rows of a divided sentence are, with words of that sentence.
    """
    special = SpecialTokens.of(tokenizer)
    before, after = np.array(special.before, np.int64), np.array(special.after, np.int64)
    room = max_seq_length - special.count(1)
    counts = Counter[str](truncated=0, divided_sentences=0, words_without_pieces=0)
    pieces = _pieces_by_word(tokenizer, sentences)
    rows, words, first_pieces = list[NDArray[np.int64]](), list[Ints](), list[Ints]()
    first_word = 0  # the number of the document's first word
    for sentences_of_document in _documents(sentences):
        document = _Document(sentences_of_document, pieces, room)
        for start, stop in document.bounds:
            parts = list(document.parts(start, stop))
            for part in parts:
                left, right = document.with_context(part, document.whole if document_context else (start, stop))
                rows.append(np.concatenate([before, document.ids_of(left, right), after]))
                in_row = document.words_with_pieces(*part)
                words.append(first_word + in_row)
                first_pieces.append(len(before) + document.offsets[in_row] - document.offsets[left])
            counts["divided_sentences"] += len(parts) > 1
        counts["truncated"] += sum(
            any(len(pieces[word]) > room for word in sentence.words) for sentence in sentences_of_document
        )
        counts["words_without_pieces"] += len(document.words) - len(document.words_with_pieces(*document.whole))
        first_word += len(document.words)
    ids = _ragged(rows)
    ends = offsets_of([len(sentence.words) for sentence in sentences])
    texts = TextInputs(ids, ids.lengths)
    return EncodedSentences(texts, _ragged(words), _ragged(first_pieces), targets, ends), counts


class _Document:
    """The words of a document, numbered from 0, with their pieces: at most `room` of each word."""

    def __init__(self, sentences: Sequence[TaggedSentence], pieces: Mapping[str, Sequence[int]], room: int) -> None:
        self.room = room
        self.words = [word for sentence in sentences for word in sentence.words]
        self.whole = 0, len(self.words)
        self.bounds = list(itertools.pairwise(offsets_of([len(sentence.words) for sentence in sentences]).tolist()))
        self.offsets = offsets_of([min(len(pieces[word]), room) for word in self.words])  # of each word's pieces
        all_pieces = itertools.chain(*(pieces[word][:room] for word in self.words))
        self.ids = np.fromiter(all_pieces, np.int64, self.offsets[-1])

    def ids_of(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.ids[self.offsets[start] : self.offsets[stop]]

    def words_with_pieces(self, start: int, stop: int) -> Ints:
        """The numbers of the words from `start` up to `stop` that have pieces."""
        return start + np.flatnonzero(np.diff(self.offsets[start : stop + 1]))

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Divides the words from `start` up to `stop` into parts that fit into a row. Parts without pieces are left
        out."""
        while start < stop:
            fitting = int(np.searchsorted(self.offsets, self.offsets[start] + self.room, side="right")) - 1
            end = min(fitting, stop)
            if self.offsets[end] > self.offsets[start]:
                yield start, end
            start = end

    def with_context(self, part: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
        """Extends a part within `bounds` by whole words as far as a row has room, on both sides equally if possible."""
        first, last = (int(self.offsets[word]) for word in part)
        before, after = first - int(self.offsets[bounds[0]]), int(self.offsets[bounds[1]]) - last
        free = self.room - (last - first)
        left = min(before, max(free // 2, free - after))
        right = min(after, free - left)
        return (
            int(np.searchsorted(self.offsets, first - left, side="left")),
            int(np.searchsorted(self.offsets, last + right, side="right")) - 1,
        )


def _pieces_by_word(tokenizer: "Tokenizer", sentences: Sequence[TaggedSentence]) -> dict[str, list[int]]:
    """The token ids of each distinct word by itself, after a space, which is a part of it in byte-level tokens."""
    distinct = list(dict.fromkeys(word for sentence in sentences for word in sentence.words))
    encodings = tokenizer.encode_batch_fast([f" {word}" for word in distinct], add_special_tokens=False)
    return {word: encoding.ids for word, encoding in zip(distinct, encodings, strict=True)}


def _documents(sentences: Sequence[TaggedSentence]) -> Iterator[list[TaggedSentence]]:
    """Yields the sentences of each document; a sentence whose document is unknown is one by itself."""
    keys = (number if one.document is None else str(one.document) for number, one in enumerate(sentences))
    for _, members in itertools.groupby(zip(keys, sentences, strict=True), key=lambda pair: pair[0]):
        yield [sentence for _, sentence in members]


def _ragged(rows: Sequence[Ints]) -> Ragged:
    values = np.concatenate([np.empty(0, np.int64), *rows])
    return Ragged(values, offsets_of([len(row) for row in rows]))
