"""A run's configuration, the sizes of its files and its finished stages -> the amounts of work of each stage.

What a finished stage counted is exact: words, documents, tokens, examples. Before that, they follow from the bytes of
the sources by measured ratios (rates.yaml), and for Wikipedia dumps by those of a sample of the file (sample.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from types import MappingProxyType
from typing import Literal, NamedTuple

from cloze.infra.estimate import sample
from cloze.infra.estimate.rates import Rates
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.bucket_files import shard_groups
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.manifest_facts import VocabFacts
from cloze.pipeline.dedup.stage import DedupConfig
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.sources import Source, WikipediaSource
from cloze.pipeline.extract.work_units import (
    FILES_UNIT_BYTES,
    MAX_STREAM_BYTES,
    MULTISTREAM_UNIT_BYTES,
    XML_UNIT_BYTES,
)
from cloze.pipeline.tokens.stage import WORDS_PER_SHARD, TokensConfig
from cloze.pipeline.vocab.config import VocabConfig
from cloze.training.finetune.encode.stage import EncodeConfig
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.finetune.tasks.task_config import TaskConfig
from cloze.training.model.batch_totals import Totals
from cloze.training.model.bert import BertConfig
from cloze.training.pretrain.config import PretrainConfig

_MEGABYTE = 1e6
_REFERENCE_VOCAB = 30522  # pieces of the vocabulary to which the rates apply
_COMPRESSED = (".bz2", ".gz", ".xz")
_GROUP_BYTES = 32 << 20  # of document shards that a tokens worker reads at once: tokens/steps.py
_STATE_BYTES = {0: (16, 0), 1: (8, 12), 2: (4, 16), 3: (0, 16)}  # per parameter: of each worker, divided among all
_ACTIVATION_BYTES = 41.4  # per layer, token and hidden unit; docs/guide/gpu.md: 16.7 GB for BERT-large at 32 x 512
_CHECKPOINT_BYTES = 12  # per parameter: weights and two moments in fp32


class File(NamedTuple):
    """A source file: its path or pattern, and its bytes. `exists` is false for a size that the user has named."""

    uri: str
    bytes: int
    exists: bool = True


@dataclass
class Corpus:
    """What is known of the text so far: from finished stages, or estimated by the stages before."""

    documents: float = 0.0
    words: float = 0.0
    heldout: float = 0.0  # the fraction of documents that is held out
    shards: float = 0.0
    parquet_bytes: float = 0.0
    tokens: float = 0.0
    vocab_size: int = _REFERENCE_VOCAB
    example_tokens: dict[int, float] = field(default_factory=dict)  # length -> tokens of an example
    rows: dict[str, float] = field(default_factory=dict)  # encode stage -> training examples of the task
    model: BertConfig | None = None


class Training(NamedTuple):
    """The work of a training stage: operations of the matrix products, and the shape that decides how fast they run."""

    flops: float
    hidden_size: int
    precision: str
    seconds: float | None = None  # set by the configuration's budget
    gpus: int | Literal["auto"] = "auto"
    workers: int | Sequence[int] | None = None
    threads: int = 1


@dataclass(frozen=True)
class StageWork:
    """The amounts of a stage. `cpu` maps the name of a rate to the amount in the rate's unit."""

    cpu: Mapping[str, float] = field(default_factory=dict)
    training: Training | None = None
    written: float = 0.0  # bytes that stay
    scratch: float = 0.0  # bytes that are deleted when the stage is finished
    requests: float = 0.0  # to S3, apart from those that depend on time
    serial: Mapping[str, float] = field(default_factory=dict)  # the part of `cpu` that one process does
    items: float = 1.0  # that can run at once
    gpu_bytes: Callable[[int], float] | None = None  # number of GPUs -> memory that each needs
    notes: tuple[str, ...] = ()


class Unknown(ValueError):
    """The amounts of a stage cannot be estimated; the message says what is missing."""


