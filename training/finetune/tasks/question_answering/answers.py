"""The start and end logits of all windows -> ranked answers to each question, and the official prediction files.

The ranking is that of BERT's run_squad.py. Three things are different:

The text of an answer is the context's own, from the first character of its first token to the last of its last.
run_squad.py has no character offsets: it aligns the tokens with the normalized words (get_final_text), returns whole
words where that fails, and writes any white space as one space.

The answer to a question without candidates is "" (in run_squad.py "empty", and with SQuAD v2.0 an error).

Logits of padding take no part in the ranking.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from cloze.pipeline.core.ragged import Ints, Ragged, ragged_ranges
from cloze.training.finetune.tasks.question_answering.squad_files import Question
from cloze.training.finetune.tasks.question_answering.windows import QuestionWindows

N_BEST = 20  # answers of a question, and start and end positions of a window that are combined
MAX_ANSWER_LENGTH = 30  # tokens

_WINDOWS_AT_A_TIME = 2048

Floats = NDArray[np.floating]


class RankedAnswer(NamedTuple):
    """An answer, context[start:end]; "" for no answer. Probabilities are relative to the question's other answers."""

    text: str
    probability: float
    start_logit: float
    end_logit: float
    start: int  # character of the context
    end: int


@dataclass(frozen=True)
class AnswersToQuestion:
    """The answers to a question, the best first, each text once.

    `null_odds`: the score of no answer minus that of the best answer; None where every question has an answer.
    """

    question_id: str
    ranked: list[RankedAnswer]
    null_odds: float | None

    @property
    def best(self) -> str:
        """The best answer, even if no answer ("") has a higher score; "" if no answer is possible."""
        return next((answer.text for answer in self.ranked if answer.text), "")

    def answer(self, null_threshold: float = 0.0) -> str:
        """The best answer, or "" when the null odds are over the threshold."""
        return "" if self.null_odds is not None and self.null_odds > null_threshold else self.best

    def probability(self, text: str) -> float:
        """The probability of an answer; 0 of one that is not among the ranked ones."""
        return next((answer.probability for answer in self.ranked if answer.text == text), 0.0)


def rank_answers(
    questions: Sequence[Question],
    windows: QuestionWindows,
    start_logits: Floats,
    end_logits: Floats,
    *,
    with_null: bool,
    n_best: int = N_BEST,
    max_answer_length: int = MAX_ANSWER_LENGTH,
) -> list[AnswersToQuestion]:
    """Returns the answers to each question. The logits are of all tokens of all windows, as `windows.ids.values`.

    `with_null`: questions may have no answer (SQuAD v2.0); its score is the lowest of [CLS] in a question's windows.
    `n_best`: the answers that are ranked, and the start and end positions of a window that are combined.
    """
    assert len(start_logits) == len(end_logits) == len(windows.ids.values)
    result = []
    for first, stop in _window_ranges(windows.questions, _WINDOWS_AT_A_TIME):
        candidates = _candidates(windows, range(first, stop), start_logits, end_logits, n_best, max_answer_length)
        begins = windows.ids.offsets[first:stop]
        nulls = _null_logits(windows.questions[first:stop], start_logits[begins], end_logits[begins])
        numbers = range(windows.questions[first], windows.questions[stop - 1] + 1)
        bounds = np.searchsorted(candidates.question, np.arange(numbers.start, numbers.stop + 1))
        for number, null, low, high in zip(numbers, nulls, bounds[:-1], bounds[1:], strict=True):
            question = questions[number]
            ranked = _distinct(candidates, range(low, high), question.context, null if with_null else None, n_best)
            result.append(_with_probabilities(question.id, ranked, null if with_null else None))
    return result


