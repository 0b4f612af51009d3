"""A file of sentences with a tag for each word -> a tag for each word, and the F1 of the entities."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.config import InputPath
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.heads import TokenClassifier
from cloze.training.finetune.metrics.entities import entity_f1
from cloze.training.finetune.metrics.estimates import Estimate, proportion
from cloze.training.finetune.tasks.classification import labels_config
from cloze.training.finetune.tasks.labelled_files import scored_split
from cloze.training.finetune.tasks.published_scores import published_fact
from cloze.training.finetune.tasks.tag_schemes import OUTSIDE, Scheme
from cloze.training.finetune.tasks.tagged_files import DOCUMENT_MARK, TaggedColumns, TaggedSentence, read_sentences
from cloze.training.finetune.tasks.tagged_inputs import EncodedSentences, encode_sentences
from cloze.training.finetune.tasks.tagged_splits import valid_sentences
from cloze.training.finetune.tasks.task import (
    EncodedTask,
    InputColumns,
    Predictions,
    RowIndices,
    TransformersHead,
    score_facts,
    splits_of,
)
from cloze.training.finetune.tasks.task_config import TrainedTaskConfig, Training

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


class TaggingConfig(TrainedTaskConfig):
    """Tagging: sentences with a tag for each word, such as the names of CoNLL-2003."""

    kind: Literal["tagging"] = "tagging"
    """Kind of the task."""
    file: Annotated[str | None, InputPath("data")] = None
    """Path of the labelled file: .parquet, .jsonl, .ndjson or .json with a sentence per row; under any other suffix
    except .csv, such as .txt, .conll or .tsv, a word per line and an empty line between sentences; also with .gz.

    Without a column that names the split, a tenth is dev and another tenth test, drawn by the seed: of the documents if
    the file has at least ten, otherwise of the sentences."""
    max_seq_length: int = Field(default=128, ge=3)
    """Longest input in tokens, with [CLS] and [SEP]; longer sentences become several inputs, cut between words."""
    columns: TaggedColumns = TaggedColumns()
    """The columns of the file."""
    scheme: Scheme | None = None
    """How tags mark entities: BIO (also called IOB2), IOB1 or IOBES; by default the one that the file uses. none: tags
    are labels by themselves, such as parts of speech, and the metric is accuracy."""
    dataset: Annotated[Literal["CoNLL-2003"] | None, Training] = None
    """The dataset whose published files these are: the page has the scores of the BERT paper next to the task's."""
    context: Literal["sentence", "document"] = "sentence"
    """What a row of the model's input has besides the sentence to tag. document: the words around it in its document,
    up to max_seq_length, as in the BERT paper."""
    skip_invalid: bool = False
    """Leave out sentences with invalid lines or tags, and count them, in place of an error."""


class TagAnswer(NamedTuple):
    """The answer for a row: the index of the tag predicted for each of its words, and the sum of their losses."""

    tags: NDArray[np.int64]
    loss: float  # NaN without labels