def stage_work(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    """The work of a stage that is not finished; adds to `corpus` what it will write. Raises Unknown."""
    for config, work in _WORK.items():
        if isinstance(stage.config, config):
            return work(stage, files, corpus, rates)
    return StageWork(cpu={"report": 1.0})


def add_finished(stage: Stage, artifact: Artifact, corpus: Corpus) -> None:
    """Add what a finished stage has counted to `corpus`."""
    manifest, config = artifact.manifest, stage.config
    counts = manifest.counts
    if isinstance(config, ExtractConfig | DedupConfig):
        shards = [file.bytes for name, file in manifest.files.items() if name.startswith("documents/")]
        corpus.documents, corpus.words = counts["documents"], counts.get("words", 0)
        corpus.heldout = counts.get("heldout", 0) / max(1, counts["documents"])
        corpus.shards, corpus.parquet_bytes = len(shards), sum(shards)
    elif isinstance(config, VocabConfig):
        corpus.vocab_size = VocabFacts.of(manifest).size
    elif isinstance(config, TokensConfig):
        corpus.tokens = counts["tokens"]
    elif isinstance(config, LengthConfig):
        corpus.example_tokens[config.max_seq_length] = counts["train_tokens"] / max(1, counts["train"])
    elif isinstance(config, EncodeConfig):
        corpus.rows[stage.name] = counts.get("train", 0)


def _extract(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    config = stage.config
    assert isinstance(config, ExtractConfig)
    cpu: dict[str, float] = {"extract.start": 1.0}
    scratch, notes, serial = 0.0, list[str](), dict[str, float]()
    for source in config.sources:
        if not files.get(source.name):
            raise Unknown(f"the files of {source.name} are missing; name their size: --size {source.name}=24GB")
        for file in files[source.name]:
            if isinstance(source, WikipediaSource):
                found = _dump(file, source, config, rates)
            else:
                found = _texts(file, source, rates)
            for name, amount in found.cpu.items():
                cpu[name] = cpu.get(name, 0.0) + amount
            corpus.words += found.words
            corpus.documents += found.documents
            corpus.shards += found.shards
            scratch += found.scratch
            # One reader decompresses a long stream, and the other workers wait for the longest.
            serial = max(serial, found.serial, key=lambda amounts: sum(amounts.values()))
            notes += [found.note] if found.note and found.note not in notes else []
    corpus.heldout = config.heldout_fraction
    corpus.parquet_bytes = corpus.words * rates.value("bytes.documents")
    return StageWork(
        cpu,
        written=corpus.parquet_bytes,
        scratch=scratch,
        requests=_requests("extract", corpus, rates),
        serial=serial,
        items=corpus.shards,
        notes=tuple(notes),
    )


class _SourceWork(NamedTuple):
    cpu: dict[str, float]
    words: float
    documents: float
    shards: float
    scratch: float = 0.0
    serial: Mapping[str, float] = MappingProxyType({})
    note: str = ""


def _dump(file: File, source: WikipediaSource, config: ExtractConfig, rates: Rates) -> _SourceWork:
    """A Wikipedia dump, by a sample of it; by ratios of whole wikis where there is no file."""
    compression = _compression(file.uri)
    if file.exists:
        try:
            found = sample.dump_sample(file.uri, source, config)
        except (UserError, OSError) as error:  # the stage reports it
            raise Unknown(str(error)) from error
        expansion, words, documents, note = found.expansion, found.words, found.documents, ""
    else:
        expansion = rates.value(f"xml.per_{compression}") if compression else 1.0
        words, documents = rates.value("words.per_xml_mb"), rates.value("documents.per_xml_mb")
        note = f"{source.name}: its size alone is known: text by the ratios of whole English Wikipedias"
    xml = file.bytes * expansion / _MEGABYTE
    cpu = {"extract.wikipedia": xml}
    long_stream = bool(compression) and file.bytes > MAX_STREAM_BYTES and "multistream" not in file.uri
    if compression:
        cpu[f"decompress.{compression}"] = xml
    if long_stream:
        cpu["extract.repartition"] = xml
    serial = {f"decompress.{compression}": xml, "extract.repartition": xml} if long_stream else {}
    shards = xml * _MEGABYTE / XML_UNIT_BYTES
    if compression == "bz2" and not long_stream:
        shards = file.bytes / MULTISTREAM_UNIT_BYTES
    scratch = xml * _MEGABYTE * rates.value("bytes.partitions") if long_stream else 0.0
    return _SourceWork(cpu, xml * words, xml * documents, max(1, ceil(shards)), scratch, serial, note)


def _texts(file: File, source: Source, rates: Rates) -> _SourceWork:
    """A book, a table of documents or a file of sentences."""
    size = file.bytes * (rates.value("text.per_gz") if _compression(file.uri) else 1.0)
    if file.uri.endswith(".parquet"):
        size = file.bytes * rates.value("text.per_parquet")
    words = size / rates.value("bytes.word")
    documents = max(1.0, words / rates.value(f"words.per_document.{source.kind}"))
    return _SourceWork({f"extract.{source.kind}": size / _MEGABYTE}, words, documents, size / FILES_UNIT_BYTES)


def _compression(uri: str) -> str:
    """bz2, gz, xz, or nothing, by the name: patterns have no content."""
    return next((suffix[1:] for suffix in _COMPRESSED if uri.rstrip("*").endswith(suffix)), "")


def _dedup(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    _needs_text(corpus)
    return StageWork(
        {"dedup.start": 1.0, "dedup": corpus.words / 1e6, "dedup.documents": corpus.documents / 1e3},
        written=corpus.parquet_bytes,
        scratch=corpus.documents * rates.value("bytes.descriptors"),
        requests=_requests("dedup", corpus, rates) + (corpus.documents / 1e6) ** 2 * rates.value("requests.exchange"),
        items=corpus.shards,
    )


def _vocab(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    _needs_text(corpus)
    config = stage.config
    assert isinstance(config, VocabConfig)
    if config.file is None:
        corpus.vocab_size = config.size
    groups = len(shard_groups(ceil(corpus.shards)))
    # Heaps' law: distinct words grow with a power of the words. Training takes time for each, more for more pieces.
    distinct = rates.value("words.heaps_factor") * corpus.words ** rates.value("words.heaps_exponent")
    more_pieces = (corpus.vocab_size / _REFERENCE_VOCAB) ** rates.value("vocab.size_exponent")
    train = {} if config.file else {"vocab.train": distinct * more_pieces / 1e3}
    return StageWork(
        {"vocab.start": 1.0, "vocab.count": corpus.words / 1e6, "vocab.compare": float(bool(config.compare)), **train},
        written=corpus.shards * rates.value("bytes.word_counts"),
        scratch=corpus.shards * rates.value("bytes.word_counts"),
        requests=_requests("vocab", corpus, rates) + groups * (1 + groups // 8),
        serial=train,
        items=groups,
    )


def _tokens(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    _needs_text(corpus)
    corpus.tokens = corpus.words * rates.value("tokens.per_word")
    groups = max(len(shard_groups(ceil(corpus.shards))), corpus.parquet_bytes / _GROUP_BYTES)
    size = corpus.tokens * rates.value("bytes.token")
    return StageWork(
        {"tokens.start": 1.0, "tokens": corpus.words / 1e6},
        written=size,
        scratch=size,
        requests=_requests("tokens", corpus, rates) + groups * (1 + corpus.words / WORDS_PER_SHARD),
        items=groups,
    )


def _examples(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    config = stage.config
    assert isinstance(config, LengthConfig)
    if not corpus.tokens:
        raise Unknown("the text is not known yet")
    # By-source passes need the words of each source, which no manifest has: the default stands for all.
    tokens = corpus.tokens * (1 - corpus.heldout) * config.dupe_factor
    fill = rates.value("examples.fill")
    corpus.example_tokens[config.max_seq_length] = config.max_seq_length * fill
    # A random second segment is used again in its own document's examples.
    of_pairs = rates.nearest("examples.consumed.", config.max_seq_length).value
    consumed = fill if config.objective == "mlm" else of_pairs
    count = tokens / (config.max_seq_length * consumed)
    positions = count * config.max_seq_length if config.masking == "static" else 0.0
    return StageWork(
        {
            "examples.start": 1.0,
            "examples.tokens": tokens / 1e6,
            "examples.each": count / 1e3,
            "examples.masks": positions / 1e6,
        },
        written=tokens * rates.value(f"bytes.example_token.{config.masking}"),
        requests=_requests("examples", corpus, rates),
        items=1 + corpus.words / WORDS_PER_SHARD,
    )


def _requests(stage: str, corpus: Corpus, rates: Rates) -> float:
    return rates.value("requests.start") + corpus.shards * rates.value(f"requests.{stage}")


def _needs_text(corpus: Corpus) -> None:
    if not corpus.words:
        raise Unknown("the text is not known yet")


def parameters(model: BertConfig, vocab_size: int) -> int:
    """The number of a model's parameters: embeddings, layers, pooler and heads."""
    hidden, intermediate = model.hidden_size, model.intermediate_size
    layer = 4 * hidden * (hidden + 1) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
    embeddings = (vocab_size + model.max_position_embeddings + model.type_vocab_size + 2) * hidden
    heads = 2 * hidden * (hidden + 1) + 2 * hidden + vocab_size + 2 * (hidden + 1)
    return embeddings + model.num_hidden_layers * layer + heads


def _pretrain(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    config = stage.config
    assert isinstance(config, PretrainConfig)
    corpus.model = config.model
    flops = 0.0
    for phase, batch in zip(config.phases, config.global_batch_sizes, strict=True):
        tokens = corpus.example_tokens.get(phase.max_seq_length, phase.max_seq_length * rates.value("examples.fill"))
        examples = (phase.steps or 0) * batch
        masked = min(phase.max_predictions_per_seq, 0.15 * tokens)
        totals = Totals(tokens=tokens, squares=tokens * tokens, masked=masked, examples=1)
        of_phase = examples * config.model.training_flops(totals, corpus.vocab_size)
        flops += of_phase * (4 / 3 if config.activation_checkpointing else 1)
    count = parameters(config.model, corpus.vocab_size)
    workers = config.allowed_worker_counts or config.workers
    training = Training(
        flops, config.model.hidden_size, config.precision, config.budget_seconds, config.gpus, workers, config.threads
    )
    saved = count * _CHECKPOINT_BYTES * (config.keep_checkpoints + 2)
    return StageWork(
        training=training, written=saved, gpu_bytes=lambda gpus: _gpu_bytes(config, count, gpus), items=2.0
    )


def _gpu_bytes(config: PretrainConfig, count: int, gpus: int) -> float:
    """Weights, gradients and moments by ZeRO stage (docs/concepts/several-gpus.md), and a micro-batch's activations."""
    own, divided = _STATE_BYTES[config.zero_stage if gpus > 1 else 0]
    tokens = max(
        micro * phase.max_seq_length for micro, phase in zip(config.micro_batch_sizes, config.phases, strict=True)
    )
    of_layers = 1 if config.activation_checkpointing else config.model.num_hidden_layers
    activations = _ACTIVATION_BYTES * of_layers * tokens * config.model.hidden_size
    return count * (own + divided / gpus) + activations


def _encode(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    found = [file for of_input in files.values() for file in of_input]
    if not found:
        raise Unknown(f"the files of {stage.name} are missing")
    size = sum(file.bytes * (rates.value("text.per_gz") if _compression(file.uri) else 1.0) for file in found)
    corpus.rows[stage.name] = size / rates.value("bytes.task_row")
    return StageWork({"encode.start": 1.0, "encode": size / _MEGABYTE}, written=size)


def _finetune(stage: Stage, files: Mapping[str, Sequence[File]], corpus: Corpus, rates: Rates) -> StageWork:
    config = stage.config
    assert isinstance(config, TaskConfig)
    if stage.facts is OverlapFacts:
        raise Unknown("not estimated")
    rows = next((corpus.rows[name] for name in stage.after if name in corpus.rows), None)
    if rows is None or not config.trials:
        raise Unknown("its training examples are not known")
    if config.init or corpus.model is None:
        raise Unknown("its model is not this run's")
    tokens = config.max_seq_length * rates.value("finetune.fill")
    epochs = sum(trial.epochs for trial in config.trials) * (2 if config.compare_random else 1)
    totals = Totals(tokens=tokens, squares=tokens * tokens, examples=1)
    flops = rows * epochs * corpus.model.training_flops(totals, corpus.vocab_size)
    training = Training(
        flops, corpus.model.hidden_size, config.precision, None, config.gpus, config.workers, config.threads
    )
    count = parameters(corpus.model, corpus.vocab_size)
    return StageWork(training=training, written=4.0 * count * (2 if config.compare_random else 1))


#: By the configuration of the stage.
_WORK: dict[type[Config], Callable[[Stage, Mapping[str, Sequence[File]], Corpus, Rates], StageWork]] = {
    ExtractConfig: _extract,
    DedupConfig: _dedup,
    VocabConfig: _vocab,
    TokensConfig: _tokens,
    LengthConfig: _examples,
    PretrainConfig: _pretrain,
    EncodeConfig: _encode,
    TaskConfig: _finetune,
}
