"""A finished output -> what it is worth in a few numbers, and a sample of it, for the pages of the workflow.

Each function is for the stages of one kind: infra/stages.py says which. Numbers come from the manifest alone.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, TypeVar

from cloze.infra.overlap import describe_overlap
from cloze.infra.score_names import baseline_name, metric_name
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.manifest_facts import DedupFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.schema import parquet_file
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.token_shards import read_token_shard, token_shard_names
from cloze.training.finetune.manifest_facts import FinetuneFacts, ScoreFact
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.pretrain.manifest_facts import PretrainFacts

Item = TypeVar("Item")

_ROWS = 5  # of a sample
_CHARS = 300  # of a text in a sample
_TOKENS = 60  # of a sentence or an example in a sample
_LOSSES = 20  # in the table of a training
_SCORES = {"pretrained": "", "random": " from random weights"}


def _no_sample() -> str:
    return ""


@dataclass(frozen=True)
class Highlights:
    """`numbers` can be compared between runs; `sample` reads files and returns Markdown."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    sample: Callable[[], str] = _no_sample


def of_extract(output: Artifact) -> Highlights:
    """The share of the records that was dropped; some documents, and some that were dropped."""
    dropped = [(reason, one.name, one.text) for reason, one in _firsts(ExtractFacts.of(output.manifest).samples)]
    return _of_documents(output, dropped)


def of_dedup(output: Artifact) -> Highlights:
    """The share of the documents that was dropped; some documents, and some that were dropped."""
    dropped = [(reason, one.name, one.text) for reason, one in _firsts(DedupFacts.of(output.manifest).samples)]
    return _of_documents(output, dropped)