def prediction_files(answers: Sequence[AnswersToQuestion], null_threshold: float = 0.0) -> dict[str, bytes]:
    """Name -> content of the files that run_squad.py writes, which the official scorers read.

    predictions.json: id -> answer. nbest_predictions.json: id -> ranked answers. null_odds.json: id -> null odds, where
    questions may have no answer.
    """
    ranked = {
        one.question_id: [
            {name: getattr(answer, name) for name in ("text", "probability", "start_logit", "end_logit")}
            for answer in one.ranked
        ]
        for one in answers
    }
    files = {
        "predictions.json": {one.question_id: one.answer(null_threshold) for one in answers},
        "nbest_predictions.json": ranked,
    }
    if odds := {one.question_id: one.null_odds for one in answers if one.null_odds is not None}:
        files["null_odds.json"] = odds
    return {name: f"{json.dumps(content, indent=4, ensure_ascii=False)}\n".encode() for name, content in files.items()}


class NullThreshold(NamedTuple):
    """A threshold of the null odds, and the mean score of the answers with it."""

    threshold: float
    score: float


def best_null_threshold(
    answers: Sequence[AnswersToQuestion], scores: npt.ArrayLike, has_answer: npt.ArrayLike
) -> NullThreshold:
    """Returns the threshold of the null odds with the best mean score, as SQuAD v2.0's evaluation finds it.

    `scores`: of each question's `best`, such as its F1; `has_answer`: whether the question has one [questions]. Answers
    of questions without one score 0, and "" scores 1 there and 0 elsewhere. Raises ValueError without questions.

    The score is always that of the answers with this threshold. In the official evaluation it is not if questions have
    equal odds, nor if "" is best for all questions: its threshold is then 0, here it is below all odds.
    """
    if not answers:
        raise ValueError("there are no questions: a threshold has to be found on a split with some")
    odds = np.array([one.null_odds for one in answers], np.float64)
    is_answerable, has_text = np.asarray(has_answer, np.bool_), np.array([bool(one.best) for one in answers])
    gains = np.where(is_answerable, np.asarray(scores, np.float64), -has_text.astype(np.float64))
    order = np.argsort(odds, kind="stable")
    odds = odds[order]
    totals = (~is_answerable).sum() + np.concatenate([[0.0], np.cumsum(gains[order])])
    thresholds = np.concatenate([[np.nextafter(odds[0], -np.inf)], odds])
    is_last_of_equals = np.append(np.diff(thresholds) > 0, True)
    best = int(np.argmax(np.where(is_last_of_equals, totals, -np.inf)))
    return NullThreshold(float(thresholds[best]), float(totals[best] / len(answers)))


class _Candidates(NamedTuple):
    """Possible answers by question, the best first, equal ones in the order of their windows: [candidates] each."""

    question: Ints
    start_logit: Floats
    end_logit: Floats
    start: Ints
    end: Ints


class _NullLogits(NamedTuple):
    """The logits of [CLS] in the window of a question where their sum is lowest."""

    start: float
    end: float

    @property
    def score(self) -> float:
        return self.start + self.end


def _window_ranges(questions: Ints, size: int) -> Iterator[tuple[int, int]]:
    """Yields ranges of about `size` windows that begin and end at a question's first window."""
    begins = np.append(np.flatnonzero(np.diff(questions, prepend=-1)), len(questions))
    stop = 0
    while stop < len(questions):
        first = stop
        stop = int(begins[np.searchsorted(begins, min(first + size, len(questions)))])
        yield first, stop


