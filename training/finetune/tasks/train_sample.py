"""The labelled rows of a task -> the same rows with a part of train, drawn by label: what do so few labels teach?"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from pydantic import Field

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.keyed_random import hash64
from cloze.training.finetune.tasks.labelled_files import LabelledExample

Example = TypeVar("Example", bound=LabelledExample)


class TrainSample(Config):
    """A part of the train split."""

    rows: int = Field(gt=1)
    """Number of rows: of each label in its proportion, and of each at least one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the draw. With the same seed the rows of a smaller number are among those of a larger one."""


def sampled(examples: Sequence[Example], sample: TrainSample, where: object) -> list[Example]:
    """The examples in their order, without those of train that are not drawn.

    The draw depends on the seed, the labels and the row numbers alone. Raises UserError when train has fewer rows, or
    more labels than rows are to be drawn.
    """
    groups = dict[object, list[Example]]()
    for example in examples:
        if example.split == "train":
            groups.setdefault(example.label, []).append(example)
    count = sum(map(len, groups.values()))
    if not len(groups) <= sample.rows <= count:
        raise UserError(
            f"{where}: train_sample.rows is {sample.rows}, but train has {count} rows of {len(groups)} labels; "
            f"give {len(groups)} to {count}"
        )
    # Each label's rows are spread evenly over (0, 1), its first one moved to 0: a prefix has all labels in proportion.
    ranked = list[tuple[float, int, int]]()  # position, a random number that decides between equals, row
    for members in groups.values():
        keys = hash64(sample.seed, np.array([example.row for example in members])).tolist()
        for rank, (key, example) in enumerate(sorted(zip(keys, members, strict=True), key=lambda one: one[0])):
            ranked.append(((rank + 0.5) / len(members) if rank else 0.0, key, example.row))
    drawn = {row for _, _, row in sorted(ranked)[: sample.rows]}
    return [example for example in examples if example.split != "train" or example.row in drawn]
