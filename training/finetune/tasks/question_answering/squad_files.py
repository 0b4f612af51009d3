"""A JSON file in the form of SQuAD v1.1 or v2.0 -> its questions, each with its context and its answers.

GermanQuAD, DRCD and the squad-style files of CMRC 2018 have the same form.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.character_encodings import decompressed, describe_invalid_byte, stream_encoding
from cloze.pipeline.text.table_files import table_suffix

_FORM = '{"data": [{"paragraphs": [{"context": "...", "qas": [{"id": "...", "question": "...", "answers": [...]}]}]}]}'
_SHOWN_CHARS = 60


@dataclass(frozen=True)
class Answer:
    """An annotated answer. `text` is the file's; the context has it at [start, end), in characters (code points)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """A question about a context. `answers`: empty when it has none (SQuAD v2.0), None when the file is unlabelled."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] | None
    title: str

    @property
    def is_impossible(self) -> bool:
        """Whether the annotators found no answer in the context."""
        return self.answers == ()


class SquadFile(NamedTuple):
    """The questions of a file in its order; `skipped` of them had an invalid answer and are left out."""

    questions: list[Question]
    skipped: int
    version: str

    @property
    def has_impossible_questions(self) -> bool:
        """Whether questions without an answer occur, as in SQuAD v2.0."""
        return any(question.is_impossible for question in self.questions)


class _InvalidAnswer(UserError):
    """A question's answers cannot be used; the question can be skipped."""


def read_questions(location: Location, *, train: bool, skip_invalid: bool = False) -> SquadFile:
    """Returns the questions of a .json or .json.gz file in SQuAD's form.

    `train`: each question must have one answer, or be marked as impossible. Otherwise it may have several answers, or
    no key `answers` (unlabelled). `plausible_answers` are ignored. An answer may differ from the context in its white
    space. `skip_invalid`: leave out questions with an invalid answer and count them.

    Raises UserError for another form, a missing key, an id that occurs twice and an answer that is not at its offset.
    """
    content = _load(location)
    questions, ids, skipped = list[Question](), set[str](), 0
    for where, title, paragraph in _paragraphs(content, str(location)):
        context = _string(paragraph, "context", where)
        for number, entry in enumerate(_list(paragraph, "qas", where)):
            question_id = _question_id(entry, f"{where}.qas[{number}]")
            question_where = f"{location}: question {question_id}"
            if question_id in ids:
                raise UserError(f"{question_where}: its id occurs twice; give every question an id of its own")
            ids.add(question_id)
            text = _string(entry, "question", question_where)
            try:
                answers = _answers(entry, context, question_where, train)
            except _InvalidAnswer as error:
                if not skip_invalid:
                    raise UserError(f"{error}, or set skip_invalid: true to leave out such questions") from None
                skipped += 1
                continue
            questions.append(Question(question_id, text, context, answers, title))
    if not questions:
        raise UserError(f"{location}: has no questions ({skipped} are invalid and skipped); give a file with some")
    return SquadFile(questions, skipped, str(content.get("version", "")))


def _load(location: Location) -> dict[str, Any]:
    if table_suffix(location) != ".json":
        raise UserError(f"{location}: is not a SQuAD file; give a .json or .json.gz, or correct its suffix")
    with decompressed(location) as file:
        data = file.read()
    encoding = stream_encoding(data[:4])
    try:
        content = json.loads(data.decode(encoding))
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise UserError(f"{location}: is not {name} ({describe_invalid_byte(error)}); convert it (iconv)") from error
    except json.JSONDecodeError as error:
        problem = f"{error.msg}, column {error.colno}"
        raise UserError(f"{location}:{error.lineno}: is not JSON ({problem}); create the file again") from error
    except (RecursionError, ValueError) as error:
        raise UserError(
            f"{location}: is JSON that is nested too deeply or too long ({error}); write it flat"
        ) from error
    if not isinstance(content, dict) or "data" not in content:
        raise UserError(f"{location}: is not in SQuAD's form; write {_FORM}")
    return content


