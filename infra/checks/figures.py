"""A stage's manifest -> the figures that its checks compare, and the checks themselves, which infra/stages.py gives to
the stages.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cloze.infra.checks.check import Check, Figure, Measured
from cloze.infra.checks.verdicts import (
    count_changed,
    is_finite,
    is_recent,
    loss_increased,
    rate_increased,
    score_decreased,
)
from cloze.infra.score_names import metric_name
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.manifest_facts import ExtractFacts, VocabFacts
from cloze.pipeline.core.threads import map_in_threads
from cloze.training.finetune.manifest_facts import CurvesFact, FinetuneFacts
from cloze.training.pretrain.manifest_facts import PretrainFacts

# cloze fetch writes <wiki>/<date>/, and Wikimedia's files have the date in their names.
_DATE = re.compile(r"(?<!\d)(20\d{6})(?!\d)")
_DAY = 86400.0  # seconds


def counts_check(*names: str) -> Check:
    """These counts of the manifest have not changed much."""

    def measure(measured: Measured) -> Iterator[Figure]:
        for name in names:
            yield Figure(name=name.replace("_", " "), value=measured.manifest.counts.get(name, 0))

    return Check("counts", ("max_decrease", "max_increase"), measure, count_changed)


def drop_rates_check(total: str) -> Check:
    """The fractions of the records, whose number is the count `total`, that were dropped for each reason."""

    def measure(measured: Measured) -> Iterator[Figure]:
        counts, drops = measured.manifest.counts, measured.manifest.drops
        records = counts.get(total, 0)
        for reason, number in drops.items():
            yield Figure(name=f"{total} dropped as {reason}", value=number / records if records else 0.0)

    key = "max_drop_rate_increase"
    return Check("drop rates", (key,), measure, rate_increased(key), absent=0.0)


def _unknown_words(measured: Measured) -> Iterator[Figure]:
    heldout = VocabFacts.of(measured.manifest).heldout
    if heldout.words:
        yield Figure(name="unknown held-out words", value=heldout.unknown_share)


def _unknown_tokens(measured: Measured) -> Iterator[Figure]:
    counts = measured.manifest.counts
    if counts.get("tokens"):
        yield Figure(name="[UNK] tokens", value=counts.get("unknown", 0) / counts["tokens"])


def _residue(measured: Measured) -> Iterator[Figure]:
    facts = ExtractFacts.of(measured.manifest)
    for source, documents in facts.residue.items():
        all_documents = facts.sources.get(source, {}).get("documents", 0)
        if all_documents:
            yield Figure(name=f"documents of {source} with left-over markup", value=documents / all_documents)


def _ages(measured: Measured) -> Iterator[Figure]:
    if files := measured.sources():
        yield Figure(name="the newest source file", value=(time.time() - max(map_in_threads(_changed, files))) / _DAY)


def _changed(file: SourceFile) -> float:
    """Seconds since the epoch of the date in a file's path, otherwise of its last change."""
    for date in reversed(_DATE.findall("/".join(file.uri.split("/")[-2:]))):
        try:
            return datetime.strptime(date, "%Y%m%d").replace(tzinfo=UTC).timestamp()
        except ValueError:  # another number of eight digits
            continue
    changed = file.location.info().mtime_ns
    return changed / 1e9 if changed else time.time()


def _pretraining_losses(measured: Measured) -> Iterator[Figure]:
    metrics = PretrainFacts.of(measured.manifest).metrics
    for name, row in (("training loss", metrics.train), ("held-out loss", metrics.heldout)):
        if "loss" in row:
            yield Figure(name=name, value=_number(row["loss"]))


def _task_losses(measured: Measured) -> Iterator[Figure]:
    curves = FinetuneFacts.of(measured.manifest).variants.get("pretrained", CurvesFact())
    if curves.diverged_step is not None:
        yield Figure(name=f"training loss of step {curves.diverged_step}", value=math.nan)
    elif curves.loss:
        yield Figure(name="training loss", value=curves.loss[-1][1])


def _heldout_loss(measured: Measured) -> Iterator[Figure]:
    """Losses are comparable per token of one vocabulary, on held-out documents that were chosen in the same way."""
    row = PretrainFacts.of(measured.manifest).metrics.heldout
    vocab = measured.upstream.get("vocab")
    if "loss" in row and vocab and "vocab.txt" in vocab.files:
        basis = {**measured.settings, "vocab.txt": vocab.files["vocab.txt"].sha256}
        yield Figure(name="held-out loss", value=_number(row["loss"]), basis=basis)


def _score(measured: Measured) -> Iterator[Figure]:
    """Scores are comparable on the same labelled files."""
    facts, manifest = FinetuneFacts.of(measured.manifest), measured.manifest
    if not (score := facts.metric_scores.get("pretrained")):
        return
    files = {name: digest for name, digest in manifest.inputs.items() if name not in {*measured.reads, "init"}}
    basis = {"labelled files": digest_of(files), "metric": f"{facts.metric} on {facts.scored_split}"}
    name = metric_name(facts.metric, facts.scored_split)
    yield Figure(name=name, value=score.value, low=score.low, high=score.high, basis=basis)


def _number(value: Any) -> float:
    """JSON has no NaN: None replaces it."""
    return math.nan if value is None else float(value)


def digest_of(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


_UNKNOWN, _RESIDUE = "max_unknown_increase", "max_residue_increase"
UNKNOWN_WORDS = Check("unknown words", (_UNKNOWN,), _unknown_words, rate_increased(_UNKNOWN))
UNKNOWN_TOKENS = Check("unknown words", (_UNKNOWN,), _unknown_tokens, rate_increased(_UNKNOWN))
RESIDUE = Check("residue", (_RESIDUE,), _residue, rate_increased(_RESIDUE))
FRESHNESS = Check("freshness", ("max_age_days",), _ages, is_recent, needs_reference=False)
PRETRAINING_FINITE = Check("finite loss", ("finite_loss",), _pretraining_losses, is_finite, needs_reference=False)
TASK_FINITE = Check("finite loss", ("finite_loss",), _task_losses, is_finite, needs_reference=False)
HELDOUT_LOSS = Check("held-out loss", ("max_loss_increase",), _heldout_loss, loss_increased, promoted="lowest")
SCORE = Check("score", ("max_score_decrease",), _score, score_decreased, promoted="highest")
