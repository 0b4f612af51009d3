"""A run's finished stages -> the model card: YAML front matter for the Hugging Face Hub, then Markdown."""

import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from cloze.infra import heldout
from cloze.infra.display import duration
from cloze.infra.run_config import PretrainingConfigs, RunConfig
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.manifest_facts import VocabFacts
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.extract.sources import Source, WikipediaSource
from cloze.training.pretrain.manifest_facts import MetricsRow, PretrainFacts

if TYPE_CHECKING:
    from cloze.training.checkpoints.sentence_transformers import Pooling

_MAX_LISTED = 8  # files, languages or licences of a source
_LICENCE_IDS = {"apache-2.0", "cc0-1.0", "mit"}  # identifiers of the Hub, in addition to Creative Commons licences
_CC = re.compile(r"CC[ -](BY(?:-NC)?(?:-SA|-ND)?)[ -](\d\.\d)", re.IGNORECASE)
_OBJECTIVES = {
    "mlm": "The objective is masked-language modelling (MLM) only: the model has no next-sentence head and no pooler.",
    "mlm+nsp": "The objectives are masked-language modelling (MLM) and next-sentence prediction (NSP; label 0: the "
    "second segment follows the first, 1: it is random).",
    "mlm+sop": "The objectives are masked-language modelling (MLM) and sentence-order prediction (SOP; label 0: the "
    "segments are in order, 1: they are swapped). transformers calls the SOP head the next-sentence head.",
}
_MASKING = (
    "Of the tokens selected for prediction, 80 % are replaced by [MASK], 10 % by a random token, 10 % are unchanged."
)
_METRICS = {
    "mlm_loss": "masked-LM loss, nats per masked token",
    "mlm_accuracy": "masked-token accuracy",
    "choice_accuracy": "cloze choice: the true token over one of the same frequency",
    "nsp_loss": "{pairs} loss, nats per pair",
    "nsp_accuracy": "{pairs} accuracy",
    "examples": "held-out examples",
}
_FILL_MASK = {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["bert", "cloze", "masked-lm"]}
_SENTENCE_VECTORS = {
    "library_name": "sentence-transformers",
    "pipeline_tag": "sentence-similarity",
    "tags": ["bert", "cloze", "feature-extraction"],
}
_USAGE = """```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

print(pipeline("fill-mask", model="path/to/this/folder")("She opened the [MASK]."))

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
```

{other_classes} The tokenizer reads "[MASK]", "[SEP]" and other special tokens in a text as special tokens. In the
training data such strings were plain text. `tokenizer("A [MASK] word.", split_special_tokens=True)` does the same."""

_USAGE_OF_SENTENCES = """```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("path/to/this/folder").encode(["a text", "another"])
```

A vector is {pooling} of the last layer. The model is only pretrained: its vectors were not trained for similarity.
Special tokens in a text, such as "[MASK]", are plain text, as in the training data."""
_POOLINGS = {"mean": "the mean over all tokens, [CLS] and [SEP] included,", "cls": "that of [CLS]"}

_OTHER_CLASSES = "AutoModel loads the encoder, AutoModelForPreTraining the encoder with both heads."
_OTHER_CLASSES_MLM = (
    "AutoModel loads the encoder with a randomly initialized pooler, as this model has no trained pooler: use "
    "last_hidden_state, not pooler_output. A classifier fine-tuned from this model trains its pooler from scratch."
)


@dataclass
class SourceStatistics:
    """The documents of a source after deduplication."""

    documents: int = 0
    words: int = 0
    heldout: int = 0  # documents that are held out
    languages: set[str] = field(default_factory=set)
    licences: set[str] = field(default_factory=set)


