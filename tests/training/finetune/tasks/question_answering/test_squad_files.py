"""Files in SQuAD's form -> questions; an answer that is not at its offset is an error, or skipped and counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.question_answering.squad_files import Answer, Question, SquadFile, read_questions

CONTEXT = "Die Brücke 😀 steht in Köln, sagt Köln."


def question(number: Any = "q1", *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": number, "question": "Wo steht sie?", "answers": found, **more}


def squad(*questions: Any, context: Any = CONTEXT, **more: Any) -> dict[str, Any]:
    return {
        "version": "1.1",
        "data": [{"title": "Köln", "paragraphs": [{"context": context, "qas": questions}]}],
        **more,
    }


def read(tmp_path: Path, content: Any, name: str = "x.json", *, train: bool = False, skip: bool = False) -> SquadFile:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_questions(Location(str(tmp_path / name)), train=train, skip_invalid=skip)


def error(tmp_path: Path, content: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content, **options)
    message = str(caught.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize("name", ["x.json", "X.JSON", "x.json.gz"])
def test_a_question_has_its_context_and_all_its_answers(tmp_path: Path, name: str) -> None:
    content = squad(question("q1", ("Köln", 22), ("in Köln", 19)), question("q2", ("Köln", 33)))
    file = read(tmp_path, content, name)
    assert file == (
        [
            Question("q1", "Wo steht sie?", CONTEXT, (Answer("Köln", 22, 26), Answer("in Köln", 19, 26)), "Köln"),
            Question("q2", "Wo steht sie?", CONTEXT, (Answer("Köln", 33, 37),), "Köln"),
        ],
        0,
        "1.1",
    )
    assert not file.has_impossible_questions


def test_questions_without_an_answer_are_those_of_squad_2_and_plausible_answers_are_ignored(tmp_path: Path) -> None:
    plausible = [{"text": "Köln", "answer_start": 22}]
    content = squad(
        question("q1", is_impossible=True, plausible_answers=plausible),
        question("q2", ("Köln", 22), is_impossible=False),
        question("q3"),
        question("q4", ("", -1), is_impossible=True),  # as some converters write it
    )
    for train in (True, False):
        file = read(tmp_path, content, train=train)
        assert [one.answers for one in file.questions] == [(), (Answer("Köln", 22, 26),), (), ()]
        assert [one.is_impossible for one in file.questions] == [True, False, True, True]
        assert file.has_impossible_questions


def test_an_unlabelled_file_is_for_prediction_only(tmp_path: Path) -> None:
    content = squad({"id": "q1", "question": "Wo?"})
    (only,) = read(tmp_path, content).questions
    assert only.answers is None and not only.is_impossible
    assert "x.json: question q1: has no key answers; add it" in error(tmp_path, content, train=True)


def test_files_of_germanquad_and_drcd_and_cmrc_are_read(tmp_path: Path) -> None:
    german = question(38405, is_impossible=False)
    german["answers"] = [{"answer_id": 40369, "document_id": 43794, "question_id": 38405, "text": "Köln",
                          "answer_start": 22, "answer_category": "SHORT"}]  # fmt: skip
    chinese = "臺北市在臺灣北部。"
    drcd = {"id": "1001-10-1", "question": "在哪裡?", "answers": [{"id": "1", "text": "臺灣北部", "answer_start": 4}]}
    paragraphs = [{"id": "DEV_0", "context": chinese, "qas": [drcd]}]
    content = squad(german)
    content["data"].append({"id": "1001", "paragraphs": paragraphs})  # CMRC has no title here
    del content["version"]
    file = read(tmp_path, content, train=True)
    assert [(one.id, one.title) for one in file.questions] == [("38405", "Köln"), ("1001-10-1", "")]
    assert [one.answers for one in file.questions] == [(Answer("Köln", 22, 26),), (Answer("臺灣北部", 4, 8),)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    data = json.dumps(squad(question("q1", ("Köln", 22))), ensure_ascii=False).encode(encoding)
    assert read(tmp_path, data).questions[0].context == CONTEXT


@pytest.mark.parametrize(
    ("answer", "context", "span"),
    [
        (("a b", 2), "x a\n b y", "a\n b"),
        (("a\u00a0b", 2), "x a b y", "a b"),
        (("a", 1), "x a b", " a"),
        ((" a ", 1), "x a b", " a "),
    ],
)
def test_an_answer_may_differ_in_its_white_space(tmp_path: Path, answer: Any, context: str, span: str) -> None:
    (only,) = read(tmp_path, squad(question("q1", answer), context=context), train=True).questions
    assert only.answers and only.answers[0].text == answer[0]
    assert context[only.answers[0].start : only.answers[0].end] == span


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (("Köln", 20), "'Köln' is not at its answer_start 20: the context has 'n Kö' there; the answer is at 22"),
        (("Köln", 31), "the context has 't Kö' there; the answer is at 33: correct answer_start"),
        (("Köln", 23), "the offset counts UTF-16 units: count characters (code points), also for the other answers"),
        (("Köln", 26), "the offset counts UTF-8 bytes: count characters (code points), also for the other answers"),
        (("Bonn", 22), "the context has 'Köln' there; the context does not contain it: correct the text"),
        (("Köln", -1), "not at its answer_start -1: the context has nothing there; the answer is at 22"),
        (("Köln", 999), "the context has '' there; the answer is at 33"),
        (("", 3), "the answer is empty (''); give its text, or for no answer is_impossible: true"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_at_its_offset_is_an_error_or_skipped(tmp_path: Path, answer: Any, message: str) -> None:
    content = squad(question("q1", answer), question("q2", ("Köln", 22)))
    found = error(tmp_path, content)
    assert found.startswith("x.json: question q1: ")
    assert message in found
    file = read(tmp_path, content, skip=True)
    assert ([one.id for one in file.questions], file.skipped) == (["q2"], 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question("q1", ("Köln", 22), ("Köln", 33)), "has 2 answers; for training keep one"),
        (question("q1", is_impossible=False), "is_impossible is false and it has no answer; add one, or write true"),
        (question("q1", ("Köln", 22), is_impossible=True), "is_impossible is true and it has answers; remove"),
    ],
)
def test_training_requires_one_answer(tmp_path: Path, bad: Any, message: str) -> None:
    content = squad(bad, question("q2", ("Köln", 22)))
    assert message in error(tmp_path, content, train=True)
    assert read(tmp_path, content, train=True, skip=True).skipped == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [\n{"a": 1,]}', "x.json:2: is not JSON ("),
        (b'{"data": [', "x.json:1: is not JSON (Expecting value, column 11); create the file again"),
        (b"", "x.json:1: is not JSON (Expecting value, column 1)"),
        ('{"data": "é"}'.encode("latin-1"), "x.json: is not UTF-8 (byte 0xe9 at 10); convert it (iconv)"),
        ([], "x.json: is not in SQuAD's form; write {"),
        ({"id": 1}, "x.json: is not in SQuAD's form; write {"),
        ({"data": {}}, "x.json: data is not a list ({}); write {"),
        ({"data": [1]}, "x.json: data[0]: is not an object (1); write {"),
        ({"data": [{"title": "a"}]}, "x.json: data[0]: has no key paragraphs; add it"),
        ({"data": []}, "x.json: has no questions"),
        (
            squad(question(), context=None),
            "x.json: data[0].paragraphs[0]: context is not a text (None); write a string",
        ),
        (squad({"question": "Wo?"}), "x.json: data[0].paragraphs[0].qas[0]: has no key id; add it"),
        (squad(question(True)), "x.json: data[0].paragraphs[0].qas[0]: id is not a text (True)"),
        (squad({"id": "q1"}), "x.json: question q1: has no key question; add it"),
        (squad({"id": "q1", "question": "W\ud83d"}), "x.json: question q1: question has half a surrogate pair at 1"),
        (squad(question("q1", ("Köln", 22)), question("q1")), "x.json: question q1: its id occurs twice; give every"),
        (squad(question("q1", ("Köln", 2.5))), "x.json: question q1: answer_start is not a whole number (2.5)"),  # type: ignore[arg-type]
        (
            squad(question("q1", is_impossible="false")),
            "x.json: question q1: is_impossible is not a truth value ('false')",
        ),
        (squad({**question("q1"), "answers": ["Köln"]}), "x.json: question q1: is not an object ('Köln'); write {"),
        (squad({**question("q1"), "answers": [{"text": "Köln"}]}), "x.json: question q1: has no key answer_start"),
    ],
)
def test_another_form_is_an_error_that_names_the_place(tmp_path: Path, content: Any, message: str) -> None:
    assert error(tmp_path, content).startswith(message)
    assert error(tmp_path, content, skip=True).startswith(message)  # only answers are skipped


def test_damaged_gzip_and_other_suffixes_are_errors(tmp_path: Path) -> None:
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(json.dumps(squad(question())).encode())[:-20])
    with pytest.raises(UserError, match=r"x\.json\.gz: is damaged gzip"):
        read_questions(Location(str(tmp_path / "x.json.gz")), train=False)
    assert error(tmp_path, squad(), name="x.jsonl").startswith("x.jsonl: is not a SQuAD file; give a .json or .json.gz")
