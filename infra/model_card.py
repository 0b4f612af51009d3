"""a run's finished stages -> the card that goes with its model: Markdown behind the YAML that the Hub reads."""

import importlib.metadata
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cloze.infra import heldout
from cloze.infra.display import duration
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.facts import VocabFacts
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.extract.sources import Source, WikipediaSource
from cloze.training.pretrain.facts import MetricsRow, PretrainFacts

_LISTED = 8  # files, languages or licences of a source
_LICENCE_IDS = {"apache-2.0", "cc0-1.0", "mit"}  # of the Hub's, beside Creative Commons' others
_CC = re.compile(r"CC[ -](BY(?:-NC)?(?:-SA|-ND)?)[ -](\d\.\d)", re.IGNORECASE)
_OBJECTIVES = {
    "mlm": "It learnt to name masked pieces, and nothing of pairs: it has no next-sentence head and no pooler.",
    "mlm+nsp": "It learnt to name masked pieces, and whether the second segment follows the first (0: it does).",
    "mlm+sop": "It learnt to name masked pieces, and whether two segments are in their order (0: they are; 1: they "
    "are swapped). The latter is what the head does that others call the next-sentence head.",
}
_MASKS = "Of the pieces chosen for that, 80 % became [MASK], 10 % another piece, and 10 % stayed."
_FIGURES = {
    "mlm_loss": "masked-LM loss, nats a masked piece",
    "mlm_accuracy": "masked pieces named right",
    "nsp_loss": "loss of pairs, nats",
    "nsp_accuracy": "pairs answered right",
    "examples": "examples",
}
_LOADING = """```python
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

print(pipeline("fill-mask", model="path/to/this/folder")("She opened the [MASK]."))

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
```

{others} The tokenizer takes "[MASK]", "[SEP]" and the like in a text for what they mark. In the text it was trained on
they were text: `tokenizer("A [MASK] word.", split_special_tokens=True)` takes them so."""

_OTHERS = "AutoModel gives the encoder alone, AutoModelForPreTraining both heads."
_OTHERS_OF_MLM = (
    "AutoModel gives the encoder alone and, for want of a trained pooler, a random one: use its last_hidden_state, "
    "not its pooler_output. A classifier that begins with this model trains its pooler from nothing."
)


@dataclass
class Text:
    """What a source gave, after deduplication."""

    documents: int = 0
    words: int = 0
    heldout: int = 0  # of the documents
    languages: set[str] = field(default_factory=set)
    licences: set[str] = field(default_factory=set)


def card(config: RunConfig, made: Mapping[str, Artifact]) -> str:
    """`made`: the run's artifacts of extract, dedup, vocab and pretrain, by these names. Raises UserError."""
    sources, pretrain, objective = config.extract.sources, made["pretrain"].manifest, config.examples.objective
    facts, evaluated = PretrainFacts.of(pretrain), _evaluated(pretrain)
    texts = _texts([source.name for source in sources], made["dedup"])
    sections = [
        f"# {config.name}",
        _summary(made["vocab"].manifest, pretrain, nsp=objective != "mlm"),
        "## How to load it",
        _LOADING.format(others=_OTHERS_OF_MLM if objective == "mlm" else _OTHERS),
        "## What it was trained on",
        _table(
            ("source", "kind", "language", "licence", "documents", "words", "documents held out"),
            [(source.name, source.kind, *_row(texts[source.name])) for source in sources],
        ),
        "These are the documents that deduplication left; held-out ones are not trained on.",
        *_beginning(facts),
        *(_attribution(source, texts[source.name], made["extract"].manifest) for source in sources),
        "## How it was trained",
        f"{_OBJECTIVES[objective]} {_MASKS} The settings, by their keys in the run's configuration:",
        _table(("key", "value"), [*_settings(config)]),
        "## How good it is",
        "On held-out documents, at the end of training:",
        _table(("figure", "value", "baseline"), [*_figures(evaluated)]),
        " ".join(heldout.verdict(evaluated, objective)),
        "What the text that it has seen leaves out or gets wrong, so does the model.",
        "## What made it",
        _table(("what", "which"), [*_provenance(pretrain)]),
    ]
    known = [] if facts.init else texts.values()  # of another model's text nothing is
    return f"---\n{_front(texts.values(), known)}---\n\n" + "\n\n".join(sections) + "\n"


def _evaluated(pretrain: Manifest) -> MetricsRow:
    """What was measured on held-out documents at the end."""
    if row := PretrainFacts.of(pretrain).metrics.heldout:
        return row
    raise UserError(
        f"{pretrain.stage}/{pretrain.fingerprint}/manifest.json: facts.metrics.heldout: is not there; "
        "delete that folder and run again"
    )


def _beginning(facts: PretrainFacts) -> Iterator[str]:
    if init := facts.init:
        yield (
            f"Training began with the weights of another model (SHA-256 of their file: {init.sha256}). The text that"
            " one was trained on, and its licence, are not listed here." + "".join(f" {note}." for note in init.notes)
        )


