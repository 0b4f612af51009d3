"""Questions -> [CLS] question [SEP] part of the context [SEP]: windows that slide over long contexts.

The windows are those of BERT's run_squad.py: `doc_stride` is the step from one window to the next, in tokens. (In
transformers, a stride is the overlap of two windows.) Two things are different:

The tokens of an answer are those that overlap its characters. run_squad.py knows the words between white space only. It
searches the words for the first tokens that equal the answer's, and takes the whole words if there are none. Both find
the same in 99.6 % of SQuAD's training answers. The others are parts of words: for "3" in "23,", here "23", there
"23 ,". In Chinese, a word without white space is a whole paragraph, and the first tokens may be at another place.

A context without tokens has one window, so that every question gets an answer.
"""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of, ragged_ranges
from cloze.training.finetune.tasks.question_answering.squad_files import Question
from cloze.training.finetune.tasks.special_tokens import SpecialTokens

_BATCH = 1024  # texts that are tokenized at a time
_CONTEXT_WEIGHT = 0.01  # of a window's length in the score of a token's context, as in run_squad.py


class SpanTokens(NamedTuple):
    """Texts as token ids. `starts` and `ends` are the characters [start, end) of each token within its text."""

    ids: Ragged
    starts: Ints  # [tokens of all texts]
    ends: Ints  # [tokens of all texts]