def _paragraphs(content: dict[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    """Yields the place of each paragraph for messages, the title of its article, and the paragraph."""
    for number, article in enumerate(_list(content, "data", name)):
        where = f"{name}: data[{number}]"
        for index, paragraph in enumerate(_list(article, "paragraphs", where)):
            title = _string(article, "title", where) if "title" in article else ""
            yield f"{where}.paragraphs[{index}]", title, paragraph


def _value(entry: Any, key: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is not an object ({_shown(entry)}); write {_FORM}")
    if key not in entry:
        raise UserError(f"{where}: has no key {key}; add it, as in {_FORM}")
    return entry[key]


def _list(entry: Any, key: str, where: str) -> list[Any]:
    value = _value(entry, key, where)
    if not isinstance(value, list):
        raise UserError(f"{where}: {key} is not a list ({_shown(value)}); write {_FORM}")
    return value


def _string(entry: Any, key: str, where: str) -> str:
    value = _value(entry, key, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is not a text ({_shown(value)}); write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can escape what is not a character
        raise UserError(f"{where}: {key} has half a surrogate pair at {error.start}; remove or complete it") from error
    return value


def _question_id(entry: Any, where: str) -> str:
    """GermanQuAD's ids are numbers. Prediction files have them as keys, which are texts."""
    value = _value(entry, "id", where)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _string(entry, "id", where)


def _answers(entry: dict[str, Any], context: str, where: str, train: bool) -> tuple[Answer, ...] | None:
    """The answers of a question: see Question. Raises _InvalidAnswer, and UserError for another form."""
    is_impossible = entry.get("is_impossible", False)
    if not isinstance(is_impossible, bool):
        raise UserError(f"{where}: is_impossible is not a truth value ({_shown(is_impossible)}); write true or false")
    if is_impossible:
        if any(_string(answer, "text", where) for answer in entry.get("answers") or ()):
            raise _InvalidAnswer(f"{where}: is_impossible is true and it has answers; remove the answers, or the mark")
        return ()
    if "answers" not in entry and not train:
        return None
    answers = _list(entry, "answers", where)
    if not answers and "is_impossible" in entry:
        raise _InvalidAnswer(f"{where}: is_impossible is false and it has no answer; add one, or write true")
    if train and len(answers) > 1:
        raise _InvalidAnswer(f"{where}: has {len(answers)} answers; for training keep one")
    return tuple(_answer(answer, context, where) for answer in answers)


def _answer(entry: Any, context: str, where: str) -> Answer:
    text, start = _string(entry, "text", where), _value(entry, "answer_start", where)
    if not isinstance(start, int) or isinstance(start, bool):
        raise UserError(f"{where}: answer_start is not a whole number ({_shown(start)}); count characters from 0")
    if not text.strip():
        raise _InvalidAnswer(
            f"{where}: the answer is empty ({text!r}); give its text, or for no answer is_impossible: true"
        )
    if start >= 0:
        if context.startswith(text, start):
            return Answer(text, start, start + len(text))
        spaced = re.compile(r"\s*" + r"\s+".join(map(re.escape, text.split())))
        if match := spaced.match(context, start):
            return Answer(text, start, match.end())
    there = repr(context[start : start + min(len(text), _SHOWN_CHARS)]) if start >= 0 else "nothing"
    raise _InvalidAnswer(
        f"{where}: the answer {_shown(text)} is not at its answer_start {start}: the context has {there} there; "
        f"{_offset_fix(text, start, context)}"
    )


def _offset_fix(text: str, start: int, context: str) -> str:
    """How to correct an offset: converters of data sets also count UTF-16 units or bytes, or shift the text."""
    for encoding, unit, name in (("utf-16-le", 2, "UTF-16 units"), ("utf-8", 1, "UTF-8 bytes")):
        if start >= 0 and context.encode(encoding).startswith(text.encode(encoding), start * unit):
            return f"the offset counts {name}: count characters (code points), also for the other answers"
    places = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
    if not places:
        return "the context does not contain it: correct the text"
    return f"the answer is at {min(places, key=lambda place: abs(place - start))}: correct answer_start"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
