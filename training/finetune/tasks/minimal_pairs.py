"""Pairs of an acceptable and an unacceptable sentence -> how often a model finds the acceptable one likelier.

The form of BLiMP (Warstadt et al. 2020, arXiv:1912.00582). Nothing is trained. A sentence's score is its
pseudo-log-likelihood: the sum over its pieces of the log-probability of the piece, when it and the later pieces of its
word are masked (Kauf and Ivanova 2023, arXiv:2305.10588: a word's other pieces would give it away).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from cloze.pipeline.core.config import Config
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of, pad_rows
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.metrics.classification import accuracy
from cloze.training.finetune.tasks.labelled_files import LabelledExample, read_rows
from cloze.training.finetune.tasks.special_tokens import SpecialTokens, mask_id
from cloze.training.finetune.tasks.task import EncodedTask, Predictions, RowIndices, score_facts
from cloze.training.finetune.tasks.task_config import Column, TaskConfig
from cloze.training.model.bert import BertConfig, MaskedLMHead, initialize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SENTENCES = ("good", "bad")


class PairColumns(Config):
    """The columns of the file, by name, or by number, from 1, in a .csv or .tsv without a header."""

    good: Column = "sentence_good"
    """Column with the acceptable sentence."""
    bad: Column = "sentence_bad"
    """Column with the unacceptable sentence."""
    group: Column | None = None
    """Column whose values are scored apart, such as BLiMP's linguistics_term."""


class MinimalPairsConfig(TaskConfig):
    """Minimal pairs: which of two sentences a pretrained model finds likelier. Nothing is trained."""

    kind: Literal["minimal_pairs"] = "minimal_pairs"
    """Kind of the task."""
    columns: PairColumns = PairColumns()
    """The columns of the file; the defaults are BLiMP's."""

    @model_validator(mode="after")
    def _all_pairs_are_scored_alike(self) -> Self:
        if self.files and self.files.extra:
            raise ValueError(f"{self.name}: files.extra is for tasks with training; write all pairs into one file")
        return self


@dataclass(frozen=True)
class SentencePair(LabelledExample):
    """Two sentences. The label is "good"."""

    good: str
    bad: str
    group: str


@dataclass(frozen=True)
class EncodedPieces:
    """A row for each piece of each sentence: the sentence with that piece masked."""

    ids: Ragged
    positions: Ints  # [rows]: of the piece that is scored
    targets: Ints  # [rows]: its id
    sentences: Ints  # [rows]: 2 * pair, or 2 * pair + 1 for the unacceptable sentence

    @property
    def lengths(self) -> Ints:
        return self.ids.lengths


class PieceScorer(nn.Module):
    """The encoder with its masked-LM head -> log-probabilities at one position of each row, or at some of one row."""

    def __init__(self, encoder: nn.Module, config: BertConfig, seed: int) -> None:
        super().__init__()
        self.bert = encoder
        words: nn.Embedding = encoder.get_submodule("embeddings.word_embeddings")  # type: ignore[assignment]
        self.mlm = MaskedLMHead(config, words.num_embeddings)
        initialize(self, config.initializer_range, seed)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """[b, s], [b, s] and [n] -> log-probabilities [n, vocab] in fp32. n is b, or any number if b is 1."""
        hidden, _ = self.bert(input_ids, torch.zeros_like(input_ids), attention_mask)
        scored = hidden[torch.arange(len(hidden), device=positions.device), positions]  # [n, hidden]
        words: nn.Embedding = self.bert.get_submodule("embeddings.word_embeddings")  # type: ignore[assignment]
        return self.mlm(scored, words.weight).log_softmax(-1)


