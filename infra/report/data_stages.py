"""The data stages -> documents kept and dropped, and the vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cloze.infra.display import duration
from cloze.infra.report.charts import BarSegment, SegmentKind, bar, format_number
from cloze.infra.report.view_models import DedupView, ExamplesView, ExtractView, Stages, StageView, VocabView
from cloze.pipeline.core.manifest_facts import ComparedVocab, DroppedDocument, DroppedRecord, VocabQuality
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import RESERVED

_VOCAB_SAMPLE = 60
_SPLITS: list[tuple[str, str, SegmentKind]] = [("train", "training", "kept"), ("heldout", "held-out", "heldout")]


@dataclass(frozen=True)
class FlowLevel:
    """A bar of the data-flow figure. `connected` is the fraction of its width that the next bar continues."""

    name: str
    segments: list[BarSegment]
    chart: Markup
    connected: float


def data_flow(stages: Stages) -> list[FlowLevel]:
    """Returns the bars of extract, dedup, the held-out split and the examples.

    The first three share one scale; examples have their own.
    """
    extract, dedup = stages.single(ExtractView), stages.single(DedupView)
    records = extract.counts.get("records", 0)
    levels = []
    for stage, label in ((extract, "documents"), (dedup, "unique documents")):
        if "documents" in stage.counts:
            kept = BarSegment(label, stage.counts["documents"], "kept")
            levels.append(_flow_level(stage.name, [kept, *_dropped_segments(stage)], records, kept.value))
    if "heldout" in dedup.counts:
        heldout = dedup.counts["heldout"]
        train = dedup.counts["documents"] - heldout
        segments = [BarSegment("training", train, "kept"), BarSegment("held-out", heldout, "heldout")]
        levels.append(_flow_level("split", segments, records))
    for stage in stages.of_type(ExamplesView):
        segments = [
            BarSegment(label, stage.counts[split], kind) for split, label, kind in _SPLITS if split in stage.counts
        ]
        if segments:
            levels.append(_flow_level(stage.name, segments, sum(segment.value for segment in segments)))
    return levels


def _dropped_segments(stage: StageView) -> list[BarSegment]:
    return [BarSegment(reason.replace("_", " "), rows, "dropped") for reason, rows in stage.drops if rows]


def _flow_level(name: str, segments: list[BarSegment], total: float, continued: float = 0) -> FlowLevel:
    return FlowLevel(name, segments, bar(segments, total), continued / (total or 1))


def source_table(stages: Stages) -> list[tuple[str, Mapping[str, int]]]:
    """Returns (source, its counts and drops); empty for a single source, whose counts are those of extract."""
    sources = stages.single(ExtractView).facts.sources
    return list(sources.items()) if len(sources) > 1 else []


def truncated_files(stages: Stages) -> list[tuple[str, str]]:
    """Returns (file, reason) for each truncated source file."""
    return [(Location(cut.file).name, cut.reason) for cut in stages.single(ExtractView).facts.truncated]


def dropped_samples(stages: Stages) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns (drop reason, samples), each sample the record's name and the start of its text."""
    extracted, deduplicated = stages.single(ExtractView).facts.samples, stages.single(DedupView).facts.samples
    return [
        (reason, [_name_and_text(sample) for sample in samples])
        for reason, samples in (*extracted.items(), *deduplicated.items())
        if samples
    ]


def _name_and_text(sample: DroppedRecord | DroppedDocument) -> tuple[str, str]:
    return sample.name or "(no name)", " ".join(sample.text.split())[:140]


@dataclass(frozen=True)
class EstimatedStage:
    """What a stage was estimated to take when the run started, and what it took; empty where one is not known."""

    name: str
    estimated_cpu: str
    cpu: str
    estimated_time: str
    time: str


def estimated_stages(stages: Stages) -> list[EstimatedStage]:
    """Returns the finished stages that have an estimate."""
    return [_estimated_stage(stage) for stage in stages.finished if stage.estimate]


def _estimated_stage(stage: StageView) -> EstimatedStage:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:,.1f} s" if value < 60 else duration(value)

    cpu = stage.manifest.cpu_seconds if stage.manifest else None
    return EstimatedStage(
        stage.name,
        seconds(stage.estimate.get("cpu_seconds")) if cpu is not None else "",
        seconds(cpu),
        seconds(stage.estimate.get("seconds")),
        seconds(stage.manifest.seconds if stage.manifest else None),
    )


@dataclass(frozen=True)
class VocabularySection:
    summary: str
    samples: list[tuple[str, list[str]]]  # title, tokens


def vocabulary_section(stages: Stages) -> VocabularySection | None:
    """Returns the vocabulary's size, its quality on held-out text, a sample of it and the characters left out."""
    stage = stages.single(VocabView)
    if stage.manifest is None:
        return None
    facts, pieces = stage.facts, stage.pieces
    words = [piece for piece in pieces if len(piece) > 1 and not piece.startswith("##") and piece not in RESERVED]
    continuations = [piece for piece in pieces if len(piece) > 3 and piece.startswith("##")]
    sentences = [
        f"{format_number(len(pieces))} WordPiece tokens: {format_number(len(words))} words or word beginnings and "
        f"{format_number(len(continuations))} word continuations (##); the rest are single characters and special "
        "tokens.",
        _tokenization_quality(facts.heldout, facts.compared),
        facts.note,
    ]
    samples = [
        ("Sample of words and word beginnings", _evenly_spaced(words)),
        ("Sample of word continuations", _evenly_spaced(continuations)),
        ("Most frequent characters without a token", facts.left_out.most_frequent),
    ]
    return VocabularySection(" ".join(filter(None, sentences)), [sample for sample in samples if sample[1]])


def _tokenization_quality(heldout: VocabQuality, compared: ComparedVocab | None) -> str:
    """Describes how the vocabulary tokenizes held-out text, next to the vocabulary of `vocab.compare`."""
    if not heldout.words:
        return ""
    text = (
        f"On held-out documents ({format_number(heldout.words)} words) it produces {heldout.pieces_per_word:.2f} "
        f"tokens per word and {_percent(heldout.unknown_share)} unknown words"
    )
    if compared:
        text += (
            f"; {compared.name} ({format_number(compared.size)} tokens) produces {compared.pieces_per_word:.2f} "
            f"tokens per word and {_percent(compared.unknown_share)} unknown words"
        )
    return f"{text}."


def _percent(fraction: float) -> str:
    """Two significant digits: fractions of unknown words are small."""
    return f"{100 * fraction:.2g}\N{NO-BREAK SPACE}%"


def _evenly_spaced(pieces: Sequence[str]) -> list[str]:
    """Returns a sample from frequent to rare, as pieces are ordered by frequency."""
    return (
        [pieces[index * len(pieces) // _VOCAB_SAMPLE] for index in range(_VOCAB_SAMPLE)]
        if len(pieces) > _VOCAB_SAMPLE
        else list(pieces)
    )
