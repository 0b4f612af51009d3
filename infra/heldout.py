"""A row of held-out metrics -> sentences that compare the model with baselines, for the report, status and model card.

The row has the baselines (training/pretrain/baselines.py): a unigram model for masked tokens, chance for the choice
between a masked token and another one, the majority answer for pairs.
"""

from collections.abc import Mapping
from typing import Any

from cloze.training.finetune.metrics.estimates import wilson

#: The answers 0 and 1 of the pair objectives. Without the objective, the label itself is shown.
_ANSWERS = {"mlm+nsp": ("IsNext", "NotNext"), "mlm+sop": ("in order", "swapped")}
_PAIR_ACCURACIES = {"mlm+nsp": "next-sentence accuracy", "mlm+sop": "sentence-order accuracy"}
_SMALL_GAIN = 0.1  # relative to the unigram loss; a well-trained BERT's loss is less than half of it


def describe(row: Mapping[str, Any], objective: str | None) -> list[str]:
    """Returns sentences about the masked tokens, and about the choices and the pairs if the row has them."""
    choice = [_describe_choice(row)] if "choices" in row else []
    pairs = [_describe_pairs(row, objective)] if "pairs" in row else []
    return [_describe_masked(row), *choice, *pairs]


def _describe_masked(row: Mapping[str, Any]) -> str:
    gain = 1 - row["mlm_loss"] / row["mlm_loss_baseline"]
    text = (
        f"On held-out documents, masked-token accuracy is {_percent(row['mlm_accuracy'])} of {row['masked']:,} tokens "
        f"(loss {row['mlm_loss']:.3f}); a unigram model, which only knows token frequencies, reaches "
        f"{_percent(row['mlm_accuracy_baseline'])} (loss {row['mlm_loss_baseline']:.3f})."
    )
    if gain >= _SMALL_GAIN:
        return f"{text} The model's loss is {_percent(gain)} lower."
    if gain > 0:
        return f"{text} The model's loss is only {_percent(gain)} lower: it makes little use of context yet."
    return f"{text} The model's loss is no better."


def choice_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the 95 % interval of the cloze choice's accuracy."""
    return wilson(round(row["choice_accuracy"] * row["choices"]), row["choices"])


def _describe_choice(row: Mapping[str, Any]) -> str:
    """The model is better than chance if its whole 95 % interval is above it."""
    low, high = choice_interval(row)
    text = (
        f"The model picks the true token over one of the same frequency in {_percent(row['choice_accuracy'])} of "
        f"{row['choices']:,} masks (95 % interval {100 * low:.1f} to {100 * high:.1f}; chance 50)."
    )
    return text if low > 0.5 else f"{text} That is {'below' if high < 0.5 else 'no better than'} chance."


def _describe_pairs(row: Mapping[str, Any], objective: str | None) -> str:
    """The model is better than the baseline if its whole 95 % interval is above it."""
    low, high = wilson(round(row["nsp_accuracy"] * row["pairs"]), row["pairs"])
    baseline = row["nsp_accuracy_baseline"]
    text = (
        f"Held-out {_PAIR_ACCURACIES.get(objective or '', 'pair accuracy')} is {_percent(row['nsp_accuracy'])} of "
        f"{row['pairs']:,} pairs (95 % interval {100 * low:.1f} to {100 * high:.1f}; loss {row['nsp_loss']:.3f}); "
        f"{constant_answer(row, objective)} reaches {_percent(baseline)} (loss {row['nsp_loss_baseline']:.3f})."
    )
    if low <= baseline:
        text += f" The model is {'worse' if high < baseline else 'no better'}: it has not learned this objective yet."
    return text + _describe_constant_output(row, objective)


def constant_answer(row: Mapping[str, Any], objective: str | None) -> str:
    """Returns the pair baseline, which always gives the more frequent answer, or the first of equally frequent ones."""
    return f'always answering "{_answer(row["pairs_1"] > row["pairs"] - row["pairs_1"], objective)}"'


def _describe_constant_output(row: Mapping[str, Any], objective: str | None) -> str:
    """Returns a sentence if the model gives the same answer to every pair, else nothing."""
    if row["answers_1"] not in (0, row["pairs"]):
        return ""
    return f' It answers "{_answer(row["answers_1"] > 0, objective)}" for all {row["pairs"]:,} pairs.'


def _answer(label: bool, objective: str | None) -> str:
    return _ANSWERS.get(objective or "", ("0", "1"))[label]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