@dataclass(frozen=True)
class MinimalPairs:
    """The task of finding the acceptable sentence of each pair."""

    config: MinimalPairsConfig
    examples: list[SentencePair]
    split_kind: ClassVar[type] = EncodedPieces
    skipped: Mapping[str, int] = field(default_factory=dict)  # none: an invalid row is an error

    @classmethod
    def read(cls, config: MinimalPairsConfig, files: Mapping[str, Location]) -> Self:
        columns, examples = config.columns, list[SentencePair]()
        needed = [column for column in (columns.good, columns.bad, columns.group) if column is not None]
        for row in read_rows(files, needed):
            group = "" if columns.group is None else row.text(columns.group)
            examples.append(
                SentencePair(row.number, "test", "good", row.text(columns.good), row.text(columns.bad), group)
            )
        return cls(config, examples)

    @property
    def scored_split(self) -> str:
        return "test"

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        sentences = [sentence for example in self.examples for sentence in (example.good, example.bad)]
        special, mask = SpecialTokens.of(tokenizer), mask_id(tokenizer)
        rows, positions, targets, numbers = list[list[int]](), list[int](), list[int](), list[int]()
        room, truncated = self.config.max_seq_length - special.count(1), 0
        for number, encoding in enumerate(tokenizer.encode_batch(sentences, add_special_tokens=False)):
            truncated += len(encoding.ids) > room
            ids = [*special.before, *encoding.ids[:room], *special.after]
            words = encoding.word_ids[:room]
            for start in range(len(words)):
                stop = start + 1
                while stop < len(words) and words[stop] == words[start]:
                    stop += 1
                position, end = len(special.before) + start, len(special.before) + stop
                rows.append([*ids[:position], *[mask] * (end - position), *ids[end:]])
                positions.append(position)
                targets.append(ids[position])
                numbers.append(number)
        offsets = offsets_of(np.array([len(row) for row in rows], np.int64))
        ids = Ragged(np.fromiter(itertools.chain(*rows), np.int64, offsets[-1]), offsets)
        encoded = EncodedPieces(ids, *(np.array(column, np.int64) for column in (positions, targets, numbers)))
        return EncodedTask({"test": encoded}, truncated)

    def model(self, encoder: nn.Module, config: BertConfig) -> nn.Module:
        return PieceScorer(encoder, config, self.config.seed)

    def inputs(self, data: EncodedPieces, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids and attention_mask [batch, s], and the positions that are scored [batch]."""
        ids = data.ids.take(rows)
        width = int(ids.lengths.max())
        arrays = (pad_rows(*ids, width), np.arange(width) < ids.lengths[:, None], data.positions[rows])
        input_ids, attention_mask, positions = (torch.from_numpy(array).to(device) for array in arrays)
        return input_ids, attention_mask, positions

    def answers(self, outputs: Tensor, data: EncodedPieces, rows: RowIndices) -> list[float]:
        """The log-probability of each row's piece."""
        targets = torch.from_numpy(data.targets[rows]).to(outputs.device)
        return outputs.gather(1, targets[:, None])[:, 0].tolist()

    def predictions(
        self, examples: Sequence[SentencePair], answers: Sequence[float], data: EncodedPieces
    ) -> Predictions:
        """The likelier sentence of each pair; of equal ones, as for equal sentences, the unacceptable one."""
        scores = np.bincount(data.sentences, answers, minlength=2 * len(examples)).reshape(-1, 2)
        rows = [
            {
                "row": example.row,
                "label": "good",
                "predicted": _SENTENCES[int(good <= bad)],
                "log_likelihoods": {"good": round(float(good), 4), "bad": round(float(bad), 4)},
                **({"group": example.group} if example.group else {}),
            }
            for example, (good, bad) in zip(examples, scores, strict=True)
        ]
        return Predictions(rows)

    def scores(self, examples: Sequence[SentencePair], predicted: Sequence[str]) -> dict[str, Any]:
        """The accuracy, and that of each group."""
        groups = dict[str, list[str]]()
        for example, answer in zip(examples, predicted, strict=True):
            groups.setdefault(example.group, []).append(answer)
        by_group = {group: accuracy(["good"] * len(answers), answers).value for group, answers in groups.items()}
        overall = score_facts({"accuracy": accuracy(["good"] * len(examples), predicted)}, "accuracy")
        return overall | ({"groups": by_group} if by_group.keys() != {""} else {})

    def baselines(self, examples: Sequence[SentencePair]) -> dict[str, list[str]]:
        """None: a guess is right half of the time."""
        return {}

    def texts(self, example: SentencePair) -> list[tuple[str, str]]:
        return [("good", example.good), ("bad", example.bad)]

    def sample(self, example: SentencePair, predicted: Any) -> dict[str, Any]:
        return {"text": f"{example.good} / {example.bad}", "label": "good"}

    def facts(self) -> dict[str, Any]:
        return {}

    def head(self) -> None:
        return None
