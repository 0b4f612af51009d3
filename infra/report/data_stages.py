"""the data stages -> what was kept and dropped, and the vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cloze.infra.report.charts import Piece, bar, number
from cloze.infra.report.views import DedupView, ExamplesView, ExtractView, Stages, StageView, VocabView
from cloze.pipeline.core.facts import ComparedVocab, DroppedDocument, DroppedRecord, VocabQuality
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import RESERVED

_SHOWN_PIECES = 60


@dataclass(frozen=True)
class Level:
    """A bar of the flow picture; `through` is the share of the picture's width that goes on to the next one."""

    name: str
    pieces: list[Piece]
    picture: Markup
    through: float


def flow(stages: Stages) -> list[Level]:
    """records -> documents -> train and held-out -> examples; the first three on one scale, examples on their own."""
    extract, dedup = stages.one(ExtractView), stages.one(DedupView)
    records = extract.counts.get("records", 0)
    levels = []
    for stage in (extract, dedup):
        if "documents" in stage.counts:
            kept = Piece("documents" if stage is extract else "distinct documents", stage.counts["documents"], "kept")
            levels.append(_level(stage.name, [kept, *_drop_pieces(stage)], records, kept.value))
    if "heldout" in dedup.counts:
        heldout = dedup.counts["heldout"]
        train = dedup.counts["documents"] - heldout
        pieces = [Piece("for training", train, "kept"), Piece("held out", heldout, "heldout")]
        levels.append(_level("split", pieces, records, 0))
    for stage in stages.of(ExamplesView):
        pieces = [
            Piece(label, stage.counts[split], kind)
            for split, label, kind in (("train", "to train on", "kept"), ("heldout", "held out", "heldout"))
            if split in stage.counts
        ]
        if pieces:
            levels.append(_level(stage.name, pieces, sum(piece.value for piece in pieces), 0))
    return levels


def _drop_pieces(stage: StageView) -> list[Piece]:
    return [Piece(reason.replace("_", " "), rows, "drop") for reason, rows in stage.drops if rows]


def _level(name: str, pieces: list[Piece], whole: float, through: float) -> Level:
    return Level(name, pieces, bar(pieces, whole), through / (whole or 1))


def source_table(stages: Stages) -> list[tuple[str, Mapping[str, int]]]:
    """Source -> its counts and drops; empty where there is but one."""
    found = stages.one(ExtractView).facts.sources
    return list(found.items()) if len(found) > 1 else []


def truncated(stages: Stages) -> list[tuple[str, str]]:
    """(file, reason) of the source files that are cut, of which all whole pages were kept."""
    return [(Location(cut.file).name, cut.reason) for cut in stages.one(ExtractView).facts.truncated]


def dropped(stages: Stages) -> list[tuple[str, list[tuple[str, str]]]]:
    """Reason -> some (record, how its text begins) of what was dropped for it."""
    extracted, distinct = stages.one(ExtractView).facts.samples, stages.one(DedupView).facts.samples
    return [
        (reason, [_record(sample) for sample in samples])
        for reason, samples in (*extracted.items(), *distinct.items())
        if samples
    ]


def _record(sample: DroppedRecord | DroppedDocument) -> tuple[str, str]:
    return sample.name or "without a name", " ".join(sample.text.split())[:140]


@dataclass(frozen=True)
class Vocabulary:
    sentence: str
    samples: list[tuple[str, list[str]]]


def vocabulary(stages: Stages) -> Vocabulary | None:
    """The vocabulary's size, how it fares on text that it was not learnt from, some of its pieces, what is left out."""
    stage = stages.one(VocabView)
    if stage.manifest is None:
        return None
    facts, pieces = stage.facts, stage.pieces
    words = [piece for piece in pieces if len(piece) > 1 and not piece.startswith("##") and piece not in RESERVED]
    endings = [piece for piece in pieces if len(piece) > 3 and piece.startswith("##")]
    said = [
        f"{number(len(pieces))} pieces: {number(len(words))} words and beginnings of words, {number(len(endings))} "
        f"that go on with a word (##), the rest single characters and the special pieces.",
        _quality(facts.heldout, facts.compared),
        facts.note,
    ]
    samples = [
        ("Words and beginnings", _spread(words)),
        ("What goes on with a word", _spread(endings)),
        ("The most frequent of the characters left out", facts.left_out.most_frequent),
    ]
    return Vocabulary(" ".join(filter(None, said)), [(title, shown) for title, shown in samples if shown])


def _quality(heldout: VocabQuality, compared: ComparedVocab | None) -> str:
    """How it fares on held-out text and, where there is another vocabulary, that one beside it."""
    if not heldout.words:
        return ""
    beside = (
        f", where {compared.name} of {number(compared.size)} pieces takes {compared.pieces_per_word:.2f} and "
        f"leaves {_percent(compared.unknown_share)} unknown"
        if compared
        else ""
    )
    return (
        f"Held-out documents take {heldout.pieces_per_word:.2f} pieces a word; of their {number(heldout.words)} "
        f"words {_percent(heldout.unknown_share)} are unknown to it{beside}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _spread(pieces: Sequence[str]) -> list[str]:
    """Some pieces at equal distances, so that frequent and rare ones are among them."""
    return (
        [pieces[place * len(pieces) // _SHOWN_PIECES] for place in range(_SHOWN_PIECES)]
        if len(pieces) > _SHOWN_PIECES
        else list(pieces)
    )
