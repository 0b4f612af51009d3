"""artifacts -> what the page shows of them: the one place where the report reads a run's files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloze.infra.report.views import (
    DedupView,
    ExamplesView,
    ExtractView,
    FinetuneView,
    HeldoutText,
    PretrainView,
    Source,
    Stages,
    StageView,
    TrainedModel,
    VocabView,
)
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest, read_manifest
from cloze.pipeline.core.facts import DedupFacts, ExtractFacts, VocabFacts
from cloze.pipeline.core.schema import parquet_file
from cloze.pipeline.core.source_files import cached_source_files, source_file_by_digest
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import load_tokenizer
from cloze.training.finetune.facts import FinetuneFacts
from cloze.training.pretrain.facts import PretrainFacts, Row

if TYPE_CHECKING:
    from cloze.training.checkpoints.fill_mask import Guess

_SHA256 = 64  # hex digits, with which a user's file stands among a stage's inputs, its suffixes behind them
_COUNTED = 50_000  # examples whose lengths are counted
_LOOKED_AT = 400  # held-out examples
_SHARDS = 40  # of documents, among which held-out ones are looked for
_DOCUMENTS = 100  # held-out ones of a shard


@dataclass(frozen=True)
class Known:
    """What a run knows of a stage before anything is read.

    A stage's name is its kind and, where a run has several of that kind, a dash and which: examples-128.
    `location` and `fingerprint` are None while an input is not known. `after` names the stages that it reads.
    """

    name: str
    state: str
    location: Location | None = None
    fingerprint: str | None = None
    after: tuple[str, ...] = ()


def read(known: Sequence[Known], root: Location) -> Stages:
    """The stages of the run on `root` with all that the page shows of them. Raises UserError for what is damaged."""
    manifests = {one.name: read_manifest(one.location) if one.location else None for one in known}
    made = {one.fingerprint: one.name for one in known if one.fingerprint}
    for name, manifest in manifests.items():
        if manifest and _kind(name) == "pretrain" and (checkpoint := PretrainFacts.of(manifest).checkpoint):
            made[checkpoint.digest] = name
    brought = _Sources(root, [value for found in manifests.values() for value in _brought(found, made).values()])
    views = []
    for one in known:
        manifest = manifests[one.name]
        before = [made[value] for value in manifest.inputs.values() if value in made] if manifest else one.after
        files: dict[str, list[Source]] = {}
        for key, value in _brought(manifest, made).items():
            files.setdefault(key.partition("/")[0], []).append(brought.source(key, value))
        base = StageView(one.name, one.state, one.location, manifest, tuple(dict.fromkeys(before)), files)
        read_kind = _KINDS.get(_kind(one.name))
        views.append(read_kind(base) if read_kind else base)
    return Stages(views, _model(Stages(views)))


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _brought(manifest: Manifest | None, made: Mapping[str, str]) -> dict[str, str]:
    """The inputs that no stage of the run has made: the user's files."""
    return {key: value for key, value in manifest.inputs.items() if value not in made} if manifest else {}


class _Sources:
    """What the run remembers of its users' files: each is asked for by its digest.

    Records of versions that did not name them so are found by a listing, which is made when one is missing.
    """

    def __init__(self, root: Location, values: Sequence[str]) -> None:
        folder = root / "sources"
        found = map_in_threads(lambda value: source_file_by_digest(folder, value[:_SHA256]), values)
        self._known = dict(zip(values, found, strict=True))
        if not all(self._known.values()):
            listed = {file.sha256: file for file in cached_source_files(folder)}
            self._known = {value: file or listed.get(value[:_SHA256]) for value, file in self._known.items()}

    def source(self, key: str, value: str) -> Source:
        """`key` is the input's name and, of several files, a slash and a path that ends with the file's name."""
        digest, file = value[:_SHA256], self._known[value]
        name = key.partition("/")[2].rpartition("/")[2]
        called = file.location.name if file else digest
        return Source(digest, name or called, file.bytes if file else None)


def metrics(location: Location) -> Sequence[Row]:
    """What training has measured so far, a row for each split and step; also while it runs."""
    return json_lines.read(location / "metrics.jsonl")


def _artifact(base: StageView) -> Artifact | None:
    return Artifact(base.location, base.name, base.manifest.fingerprint) if base.location and base.manifest else None


