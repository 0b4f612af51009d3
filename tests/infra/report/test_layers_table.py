"""The table of a probe on the page."""

from typing import Any

from cloze.infra.report.charts import Axis
from cloze.infra.report.layers_table import layers_table
from cloze.infra.report.pretraining import percent_axis
from cloze.training.finetune.manifest_facts import FinetuneFacts

LABELS = {"pretrained": "pretrained", "random": "random initialization"}
AXIS: Axis = percent_axis("")


def row(layers: int | str, **more: Any) -> dict[str, Any]:
    return {"layers": layers, "dimension": 8, "C": 1.0, "dev": 0.8, "score": 0.75, "interval": [0.7, 0.8], **more}


def facts(*rows: dict[str, Any], **more: Any) -> FinetuneFacts:
    variants = {"pretrained": {"layers": rows}, **more}
    return FinetuneFacts.model_validate({"variants": variants, "metric": "f1", "scored_split": "test"})


def test_each_choice_of_layers_has_its_scores_beside_those_of_random_weights() -> None:
    found = facts(row(0), row("sum-last-4", is_chosen=True), random={"layers": [row(0, dev=0.3), row("sum-last-4")]})
    table = layers_table(found, "F1", AXIS, LABELS)
    assert table is not None
    names = ["C", "dev F1", "test F1"]
    assert table.titles == [f"{variant}: {name}" for variant in LABELS.values() for name in names]
    assert [one.layers for one in table.rows] == ["embeddings", "sum last 4"]
    assert [one.is_chosen for one in table.rows] == [False, True]
    assert table.rows[0].cells[1::3] == ["80.0\N{NO-BREAK SPACE}%", "30.0\N{NO-BREAK SPACE}%"]
    assert "BiLSTM" not in table.explanation


def test_folds_the_paper_and_a_regression_that_has_not_converged_are_said() -> None:
    rows = row("last", folds=[0.7, 0.8, 0.9], published=0.949), row(3, folds=[0.5, 0.5, 0.5], converged=False)
    table = layers_table(facts(*rows), "F1", AXIS, LABELS)
    assert table is not None
    assert table.titles == ["C", "folds of train", "dev F1", "test F1", "BERT-base with a BiLSTM, dev"]
    assert table.rows[0].cells[1] == "80.0 ± 10.0\N{NO-BREAK SPACE}%"
    assert [one.cells[-1] for one in table.rows] == ["94.9\N{NO-BREAK SPACE}%", "–"]
    assert [one.notes for one in table.rows] == ["", "pretrained: not converged"]
    assert "mean of the folds" in table.explanation and "a BiLSTM of two layers" in table.explanation


def test_a_bilstm_has_no_penalty() -> None:
    rows = [{**row(layers, published=0.9), "C": None} for layers in (0, "last")]
    table = layers_table(facts(*rows), "F1", AXIS, LABELS)
    assert table is not None
    assert table.titles == ["dev F1", "test F1", "BERT-base with a BiLSTM, dev"]
    assert [len(one.cells) for one in table.rows] == [3, 3]
    assert table.explanation.startswith("A BiLSTM on the vectors") and "regression" not in table.explanation


def test_other_tasks_have_no_such_table() -> None:
    other = FinetuneFacts.model_validate({"variants": {"pretrained": {"loss": [[1, 2.0]]}}})
    assert layers_table(other, "accuracy", AXIS, LABELS) is None
