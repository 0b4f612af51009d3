"""example shards -> some examples with their masks shown, and how long the examples are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from markupsafe import Markup

from cloze.infra.report.charts import histogram, number, percent
from cloze.infra.report.views import ExamplesView, Stages, StageView, VocabView
from cloze.pipeline.core.schema import IGNORE_INDEX
from cloze.pipeline.text.tokenizer import CLS, MASK, SEP

#: By objective and next_sentence_label.
_KINDS = {
    "mlm+nsp": {0: "Is next: B follows A", 1: "Random: B is from elsewhere"},
    "mlm+sop": {0: "In order: B follows A", 1: "Swapped: A follows B (or, for a lone sentence, B is from elsewhere)"},
    "mlm": {IGNORE_INDEX: "Full sentences, [SEP] between documents"},
}
_EACH = 2  # shown of each
_LONGEST = 160  # pieces of an example that are shown
_BINS = 16


@dataclass(frozen=True)
class ShownPiece:
    """A piece as it stands in the input; where it was chosen, also what stood there and what was done with it."""

    text: str
    look: str
    original: str = ""
    note: str = ""


@dataclass(frozen=True)
class Example:
    title: str
    pieces: list[ShownPiece]
    more: int  # pieces that are not shown


@dataclass(frozen=True)
class Examples:
    """The section: how many examples and how long, and some of them."""

    sentences: list[str]
    chosen: str  # the share of pieces that the model has to name
    pairs: bool  # whether there is a question about two segments as well
    charts: list[Markup]
    rows: list[Example]


def examples(stages: Stages) -> Examples | None:
    """Of the finished stages that make examples; None where there is none.

    The shown ones are held-out ones: their masks are stored, whatever those to train on have.
    """
    finished = [stage for stage in stages.of(ExamplesView) if stage.manifest]
    pieces = stages.one(VocabView).pieces
    if not finished or not pieces:
        return None
    charts = [chart for stage in finished if (chart := _lengths(stage))]
    chosen = percent(finished[0].config.get("masked_lm_prob", 0.0))
    pairs = finished[0].config.get("objective") != "mlm"
    return Examples([_sentence(stage) for stage in finished], chosen, pairs, charts, _shown(finished[0], pieces))


def _sentence(stage: StageView) -> str:
    counts, length = stage.counts, stage.config["max_seq_length"]
    text = f"Of {number(length)} pieces at most: {number(counts.get('train', 0))} examples to train on"
    if passes := stage.config.get("dupe_factor"):
        others = stage.config.get("passes", {}).items()
        text += f" from {passes} passes over the documents"
        text += "".join(f", {number(count)} over those of {source}" for source, count in others)
    text += f", {number(counts.get('heldout', 0))} held-out ones."
    tokens, train = counts.get("train_tokens"), counts.get("train")
    if tokens and train:
        mean = tokens / train
        text += f" {mean:.1f} pieces on average; at the full length {percent(1 - mean / length)} would be padding."
    if train and "train_random_next" in counts:
        text += f" In {percent(counts['train_random_next'] / train)} the second sentence is a random one."
    if train and "train_swapped" in counts:
        text += f" In {percent(counts['train_swapped'] / train)} the two are swapped, or a lone one has a random one."
    return text


def _lengths(stage: ExamplesView) -> Markup | None:
    """How many of the first examples to train on are of which length."""
    longest = int(stage.config["max_seq_length"])
    wide = -(-longest // _BINS)  # pieces in a column
    counts = np.bincount((stage.lengths - 1) // wide, minlength=-(-longest // wide))
    if not counts.any():
        return None
    bins = [
        (f"{place * wide + 1}–{min(longest, (place + 1) * wide)}", float(count)) for place, count in enumerate(counts)
    ]
    return histogram(f"How long examples are, {longest} at most", bins, "examples, by pieces with [CLS] and [SEP]")


def _shown(stage: ExamplesView, pieces: list[str]) -> list[Example]:
    """Of each label the first examples that are not too long to be read."""
    rows = sorted(stage.heldout, key=lambda row: len(row["input_ids"]) > _LONGEST)
    kinds = _KINDS[stage.config.get("objective", "mlm+nsp")]
    return [_example(row, title, pieces) for label, title in kinds.items() for row in _of(rows, label)]


def _of(rows: Iterable[Mapping[str, Any]], label: int) -> list[Mapping[str, Any]]:
    return list(islice((row for row in rows if row["next_sentence_label"] == label), _EACH))


def _example(row: Mapping[str, Any], title: str, pieces: list[str]) -> Example:
    originals = dict(zip(row["masked_lm_positions"], row["masked_lm_labels"], strict=True))
    shown = []
    for place, piece in enumerate(row["input_ids"][:_LONGEST]):
        text: str = pieces[piece]
        look = [name for name, is_so in (("second", place >= row["segment_b"]), ("on", text.startswith("##"))) if is_so]
        if place not in originals:
            shown.append(ShownPiece(text, "special" if text in (CLS, SEP) else " ".join(look)))
            continue
        original = pieces[originals[place]]
        done = "hidden" if text == MASK else "left as it was" if text == original else "replaced by another piece"
        shown.append(ShownPiece(text, " ".join(["masked", *look]), original, f"{original}: {done}"))
    return Example(title, shown, max(0, len(row["input_ids"]) - _LONGEST))
