"""model.onnx of each kind of task in onnxruntime: the outputs of the model that transformers loads."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray

from cloze.pipeline.core.errors import UserError
from cloze.training.finetune.prediction.onnx_model import fine_tuned_onnx
from tests.training.finetune.encoders import test_transformers_encoder as of_transformers
from tests.training.finetune.encoders.transformers_folders import write_folder
from tests.training.finetune.prediction.saved_models import HEADS, KINDS, PIECES, saved

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
OUTPUTS = {"question_answering": ["start_logits", "end_logits"], "contrastive": ["last_hidden_state"]}


def batch(rows: int, width: int, choices: int | None, padding: int) -> dict[str, NDArray[np.int64]]:
    """Rows of different lengths, padded to `width`, with a second segment."""
    random = np.random.default_rng(rows * width)
    shape = (rows, width) if choices is None else (rows, choices, width)
    lengths = random.integers(1, width + 1, (*shape[:-1], 1))
    real = np.arange(width) < lengths
    ids = np.where(real, random.integers(5, len(PIECES), shape), padding)
    second = real & (np.arange(width) >= lengths // 2)
    return dict(zip(INPUTS, (ids, real.astype(np.int64), second.astype(np.int64)), strict=True))


def test_every_kind_with_a_model_has_an_onnx_file() -> None:
    assert HEADS.keys() == KINDS.keys() - {"minimal_pairs", "probe"}


_SAME_HEAD_AS_CLASSIFICATION = ("regression", "multilabel")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in _SAME_HEAD_AS_CLASSIFICATION else ()) for kind in HEADS],
)
def test_onnxruntime_has_the_outputs_of_transformers_at_any_size(tmp_path: Path, kind: str) -> None:
    expected_model, model = saved(tmp_path, kind)
    check_outputs(fine_tuned_onnx(model.model), expected_model, kind, INPUTS)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("albert", "question_answering"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("distilbert", "choice"), ("modernbert", "classification"), ("roberta", "tagging"))
        ),
    ],
)
def test_models_that_transformers_runs_have_the_same_outputs(tmp_path: Path, model_type: str, kind: str) -> None:
    given = of_transformers.setup(kind, write_folder(tmp_path / model_type, model_type), tmp_path)
    head = given.task.head()
    assert head is not None
    model: Any = given.encoder.new_model(given.task, 3, pretrained=True).eval()
    of_transformers.write_folder_files(given.encoder.model_files(head, model.state_dict()), tmp_path / "exported")
    expected = getattr(transformers, f"AutoModel{head.class_name}").from_pretrained(tmp_path / "exported").eval()
    inputs = INPUTS if model_type == "albert" else INPUTS[:2]  # the others have no segments
    check_outputs(fine_tuned_onnx(model), expected, kind, inputs)


def check_outputs(content: bytes, expected_model: Any, kind: str, input_names: list[str]) -> None:
    session = onnxruntime.InferenceSession(content)
    choices = expected_model.config.num_choices if kind == "choice" else None
    axes = ["batch", "sequence"] if choices is None else ["batch", choices, "sequence"]
    assert [(one.name, one.shape) for one in session.get_inputs()] == [(name, axes) for name in input_names]
    names = OUTPUTS.get(kind, ["logits"])
    assert [one.name for one in session.get_outputs()] == names
    for rows, width in ((1, 1), (1, 64), (2, 8), (7, 13)):
        every_input = batch(rows, width, choices, expected_model.config.pad_token_id)
        inputs = {name: every_input[name] for name in input_names}
        with torch.inference_mode():
            expected = expected_model(**{name: torch.from_numpy(values) for name, values in inputs.items()})
        for name, values in zip(names, session.run(None, inputs), strict=True):
            np.testing.assert_allclose(values, expected[name].numpy(), atol=1e-4, rtol=0, err_msg=f"{rows} {width}")


def test_the_file_has_the_same_bytes_each_time_and_no_path_of_this_machine(tmp_path: Path) -> None:
    _, model = saved(tmp_path, "tagging")
    content = fine_tuned_onnx(model.model)
    assert fine_tuned_onnx(model.model) == content
    assert b"heads.py" not in content


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = saved(tmp_path, "classification")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(UserError, match=r"^--onnx: the package onnxscript is not installed; pip install onnx onnxscri"):
        fine_tuned_onnx(model.model)
