"""Example shards -> some examples with their masks, and the distribution of example lengths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from markupsafe import Markup

from cloze.infra.report.charts import format_number, format_percent, histogram
from cloze.infra.report.view_models import ExamplesView, Stages, StageView, VocabView
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.text.tokenizer import CLS, MASK, SEP

#: Titles by objective and next_sentence_label.
_TITLES = {
    "mlm+nsp": {0: "IsNext: segment B follows segment A", 1: "NotNext: segment B is from a random document"},
    "mlm+sop": {
        0: "In order: segment B follows segment A",
        1: "Swapped: segment A follows segment B (after a single sentence, segment B is random instead)",
    },
    "mlm": {IGNORE_INDEX: "Full sentences, with [SEP] between documents"},
}
_EXAMPLES_PER_LABEL = 2
_MAX_TOKENS = 160  # shown of an example
_MAX_BINS = 16


@dataclass(frozen=True)
class DisplayedToken:
    """An input token and its CSS class. `original` is the token to predict, or empty if there is no prediction."""

    text: str
    css_class: str
    original: str = ""
    tooltip: str = ""


@dataclass(frozen=True)
class DisplayedExample:
    title: str
    tokens: list[DisplayedToken]
    omitted: int  # tokens that are not shown


@dataclass(frozen=True)
class ExamplesSection:
    summaries: list[str]  # one per sequence length
    masked: str  # percentage of tokens that the model predicts
    has_pairs: bool  # whether the objective has two segments
    charts: list[Markup]
    examples: list[DisplayedExample]


def examples_section(stages: Stages) -> ExamplesSection | None:
    """Returns the section about all finished examples stages; None before the first.

    Displayed examples are held-out ones, because these are always stored with their masks.
    """
    finished = [stage for stage in stages.of_type(ExamplesView) if stage.manifest]
    pieces = stages.single(VocabView).pieces
    if not finished or not pieces:
        return None
    first = finished[0]
    return ExamplesSection(
        summaries=[_summary(stage) for stage in finished],
        masked=format_percent(first.config.get("masked_lm_prob", 0.0)),
        has_pairs=first.config.get("objective") != "mlm",
        charts=[chart for stage in finished if (chart := _length_histogram(stage))],
        examples=_select_examples(first, pieces),
    )


def _summary(stage: StageView) -> str:
    counts, max_length = stage.counts, stage.config["max_seq_length"]
    text = f"Sequence length {format_number(max_length)}: {format_number(counts.get('train', 0))} training examples"
    if passes := stage.config.get("dupe_factor"):
        text += f" from {passes} pass{'es' if passes > 1 else ''} over the documents"
        text += "".join(
            f", {format_number(count)} over those of {source}"
            for source, count in stage.config.get("passes", {}).items()
        )
    text += f", and {format_number(counts.get('heldout', 0))} held-out examples."
    tokens, train = counts.get("train_tokens"), counts.get("train")
    if tokens and train:
        mean = tokens / train
        text += (
            f" The mean length is {mean:.1f} tokens; padded to full length, {format_percent(1 - mean / max_length)} "
            "of all positions would be padding."
        )
    if train and "train_random_next" in counts:
        text += f" Segment B is random in {format_percent(counts['train_random_next'] / train)} of examples."
    if train and "train_swapped" in counts:
        text += (
            f" The segments are swapped (or, after a single sentence, segment B is random) in "
            f"{format_percent(counts['train_swapped'] / train)} of examples."
        )
    return text


def _length_histogram(stage: ExamplesView) -> Markup | None:
    max_length = int(stage.config["max_seq_length"])
    bin_width = -(-max_length // _MAX_BINS)
    counts = np.bincount((stage.lengths - 1) // bin_width, minlength=-(-max_length // bin_width))
    if not counts.any():
        return None
    bins = [
        (f"{index * bin_width + 1}–{min(max_length, (index + 1) * bin_width)}", float(count))
        for index, count in enumerate(counts)
    ]
    title = f"Example lengths, maximum {max_length}"
    return histogram(title, bins, "examples by number of tokens, with [CLS] and [SEP]")


def _select_examples(stage: ExamplesView, pieces: list[str]) -> list[DisplayedExample]:
    """Returns the first examples of each label, those short enough to be shown whole first."""
    rows = sorted(stage.heldout, key=lambda row: len(row["input_ids"]) > _MAX_TOKENS)
    titles = _TITLES[stage.config.get("objective", "mlm+nsp")]
    return [_displayed(row, title, pieces) for label, title in titles.items() for row in _first_with_label(rows, label)]


def _first_with_label(rows: Iterable[Mapping[str, Any]], label: int) -> list[Mapping[str, Any]]:
    return list(islice((row for row in rows if row["next_sentence_label"] == label), _EXAMPLES_PER_LABEL))


def _displayed(row: Mapping[str, Any], title: str, pieces: list[str]) -> DisplayedExample:
    originals = dict(zip(row["masked_lm_positions"], row["masked_lm_labels"], strict=True))
    tokens = []
    for position, piece_id in enumerate(row["input_ids"][:_MAX_TOKENS]):
        text: str = pieces[piece_id]
        conditions = {"second": position >= row["segment_b"], "continuation": text.startswith("##")}
        classes = [name for name, holds in conditions.items() if holds]
        if position not in originals:
            tokens.append(DisplayedToken(text, "special" if text in (CLS, SEP) else " ".join(classes)))
            continue
        original = pieces[originals[position]]
        change = "masked" if text == MASK else "unchanged" if text == original else "replaced by a random token"
        tokens.append(DisplayedToken(text, " ".join(["masked", *classes]), original, f"{original}: {change}"))
    return DisplayedExample(title, tokens, max(0, len(row["input_ids"]) - _MAX_TOKENS))
