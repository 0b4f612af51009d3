"""The output of BERT's own run_squad.py for known questions and logits (tests/data/golden) -> ours is the same."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer
from cloze.training.finetune.tasks.question_answering.answers import prediction_files, rank_answers
from cloze.training.finetune.tasks.question_answering.squad_files import Question, read_questions
from cloze.training.finetune.tasks.question_answering.windows import QuestionWindows, build_windows
from tests.golden import published_vocabulary, unpack

NULL_THRESHOLD = 0.5


@cache
def golden() -> dict[str, Any]:
    """The questions as a file, the settings, and what run_squad.py makes of them."""
    return json.loads(unpack("run_squad.json"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    path: Path = tmp_path_factory.mktemp("squad") / "squad.json"
    path.write_text(json.dumps(golden()["squad"]))
    return read_questions(Location(str(path)), train=True).questions


@pytest.fixture(scope="module")
def windows(questions: list[Question]) -> QuestionWindows:
    return build_windows(questions, build_tokenizer(published_vocabulary()), **golden()["settings"])


def test_windows_and_the_positions_of_answers_are_those_of_run_squad(windows):
    assert len(windows.lengths) == len(golden()["windows"]) == 384
    for number, expected in enumerate(golden()["windows"]):
        row = slice(*windows.ids.offsets[[number, number + 1]])
        assert windows.questions[number] == expected["question"]
        assert windows.ids.values[row].tolist() == expected["ids"]
        assert windows.segment_ids.values[row].tolist() == expected["segments"]
        assert np.flatnonzero(windows.has_max_context[row]).tolist() == expected["max_context"]
        assert (windows.start_positions[number], windows.end_positions[number]) == (expected["start"], expected["end"])


def test_ranked_answers_and_null_odds_are_those_of_run_squad(questions, windows):
    index = np.arange(len(windows.ids.values))  # these logits are exact in 32 bits, and many are equal
    logits = [(index * index * 7 + index * 13) % 997 / 64, (index * index * 11 + index * 5) % 991 / 64]
    for values in logits:
        values[windows.ids.offsets[:-1]] += 10.0  # [CLS]: for some questions, no answer is best
    starts, ends = (values.astype(np.float32) for values in logits)
    files = prediction_files(rank_answers(questions, windows, starts, ends, with_null=True), NULL_THRESHOLD)
    content = {name.removesuffix(".json"): json.loads(data) for name, data in files.items()}
    ranked = {
        question_id: [[row["text"], row["start_logit"], row["end_logit"], round(row["probability"], 9)] for row in rows]
        for question_id, rows in content["nbest_predictions"].items()
    }
    assert content["null_odds"] == golden()["null_odds"]
    assert content["predictions"] == golden()["predictions"]
    assert "" in content["predictions"].values()
    assert ranked == golden()["nbest"]
