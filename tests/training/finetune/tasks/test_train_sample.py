"""A part of train, drawn by label: nested, in proportion, and the same wherever it is drawn."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.classification import Classification, ClassificationConfig
from cloze.training.finetune.tasks.labelled_files import LabelledExample
from cloze.training.finetune.tasks.train_sample import TrainSample, sampled

LABELS = ["a"] * 120 + ["b"] * 60 + ["c"] * 19 + ["d"]
EXAMPLES = [
    *(LabelledExample(row, "train", label) for row, label in enumerate(LABELS, start=1)),
    *(LabelledExample(row, "dev", "a") for row in range(201, 211)),
]


def drawn(rows: int, seed: int = 0) -> list[LabelledExample]:
    found = sampled(EXAMPLES, TrainSample(rows=rows, seed=seed), "here")
    assert [one for one in found if one.split == "dev"] == EXAMPLES[200:]
    return [one for one in found if one.split == "train"]


def test_every_label_is_drawn_in_its_proportion_and_at_least_once() -> None:
    for rows in range(4, 201):
        counts = Counter(one.label for one in drawn(rows))
        assert counts.total() == rows and set(counts) == {"a", "b", "c", "d"}
        for label in "abc":
            assert abs(counts[label] - rows * LABELS.count(label) / 200) < 2
    assert drawn(200) == EXAMPLES[:200]


def test_fewer_rows_are_among_more_and_another_seed_draws_others() -> None:
    sets = [{one.row for one in drawn(rows)} for rows in range(4, 201)]
    assert all(fewer < more for fewer, more in pairwise(sets))
    other = {one.row for one in drawn(40, seed=1)}
    assert other != sets[36] and len(other & sets[36]) < 30


@pytest.mark.parametrize("rows", [3, 201])
def test_a_number_that_train_cannot_give_is_an_error(rows: int) -> None:
    with pytest.raises(UserError, match=f"rows is {rows}, but train has 200 rows of 4 labels; give 4 to 200"):
        drawn(rows)


def test_a_task_learns_from_its_sample_and_without_one_it_is_the_same_task_as_before(tmp_path: Path) -> None:
    texts = [(f"text {number} {label}", label) for number, label in enumerate("abab" * 20)]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    whole = ClassificationConfig(name="a", file=str(tmp_path / "a.csv"), learning_rate=1e-3)
    assert "train_sample" not in identity(whole)
    part = whole.model_copy(update={"train_sample": TrainSample(rows=10)})
    files = {"data": Location(str(tmp_path / "a.csv"))}
    tasks = [Classification.read(config, files) for config in (whole, part)]
    counts = [Counter(example.split for example in task.examples) for task in tasks]
    assert counts == [{"train": 64, "dev": 8, "test": 8}, {"train": 10, "dev": 8, "test": 8}]
