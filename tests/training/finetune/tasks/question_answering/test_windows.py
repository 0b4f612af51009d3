"""Questions -> windows: those of run_squad.py, also for long contexts, accents and Chinese."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer
from cloze.training.finetune.tasks.question_answering.squad_files import Answer, Question, read_questions
from cloze.training.finetune.tasks.question_answering.windows import QuestionWindows, build_windows
from tests.golden import published_vocabulary, unpack
from tests.paths import SHARED
from tests.training import run_squad_reference as reference

UNCASED = build_tokenizer(published_vocabulary())
CASED = build_tokenizer(published_vocabulary(), lowercase=False)
TRAIN = SHARED / "data/finetune/squad/train-v1.1-part44articles.json"

CHUNKS = [
    "the",
    "Super-Bowl",
    "(1895-1943).",
    "naïve",
    "cafe\u0301,",
    "中国人民",
    "2.5%",
    "İstanbul",
    "한국",
    "x" * 201,
]
CHUNKS += ["\u200b", "foo\u200bbar", "\u00a0", "ﬁne", "electroencephalography", "😀", "''", "a b", "\u0301", "x\u2028y"]
CONTEXTS = st.lists(
    st.tuples(st.sampled_from(CHUNKS), st.sampled_from([" ", "  ", "\n", "\t", "\u202f", ""])), min_size=1, max_size=40
).map(lambda parts: "".join(itertools.chain(*parts)))


def asked(context: str, answer: tuple[int, int] | None = None, text: str = "Who won it?") -> Question:
    answers = () if answer is None else (Answer(context[slice(*answer)], *answer),)
    return Question("1", text, context, answers, "")


def build(questions: Sequence[Question], length: int = 384, stride: int = 128, query: int = 64) -> QuestionWindows:
    return build_windows(questions, UNCASED, max_seq_length=length, doc_stride=stride, max_query_length=query)


def row(windows: QuestionWindows, number: int) -> slice:
    return slice(windows.ids.offsets[number], windows.ids.offsets[number + 1])


def tokens(windows: QuestionWindows, number: int) -> list[str]:
    return [UNCASED.id_to_token(int(index)) for index in windows.ids.values[row(windows, number)]]


def restored(windows: QuestionWindows, number: int, context: str) -> str:
    """The text at a window's start and end position."""
    positions = (np.array([value[number]]) for value in (windows.start_positions, windows.end_positions))
    (start,), (end,) = windows.character_spans(np.array([number]), *positions)
    return context[start:end]


@settings(max_examples=150, deadline=None)
@given(st.lists(CONTEXTS, min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 30), st.integers(0, 9))
def test_windows_and_maximum_contexts_are_those_of_the_reference(contexts, room, stride, query):
    length = query + 3 + room
    questions = [asked(context, text=text) for context in contexts for text in ("Who won it?", "中国人民 é? " * 3, "")]
    windows = build(questions, length, stride, query)
    number = 0
    for index, question in enumerate(questions):
        expected = reference.windows(UNCASED, question.text, question.context, length, stride, query)
        for window in expected:
            assert windows.questions[number] == index
            assert tokens(windows, number) == window.tokens
            positions = range(len(window.tokens))
            flags = [window.has_max_context.get(position, False) for position in positions]
            assert windows.has_max_context[row(windows, number)].tolist() == flags
            segments = [int(position >= window.context.start) for position in positions]
            assert windows.segment_ids.values[row(windows, number)].tolist() == segments
            assert windows.first_tokens[number] - windows.first_tokens[windows.questions == index][0] == window.first
            number += 1
        if not expected:  # there is nothing in this context: one window all the same
            assert tokens(windows, number)[-2:] == ["[SEP]", "[SEP]"]
            number += 1
    assert number == len(windows.lengths)
    assert windows.lengths.max() <= length


@settings(max_examples=100, deadline=None)
@given(CONTEXTS, st.integers(1, 40), st.integers(1, 30))
def test_every_token_of_a_context_has_its_maximum_context_in_one_window(context, room, stride):
    windows = build([asked(context)] * 2, room + 13, stride, 10)
    count = len(UNCASED.encode(context, add_special_tokens=False).ids)
    for index in (0, 1):
        counts = np.zeros(count, np.int64)
        for number in np.flatnonzero(windows.questions == index):
            flags = windows.has_max_context[row(windows, number)][windows.context_positions[number] :][:-1]
            first = windows.first_tokens[number] - windows.first_tokens[0]
            counts[first : first + len(flags)] += flags
        assert (counts == 1).all()


