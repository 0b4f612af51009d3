"""a run's finished model -> a folder that others load; text with [MASK] -> what the model would put there."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cloze.infra.planner import Run
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

if TYPE_CHECKING:
    from cloze.training.checkpoints.fill_mask import Guess


def export_run(run: Run, to: Location) -> None:
    """Write the final checkpoint, its vocabulary and its card as Hugging Face's libraries read them.

    Raises UserError when a stage up to pretrain is not finished, and for a folder that holds anything.
    """
    from cloze.infra.model_card import card
    from cloze.training.checkpoints.huggingface import export
    from cloze.training.pretrain.stage import final_checkpoint

    made = {name: _finished(run, name) for name in ("pretrain", "vocab", "dedup", "extract")}
    export(final_checkpoint(made["pretrain"]), made["vocab"].location, to, card(run.config, made))


def guesses(run: Run, text: str) -> "list[list[Guess]]":
    """For each [MASK] of the text the likeliest pieces, the likeliest first. Raises UserError."""
    from cloze.pipeline.text.tokenizer import load_tokenizer
    from cloze.training.checkpoints.fill_mask import load_model, predict_masked
    from cloze.training.pretrain.stage import final_checkpoint

    model = load_model(final_checkpoint(_finished(run, "pretrain")))
    tokenizer = load_tokenizer(_finished(run, "vocab").location / "tokenizer.json")
    try:
        return predict_masked(model, tokenizer, text)
    except ValueError as error:
        raise UserError(str(error)) from error


def print_guesses(found: "Sequence[Sequence[Guess]]") -> None:
    """A column for each [MASK]."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cloze.pipeline.text.tokenizer import MASK

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number in range(1, len(found) + 1):
        table.add_column(Text(f"{MASK} {number}" if len(found) > 1 else MASK))
        table.add_column("", justify="right")
    for row in zip(*found, strict=True):
        table.add_row(*(Text(cell) for guess in row for cell in (guess.piece, f"{100 * guess.probability:.1f} %")))
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def _finished(run: Run, name: str) -> Artifact:
    artifact = run.artifact(name)
    if artifact is None:
        raise UserError(f"{name}: is not finished on {run.root}; finish it with cloze run and --until pretrain")
    return artifact
