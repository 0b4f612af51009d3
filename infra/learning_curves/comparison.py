"""A run's task and numbers of labels -> the configuration of a run that fine-tunes it with so few labels.

That run is an ordinary one, NAME-TASK-labels, with a task for each number and seed: its outputs are artifacts, so that
what is finished is not trained again, and an interrupted comparison continues.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cloze.infra.export import finished
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.tasks.classification import Classification, ClassificationConfig
from cloze.training.finetune.tasks.task_config import task_files
from cloze.training.finetune.tasks.train_sample import TrainSample
from cloze.training.pretrain.stage import final_checkpoint

_EPOCHS = 20  # of few labels (arXiv:2006.04884): with those of all labels, a small set would be left after a few steps


class Training(NamedTuple):
    """A task of the comparison: a part of the labels, drawn by a seed, and the model that it starts from."""

    labels: int
    seed: int
    is_published: bool  # starts from the other encoder

    def task_name(self, task: str) -> str:
        return f"{task}-{self.labels}-seed{self.seed}{'-encoder' if self.is_published else ''}"


@dataclass(frozen=True)
class Comparison:
    """A run's task, the numbers of labels and the seeds to compare with, and the folder of another encoder."""

    run: Run
    task: ClassificationConfig
    train_rows: int  # labelled rows of the task
    labels: Sequence[int]  # ascending
    seeds: int
    encoder: str | None

    @property
    def trainings(self) -> Iterator[Training]:
        for is_published in (False, True) if self.encoder else (False,):
            for labels in self.labels:
                for seed in range(self.seeds):
                    yield Training(labels, seed, is_published)

    @property
    def config(self) -> RunConfig:
        """The run with a task for each training. Raises UserError while the run's pretraining is not finished."""
        name, root = f"{self.run.config.name}-{self.task.name}-labels", self.run.config.root
        init = self.task.init or final_checkpoint(finished(self.run, "pretrain")).digest
        return RunConfig(name=name, root=root, finetune=tuple(self._task(one, init) for one in self.trainings))

    def _task(self, training: Training, init: str) -> ClassificationConfig:
        """The random weights have the shape of this run's model, so that they are not compared with the encoder's."""
        return self.task.model_copy(
            update={
                "name": training.task_name(self.task.name),
                "init": self.encoder if training.is_published else init,
                "compare_random": not training.is_published,
                "train_sample": TrainSample(rows=training.labels, seed=training.seed),
                "seeds": (training.seed,),
                "epochs": tuple(dict.fromkeys(self._epochs(epochs, training.labels) for epochs in self.task.epochs)),
            }
        )

    def _epochs(self, epochs: int, labels: int) -> int:
        """As many steps as with all labels, in `_EPOCHS` epochs at most unless the task itself has more."""
        return min(max(_EPOCHS, epochs), math.ceil(epochs * self.train_rows / labels))


def comparison(run: Run, task: str, labels: Sequence[int], seeds: int, encoder: str | None) -> Comparison:
    """Raises UserError for a task that the run does not have or that cannot be compared, for its files, and for numbers
    of labels that train does not have."""
    config = next((one for one in run.config.finetune if one.name == task), None)
    if config is None:
        names = ", ".join(one.name for one in run.config.finetune) or "none"
        raise UserError(f"{task}: is not a task of {run.config.name}; its tasks are: {names}")
    if not isinstance(config, ClassificationConfig):
        raise UserError(f"{task}: is a task of another kind; name one of the kind classification")
    files = task_files(config, run.sources(run.stage(f"finetune-{task}")))
    examples = Classification.read(config.model_copy(update={"train_sample": None}), files).examples
    train = [example.label for example in examples if example.split == "train"]
    least, most = len(set(train)), len(train)
    if wrong := [number for number in labels if not least <= number <= most]:
        raise UserError(
            f"--labels {wrong[0]}: the task {task} has {most:,} labelled rows in train, of {least} labels; "
            f"give numbers from {least} to {most}"
        )
    folder = Location(encoder).absolute().uri if encoder else None
    return Comparison(run, config, len(train), sorted(set(labels)), seeds, folder)
