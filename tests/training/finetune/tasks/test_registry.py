"""The kinds of tasks in a YAML file."""

import pytest

from cloze.pipeline.core.config import Config, load
from cloze.training.finetune.tasks import registry
from cloze.training.finetune.tasks.registry import task_of


class Tasks(Config):
    finetune: tuple[registry.FinetuneConfig, ...]  # type: ignore[valid-type]


@pytest.mark.parametrize(
    ("entry", "kind", "keys"),
    [
        ("columns: {token: 1, tag: -1, tag_names: [O, B]}", "tagging", {"tag": -1, "tag_names": ("O", "B")}),
        ("columns: {choices: [a, b], context: 1}", "choice", {"choices": ("a", "b"), "context": 1}),
        ("columns: {labels: [a, 3]}", "multilabel", {"labels": ("a", 3)}),
        ("columns: {labels: tags}", "multilabel", {"labels": "tags"}),
    ],
)
def test_lists_in_a_yaml_file_are_accepted(tmp_path, entry, kind, keys):
    path = tmp_path / "run.yaml"
    path.write_text(f"finetune:\n  - {{name: a, kind: {kind}, file: x, learning_rate: [1e-3, 1e-4], {entry}}}\n")
    [task] = load(Tasks, path).finetune
    assert task.learning_rate == (1e-3, 1e-4)
    assert {key: getattr(task.columns, key) for key in keys} == keys
    assert task_of(task).__name__.lower() == kind