@settings(max_examples=200, deadline=None)
@given(CONTEXTS, st.data())
def test_an_answers_tokens_are_those_of_the_reference_where_it_finds_them_once(context, data):
    for tokenizer in (UNCASED, CASED):
        spans = tokenizer.encode(context, add_special_tokens=False).offsets
        if not spans:
            continue
        low = data.draw(st.integers(0, len(spans) - 1))
        high = data.draw(st.integers(low, len(spans) - 1))
        start, end = spans[low][0], spans[high][1]
        windows = build_windows([asked(context, (start, end))], tokenizer, max_seq_length=2000)
        first = windows.start_positions[0] - windows.context_positions[0]
        last = windows.end_positions[0] - windows.context_positions[0]
        text = restored(windows, 0, context)
        assert text.startswith(context[start:end]) and text[end - start :].strip("\u0301") == ""
        *expected, matches = reference.answer_tokens(tokenizer, context, start, end)
        answer = tokenizer.encode(context[start:end], add_special_tokens=False).ids
        if windows.ids.values[windows.start_positions[0] : windows.end_positions[0] + 1].tolist() == answer:
            assert matches > 1 or [first, last] == expected
        elif matches == 0:  # the reference then takes whole words
            assert expected[0] <= first <= last <= expected[1]


@pytest.mark.parametrize(
    ("context", "answer", "text"),
    [
        ("The leader was John Smith (1895-1943).", "1895", "1895"),
        ("The Japanese electronics industry", "Japan", "Japanese"),
        ("He had 23, she 4.", "3", "23"),  # the digit is within a token
        ("Am Café, wo naïve Leute sind", "Café, wo naïve", "Café, wo naïve"),
        ("the cafe\u0301 there", "cafe\u0301", "cafe\u0301"),  # the accent is stripped, and belongs to the letter
        ("the cafe\u0301 there", "cafe", "cafe\u0301"),
        ("中国人民解放军在中国", "人民", "人民"),
        ("one\u00a0 two\n\tthree", "\u00a0 two\n\t", "two"),
        ("die Straße, die STRAßE", "STRAßE", "STRAßE"),
        ("im Jahr 한국어 war", "국", "국"),  # decomposed into three tokens
        ("zero\u200bwidth and", "zero\u200bwidth", "zero\u200bwidth"),
        ("𝒳 and 😀 or", "😀", "😀"),
    ],
)
def test_an_answer_is_restored_from_its_tokens_as_the_context_has_it(context, answer, text):
    start = context.rindex(answer)
    windows = build([asked(context, (start, start + len(answer)))])
    assert restored(windows, 0, context) == text


def test_in_chinese_an_answer_that_occurs_twice_is_where_its_offset_is():
    context = "中国在亚洲。" * 3
    windows = build([asked(context, (12, 14))])
    assert windows.start_positions[0] - windows.context_positions[0] == 12


def test_an_answer_is_in_the_windows_that_contain_all_of_it_and_is_cls_in_the_others():
    context = " ".join(f"w{i % 10}" for i in range(30))  # two tokens each
    start = context.index("w5")
    windows = build([asked(context, (start, start + 2), "")], 23, 10, 0)
    assert windows.lengths.tolist() == [23] * 5
    assert windows.start_positions.tolist() == [12, 2, 0, 0, 0]
    assert windows.end_positions.tolist() == [13, 3, 0, 0, 0]
    windows = build([asked(context, None, "")], 23, 10, 0)
    assert windows.start_positions.tolist() == windows.end_positions.tolist() == [0] * 5


def test_an_answer_that_the_tokenizer_removes_is_counted():
    windows = build([asked("a \u200b b", (2, 3)), asked("a b", (0, 1))])
    assert windows.answers_without_tokens == 1
    assert windows.start_positions.tolist()[0] == windows.end_positions.tolist()[0] == 0


@pytest.mark.parametrize("context", ["", " ", "\u200b"])
def test_an_empty_context_has_one_window(context):
    windows = build([asked(context), asked("a b", (0, 1)), asked(context, text="")])
    assert windows.questions.tolist() == [0, 1, 2]
    assert tokens(windows, 0) == ["[CLS]", "who", "won", "it", "?", "[SEP]", "[SEP]"]
    assert tokens(windows, 2) == ["[CLS]", "[SEP]", "[SEP]"]
    assert windows.start_positions.tolist() == [0, 6, 0]


