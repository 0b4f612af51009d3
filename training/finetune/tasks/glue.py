"""GLUE's published files (gluebenchmark.com): the columns of each task, its metric, and the form of its submissions.

Wang et al. 2019 (arXiv:1804.07461). The TSV files have no quoting: a quote is a character. The test parts have no
labels; some distributions write -1 in their place.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cloze.training.finetune.tasks.published_scores import PublishedScore, published_scores
from cloze.training.finetune.tasks.task import TaskExample
from cloze.training.finetune.tasks.task_config import Column

NO_LABEL = "-1"


class Layout(NamedTuple):
    """The columns of a GLUE task in its train and dev files, and in test."""

    text: Column
    text_b: Column | None
    label: Column
    metric: str
    submission: str  # the name of the file that GLUE's server takes
    test_text: Column | None = None  # where it differs from `text`
    paper: tuple[float, float] | None = None  # BERT's scores, base and large, on GLUE's test set (table 1), in percent


LAYOUTS: dict[str, Layout] = {
    "CoLA": Layout(4, None, 2, "matthews", "CoLA.tsv", "sentence", (52.1, 60.5)),
    "SST-2": Layout("sentence", None, "label", "accuracy", "SST-2.tsv", paper=(93.5, 94.9)),
    "MRPC": Layout("#1 String", "#2 String", "Quality", "f1", "MRPC.tsv", paper=(88.9, 89.3)),
    "QQP": Layout("question1", "question2", "is_duplicate", "f1", "QQP.tsv", paper=(71.2, 72.1)),
    "MNLI": Layout("sentence1", "sentence2", "gold_label", "accuracy", "MNLI-m.tsv", paper=(84.6, 86.7)),
    "MNLI-mm": Layout("sentence1", "sentence2", "gold_label", "accuracy", "MNLI-mm.tsv", paper=(83.4, 85.9)),
    "QNLI": Layout("question", "sentence", "label", "accuracy", "QNLI.tsv", paper=(90.5, 92.7)),
    "RTE": Layout("sentence1", "sentence2", "label", "accuracy", "RTE.tsv", paper=(66.4, 70.1)),
    "WNLI": Layout("sentence1", "sentence2", "label", "accuracy", "WNLI.tsv"),
    "STS-B": Layout("sentence1", "sentence2", "score", "spearman", "STS-B.tsv", paper=(85.8, 86.5)),
}


def layout_of(name: str | None) -> Layout | None:
    """The layout of a GLUE task's files; None without a task."""
    return LAYOUTS[name] if name else None


def paper_fact(name: str) -> dict[str, Any]:
    """BERT's published scores on a task's test set, as the manifest has them; empty if there are none."""
    names = (name, "MNLI-mm") if name == "MNLI" else (name,)
    published, paper = list[dict[str, Any]](), dict[str, dict[str, float]]()
    for one in names:
        if (scores := LAYOUTS[one].paper) is not None:
            found = [PublishedScore("test", LAYOUTS[one].metric, *scores, table=1)]
            published += published_scores(f"GLUE's {one}", found)
            paper.setdefault("paper", {"base": scores[0] / 100, "large": scores[1] / 100})
    return {**paper, "published": published} if published else {}


def is_submitted(split: str, label: object) -> bool:
    """Whether GLUE's server scores a file of this split, by its first row's label: test, and those without labels."""
    return split == "test" or (split not in ("", "train", "dev") and label is None)


def submission_files(
    name: str | None, examples: Sequence[TaskExample], rows: Sequence[Mapping[str, Any]]
) -> dict[str, bytes]:
    """The predictions for test, or for an extra file without labels, of a GLUE task -> the file that GLUE's server
    takes: index, from 0, and prediction. Empty for another task or split."""
    if name is None or not examples or not is_submitted(split := examples[0].split, examples[0].label):
        return {}
    lines = (f"{index}\t{row['predicted']}\n" for index, row in enumerate(rows))
    file = LAYOUTS[name].submission if split == "test" else f"{split}.tsv"
    return {file: "".join(("index\tprediction\n", *lines)).encode()}
