"""Texts with [MASK] -> the most likely pieces at each mask."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloze.infra.inspection.model import InspectedModel, PiecePrediction
from cloze.infra.report.charts import format_percent
from cloze.training.finetune.tasks.task import MissingHead

_PIECES = 10  # shown for each mask
_CONTEXT = 90  # characters shown before and after a mask


@dataclass(frozen=True)
class MaskSection:
    """What the model predicts for one [MASK]."""

    before: str
    after: str
    best: Sequence[PiecePrediction]
    others: int  # pieces of the vocabulary that are not shown

    @property
    def predictions(self) -> list[tuple[str, float, str]]:
        """(piece, probability, probability as text), the most likely first."""
        return [(one.piece, one.probability, format_percent(one.probability)) for one in self.best]

    @property
    def total(self) -> str:
        return format_percent(sum(one.probability for one in self.best))


@dataclass(frozen=True)
class MasksSection:
    """The masks of all texts, or why there are none."""

    masks: list[MaskSection]
    missing: str = ""


def masks_section(model: InspectedModel, texts: Sequence[str]) -> MasksSection:
    """The predictions at each mask, each text alone, as `cloze predict` has them."""
    read = [model.read([text]) for text in texts]
    if not any(model.masks(text) for text in read):
        return MasksSection([], "The text has no [MASK]. Write one in place of a word to see what the model predicts.")
    pieces = model.tokenizer.get_vocab_size()
    shown = min(_PIECES, pieces)
    masks = list[MaskSection]()
    for text in read:
        positions = model.masks(text)
        try:
            predictions = model.fill_masks(text, shown) if positions else []
        except MissingHead:
            return MasksSection([], "The model has no masked-LM head, with which it would predict the pieces.")
        for position, best in zip(positions, predictions, strict=True):
            start, end = text.spans[position]
            before, after = text.texts[0][:start], text.texts[0][end:]
            masks.append(MaskSection(_end(before), _start(after), best, pieces - shown))
    return MasksSection(masks)


def _end(text: str) -> str:
    return text if len(text) <= _CONTEXT else f"… {text[-_CONTEXT:]}"


def _start(text: str) -> str:
    return text if len(text) <= _CONTEXT else f"{text[:_CONTEXT]} …"