def _candidates(
    windows: QuestionWindows, numbers: range, start_logits: Floats, end_logits: Floats, n_best: int, max_length: int
) -> _Candidates:
    """Combine the best start and end positions of each window where that is possible.

    A start must be where its token has its maximum context; both are in the context.
    """
    rows = np.arange(numbers.start, numbers.stop)
    start_positions, starts = _best_positions(windows.ids, rows, start_logits, n_best)  # [windows, n_best]
    end_positions, ends = _best_positions(windows.ids, rows, end_logits, n_best)
    context, lengths = windows.context_positions[rows, None], windows.context_lengths[rows, None]
    last = windows.ids.lengths[rows, None] - 1
    is_start = windows.has_max_context[windows.ids.offsets[rows, None] + np.minimum(start_positions, last)]
    is_start &= start_positions <= last
    is_end = (context <= end_positions) & (end_positions < context + lengths)
    length = end_positions[:, None, :] - start_positions[:, :, None]  # [windows, start, end], minus 1
    is_valid = is_start[:, :, None] & is_end[:, None, :] & (length >= 0) & (length < max_length)
    row, i, j = np.nonzero(is_valid)
    question, start, end = windows.questions[rows[row]], starts[row, i], ends[row, j]
    order = np.lexsort((-(start + end), question))  # stable
    row, i, j = row[order], i[order], j[order]
    spans = windows.character_spans(rows[row], start_positions[row, i], end_positions[row, j])
    return _Candidates(question[order], start[order], end[order], *spans)


def _best_positions(ids: Ragged, rows: Ints, logits: Floats, count: int) -> tuple[Ints, Floats]:
    """The positions with the highest logits in each of some rows, the first of equals first: [rows, count] each.

    A shorter row is filled up with positions after its end.
    """
    lengths = ids.lengths[rows]
    width = max(count, int(lengths.max()))
    padded = np.full((len(rows), width), -np.inf)  # in 64 bits: scores are sums of these
    tokens = ragged_ranges(ids.offsets[rows], lengths)
    padded.reshape(-1)[ragged_ranges(np.arange(len(rows)) * width, lengths)] = logits[tokens]
    order = np.argsort(-padded, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(padded, order, 1)


def _null_logits(questions: Ints, start_logits: Floats, end_logits: Floats) -> list[_NullLogits]:
    """The question and the logits of [CLS] of each window -> the lowest of each question; the first of equals."""
    starts, ends = start_logits.astype(np.float64), end_logits.astype(np.float64)
    order = np.lexsort((starts + ends, questions))
    lowest = order[np.flatnonzero(np.diff(questions[order], prepend=-1))]
    return [_NullLogits(*logits) for logits in zip(starts[lowest].tolist(), ends[lowest].tolist(), strict=True)]


def _distinct(
    candidates: _Candidates, rows: range, context: str, null: _NullLogits | None, n_best: int
) -> list[RankedAnswer]:
    """Returns the best candidates of a question, each text once, and no answer ("") if `null` is set; without
    probabilities.

    No answer comes after answers with the same score, and is added at the end if it is not among the `n_best`.
    """
    ranked, texts = list[RankedAnswer](), set[str]()
    nothing = [] if null is None else [RankedAnswer("", 0.0, null.start, null.end, 0, 0)]
    for row in rows:
        if len(ranked) == n_best:
            break
        start_logit, end_logit = float(candidates.start_logit[row]), float(candidates.end_logit[row])
        if null and nothing and start_logit + end_logit < null.score:
            ranked.append(nothing.pop())
            if len(ranked) == n_best:
                break
        start, end = int(candidates.start[row]), int(candidates.end[row])
        if (text := context[start:end]) and text not in texts:  # a token of white space alone has no characters
            texts.add(text)
            ranked.append(RankedAnswer(text, 0.0, start_logit, end_logit, start, end))
    return ranked + nothing


def _with_probabilities(question_id: str, ranked: list[RankedAnswer], null: _NullLogits | None) -> AnswersToQuestion:
    """Returns the answers with their probabilities, the softmax of their scores, and the null odds."""
    ranked = ranked or [RankedAnswer("", 0.0, 0.0, 0.0, 0, 0)]
    scores = [answer.start_logit + answer.end_logit for answer in ranked]
    weights = [math.exp(score - max(scores)) for score in scores]
    total = sum(weights)
    ranked = [answer._replace(probability=weight / total) for answer, weight in zip(ranked, weights, strict=True)]
    best = next((answer for answer in ranked if answer.text), RankedAnswer("", 0.0, 0.0, 0.0, 0, 0))
    odds = null.score - best.start_logit - best.end_logit if null else None
    return AnswersToQuestion(question_id, ranked, odds)
