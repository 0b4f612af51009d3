"""Artifacts -> the stage views that the page shows. Only this module of the report reads a run's files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloze.infra.report.view_models import (
    DedupView,
    ExamplesView,
    ExtractView,
    FinetuneView,
    HeldoutDocument,
    OverlapView,
    PretrainView,
    Stages,
    StageView,
    TrainedModel,
    UserFile,
    VocabView,
)
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest, read_manifest
from cloze.pipeline.core.file_digests import cached_source_files, source_file_by_digest
from cloze.pipeline.core.manifest_facts import DedupFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.schema import parquet_file
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.text import vocab_file
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.pretrain.manifest_facts import MetricsRow, PretrainFacts

if TYPE_CHECKING:
    from cloze.training.checkpoints.fill_mask import MaskPrediction

_SHA256_CHARS = 64  # a user file's identity among a stage's inputs is its SHA-256 and its suffixes
_MAX_LENGTHS = 50_000  # training examples whose lengths are read
_MAX_HELDOUT_EXAMPLES = 400
_MAX_DOCUMENT_SHARDS = 40  # searched for held-out documents
_MAX_SHARD_DOCUMENTS = 100  # held-out documents of a shard


@dataclass(frozen=True)
class KnownStage:
    """What is known of a stage before any file is read.

    `name` is the stage type and, where a run has several of that type, a dash and a qualifier: examples-128.
    `location` and `fingerprint` are None while an input's fingerprint is unknown. `upstream` has the names of the
    stages that it reads.
    """

    name: str
    state: str
    location: Location | None = None
    fingerprint: str | None = None
    upstream: tuple[str, ...] = ()


def read_stages(
    known: Sequence[KnownStage],
    root: Location,
    estimates: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    checks: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Stages:
    """Reads the stages of the run at `root`. `estimates`: as `read_estimates`; `checks`: as `read_results`.

    Raises UserError for damaged files.
    """
    manifests = {stage.name: read_manifest(stage.location) if stage.location else None for stage in known}
    producers = _producers(known, manifests)
    records = _UserFileRecords(
        root,
        [identity for manifest in manifests.values() for identity in _user_inputs(manifest, producers).values()],
    )
    views = []
    for stage in known:
        manifest = manifests[stage.name]
        upstream = stage.upstream
        if manifest:
            upstream = tuple(producers[value] for value in manifest.inputs.values() if value in producers)
        user_files: dict[str, list[UserFile]] = {}
        for key, identity in _user_inputs(manifest, producers).items():
            user_files.setdefault(key.partition("/")[0], []).append(records.user_file(key, identity))
        estimate = estimates.get(stage.name, {})
        if estimate.get("fingerprint") != stage.fingerprint:  # of other settings, or of other files
            estimate = {}
        checked = checks.get(stage.name, {})
        results = checked.get("results", ()) if checked.get("fingerprint") == stage.fingerprint else ()
        view = StageView(
            stage.name,
            stage.state,
            stage.location,
            manifest,
            tuple(dict.fromkeys(upstream)),
            user_files,
            estimate,
            results,
        )
        read_view = _READERS.get(view.type_name)
        views.append(read_view(view) if read_view else view)
    return Stages(views, _trained_model(Stages(views)))


def _producers(known: Sequence[KnownStage], manifests: Mapping[str, Manifest | None]) -> dict[str, str]:
    """Returns output identity -> stage: a stage's output is its fingerprint, or its final checkpoint's digest."""
    producers = {stage.fingerprint: stage.name for stage in known if stage.fingerprint}
    for stage in known:
        manifest = manifests[stage.name]
        if manifest and manifest.stage == "pretrain" and (checkpoint := PretrainFacts.of(manifest).checkpoint):
            producers[checkpoint.digest] = stage.name
    return producers


def _user_inputs(manifest: Manifest | None, producers: Mapping[str, str]) -> dict[str, str]:
    """Returns the inputs that no stage of the run produced, which are the user's files."""
    inputs = manifest.inputs if manifest else {}
    return {key: identity for key, identity in inputs.items() if identity not in producers}


class _UserFileRecords:
    """Names and sizes of users' files, from the run's `sources` folder.

    A record is read by the file's digest. Earlier versions did not name records by digest: when one is missing, all
    records are listed.
    """

    def __init__(self, root: Location, identities: Sequence[str]) -> None:
        folder = root / "sources"
        records = map_in_threads(lambda identity: source_file_by_digest(folder, identity[:_SHA256_CHARS]), identities)
        self._records = dict(zip(identities, records, strict=True))
        if not all(self._records.values()):
            listed = {file.sha256: file for file in cached_source_files(folder)}
            self._records = {
                identity: file or listed.get(identity[:_SHA256_CHARS]) for identity, file in self._records.items()
            }

    def user_file(self, key: str, identity: str) -> UserFile:
        """`key` is the input's name; where an input has several files, a slash and a path to the file follow."""
        sha256, record = identity[:_SHA256_CHARS], self._records[identity]
        name_in_key = key.partition("/")[2].rpartition("/")[2]
        recorded_name = record.location.name if record else sha256
        if record and key == "init":  # files of weights have the same name in all folders
            recorded_name = "/".join(record.location.uri.split("/")[-2:])
        return UserFile(sha256, name_in_key or recorded_name, record.bytes if record else None)