def of_vocab(output: Artifact) -> Highlights:
    """How well the vocabulary covers held-out text; some of its pieces."""
    facts = VocabFacts.of(output.manifest)
    numbers: dict[str, float] = {"pieces": facts.size}
    if facts.heldout.words:
        numbers |= {
            "unknown words, %": 100 * facts.heldout.unknown_share,
            "tokens per word": facts.heldout.pieces_per_word,
        }

    def sample() -> str:
        pieces = vocab_file.read_pieces(output.location)
        return " ".join(f"`{piece}`" for piece in pieces[:: max(1, len(pieces) // 60)] if "`" not in piece)

    return Highlights(numbers, sample=sample)


def of_tokens(output: Artifact) -> Highlights:
    """The first sentences of a document as tokens."""

    def sample() -> str:
        names = token_shard_names(output)
        if not names:
            return ""
        shard = read_token_shard(output.location, names[0])
        pieces, ends = _pieces(output), shard.sentence_offsets[: 2 * _ROWS + 1].tolist()
        return "\n".join(f"- {_tokens(pieces, shard.ids[start:end].tolist())}" for start, end in pairwise(ends))

    return Highlights(sample=sample)


def of_examples(output: Artifact) -> Highlights:
    """The mean length of the training examples; some held-out examples, which are stored with their masks."""
    counts = output.manifest.counts
    tokens, train = counts.get("train_tokens"), counts.get("train")

    def sample() -> str:
        pieces = _pieces(output)
        rows = _rows(output, "heldout/", ["input_ids"])
        return "\n".join(f"- {_tokens(pieces, row['input_ids'])}" for row in rows)

    return Highlights({"tokens per example": tokens / train} if tokens and train else {}, sample=sample)


def of_pretrain(output: Artifact) -> Highlights:
    """Held-out loss and accuracy beside the baselines; the checkpoint; the held-out loss over the steps."""
    facts = PretrainFacts.of(output.manifest)
    row, numbers = facts.metrics.heldout, dict[str, float]()
    if row.get("mlm_loss") is not None:  # null is a loss that is not finite
        numbers = {
            "held-out loss": row["mlm_loss"],
            "held-out perplexity": math.exp(min(row["mlm_loss"], 700.0)),
            "held-out accuracy, %": 100 * row["mlm_accuracy"],
            "held-out loss of a unigram model": row["mlm_loss_baseline"],
        }
    if "choice_accuracy" in row:
        numbers["held-out cloze choice, % (chance 50)"] = 100 * row["choice_accuracy"]
    if "nsp_accuracy" in row:
        numbers["held-out accuracy of pairs, %"] = 100 * row["nsp_accuracy"]
    numbers["sequences per second"] = facts.metrics.sequences_per_second
    texts = {"precision": facts.precision}
    if facts.checkpoint:
        numbers["step"] = facts.checkpoint.step
        texts["checkpoint"] = facts.checkpoint.digest
    return Highlights(numbers, texts, lambda: _loss_table(output))


def of_task(output: Artifact) -> Highlights:
    """The scores with their intervals, beside those of the other variants and baselines; some predictions."""
    facts = FinetuneFacts.of(output.manifest)
    numbers = dict[str, float]()
    for split, scores in {facts.scored_split: facts.metric_scores, **facts.extra_metric_scores}.items():
        metric = metric_name(facts.metric, split)
        for variant, score in scores.items():
            name = f"{metric}{_SCORES.get(variant, f' of {baseline_name(variant)}')}"
            numbers |= {name: score.value, f"{name}: low": score.low, f"{name}: high": score.high}
    rows = [(one.text, str(one.label), str(one.predicted)) for one in facts.examples[:_ROWS]]
    table = _table(("text", "label", "predicted"), rows)
    return Highlights(numbers, {"notes": " ".join(facts.notes)}, lambda: table)


def of_overlap(output: Artifact) -> Highlights:
    """The share of the examples that overlap, and the score without them."""
    facts = OverlapFacts.of(output.manifest)
    numbers = {
        f"{name} examples that overlap, %": 100 * split.overlapping / split.examples
        for name, split in facts.splits.items()
        if split.examples
    }
    without = facts.scores.get("without_overlap", ScoreFact()).value(facts.metric)
    if without is not None:
        numbers[f"{metric_name(facts.metric, facts.scored_split)} without them"] = without
    return Highlights(numbers, {"overlap": describe_overlap(facts, "{:.3f}".format)})


def _of_documents(output: Artifact, dropped: Sequence[tuple[str, str, str]]) -> Highlights:
    counts, lost = output.manifest.counts, sum(output.manifest.drops.values())
    total = counts.get("records", counts.get("documents", 0) + lost)

    def sample() -> str:
        documents = _rows(output, "documents/", ["source", "title", "text"])
        drops = sorted(output.manifest.drops.items(), key=lambda drop: -drop[1])
        shares = [(why, f"{rows:,}", f"{100 * rows / total:.2g} %") for why, rows in drops if rows]
        tables = (
            _table(("source", "title", "text"), [(row["source"], row["title"], row["text"]) for row in documents]),
            _table(("dropped", "rows", "share"), shares),
            _table(("dropped", "title", "text"), dropped),
        )
        return "\n\n".join(filter(None, tables))

    return Highlights({"dropped, %": 100 * lost / total} if total else {}, sample=sample)


def _firsts(samples: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, Item]]:
    """The first sample of each reason."""
    return ((reason, items[0]) for reason, items in samples.items() if items)


def _rows(output: Artifact, prefix: str, columns: list[str]) -> list[dict[str, Any]]:
    """The first rows of the first Parquet file below `prefix`."""
    for file in output.files(prefix)[:1]:
        with parquet_file(file) as opened:
            batches = opened.iter_batches(_ROWS, columns=columns)
            return list(islice((row for batch in batches for row in batch.to_pylist()), _ROWS))
    return []


def _pieces(output: Artifact) -> list[str]:
    """The vocabulary that an output was made with, which is under the same root."""
    return vocab_file.read_pieces(
        Location(output.location.uri.rsplit("/", 2)[0]) / "vocab" / output.manifest.inputs["vocab"]
    )


def _tokens(pieces: Sequence[str], ids: Sequence[int]) -> str:
    shown = " ".join(pieces[piece] for piece in ids[:_TOKENS]).replace("`", "'")
    return f"`{shown}{' …' if len(ids) > _TOKENS else ''}`"


def _loss_table(output: Artifact) -> str:
    """The held-out rows of the metrics, evenly spaced where there are many."""
    rows = [row for row in json_lines.read(output.location / "metrics.jsonl") if row["split"] == "heldout"]
    shown = rows[:: -(-len(rows) // _LOSSES)] if rows else []
    cells = [(f"{row['step']:,}", f"{row['mlm_loss']:.3f}", f"{100 * row['mlm_accuracy']:.1f} %") for row in shown]
    return _table(("step", "held-out loss", "held-out accuracy"), cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A text that Markdown shows as it is, shortened."""
    line = " ".join(text.split())
    line = f"{line[:_CHARS]} …" if len(line) > _CHARS else line
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", line)
