"""The accepted answers and the predicted answer of each question -> exact match and F1, as SQuAD's official scorers
of v1.1 (Rajpurkar et al. 2016) and v2.0 (Rajpurkar et al. 2018) compute them."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cloze.training.finetune.metrics.estimates import Estimate, bootstrap, proportion, require_one_each

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class QuestionScore(NamedTuple):
    """The scores of one predicted answer: the best over the question's accepted answers."""

    exact_match: bool
    f1: float


class AnswerScores(NamedTuple):
    """Exact match with its Wilson interval, and F1 with its bootstrap interval over questions."""

    exact_match: Estimate
    f1: Estimate


class SquadV2Scores(NamedTuple):
    """The scores of all questions, of those with and of those without an answer (None for no questions)."""

    overall: AnswerScores
    has_answer: AnswerScores | None
    no_answer: AnswerScores | None


def squad(answers: Sequence[Sequence[str]], predictions: Sequence[str]) -> AnswerScores:
    """Returns the scores of SQuAD v1.1. A question without a prediction has "" as its prediction.

    Raises ValueError when the numbers of questions and predictions differ, or a question has no accepted answer.
    """
    require_one_each(answers, predictions, "questions")
    return _mean([score_question(*pair) for pair in zip(answers, predictions, strict=True)])


def squad_v2(answers: Sequence[Sequence[str]], predictions: Sequence[str]) -> SquadV2Scores:
    """Returns the scores of SQuAD v2.0. A question without an answer has no accepted answers, and "" is the prediction
    that there is none. Raises ValueError when the numbers of questions and predictions differ."""
    require_one_each(answers, predictions, "questions")
    scores = [score_question_v2(*pair) for pair in zip(answers, predictions, strict=True)]
    groups: dict[bool, list[QuestionScore]] = {True: [], False: []}
    for accepted, score in zip(answers, scores, strict=True):
        groups[bool(accepted)].append(score)
    has_answer, no_answer = (_mean(group) if group else None for group in groups.values())
    return SquadV2Scores(_mean(scores), has_answer, no_answer)


def score_question(answers: Sequence[str], prediction: str) -> QuestionScore:
    """Returns the scores of one prediction in SQuAD v1.1, the best over the accepted answers."""
    if not answers:
        raise ValueError("a question has no accepted answer: SQuAD v1.1 requires one; only v2.0 allows none")
    predicted = normalize_answer(prediction)
    accepted = {normalize_answer(answer) for answer in answers}
    return QuestionScore(predicted in accepted, max(_token_f1(answer, predicted) for answer in accepted))


def score_question_v2(answers: Sequence[str], prediction: str) -> QuestionScore:
    """Returns the scores of one prediction in SQuAD v2.0, the best over the accepted answers that are not empty after
    normalization. Where there is none, a prediction is correct when it is empty after normalization."""
    if accepted := [answer for answer in answers if normalize_answer(answer)]:
        return score_question(accepted, prediction)
    is_empty = not normalize_answer(prediction)
    return QuestionScore(is_empty, float(is_empty))


def normalize_answer(text: str) -> str:
    """Returns the text in lower case without ASCII punctuation and English articles, words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _token_f1(answer: str, prediction: str) -> float:
    """F1 of the words, as multisets; 0 when both are empty."""
    answer_words, predicted_words = Counter(answer.split()), Counter(prediction.split())
    common = (answer_words & predicted_words).total()
    return 2 * common / (answer_words.total() + predicted_words.total()) if common else 0.0


def _mean(scores: Sequence[QuestionScore]) -> AnswerScores:
    count = len(scores)
    f1 = np.array([[score.f1] for score in scores])
    return AnswerScores(
        proportion(sum(score.exact_match for score in scores), count),
        bootstrap(f1, lambda sums: sums[:, 0] / count, value=sum(score.f1 for score in scores) / count),
    )
