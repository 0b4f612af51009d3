"""Labelled files + tokenizer -> a task's examples as token ids, in files that all trainings on them share.

Settings of the training alone, such as the learning rate, do not belong to the fingerprint: see `Training`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import SkipValidation

from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import Config, InputPath, identity
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import folder_of, is_name
from cloze.training.finetune.encode.encoded_files import split_files
from cloze.training.finetune.encoders.pretrained_encoder import tokenizer_of, tokenizer_paths
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import splits_of
from cloze.training.finetune.tasks.task_config import TaskConfig, task_files

VERSION = 1


class EncodeConfig(Config):
    """What the encoded examples of a task depend on: a part of its configuration, and its tokenizer."""

    task: SkipValidation[TaskConfig]
    """The task's configuration; the fields that concern the training alone are None."""
    tokenizer: Annotated[str | None, InputPath(files_in=tokenizer_paths, is_name=is_name)] = None
    """The model whose tokenizer is used, as `init` of the task names it; by default this run's."""


def encode_config(task: TaskConfig) -> EncodeConfig:
    """The part of a task's configuration that its encoded examples depend on."""
    return EncodeConfig(task=task.without_training, tokenizer=task.init)


def run(config: EncodeConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "vocab" (Artifact), or "tokenizer" (SourceFile: the first of `tokenizer_paths`); the labelled files.

    counts: the examples of each split, "rows" (these, and the rows that `skip_invalid` left out and that are in the
    drops), "truncated" and others of the task. Raises UserError for files that the task cannot use.
    """
    out.report_progress(0, 1, "task", "reading")
    task = task_of(config.task).read(config.task, task_files(config.task, inputs))
    out.report_progress(0, 1, "task", "encoding")
    encoded = task.encode(tokenizer_of(_tokenizer_folder(inputs)))
    part = out.commit("encoded", split_files(encoded.splits), drops=task.skipped)
    examples = {split: sum(one.split == split for one in task.examples) for split in splits_of(task.examples)}
    rows = len(task.examples) + sum(task.skipped.values())
    return out.finish(
        [part],
        identity(config),
        {name: item.fingerprint if isinstance(item, Artifact) else item.identity for name, item in inputs.items()},
        counts={"rows": rows, **examples, "truncated": encoded.truncated, **encoded.counts},
    )


def _tokenizer_folder(inputs: Mapping[str, Any]) -> Location:
    if vocab := inputs.get("vocab"):
        return vocab.location
    return folder_of(inputs["tokenizer"])