def card(config: RunConfig, artifacts: Mapping[str, Artifact], pooling: "Pooling | None" = None) -> str:
    """Returns the model card. `artifacts`: vocab, pretrain and, as far as they still exist, extract and dedup, by these
    names. Raises UserError.

    `pooling` is given for an export to sentence-transformers.
    """
    configs = config.pretraining
    assert configs, "only a run with pretraining has these artifacts"
    sources, pretrain, objective = configs.extract.sources, artifacts["pretrain"].manifest, configs.examples.objective
    facts, evaluation = PretrainFacts.of(pretrain), _evaluation(pretrain)
    statistics = _statistics([source.name for source in sources], artifacts.get("dedup"))
    are_known = "dedup" in artifacts
    sections = [
        f"# {config.name}",
        _summary(artifacts["vocab"].manifest, pretrain, nsp=objective != "mlm"),
        "## Usage",
        _usage(objective, pooling),
        "## Training data",
        _table(
            ("source", "kind", "language", "licence", "documents", "words", "held-out documents"),
            [
                (source.name, source.kind, *(_row(statistics[source.name]) if are_known else ["unknown"] * 5))
                for source in sources
            ],
        ),
        "Counts are after deduplication. Held-out documents are included in them, but not used for training."
        if are_known
        else "The documents were deleted after training: their numbers, languages and licences are not known here.",
        *_initial_weights(facts),
        *(_attribution(source, statistics[source.name], artifacts.get("extract")) for source in sources),
        "## Training procedure",
        f"{_OBJECTIVES[objective]} {_MASKING} Settings, by their keys in the run's configuration:",
        _table(("key", "value"), [*_settings(configs)]),
        "## Evaluation",
        "On held-out documents, at the end of training:",
        _table(("metric", "value", "baseline"), [*_metrics(evaluation, objective)]),
        " ".join(heldout.describe(evaluation, objective)),
        "## Limitations",
        "The model reproduces the gaps, errors and biases of its training data.",
        "## Provenance",
        _table(("item", "value"), [*_provenance(pretrain)]),
    ]
    licensed = [] if facts.init else statistics.values()  # the licences of another model's training data are unknown
    use = _SENTENCE_VECTORS if pooling else _FILL_MASK
    return f"---\n{_front_matter(statistics.values(), licensed, use)}---\n\n" + "\n\n".join(sections) + "\n"


def _usage(objective: str, pooling: "Pooling | None") -> str:
    if pooling:
        return _USAGE_OF_SENTENCES.format(pooling=_POOLINGS[pooling])
    return _USAGE.format(other_classes=_OTHER_CLASSES_MLM if objective == "mlm" else _OTHER_CLASSES)


def _evaluation(pretrain: Manifest) -> MetricsRow:
    """Returns the last evaluation on held-out documents. Raises UserError."""
    if row := PretrainFacts.of(pretrain).metrics.heldout:
        return row
    raise UserError(
        f"{pretrain.stage}/{pretrain.fingerprint}/manifest.json: facts.metrics.heldout is missing; "
        "delete that folder and run again"
    )


def _initial_weights(facts: PretrainFacts) -> Iterator[str]:
    if init := facts.init:
        yield (
            f"Training started from the weights of another model (file SHA-256: {init.sha256}). That model's training "
            "data and licence are not listed here." + "".join(f" {note}." for note in init.notes)
        )


def _statistics(sources: Iterable[str], documents: Artifact | None) -> dict[str, SourceStatistics]:
    """Counts the documents of each source. Without documents nothing is known of them."""
    statistics = {source: SourceStatistics() for source in sources}
    groups = ["source", "language", "licence", "split"]
    for file in documents.files("documents/") if documents else ():
        table = read_table(file, [*groups, "num_words"]).group_by(groups)
        for row in table.aggregate([("num_words", "sum"), ("num_words", "count")]).to_pylist():
            source = statistics[row["source"]]
            source.documents += row["num_words_count"]
            source.words += row["num_words_sum"]
            source.heldout += row["num_words_count"] if row["split"] == "heldout" else 0
            source.languages.add(row["language"])
            source.licences.add(row["licence"])
    return statistics


def _front_matter(
    statistics: Iterable[SourceStatistics], licensed: Iterable[SourceStatistics], use: Mapping[str, Any]
) -> str:
    """Returns the YAML with the languages, the use and, if all of `licensed` have the same one, the licence."""
    languages = {language for source in statistics for language in source.languages if language}
    licences = {licence for source in licensed for licence in source.licences}
    metadata: dict[str, Any] = {"language": sorted(languages)} if languages else {}
    if len(licences) == 1 and (licence := licences.pop()):
        metadata |= _hub_licence(licence)
    metadata |= use
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)


def _hub_licence(name: str) -> dict[str, str]:
    """Returns the Hub's metadata for a licence: one of its identifiers, or "other" and a name."""
    if cc := _CC.fullmatch(name):
        return {"license": f"cc-{cc[1]}-{cc[2]}".lower()}
    if name.lower() in _LICENCE_IDS:
        return {"license": name.lower()}
    return {"license": "other", "license_name": "-".join(re.findall(r"\w+", name.lower()))}