def _texts(sources: Iterable[str], documents: Artifact) -> dict[str, Text]:
    """What is left of each source, counted in the documents themselves."""
    texts = {source: Text() for source in sources}
    groups = ["source", "language", "licence", "split"]
    for file in documents.files("documents/"):
        table = read_table(file, [*groups, "num_words"]).group_by(groups)
        for row in table.aggregate([("num_words", "sum"), ("num_words", "count")]).to_pylist():
            text = texts[row["source"]]
            text.documents += row["num_words_count"]
            text.words += row["num_words_sum"]
            text.heldout += row["num_words_count"] if row["split"] == "heldout" else 0
            text.languages.add(row["language"])
            text.licences.add(row["licence"])
    return texts


def _front(texts: Iterable[Text], known: Iterable[Text]) -> str:
    """The YAML: languages, and the licence where all text is `known` to have one."""
    languages = {language for text in texts for language in text.languages if language}
    licences = {licence for text in known for licence in text.licences}
    said: dict[str, Any] = {"language": sorted(languages)} if languages else {}
    if len(licences) == 1 and (licence := licences.pop()):
        said |= _licence(licence)
    said |= {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["bert", "cloze", "masked-lm"]}
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


def _licence(name: str) -> dict[str, str]:
    """A licence in the Hub's words: one of its identifiers, or "other" and its name."""
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
        weights = sum(weight.numel() for weight in pretraining_model(model, size, nsp=nsp).parameters())
    case = "lower case" if vocab.config["lowercase"] else "upper and lower case"
    longest = max(phase["max_seq_length"] for phase in pretrain.config["phases"])
    said = VocabFacts.of(vocab).note
    note = f" {said}" if said else ""
    return (
        f"{architecture_of(model).title}, pretrained with Cloze: "
        f"{model.num_hidden_layers} layers, {model.hidden_size} wide, {model.num_attention_heads} heads, "
        f"{model.max_position_embeddings} positions, {size:,} WordPieces in {case}, {weights:,} weights.{note} "
        f"It was trained on at most {longest} pieces at once."
    )


def _row(text: Text) -> tuple[str, ...]:
    numbers = (f"{number:,}" for number in (text.documents, text.words, text.heldout))
    return _some(text.languages), _some(text.licences), *numbers


def _some(names: Iterable[str]) -> str:
    known = sorted(name or "not said" for name in names)
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return ", ".join(known[:_LISTED]) + more


def _attribution(source: Source, text: Text, extract: Manifest) -> str:
    """Whose text a source is, under which licence, from which files."""
    files = [name.rpartition("/")[2] for name in extract.inputs if name.startswith(f"{source.name}/")]
    licences = _some(_linked(licence) for licence in text.licences) or "not said"
    if isinstance(source, WikipediaSource):
        return (
            f"**{source.name}** is text of Wikipedia's articles by their authors, whom the history of each article on "
            f"Wikipedia names, without its markup. Licence: {licences}. Files: {_some(files)}."
        )
    return f"**{source.name}**: licence: {licences}. Files: {_some(files)}."


def _linked(licence: str) -> str:
    """A Creative Commons licence with the address of its text."""
    cc = _CC.fullmatch(licence)
    return f"[{licence}](https://creativecommons.org/licenses/{cc[1].lower()}/{cc[2]}/)" if cc else licence


def _settings(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What decides the weights, beside the text."""
    for name, part in (("vocab", config.vocab), ("examples", config.examples), ("pretrain", config.pretrain)):
        yield from _flat(identity(part), name)


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}")
    elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        for number, item in enumerate(value):
            yield from _flat(item, f"{path}.{number}")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _figures(row: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """A figure, the model's, and that of a baseline where it has one."""

    def written(key: str, value: float) -> str:
        return f"{100 * value:.1f} %" if key.endswith("accuracy") else f"{value:,.4g}"

    for key, name in _FIGURES.items():
        if key in row:
            base = row.get(f"{key}_baseline")
            yield name, written(key, row[key]), "" if base is None else written(key, base)


def _provenance(pretrain: Manifest) -> Iterator[tuple[str, str]]:
    facts, checkpoint = PretrainFacts.of(pretrain), PretrainFacts.final(pretrain)
    yield "checkpoint", f"{checkpoint.digest}, step {checkpoint.step:,}"
    yield "trained in", f"{facts.precision} on {facts.workers} workers, {facts.processor}"
    yield "finished", f"{pretrain.finished}, after {duration(facts.metrics.seconds)} of training steps"
    yield "cloze", f"{importlib.metadata.version('cloze')}, commit {pretrain.git_commit or 'not known'}"
    yield from pretrain.versions.items()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(map(_cell, row))} |" for row in (head, ["---"] * len(head), *rows))
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