@dataclass(frozen=True)
class QuestionWindows:
    """The windows of all questions, those of a question one after another; every question has at least one.

    A position counts the tokens of a window from 0; position 0 is [CLS], which stands for no answer.
    """

    ids: Ragged  # token ids of each window
    questions: Ints  # [windows]: index of the question
    context_positions: Ints  # [windows]: position of the first token of the context
    context_lengths: Ints  # [windows]: number of tokens of the context
    first_tokens: Ints  # [windows]: index of the first token of the context in token_starts and token_ends
    token_starts: Ints  # [tokens of all contexts]: a token's first character in its context
    token_ends: Ints  # [tokens of all contexts]: the character after its last
    has_max_context: NDArray[np.bool_]  # [tokens of all windows], as ids.values; false for tokens of no context
    start_positions: Ints  # [windows]: first token of the question's first answer; 0 if not all of it is in this window
    end_positions: Ints  # [windows]: last token of the answer, or 0
    truncated_questions: int  # number of questions that are longer than max_query_length
    answers_without_tokens: int  # number of answers whose characters the tokenizer removes: they are in no window

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each window."""
        return self.ids.lengths

    @property
    def segment_ids(self) -> Ragged:
        """0 for [CLS] question [SEP], 1 for the context and its [SEP], as `ids`."""
        lengths = self.ids.lengths
        positions = ragged_ranges(np.zeros(len(lengths)), lengths)
        return Ragged((positions >= np.repeat(self.context_positions, lengths)).astype(np.int32), self.ids.offsets)

    def character_spans(self, windows: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """Positions of first and last tokens in windows -> the characters [start, end) of the contexts."""
        first = self.first_tokens[windows] - self.context_positions[windows]
        return self.token_starts[first + starts], self.token_ends[first + ends]


def build_windows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
) -> QuestionWindows:
    """Returns the windows of questions. A question keeps its first `max_query_length` tokens.

    Raises UserError when a window has no room for the context.
    """
    before, between, after = SpecialTokens.of(tokenizer)
    special = len(before) + len(between) + len(after)
    if max_seq_length <= max_query_length + special:
        raise UserError(
            f"max_seq_length {max_seq_length} has no room for a context after a question of max_query_length "
            f"{max_query_length} and {special} special tokens; set it to more than {max_query_length + special}"
        )
    contexts = {context: index for index, context in enumerate(dict.fromkeys(q.context for q in questions))}
    tokens = tokenize_with_spans(list(contexts), tokenizer)
    context_of = np.array([contexts[question.context] for question in questions], np.int64)
    question_ids, truncated = _question_ids(questions, tokenizer, max_query_length)

    token_counts = tokens.ids.lengths[context_of]
    room = max_seq_length - special - question_ids.lengths
    question, starts, lengths = _slide(token_counts, room, doc_stride)
    first_tokens = tokens.ids.offsets[:-1][context_of[question]] + starts
    parts = [
        before,
        question_ids.take(question),
        between,
        Ragged(tokens.ids.values[ragged_ranges(first_tokens, lengths)], offsets_of(lengths)),
        after,
    ]
    ids = _concatenate_rows(parts, len(question))
    context_positions = len(before) + question_ids.lengths[question] + len(between)
    has_max_context = np.zeros(len(ids.values), np.bool_)
    has_max_context[ragged_ranges(ids.offsets[:-1] + context_positions, lengths)] = _max_context(
        question, starts, lengths, token_counts
    )
    first, last, without_tokens = _answer_tokens(questions, tokens, context_of, list(contexts))
    first, last = first[question] - first_tokens, last[question] - first_tokens  # within the window's context
    inside = (first >= 0) & (first <= last) & (last < lengths)
    return QuestionWindows(
        ids,
        question,
        context_positions,
        lengths,
        first_tokens,
        tokens.starts,
        tokens.ends,
        has_max_context,
        start_positions=np.where(inside, context_positions + first, 0),
        end_positions=np.where(inside, context_positions + last, 0),
        truncated_questions=truncated,
        answers_without_tokens=without_tokens,
    )


def tokenize_with_spans(texts: Sequence[str], tokenizer: Tokenizer) -> SpanTokens:
    """Texts -> their tokens with the characters of each.

    A token's span has no white space at its ends (SentencePiece includes it), and includes the combining marks after
    its last character: an accent that the tokenizer strips belongs to its letter.
    """
    batches = [_tokenize_batch(texts[i : i + _BATCH], tokenizer) for i in range(0, max(len(texts), 1), _BATCH)]
    ids, starts, ends = zip(*batches, strict=True)
    return SpanTokens(Ragged.concatenate(ids), np.concatenate(starts), np.concatenate(ends))


def _tokenize_batch(texts: Sequence[str], tokenizer: Tokenizer) -> SpanTokens:
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = _ragged([encoding.ids for encoding in encodings])
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(encoding.offsets for encoding in encodings))
    spans = np.fromiter(flat, np.int64, 2 * len(ids.values)).reshape(-1, 2)
    bounds = offsets_of([len(text) for text in texts])  # of the texts in their concatenation
    begins, text_ends = np.repeat(bounds[:-1], ids.lengths), np.repeat(bounds[1:], ids.lengths)
    starts, ends = spans[:, 0] + begins, spans[:, 1] + begins

    characters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    is_space, is_mark = _has_property(characters, str.isspace), _has_property(characters, _is_mark)
    if is_space.any() and len(spans):
        starts = np.minimum(_next_false(is_space)[starts], ends)
        before_end = len(characters) - 1 - (ends - 1)  # in the reversed texts
        ends = np.maximum(len(characters) - _next_false(is_space[::-1])[before_end], starts)
    if is_mark.any() and len(spans):
        limits = np.minimum(text_ends, np.append(starts[1:], len(characters)))  # not into the next token
        ends = np.maximum(ends, np.minimum(_next_false(is_mark)[ends], limits))
    return SpanTokens(ids, starts - begins, ends - begins)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _has_property(characters: NDArray[np.uint32], has: Callable[[str], bool]) -> NDArray[np.bool_]:
    """Whether each code point has a property; `has` is called once per distinct code point."""
    counts = np.bincount(characters, minlength=1)
    table = np.zeros(len(counts), np.bool_)
    distinct = np.flatnonzero(counts)
    table[distinct] = [has(chr(point)) for point in distinct]
    return table[characters]


def _next_false(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns, for each i, the first index from i on whose flag is false: [flags + 1]."""
    candidates = np.append(np.where(flags, len(flags), np.arange(len(flags))), len(flags))
    return np.minimum.accumulate(candidates[::-1])[::-1]