def _summary(vocab: Manifest, pretrain: Manifest, nsp: bool) -> str:
    import torch

    from cloze.training.checkpoints.checkpoint import SavedConfig
    from cloze.training.model.architectures import architecture_of, pretraining_model

    size = vocab.counts["pieces"]
    model = SavedConfig.model_validate({"model": pretrain.config["model"], "vocab_size": size}).model
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in pretraining_model(model, size, nsp=nsp).parameters())
    case = "uncased" if vocab.config["lowercase"] else "cased"
    max_length = max(phase["max_seq_length"] for phase in pretrain.config["phases"])
    note = VocabFacts.of(vocab).note
    return (
        f"{architecture_of(model).title}, pretrained with Cloze: "
        f"{model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.num_attention_heads} attention "
        f"heads, {model.max_position_embeddings} positions, a WordPiece vocabulary of {size:,} tokens ({case}), "
        f"{parameters:,} parameters.{f' {note}' if note else ''} The maximum sequence length in training was "
        f"{max_length} tokens."
    )


def _row(source: SourceStatistics) -> tuple[str, ...]:
    numbers = (f"{number:,}" for number in (source.documents, source.words, source.heldout))
    return _joined(source.languages), _joined(source.licences), *numbers


def _joined(names: Iterable[str]) -> str:
    names = sorted(name or "unknown" for name in names)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _attribution(source: Source, statistics: SourceStatistics, extract: Artifact | None) -> str:
    """Returns the authors, the licence and the files of a source."""
    inputs = extract.manifest.inputs if extract else {}
    files = [name.rpartition("/")[2] for name in inputs if name.startswith(f"{source.name}/")] or ["unknown"]
    licences = _joined(_linked(licence) for licence in statistics.licences) or "unknown"
    if isinstance(source, WikipediaSource):
        return (
            f"**{source.name}** is the text of Wikipedia articles, without markup. The authors are listed in each "
            f"article's history on Wikipedia. Licence: {licences}. Files: {_joined(files)}."
        )
    return f"**{source.name}**. Licence: {licences}. Files: {_joined(files)}."


def _linked(licence: str) -> str:
    """Adds the URL of a Creative Commons licence."""
    cc = _CC.fullmatch(licence)
    return f"[{licence}](https://creativecommons.org/licenses/{cc[1].lower()}/{cc[2]}/)" if cc else licence


def _settings(configs: PretrainingConfigs) -> Iterator[tuple[str, str]]:
    """Yields (key, value) of the settings that determine the weights."""
    for name, part in (("vocab", configs.vocab), ("examples", configs.examples), ("pretrain", configs.pretrain)):
        yield from _flatten(identity(part), name)


def _flatten(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}")
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{path}.{number}")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _metrics(row: Mapping[str, float], objective: str) -> Iterator[tuple[str, str, str]]:
    """Yields (metric, the model's value, the baseline's value or an empty string)."""

    def formatted(key: str, value: float) -> str:
        return f"{100 * value:.1f} %" if key.endswith("accuracy") else f"{value:,.4g}"

    pairs = "sentence-order" if objective == "mlm+sop" else "next-sentence"
    for key, name in _METRICS.items():
        if key in row:
            baseline = row.get(f"{key}_baseline")
            yield (
                name.format(pairs=pairs),
                formatted(key, row[key]),
                "" if baseline is None else formatted(key, baseline),
            )


def _provenance(pretrain: Manifest) -> Iterator[tuple[str, str]]:
    facts, checkpoint = PretrainFacts.of(pretrain), PretrainFacts.final(pretrain)
    yield "checkpoint", f"{checkpoint.digest}, step {checkpoint.step:,}"
    yield "training", f"{facts.precision} on {facts.workers} workers, {facts.processor}"
    yield "finished", f"{pretrain.finished}, after {duration(facts.metrics.seconds)} of training steps"
    yield "cloze", f"{importlib.metadata.version('cloze')}, commit {pretrain.git_commit or 'unknown'}"
    yield from pretrain.versions.items()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = (f"| {' | '.join(map(_escape_cell, row))} |" for row in (header, ["---"] * len(header), *rows))
    return "\n".join(lines)


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
