"""a row of held-out metrics -> what it says of a model, beside what is scored without one: page, status and card agree.

The baselines stand in the row (pretrain/baselines.py): for masked pieces a unigram model, for pairs the answer that is
right the most often.
"""

from collections.abc import Mapping
from typing import Any

from cloze.training.finetune.scores import wilson

#: What the head for pairs answers, by objective: 0, 1. Without the objective the labels stand for themselves.
_ANSWERS = {"mlm+nsp": ("is next", "random"), "mlm+sop": ("in order", "swapped")}
_LITTLE = 0.1  # of the unigram model's loss, below which a BERT that has learnt much ends by more than half


def verdict(row: Mapping[str, Any], objective: str | None) -> list[str]:
    """What the model does with masked pieces; where there are pairs, also what with these."""
    return [_masked_pieces(row), *([_pairs(row, objective)] if "pairs" in row else [])]


def _masked_pieces(row: Mapping[str, Any]) -> str:
    gain = 1 - row["mlm_loss"] / row["mlm_loss_baseline"]
    said = (
        f"Of documents it was never trained on the model names {_percent(row['mlm_accuracy'])} of {row['masked']:,} "
        f"masked pieces (loss {row['mlm_loss']:.3f}), where a unigram model, which knows how frequent each piece is "
        f"and nothing else, names {_percent(row['mlm_accuracy_baseline'])} (loss {row['mlm_loss_baseline']:.3f})."
    )
    if gain >= _LITTLE:
        return f"{said} Its loss is {_percent(gain)} lower."
    if gain > 0:
        return f"{said} Its loss is {_percent(gain)} lower: of the pieces around a masked one it makes little yet."
    return f"{said} By its loss it is no better than that."


def _pairs(row: Mapping[str, Any], objective: str | None) -> str:
    """Better than the baseline is what lies above it with the whole of its 95 % interval."""
    low, high = wilson(round(row["nsp_accuracy"] * row["pairs"]), row["pairs"])
    base = row["nsp_accuracy_baseline"]
    said = (
        f"It answers right in {_percent(row['nsp_accuracy'])} of {row['pairs']:,} pairs (95 %: {100 * low:.1f} to "
        f"{100 * high:.1f}; loss {row['nsp_loss']:.3f}), where {constant(row, objective)} is right in {_percent(base)} "
        f"(loss {row['nsp_loss_baseline']:.3f})."
    )
    if low <= base:
        than = "worse" if high < base else "no better"
        said += f" It is {than} than that: nothing that it has learnt of pairs shows yet."
    return said + _same(row, objective)


def constant(row: Mapping[str, Any], objective: str | None) -> str:
    """What the baseline of pairs does: always the answer that more of them have; of equally many the first."""
    return f'always answering "{_answer(row["pairs_1"] > row["pairs"] - row["pairs_1"], objective)}"'


def _same(row: Mapping[str, Any], objective: str | None) -> str:
    """Said where the model gives every pair the same answer."""
    if row["answers_1"] not in (0, row["pairs"]):
        return ""
    return (
        f' It answers "{_answer(row["answers_1"] > 0, objective)}" to every one of the {row["pairs"]:,} pairs, as a '
        "constant would."
    )


def _answer(label: bool, objective: str | None) -> str:
    return _ANSWERS.get(objective or "", ("0", "1"))[label]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