@dataclass(frozen=True)
class Tagging:
    """The task of predicting the tag of each word."""

    config: TaggingConfig
    examples: list[TaggedSentence]
    labels: list[str]
    scheme: Scheme
    skipped: Mapping[str, int]  # invalid sentences that were left out, by reason
    split_kind: ClassVar[type] = EncodedSentences

    @classmethod
    def read(cls, config: TaggingConfig, files: Mapping[str, Location]) -> Self:
        skipped = Counter[str]() if config.skip_invalid else None
        found = read_sentences(config.columns, files, skipped)
        where = next(iter(files.values()))
        sentences, scheme, labels = valid_sentences(found, config.scheme, config.seed, where, skipped)
        # The lines of train are not needed again, and would be sent to every worker.
        examples = [replace(one, lines=()) if one.split == "train" else one for one in sentences]
        return cls(config, examples, labels, scheme, dict(skipped or {}))

    @classmethod
    def for_inputs(cls, config: TaggingConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> Self:
        """The task of new sentences: `words` is a list, or a text with spaces between the words."""
        sentences = [
            TaggedSentence(
                row, "test", None, tuple(words.split() if isinstance(words := one["words"], str) else words), None
            )
            for row, one in enumerate(inputs, start=1)
        ]
        return cls(config, sentences, list(head["id2label"].values()), config.scheme or "BIO", {})

    @classmethod
    def input_names(cls, config: TaggingConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("words",)

    @classmethod
    def input_columns(cls, config: TaggingConfig, head: Mapping[str, Any]) -> InputColumns:
        token = config.columns.token
        return {"words": [token if isinstance(token, str) else "tokens"]}

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.list_(pa.string())}

    @property
    def metric(self) -> str:
        return "accuracy" if self.scheme == "none" else "f1"

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        index: dict[str | None, int] = {label: number for number, label in enumerate(self.labels)}
        splits, counts = dict[str, EncodedSentences](), Counter[str]()
        for split in splits_of(self.examples):
            sentences = [example for example in self.examples if example.split == split]
            tags = itertools.chain(*(one.label or [None] * len(one.words) for one in sentences))
            targets = np.array([index.get(tag, -1) for tag in tags], np.int64)
            splits[split], found = encode_sentences(
                tokenizer, sentences, targets, self.config.max_seq_length, self.config.context == "document"
            )
            counts.update(found)
        truncated = counts.pop("truncated")
        return EncodedTask(splits, truncated, counts)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return TokenClassifier(encoder, config, len(self.labels), self.config.seed)

    def inputs(self, data: EncodedSentences, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        return data.texts.batch(rows, device)

    def loss(self, outputs: Tensor, data: EncodedSentences, rows: RowIndices) -> Tensor:
        """The sum of the cross-entropies of all words of the rows, from logits [batch, s, labels]."""
        targets = torch.from_numpy(data.targets[data.words.take(rows).values]).to(outputs.device)
        return functional.cross_entropy(_of_words(outputs, data, rows), targets, reduction="sum")

    def loss_terms(self, data: EncodedSentences, rows: RowIndices) -> int:
        """The number of words, over which transformers' loss is the mean, too."""
        return int(data.words.lengths[rows].sum())

    def answers(self, outputs: Tensor, data: EncodedSentences, rows: RowIndices) -> list[TagAnswer]:
        words = data.words.take(rows)
        logits = _of_words(outputs, data, rows)  # [words, labels]
        targets = torch.from_numpy(data.targets[words.values]).to(outputs.device)
        losses = functional.cross_entropy(logits, targets.clamp(min=0), reduction="none")
        losses = losses.masked_fill(targets < 0, np.nan).double().cpu().numpy()
        tags = logits.argmax(-1).cpu().numpy()
        bounds = itertools.pairwise(words.offsets.tolist())
        return [TagAnswer(tags[start:stop], float(losses[start:stop].sum())) for start, stop in bounds]

    def evaluate(self, answers: Sequence[TagAnswer], data: EncodedSentences) -> dict[str, float]:
        """The entities' F1 (not for other tags), the accuracy of tags, and the mean loss of the words in rows."""
        predicted, names = self._predicted(answers, data), np.array(self.labels)
        bounds = list(itertools.pairwise(data.sentences.tolist()))
        label, answer = (
            [names[tags[start:stop]].tolist() for start, stop in bounds] for tags in (data.targets, predicted)
        )
        words = max(1, len(data.words.values))
        scores = {name: found.value for name, found in self._estimates(label, answer).items()}
        kept = {name: scores[name] for name in dict.fromkeys((self.metric, "accuracy"))}
        return kept | {"loss": sum(answer.loss for answer in answers) / words}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The task's metric, then the lower loss."""
        return metrics[self.metric], -metrics["loss"]

    def _predicted(self, answers: Sequence[TagAnswer], data: EncodedSentences) -> NDArray[np.int64]:
        """The index of each word's predicted tag: the first label, which is O if there is one, without pieces."""
        predicted = np.zeros(len(data.targets), np.int64)
        if answers:
            predicted[data.words.values] = np.concatenate([answer.tags for answer in answers])
        return predicted

    def predictions(
        self, examples: Sequence[TaggedSentence], answers: Sequence[TagAnswer], data: EncodedSentences
    ) -> Predictions:
        predicted, names = self._predicted(answers, data), np.array(self.labels)
        rows = [
            {
                "row": example.row,
                "words": list(example.words),
                "label": None if example.label is None else list(example.label),
                "predicted": names[predicted[start:stop]].tolist(),
            }
            for example, (start, stop) in zip(examples, itertools.pairwise(data.sentences.tolist()), strict=True)
        ]
        return Predictions(rows, prediction_files(examples, rows))

    def scores(self, examples: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
        """F1, precision and recall of entities by exact span, those of each type as f1_TYPE, and the accuracy of tags;
        without entities the latter alone."""
        return score_facts(self._estimates([example.label for example in examples], predicted), self.metric)

    def _estimates(self, label: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Estimate]:
        pairs = zip(itertools.chain(*label), itertools.chain(*predicted), strict=True)
        accuracy = {"accuracy": proportion(sum(one == other for one, other in pairs), sum(map(len, label)))}
        if self.scheme == "none":
            return accuracy
        report = entity_f1(label, predicted)
        found = report.overall
        types = {f"f1_{name}": scores.f1 for name, scores in report.by_type.items() if name}
        return {"f1": found.f1, "precision": found.precision, "recall": found.recall} | accuracy | types

    def baselines(self, examples: Sequence[TaggedSentence]) -> dict[str, list[Any]]:
        """Each word's most frequent tag in train; for other words the most frequent of all."""
        by_word = dict[str, Counter[str]]()
        for example in self.examples:
            if example.split == "train":
                for word, tag in zip(example.words, example.label, strict=True):
                    by_word.setdefault(word, Counter())[tag] += 1
        tags = {word: _most_frequent(counts) for word, counts in by_word.items()}
        default = _most_frequent(self._counts("train"))
        return {"most_frequent_tag": [[tags.get(word, default) for word in example.words] for example in examples]}

    def texts(self, example: TaggedSentence) -> list[tuple[str, str]]:
        return [("sentence", " ".join(example.words))]

    def sample(self, example: TaggedSentence, predicted: Any) -> dict[str, Any]:
        return {"text": " ".join(example.words), "label": None if example.label is None else list(example.label)}

    def _counts(self, split: str) -> Counter[str]:
        """The number of words with each tag in a split."""
        return Counter(tag for one in self.examples if one.split == split for tag in one.label or ())

    def facts(self) -> dict[str, Any]:
        labels = {split: dict(sorted(self._counts(split).items())) for split in splits_of(self.examples)}
        skipped = dict(self.skipped)
        return {"labels": labels, "scheme": self.scheme, "skipped": skipped, **published_fact(self.config.dataset)}

    def head(self) -> TransformersHead:
        return TransformersHead("ForTokenClassification", labels_config(self.labels), has_pooler=False)


def prediction_files(examples: Sequence[TaggedSentence], rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The file of a split with a word per line: its lines, and the predicted tag as another column, as conlleval reads
    them. Empty for a table."""
    if not any(example.lines for example in examples):
        return {}
    text, document = list[str](), None
    for example, row in zip(examples, rows, strict=True):
        separator = "\t" if "\t" in example.lines[0] else " "
        if example.document != document:
            document = example.document
            fields = len([field for field in example.lines[0].split(separator) if field])
            mark = [DOCUMENT_MARK, *["-X-"] * (fields - 2), *[OUTSIDE] * min(fields, 2)]
            text.append(separator.join(mark) + "\n\n")
        pairs = zip(example.lines, row["predicted"], strict=True)
        text += [*(f"{line.rstrip(' ')}{separator}{tag}\n" for line, tag in pairs), "\n"]
    return {f"{examples[0].split}.conll": "".join(text).encode()}


def _most_frequent(counts: Counter[str]) -> str:
    """The most frequent tag, of equally frequent ones the first by name."""
    return min(counts, key=lambda tag: (-counts[tag], tag))


def _of_words(outputs: Tensor, data: EncodedSentences, rows: RowIndices) -> Tensor:
    """Logits [batch, s, labels] -> those at the first pieces of the rows' words, in order [words, labels]."""
    positions = data.first_pieces.take(rows)
    row_of_word = np.repeat(np.arange(len(rows)), positions.lengths)
    return outputs[torch.from_numpy(row_of_word), torch.from_numpy(positions.values)]
