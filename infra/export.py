"""A run's finished model -> a folder in Hugging Face's format; predictions for [MASK] -> a printed table."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloze.infra.planner import Run
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

if TYPE_CHECKING:
    from cloze.training.checkpoints.fill_mask import MaskPrediction


def export_run(run: Run, to: Location) -> None:
    """Write the final checkpoint, its vocabulary and its model card in the format of Hugging Face's libraries.

    Raises UserError when a stage up to pretrain is not finished, or the folder is not empty.
    """
    from cloze.infra.model_card import card
    from cloze.training.checkpoints.huggingface import export
    from cloze.training.pretrain.stage import final_checkpoint

    artifacts = {name: finished(run, name) for name in ("pretrain", "vocab", "dedup", "extract")}
    export(final_checkpoint(artifacts["pretrain"]), artifacts["vocab"].location, to, card(run.config, artifacts))


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
    """A stage's output. Raises UserError when it is not finished, or when the run has no pretraining."""
    if run.config.pretraining is None:
        raise UserError(
            f"{run.config.name}: only fine-tunes, so it has no pretrained model; its fine-tuned models are the folders "
            "model in the outputs of its tasks, which cloze status shows"
        )
    artifact = run.artifact(name)
    if artifact is None:
        raise UserError(f"{name}: is not finished under {run.root}; finish it with cloze run and --until pretrain")
    return artifact