def _question_ids(questions: Sequence[Question], tokenizer: Tokenizer, max_length: int) -> tuple[Ragged, int]:
    """Returns the token ids of each question, truncated to `max_length`, and the number of questions truncated."""
    texts = [question.text for question in questions]
    rows, truncated = list[list[int]](), 0
    for i in range(0, len(texts), _BATCH):
        for encoding in tokenizer.encode_batch_fast(texts[i : i + _BATCH], add_special_tokens=False):
            truncated += len(encoding.ids) > max_length
            rows.append(encoding.ids[:max_length])
    return _ragged(rows), truncated


def _slide(token_counts: Ints, room: Ints, doc_stride: int) -> tuple[Ints, Ints, Ints]:
    """The number of tokens of each question's context, and of those that fit into its windows -> the windows.

    Returns the question of each window, its first token within the context, and its number of the context's tokens.
    """
    step = np.minimum(room, doc_stride)
    counts = 1 + np.maximum(0, -(-(token_counts - room) // step))
    question = np.repeat(np.arange(len(counts)), counts)
    starts = ragged_ranges(np.zeros(len(counts)), counts) * step[question]
    return question, starts, np.minimum(room[question], token_counts[question] - starts)


def _max_context(question: Ints, starts: Ints, lengths: Ints, token_counts: Ints) -> NDArray[np.bool_]:
    """Whether each token of each window's context has its maximum context in this window: [sum of lengths].

    That is the window with the highest score: the smaller of the numbers of tokens on the left and right, plus 0.01 for
    each token of the window's context; the first of windows with equal scores.
    """
    result = np.ones(lengths.sum(), np.bool_)
    rows = np.flatnonzero(np.bincount(question, minlength=len(token_counts))[question] > 1)
    window = np.repeat(rows, lengths[rows])
    position = ragged_ranges(np.zeros(len(rows)), lengths[rows])
    score = np.minimum(position, lengths[window] - 1 - position) + _CONTEXT_WEIGHT * lengths[window]
    token = offsets_of(token_counts)[question[window]] + starts[window] + position
    order = np.lexsort((-score, token))  # stable: the first window of equals
    is_best = np.zeros(len(order), np.bool_)
    is_best[order[np.diff(token[order], prepend=-1) > 0]] = True
    result[ragged_ranges(offsets_of(lengths)[rows], lengths[rows])] = is_best
    return result


def _answer_tokens(
    questions: Sequence[Question], tokens: SpanTokens, context_of: Ints, contexts: Sequence[str]
) -> tuple[Ints, Ints, int]:
    """Returns the first and last token of each question's first answer, as indices in the tokens of all contexts, and
    the number of answers without tokens. For these and for no answer, the last token is before the first.
    """
    has_answer = np.array([bool(question.answers) for question in questions], np.bool_)
    answers = [question.answers[0] for question in questions if question.answers]
    begins = offsets_of([len(context) for context in contexts])  # of the contexts in one concatenated text
    token_begins = np.repeat(begins[:-1], tokens.ids.lengths)
    context_begins = begins[context_of[has_answer]]
    first, last = np.zeros(len(questions), np.int64), np.full(len(questions), -1)
    first[has_answer] = np.searchsorted(
        tokens.ends + token_begins, context_begins + [answer.start for answer in answers], side="right"
    )
    last[has_answer] = (
        np.searchsorted(tokens.starts + token_begins, context_begins + [answer.end for answer in answers]) - 1
    )
    return first, last, int((first > last)[has_answer].sum())


def _ragged(rows: Sequence[list[int]]) -> Ragged:
    offsets = offsets_of([len(row) for row in rows])
    return Ragged(np.fromiter(itertools.chain.from_iterable(rows), np.int32, offsets[-1]), offsets)


def _concatenate_rows(parts: Sequence[Ragged | list[int]], count: int) -> Ragged:
    """Row i of the result is row i of each part, in their order; a list is the same in each of the `count` rows."""
    columns = [part if isinstance(part, Ragged) else _ragged([part] * count) for part in parts]
    lengths = [column.lengths for column in columns]
    offsets = offsets_of(functools.reduce(np.add, lengths))
    values, begins = np.empty(offsets[-1], np.int32), offsets[:-1].copy()
    for column, length in zip(columns, lengths, strict=True):
        values[ragged_ranges(begins, length)] = column.values
        begins += length
    return Ragged(values, offsets)
