"""Logits -> ranked answers, null odds and files: those of run_squad.py, with the context's own characters."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer
from cloze.training.finetune.tasks.question_answering import answers as answers_module
from cloze.training.finetune.tasks.question_answering.answers import (
    AnswersToQuestion,
    Floats,
    RankedAnswer,
    best_null_threshold,
    prediction_files,
    rank_answers,
)
from cloze.training.finetune.tasks.question_answering.squad_files import Answer, Question, read_questions
from cloze.training.finetune.tasks.question_answering.windows import QuestionWindows, build_windows
from tests.golden import published_vocabulary, unpack
from tests.paths import SHARED
from tests.training import run_squad_reference as reference

UNCASED = build_tokenizer(published_vocabulary())
DEV = SHARED / "data/finetune/squad/dev-v1.1.json"
CHUNKS = ["the", "Super-Bowl", "(1895-1943).", "naïve", "cafe\u0301,", "中国人民", "2.5%", "한국", "a", "a", "electron"]


def asked(number: int, context: str, answers: tuple[Answer, ...] = ()) -> Question:
    return Question(f"q{number}", "Who won it?", context, answers, "")


def expected(
    question: Question,
    rows: list[tuple[Floats, Floats]],
    sizes: tuple[int, int],
    with_null: bool,
    best: tuple[int, int],
) -> tuple[reference.Ranked, list[float], float | None]:
    """The reference's answers. Its texts are those between the tokenizer's offsets, with the accents after them."""
    spans = UNCASED.encode(question.context, add_special_tokens=False).offsets
    ends = [end + (question.context[end : end + 1] == "\u0301") for _, end in spans]
    texts = {
        (first, last): question.context[spans[first][0] : ends[last]]
        for first in range(len(spans))
        for last in range(first, len(spans))
    }
    windows = reference.windows(UNCASED, question.text, question.context, *sizes, 64)
    logits = [(start.tolist(), end.tolist()) for start, end in rows]
    return reference.rank(
        [(window, *both) for window, both in zip(windows, logits, strict=True)],
        texts,
        with_null=with_null,
        n_best=best[0],
        max_length=best[1],
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=25).map(" ".join), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([0, 2, 1000]),
    st.booleans(),
    st.integers(1, 25),
    st.integers(1, 31),
    st.integers(1, 4),
)
def test_answers_and_their_order_are_those_of_the_reference(contexts, seed, levels, with_null, n_best, longest, chunk):
    questions = [asked(number, context) for number, context in enumerate(contexts)]
    windows = build_windows(questions, UNCASED, max_seq_length=75, doc_stride=5)
    draw, count = np.random.default_rng(seed), len(windows.ids.values)
    logits = [draw.normal(size=count) if levels == 1000 else draw.integers(0, levels + 1, count) for _ in range(2)]
    starts, ends = (values.astype(np.float32) for values in logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers_module, "_WINDOWS_AT_A_TIME", chunk)
        found = rank_answers(
            questions, windows, starts, ends, with_null=with_null, n_best=n_best, max_answer_length=longest
        )
    assert len(found) == len(questions)
    for number, (question, one) in enumerate(zip(questions, found, strict=True)):
        rows = [slice(*windows.ids.offsets[[i, i + 1]]) for i in np.flatnonzero(windows.questions == number)]
        both = [(starts[row].astype(np.float64), ends[row].astype(np.float64)) for row in rows]
        ranked, probabilities, odds = expected(question, both, (75, 5), with_null, (n_best, longest))
        assert one.question_id == question.id
        assert [(answer.text, answer.start_logit, answer.end_logit) for answer in one.ranked] == ranked
        assert [answer.probability for answer in one.ranked] == pytest.approx(probabilities)
        assert one.null_odds == odds
        assert all(question.context[answer.start : answer.end] == answer.text for answer in one.ranked)
        assert one.best == next((text for text, _, _ in ranked if text), "")


def at_gold(windows: QuestionWindows) -> tuple[Floats, Floats]:
    """Logits of a model that is certain of the answers; windows without one are certain of no answer, but less."""
    size = np.where(windows.start_positions > 0, 9.0, 3.0)
    both = []
    for positions in (windows.start_positions, windows.end_positions):
        logits = np.zeros(len(windows.ids.values), np.float32)
        logits[windows.ids.offsets[:-1] + positions] = size
        both.append(logits)
    return both[0], both[1]


def word_spans(context: str, seed: int, count: int) -> list[Answer]:
    """Some answers of one to eight words."""
    draw, words = np.random.default_rng(seed), reference.words_of(context)
    found = []
    for first in draw.integers(0, len(words), count).tolist():
        last, word = words[min(first + int(draw.integers(0, 8)), len(words) - 1)]
        start, end = words[first][0], last + len(word)
        found.append(Answer(context[start:end], start, end))
    return found


@pytest.mark.parametrize("with_null", [True, False])
def test_certain_logits_give_back_every_answer_in_real_text(with_null):
    paragraphs = [" ".join(text.split("\n")) for text in unpack("sentences.txt").strip().split("\n\n")]
    questions = [
        asked(number, context, (answer,))
        for number, context in enumerate(paragraphs)
        for answer in word_spans(context, number, 10)
    ]
    questions = [Question(f"q{i}", q.text, q.context, q.answers, "") for i, q in enumerate(questions)]
    windows = build_windows(questions, UNCASED, max_seq_length=128, doc_stride=40)
    assert len(windows.lengths) > 10 * len(questions)
    short = {
        int(number)
        for number in windows.questions[
            (windows.start_positions > 0) & (windows.end_positions - windows.start_positions < 30)
        ]
    }
    found = rank_answers(questions, windows, *at_gold(windows), with_null=with_null)
    assert len(short) > 0.95 * len(questions)
    for number in short:
        question = questions[number]
        assert question.answers and found[number].answer() == question.answers[0].text


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("中国人民解放军在中国，人民。", "人民。"),
        ("Im Café in der Müllerstraße – 5 € – saß Özil.", "Müllerstraße – 5 €"),
        ("Im Café in der Müllerstraße – 5 € – saß Özil.", "Café"),
        ("한국어는 어렵다", "어렵다"),
    ],
)
def test_certain_logits_give_back_answers_in_other_languages(context, answer):
    start = context.rindex(answer)
    questions = [asked(0, context, (Answer(answer, start, start + len(answer)),))]
    windows = build_windows(questions, UNCASED, max_seq_length=80, doc_stride=8)
    (found,) = rank_answers(questions, windows, *at_gold(windows), with_null=False)
    assert found.answer() == answer


@pytest.mark.skipif(not DEV.is_file(), reason="requires ../shared/data")
def test_certain_logits_give_back_99_percent_of_squads_dev_answers():
    questions = read_questions(Location(str(DEV)), train=False).questions
    windows = build_windows(questions, UNCASED)
    assert (len(questions), len(windows.lengths)) == (10_570, 10_833)
    found = rank_answers(questions, windows, *at_gold(windows), with_null=False)
    equal = [
        one.answer() in [answer.text for answer in question.answers or ()]
        for question, one in zip(questions, found, strict=True)
    ]
    # The others are parts of tokens ("8" in "18"), or longer than 30 tokens.
    assert 0.996 < np.mean(equal) < 0.998


def test_without_a_possible_answer_the_text_is_empty():
    questions = [asked(0, ""), asked(1, "a b")]
    windows = build_windows(questions, UNCASED)
    logits = np.zeros(len(windows.ids.values), np.float32)
    logits[windows.ids.offsets[:-1]] = 2.0
    for with_null in (True, False):
        empty, other = rank_answers(questions, windows, logits, logits, with_null=with_null, n_best=1)
        assert (empty.answer(), empty.best, other.best) == ("", "", "")  # of `other`, [CLS] is the one best position
        assert [answer.text for answer in empty.ranked] == [""]
        assert empty.ranked[0].probability == 1.0
        assert empty.null_odds == (4.0 if with_null else None)


def test_no_questions_have_no_answers():
    nothing = np.zeros(0, np.float32)
    assert rank_answers([], build_windows([], UNCASED), nothing, nothing, with_null=True) == []


def answers_with(*odds: float | None, text: str = "Köln") -> list[AnswersToQuestion]:
    ranked = [RankedAnswer(text, 0.75, 2.0, 1.0, 3, 7), RankedAnswer("", 0.25, 1.0, 0.5, 0, 0)]
    return [AnswersToQuestion(f"q{number}", ranked, value) for number, value in enumerate(odds)]


def test_an_answer_is_empty_when_the_null_odds_are_over_the_threshold():
    zero, one, none = answers_with(0.0, 1.0, None)
    assert [one.answer(), one.answer(1.0), one.answer(0.9)] == ["", "Köln", ""]
    assert zero.answer() == none.answer(-100.0) == "Köln"
    assert [one.probability(text) for text in ("Köln", "", "Bonn")] == [0.75, 0.25, 0.0]


def test_the_files_have_the_official_form():
    files = {name: json.loads(data) for name, data in prediction_files(answers_with(-1.0, 1.0)).items()}
    best = {"text": "Köln", "probability": 0.75, "start_logit": 2.0, "end_logit": 1.0}
    empty = {"text": "", "probability": 0.25, "start_logit": 1.0, "end_logit": 0.5}
    assert files == {
        "predictions.json": {"q0": "Köln", "q1": ""},
        "nbest_predictions.json": {"q0": [best, empty], "q1": [best, empty]},
        "null_odds.json": {"q0": -1.0, "q1": 1.0},
    }
    assert set(prediction_files(answers_with(None))) == {"predictions.json", "nbest_predictions.json"}


def mean_score(
    answers: Sequence[AnswersToQuestion], scores: Sequence[float], has_answer: Sequence[bool], threshold: float
) -> float:
    """Of what is answered with the threshold."""
    texts = [one.answer(threshold) for one in answers]
    return sum(
        (score if text else 0.0) if has else float(not text)
        for text, score, has in zip(texts, scores, has_answer, strict=True)
    ) / len(answers)


QUESTIONS = st.lists(
    st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), st.floats(0, 1, width=16), st.booleans()), min_size=1
)


@given(QUESTIONS)
def test_no_threshold_has_a_better_score_and_the_best_has_the_one_returned(rows):
    odds, scores, has_answer = zip(*rows, strict=True)
    answers = answers_with(*odds)
    found = best_null_threshold(answers, scores, has_answer)
    assert mean_score(answers, scores, has_answer, found.threshold) == pytest.approx(found.score)
    for threshold in (-9.0, -2.0, -1.0, 0.0, 0.5, 3.0, 9.0):
        assert mean_score(answers, scores, has_answer, threshold) <= found.score + 1e-9


@given(QUESTIONS, st.integers(0, 2**32))
def test_the_threshold_is_that_of_the_official_evaluation_where_odds_differ(rows, seed):
    _, scores, has_answer = zip(*rows, strict=True)
    odds = np.random.default_rng(seed).normal(size=len(rows)).tolist()
    answers = answers_with(*odds)
    names = [one.question_id for one in answers]
    found = best_null_threshold(answers, scores, has_answer)
    score, threshold = reference.best_threshold(
        {one.question_id: one.best for one in answers},
        dict(zip(names, scores, strict=True)),
        dict(zip(names, odds, strict=True)),
        dict(zip(names, has_answer, strict=True)),
    )
    assert found.score == pytest.approx(score)
    if found.threshold in odds:
        assert found.threshold == threshold
    else:  # "" for all is best
        assert found.threshold < min(odds)
        assert threshold == 0.0


def test_a_threshold_requires_questions():
    with pytest.raises(ValueError, match="there are no questions"):
        best_null_threshold([], [], [])
