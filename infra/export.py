"""A run's finished model -> a folder in Hugging Face's format; predictions for [MASK] -> a printed table."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cloze.infra.planner import Run
from cloze.pipeline.core.artifacts import Artifact, missing_files
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

if TYPE_CHECKING:
    from cloze.training.checkpoints.checkpoint import CheckpointRef
    from cloze.training.checkpoints.fill_mask import MaskPrediction
    from cloze.training.checkpoints.sentence_transformers import Pooling
    from cloze.training.finetune.tasks.task_config import TaskConfig
    from cloze.training.vectors.representation import Representation


def export_run(run: Run, to: Location, onnx: bool = False) -> None:
    """Write the final checkpoint, its vocabulary and its model card in the format of Hugging Face's libraries.

    `onnx`: also write model.onnx. Raises UserError when vocab or pretrain is not finished, or the folder is not empty.
    """
    from cloze.training.checkpoints.huggingface import export

    checkpoint, vocab, card = _pretrained(run)
    export(checkpoint, vocab, to, card, onnx=onnx)


def _pretrained(run: Run, pooling: "Pooling | None" = None) -> "tuple[CheckpointRef, Location, str]":
    """The final checkpoint, the folder of its vocabulary, and its model card (see `card`). Raises UserError.

    The documents may have been deleted since, to free space.
    """
    from cloze.infra.model_card import card
    from cloze.training.pretrain.stage import final_checkpoint

    artifacts = {name: finished(run, name) for name in ("pretrain", "vocab")}
    for name in ("dedup", "extract"):
        if (artifact := run.artifact(name)) and not missing_files(artifact.location, artifact.manifest):
            artifacts[name] = artifact
    return final_checkpoint(artifacts["pretrain"]), artifacts["vocab"].location, card(run.config, artifacts, pooling)


def fine_tuned(run: Run, task: str) -> "tuple[TaskConfig, Artifact]":
    """A task's configuration, and its output with the fine-tuned model.

    Raises UserError when there is no such task, it is not finished, or it trains no model.
    """
    names = [found.name for found in run.config.finetune]
    if task not in names:
        raise UserError(f"--task {task}: is not a task of this run; its tasks are {', '.join(names) or 'none'}")
    config = run.config.finetune[names.index(task)]
    if not config.trials:
        kind = type(config).model_fields["kind"].default
        raise UserError(
            f"--task {task}: a task of the kind {kind} trains no model; export or use the model that it starts from"
        )
    return config, finished(run, f"finetune-{task}")


def export_task(run: Run, task: str, to: Location, onnx: bool = False) -> None:
    """Copy a task's fine-tuned model, which transformers' Auto classes and pipelines load.

    `onnx`: also write model.onnx. Raises UserError when the task is not finished, or the folder is not empty.
    """
    from cloze.training.checkpoints.huggingface import write_folder
    from cloze.training.finetune.model_files import FOLDER

    config, artifact = fine_tuned(run, task)
    folder = artifact.location / FOLDER
    files = {file.name: file.read_bytes() for file in folder.files()}
    if onnx:
        from cloze.training.checkpoints.onnx_file import ONNX_FILE
        from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel
        from cloze.training.finetune.prediction.onnx_model import fine_tuned_onnx

        files[ONNX_FILE] = fine_tuned_onnx(FineTunedModel.from_folder(folder, config).model)
    write_folder(to, files)


def trained_vectors(config: "TaskConfig") -> "tuple[Representation, int | None]":
    """The vectors that a contrastive task has trained, and to how many tokens it cut texts; of others the default ones,
    of texts of any length."""
    from cloze.training.finetune.tasks.contrastive_config import ContrastiveConfig
    from cloze.training.vectors.representation import Representation

    if isinstance(config, ContrastiveConfig):
        return config.representation, config.max_seq_length
    return Representation(), None


def export_sentence_encoder(run: Run, task: str | None, to: Location, pooling: "Pooling | None") -> None:
    """Write the encoder of the pretrained model, or of a task's, as SentenceTransformer loads it.

    Its vectors are those of `cloze embed`: of the last layer, the mean over all tokens or that of [CLS]; without
    `pooling` what a contrastive task has trained, or the mean. Raises UserError when a stage is not finished, the
    folder is not empty, or the task leaves [CLS] and [SEP] out of the mean.
    """
    from cloze.training.checkpoints.huggingface import export_files, write_folder
    from cloze.training.checkpoints.sentence_transformers import with_sentence_vectors
    from cloze.training.finetune.encoders.pretrained_encoder import from_checkpoint, from_folder
    from cloze.training.finetune.model_files import FOLDER
    from cloze.training.finetune.prediction.text_embedder import load_embedder
    from cloze.training.vectors.representation import Representation

    trained, length = Representation(), None
    if task:
        config, artifact = fine_tuned(run, task)
        trained, length = trained_vectors(config)
        if not trained.special_tokens and (pooling or trained.pooling) == "mean":
            raise UserError(
                f"--task {task}: was trained with special_tokens: false, which sentence-transformers cannot compute; "
                "use cloze embed, or train with special_tokens: true"
            )
        folder = artifact.location / FOLDER
        encoder, files = from_folder(folder), {file.name: file.read_bytes() for file in folder.files()}
    else:
        checkpoint, vocab, card = _pretrained(run, pooling or trained.pooling)
        encoder, files = from_checkpoint(checkpoint, vocab), export_files(checkpoint, vocab, card)
    representation = Representation(pooling=pooling or trained.pooling)
    embedder = load_embedder(encoder, representation, length)
    write_folder(to, with_sentence_vectors(files, embedder.dimension, embedder.max_length, representation.pooling))


def predict_lines(run: Run, task: str, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A prediction for each line: a text, or the texts of a pair with a tab between them.

    Raises UserError when a line has more or fewer texts than the task, or the task is not finished.
    """
    from cloze.training.finetune.model_files import FOLDER
    from cloze.training.finetune.prediction.fine_tuned_model import FineTunedModel

    config, artifact = fine_tuned(run, task)
    model = FineTunedModel.from_folder(artifact.location / FOLDER, config)
    names = model.task.input_names(config, model.head)

    def inputs() -> Iterator[Mapping[str, str]]:
        for number, line in enumerate(lines, start=1):
            texts = line.rstrip("\r\n").split("\t")
            if len(texts) != len(names) or not all(map(str.strip, texts)):
                raise UserError(
                    f"standard input:{number}: is not {' TAB '.join(names)}; write one input per line, "
                    "with a tab between its texts"
                )
            yield dict(zip(names, texts, strict=True))

    return model.predict(inputs())


def print_predictions(predictions: "Sequence[Sequence[MaskPrediction]]") -> None:
    """Print a table with a column for each [MASK]."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cloze.pipeline.text.tokenizer import MASK

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in range(1, len(predictions) + 1):
        table.add_column(Text(f"{MASK} {number}" if len(predictions) > 1 else MASK))
        table.add_column("", justify="right")
    for row in zip(*predictions, strict=True):
        cells = (cell for one in row for cell in (one.piece, f"{100 * one.probability:.1f} %"))
        table.add_row(*map(Text, cells))
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def finished(run: Run, name: str) -> Artifact:
    """A stage's output. Raises UserError when it is not finished, or is one of pretraining and the run has none."""
    if run.config.pretraining is None and name not in run.stages:
        raise UserError(
            f"{run.config.name}: only fine-tunes, so it has no pretrained model; cloze export and cloze predict use "
            "a fine-tuned one with --task"
        )
    artifact = run.artifact(name)
    if artifact is None:
        raise UserError(f"{name}: is not finished under {run.root}; finish it with cloze run and --until {name}")
    return artifact