def test_long_questions_are_truncated_and_counted():
    windows = build([asked("a b", text="why " * 65), asked("a b", text="why " * 64)])
    assert windows.lengths.tolist() == [69, 69]
    assert windows.truncated_questions == 1


def test_a_window_without_room_for_a_context_is_an_error():
    with pytest.raises(UserError, match=r"max_seq_length 67 has no room .* max_query_length 64 .* more than 67"):
        build([asked("a b")], 67)
    assert build([asked("a b", text="why " * 64)], 68).lengths.tolist() == [68, 68]


def test_no_questions_have_no_windows():
    assert len(build([]).lengths) == 0


def other_tokenizer(kind: str) -> tuple[Tokenizer, Any]:
    """Of ALBERT's kind (SentencePiece) and RoBERTa's (bytes), trained on a little text."""
    text = unpack("sentences.txt").split("\n")[:300]
    special = ["<s>", "</s>", "<unk>"]
    if kind == "sentencepiece":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
        trainer: Any = trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>")
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer, text


@pytest.mark.parametrize("kind", ["sentencepiece", "bytes"])
def test_other_tokenizers_have_their_own_special_tokens_and_no_white_space_at_an_answers_ends(kind):
    tokenizer, text = other_tokenizer(kind)
    context = next(line for line in text if len(line) > 100)
    start = context.index(" ", 20) + 1
    end = context.index(" ", start + 10)
    windows = build_windows([asked(context, (start, end))], tokenizer, max_query_length=4)
    ids = windows.ids.values.tolist()
    assert (ids[0], ids[5:7], ids[-1]) == (0, [1, 1], 1)
    assert windows.context_positions.tolist() == [7]
    assert restored(windows, 0, context) == context[start:end]


@pytest.mark.parametrize("tokenizer", [UNCASED, CASED, build_tokenizer(SPECIAL_TOKENS)])
def test_the_characters_of_tokens_follow_one_another_for_real_text(tokenizer):
    lines = [line for line in unpack("sentences.txt").split("\n") if line][:500]
    windows = build_windows([asked(line) for line in lines], tokenizer)
    for context, number in zip(lines, range(len(windows.lengths)), strict=True):
        span = slice(windows.first_tokens[number], windows.first_tokens[number] + windows.context_lengths[number])
        starts, ends = windows.token_starts[span], windows.token_ends[span]
        assert (starts < ends).all() and (starts[1:] >= ends[:-1]).all()
        covered = "".join(context[a:b] for a, b in zip(starts, ends, strict=True))
        assert covered == "".join(context.split())


@pytest.mark.skipif(not TRAIN.is_file(), reason="requires ../shared/data")
def test_each_of_squads_training_answers_is_in_a_window_and_99_percent_are_restored():
    questions = read_questions(Location(str(TRAIN)), train=True).questions
    windows = build_windows(questions, UNCASED)
    assert (len(questions), len(windows.lengths)) == (11_877, 12_032)
    with_answer = np.flatnonzero(windows.start_positions)
    assert set(windows.questions[with_answer]) == set(range(len(questions)))
    parts_of_tokens = 0
    for number in with_answer:
        question = questions[windows.questions[number]]
        assert question.answers
        text, answer = restored(windows, number, question.context), question.answers[0].text
        assert answer.strip() in text
        parts_of_tokens += text != answer
    assert parts_of_tokens < 0.01 * len(with_answer)


@pytest.mark.skipif(not TRAIN.is_file(), reason="requires ../shared/data")
def test_the_tokens_of_squads_training_answers_are_those_of_the_reference_except_for_parts_of_words():
    questions = read_questions(Location(str(TRAIN)), train=True).questions[::20]
    windows = build_windows(questions, UNCASED, max_seq_length=2000)
    differences = 0
    for number, question in enumerate(questions):
        assert question.answers
        answer = question.answers[0]
        *expected, _ = reference.answer_tokens(UNCASED, question.context, answer.start, answer.end)
        found = (windows.start_positions[number], windows.end_positions[number]) - windows.context_positions[number]
        differences += found.tolist() != expected
    assert differences < 0.01 * len(questions)