def _extract(base: StageView) -> StageView:
    return ExtractView(**vars(base), facts=ExtractFacts.of(base.manifest) if base.manifest else ExtractFacts())


def _dedup(base: StageView) -> StageView:
    return DedupView(**vars(base), facts=DedupFacts.of(base.manifest) if base.manifest else DedupFacts())


def _vocab(base: StageView) -> StageView:
    if not (artifact := _artifact(base)):
        return VocabView(**vars(base))
    pieces = vocab_file.read_pieces(artifact.location)
    return VocabView(**vars(base), facts=VocabFacts.of(artifact.manifest), pieces=pieces)


def _examples(base: StageView) -> StageView:
    if not (artifact := _artifact(base)):
        return ExamplesView(**vars(base))
    batches = _batches(artifact, "heldout", _LOOKED_AT)
    heldout = list(islice((row for batch in batches for row in batch.to_pylist()), _LOOKED_AT))
    return ExamplesView(**vars(base), lengths=_lengths(artifact), heldout=heldout)


def _lengths(examples: Artifact) -> NDArray[np.int64]:
    batches = _batches(examples, "train", _COUNTED, ["input_ids"])
    lengths = [batch["input_ids"].value_lengths().to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def _batches(examples: Artifact, split: str, rows: int, columns: list[str] | None = None) -> Iterator[Any]:
    """The first `rows` examples of a split, in record batches."""
    seen = 0
    for file in examples.files(f"{split}/"):
        with parquet_file(file) as opened:
            for batch in opened.iter_batches(min(rows, 4096), columns=columns):
                yield batch
                seen += len(batch)
                if seen >= rows:
                    return


def _pretrain(base: StageView) -> StageView:
    rows = metrics(base.location) if base.location else []
    if not (artifact := _artifact(base)):
        return PretrainView(**vars(base), metrics=rows)
    facts = PretrainFacts.of(artifact.manifest)
    weights = _weights(artifact.location / facts.checkpoint.path) if facts.checkpoint else 0
    return PretrainView(**vars(base), facts=facts, metrics=rows, weights=weights)


def _weights(checkpoint: Location) -> int:
    """How many weights a checkpoint holds, from the header of its file."""
    with (checkpoint / "model.safetensors").open() as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _finetune(base: StageView) -> StageView:
    task = base.name.partition("-")[2]
    if not (artifact := _artifact(base)):
        return FinetuneView(**vars(base), task=task)
    rows = json_lines.read(artifact.location / "predictions/pretrained.jsonl")
    return FinetuneView(**vars(base), facts=FinetuneFacts.of(artifact.manifest), task=task, predictions=rows)


_KINDS: dict[str, Callable[[StageView], StageView]] = {
    "extract": _extract,
    "dedup": _dedup,
    "vocab": _vocab,
    "examples": _examples,
    "pretrain": _pretrain,
    "finetune": _finetune,
}


def _model(stages: Stages) -> TrainedModel | None:
    """The final checkpoint, where all is there that it takes to ask it."""
    vocab, documents = _artifact(stages.one(VocabView)), _artifact(stages.one(DedupView))
    pretrained = stages.one(PretrainView)
    pretrain = _artifact(pretrained)
    if pretrain is None or vocab is None or documents is None or not pretrained.facts.checkpoint:
        return None
    from cloze.training.checkpoints.fill_mask import load_model, predict_masked
    from cloze.training.pretrain.stage import final_checkpoint

    model, tokenizer = load_model(final_checkpoint(pretrain)), load_tokenizer(vocab.location / "tokenizer.json")

    def guesses(text: str) -> "Sequence[Guess]":
        [found] = predict_masked(model, tokenizer, text)
        return found

    return TrainedModel(tokenizer, lambda: heldout_texts(documents), guesses)


def heldout_texts(documents: Artifact) -> Iterator[HeldoutText]:
    """The first held-out documents of some shards, spread over all of them."""
    files = documents.files("documents/")
    for file in files[:: -(-len(files) // _SHARDS)]:
        with parquet_file(file) as opened:
            batches = opened.iter_batches(64, columns=["source", "language", "text", "split"])
            rows = (row for batch in batches for row in batch.to_pylist() if row["split"] == "heldout")
            yield from (HeldoutText(row["source"], row["language"], row["text"]) for row in islice(rows, _DOCUMENTS))