def read_metrics(location: Location) -> Sequence[MetricsRow]:
    """Reads the metrics logged so far, a row per split and step, also of a training in progress."""
    return json_lines.read(location / "metrics.jsonl")


def _artifact(view: StageView) -> Artifact | None:
    return Artifact(view.location, view.name, view.manifest.fingerprint) if view.location and view.manifest else None


def _extract(view: StageView) -> StageView:
    return ExtractView(**vars(view), facts=ExtractFacts.of(view.manifest) if view.manifest else ExtractFacts())


def _dedup(view: StageView) -> StageView:
    return DedupView(**vars(view), facts=DedupFacts.of(view.manifest) if view.manifest else DedupFacts())


def _vocab(view: StageView) -> StageView:
    if not (artifact := _artifact(view)):
        return VocabView(**vars(view))
    pieces = vocab_file.read_pieces(artifact.location)
    return VocabView(**vars(view), facts=VocabFacts.of(artifact.manifest), pieces=pieces)


def _examples(view: StageView) -> StageView:
    if not (artifact := _artifact(view)):
        return ExamplesView(**vars(view))
    batches = _record_batches(artifact, "heldout", _MAX_HELDOUT_EXAMPLES)
    heldout = list(islice((row for batch in batches for row in batch.to_pylist()), _MAX_HELDOUT_EXAMPLES))
    return ExamplesView(**vars(view), lengths=_lengths(artifact), heldout=heldout)


def _lengths(examples: Artifact) -> NDArray[np.int64]:
    batches = _record_batches(examples, "train", _MAX_LENGTHS, ["input_ids"])
    lengths = [batch["input_ids"].value_lengths().to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _record_batches(examples: Artifact, split: str, rows: int, columns: list[str] | None = None) -> Iterator[Any]:
    """Yields Arrow record batches that hold the first `rows` examples of a split."""
    count = 0
    for file in examples.files(f"{split}/"):
        with parquet_file(file) as opened:
            for batch in opened.iter_batches(min(rows, 4096), columns=columns):
                yield batch
                count += len(batch)
                if count >= rows:
                    return


def _pretrain(view: StageView) -> StageView:
    rows = read_metrics(view.location) if view.location else []
    if not (artifact := _artifact(view)):
        return PretrainView(**vars(view), metrics=rows)
    facts = PretrainFacts.of(artifact.manifest)
    parameters = _parameter_count(artifact.location / facts.checkpoint.path) if facts.checkpoint else 0
    return PretrainView(**vars(view), facts=facts, metrics=rows, parameters=parameters)


def _parameter_count(checkpoint: Location) -> int:
    """Counts a checkpoint's parameters from the header of its safetensors file."""
    with (checkpoint / "model.safetensors").open() as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _finetune(view: StageView) -> StageView:
    task = view.name.partition("-")[2]
    if not (artifact := _artifact(view)):
        return FinetuneView(**vars(view), task=task)
    rows = json_lines.read(artifact.location / "predictions/pretrained.jsonl")
    return FinetuneView(**vars(view), facts=FinetuneFacts.of(artifact.manifest), task=task, predictions=rows)


def _overlap(view: StageView) -> StageView:
    facts = OverlapFacts.of(view.manifest) if view.manifest else OverlapFacts()
    return OverlapView(**vars(view), facts=facts, task=view.name.partition("-")[2])


#: By stage type.
_READERS: dict[str, Callable[[StageView], StageView]] = {
    "extract": _extract,
    "dedup": _dedup,
    "vocab": _vocab,
    "examples": _examples,
    "pretrain": _pretrain,
    "finetune": _finetune,
    "overlap": _overlap,
}


def _trained_model(stages: Stages) -> TrainedModel | None:
    """Loads the final checkpoint; None until it, the vocabulary and the documents are finished."""
    vocab, documents = _artifact(stages.single(VocabView)), _artifact(stages.single(DedupView))
    pretrain_view = stages.single(PretrainView)
    pretrain = _artifact(pretrain_view)
    if pretrain is None or vocab is None or documents is None or not pretrain_view.facts.checkpoint:
        return None
    from cloze.training.checkpoints.pretrained_model import PretrainedModel
    from cloze.training.pretrain.stage import final_checkpoint

    model = PretrainedModel.from_checkpoint(final_checkpoint(pretrain), vocab.location)

    def predict(text: str) -> "Sequence[MaskPrediction]":
        [predictions] = model.fill_mask(text)
        return predictions

    return TrainedModel(model.tokenizer, lambda: heldout_documents(documents), predict)


def heldout_documents(documents: Artifact) -> Iterator[HeldoutDocument]:
    """Yields the first held-out documents of evenly spaced shards."""
    files = documents.files("documents/")
    for file in files[:: -(-len(files) // _MAX_DOCUMENT_SHARDS)]:
        with parquet_file(file) as opened:
            batches = opened.iter_batches(64, columns=["source", "language", "text", "split"])
            rows = (row for batch in batches for row in batch.to_pylist() if row["split"] == "heldout")
            yield from (
                HeldoutDocument(row["source"], row["language"], row["text"])
                for row in islice(rows, _MAX_SHARD_DOCUMENTS)
            )
