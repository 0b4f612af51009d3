"""A file of pairs of texts that belong together -> vectors of texts, near each other for the texts of a pair.

The loss of a text is the cross-entropy of its text_b among those of the whole batch, by cosine / temperature: van den
Oord et al. 2018 (arXiv:1807.03748), Henderson et al. 2017 (arXiv:1705.00652), the temperature of SimCSE
(arXiv:2104.08821). sentence-transformers calls it MultipleNegativesRankingLoss.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.baselines import tf_idf_similarities
from cloze.training.finetune.heads import PairEncoder
from cloze.training.finetune.metrics.estimates import Estimate
from cloze.training.finetune.metrics.retrieval import (
    Compared,
    accuracy_at,
    chance,
    compare,
    mean_reciprocal_rank,
    nearest,
)
from cloze.training.finetune.tasks.contrastive_config import ContrastiveConfig, PairColumns
from cloze.training.finetune.tasks.invalid_rows import valid_rows
from cloze.training.finetune.tasks.labelled_files import (
    LabelledRow,
    check_splits,
    read_rows,
    scored_split,
    with_splits,
)
from cloze.training.finetune.tasks.labelled_texts import LabelledText, text_columns
from cloze.training.finetune.tasks.special_tokens import SpecialTokens
from cloze.training.finetune.tasks.task import (
    EncodedTask,
    InputColumns,
    Predictions,
    RowIndices,
    TransformersHead,
    score_facts,
    splits_of,
)
from cloze.training.finetune.tasks.text_inputs import encode_texts
from cloze.training.vectors.pooling import Vectors, counted_tokens
from cloze.training.vectors.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of one split. Equal texts have equal numbers, and so do equal second texts."""

    first: TextInputs
    second: TextInputs
    first_numbers: Ints
    second_numbers: Ints
    special_ids: Ints  # of the tokenizer

    @property
    def lengths(self) -> Ints:
        """The number of tokens of each pair."""
        return self.first.lengths + self.second.lengths

    def belong_together(self, rows: RowIndices) -> NDArray[np.bool_]:
        """Whether the text of each of these rows and the second text of each are a pair of the split [rows, rows]."""
        wanted = self._pair_numbers(self.first_numbers[rows][:, None], self.second_numbers[rows])
        return self._pairs[np.searchsorted(self._pairs, wanted).clip(max=len(self._pairs) - 1)] == wanted

    @cached_property
    def _pairs(self) -> Ints:
        return np.unique(self._pair_numbers(self.first_numbers, self.second_numbers))

    def _pair_numbers(self, first: Ints, second: Ints) -> Ints:
        return first * len(self.second_numbers) + second


@dataclass(frozen=True)
class Contrastive:
    """The task of finding each text's `text_b` by the cosine of their vectors."""

    config: ContrastiveConfig
    examples: list[LabelledText]  # with text_b as the label; pairs to predict have none
    skipped: Mapping[str, int] = field(default_factory=dict)  # invalid rows that were left out, by reason
    split_kind: ClassVar[type] = EncodedPairs

    @classmethod
    def read(cls, config: ContrastiveConfig, files: Mapping[str, Location]) -> Self:
        where = next(iter(files.values()))
        skipped = Counter[str]() if config.skip_invalid else None
        examples = with_splits(_read_pairs(config.columns, files, skipped), config.seed, lambda example: 0)
        check_splits(examples, where)
        for split in splits_of(examples):
            of_split = [example for example in examples if example.split == split]
            if of_split and len({example.text_b for example in of_split}) == 1:
                raise UserError(
                    f"{of_split[0].where}: {split} has one {config.columns.text_b} only, and none to compare it with; "
                    "give more rows"
                )
        return cls(config, examples, dict(skipped or {}))

    @classmethod
    def for_inputs(
        cls, config: ContrastiveConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
    ) -> Self:
        return cls(config, LabelledText.of_inputs(inputs))

    @classmethod
    def input_names(cls, config: ContrastiveConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("text", "text_b")

    @classmethod
    def input_columns(cls, config: ContrastiveConfig, head: Mapping[str, Any]) -> InputColumns:
        return text_columns(config.columns.text, config.columns.text_b)

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"similarity": pa.float64()}

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        """The splits as token ids. The truncated ones are counted as texts."""
        splits, truncated = dict[str, EncodedPairs](), 0
        special_ids = np.array(sorted(SpecialTokens.of(tokenizer).ids), np.int64)
        for split in splits_of(self.examples):
            first, second = _columns([example for example in self.examples if example.split == split])
            first_inputs, cut = encode_texts(tokenizer, first, None, self.config.max_seq_length)
            second_inputs, second_cut = encode_texts(tokenizer, second, None, self.config.max_seq_length)
            splits[split] = EncodedPairs(first_inputs, second_inputs, _numbers(first), _numbers(second), special_ids)
            truncated += cut + second_cut
        return EncodedTask(splits, truncated)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return PairEncoder(encoder)

    def inputs(self, data: EncodedPairs, rows: RowIndices, device: torch.device) -> list[Tensor]:
        """For each text of the pairs the encoder's three inputs and the tokens that count, each [batch, s]."""
        special, found = torch.tensor(data.special_ids, device=device), list[Tensor]()
        for texts in (data.first, data.second):
            input_ids, segments, mask = texts.batch(rows, device)
            counted = counted_tokens(input_ids, mask, self.config.representation, special)
            found += [input_ids, segments, mask, counted]
        return found

    def loss(self, outputs: Tensor, data: EncodedPairs, rows: RowIndices) -> Tensor:
        """The sum of the cross-entropies of vectors [batch, 2, hidden].

        A text_b that belongs to the row's text in another row of the split, too, is no negative of the row.
        """
        first, second = functional.normalize(outputs, dim=-1).unbind(1)
        logits = first @ second.T / self.config.temperature  # [batch, batch]
        also_right = data.belong_together(rows)
        np.fill_diagonal(also_right, val=False)
        logits = logits.masked_fill(torch.from_numpy(also_right).to(logits.device), -torch.inf)
        return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="sum")

    def loss_terms(self, data: EncodedPairs, rows: RowIndices) -> int:
        return len(rows)

    def answers(self, outputs: Tensor, data: EncodedPairs, rows: RowIndices) -> list[Vectors]:
        """The two vectors of each pair [2, hidden], of length 1."""
        return list(functional.normalize(outputs, dim=-1).cpu().numpy())

    def evaluate(self, answers: Sequence[Vectors], data: EncodedPairs) -> dict[str, float]:
        """The scores, and the mean loss among all second texts of the split."""
        compared = [one for _, one in _compared(answers, data)]
        ranks = np.concatenate([one.ranks for one in compared])
        loss = np.concatenate([one.losses(self.config.temperature) for one in compared]).mean()
        return {**{name: score.value for name, score in _scores(ranks).items()}, "loss": float(loss)}

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """The task's metric, then the lower loss."""
        return metrics[self.config.metric], -metrics["loss"]

    def predictions(
        self, examples: Sequence[LabelledText], answers: Sequence[Vectors], data: EncodedPairs
    ) -> Predictions:
        """The nearest second text of the split, and the rank of the right one; the cosine of each pair to predict."""
        if all(example.label is None for example in examples):
            pairs = zip(examples, answers, strict=True)
            return Predictions([{"row": one.row, "similarity": round(float(a @ b), 6)} for one, (a, b) in pairs])
        rows = list[dict[str, Any]]()
        candidates, right = np.unique(data.second_numbers, return_inverse=True)
        texts = dict(zip(data.second_numbers.tolist(), (example.text_b for example in examples), strict=True))
        for some, compared in _compared(answers, data):
            found = candidates[nearest(compared, right[some])].tolist()
            for example, number, rank in zip(examples[some], found, compared.ranks.tolist(), strict=True):
                rows.append({"row": example.row, "label": example.label, "predicted": texts[number], "rank": rank})
        return Predictions(rows)

    def scores(self, examples: Sequence[LabelledText], predicted: Sequence[int]) -> dict[str, Any]:
        """The scores of the ranks of the right second texts."""
        return score_facts(_scores(predicted), self.config.metric)

    def baselines(self, examples: Sequence[LabelledText]) -> dict[str, list[int]]:
        """The ranks by the cosine of TF-IDF, among the second texts of the example's split."""
        train = _columns([example for example in self.examples if example.split == "train"])
        similarities, ranks = tf_idf_similarities([*train[0], *train[1]]), dict[str, Iterator[int]]()
        for split in dict.fromkeys(example.split for example in examples):
            first, second = _columns([example for example in examples if example.split == split])
            of_split = similarities(first, list(dict.fromkeys(second)))
            compared = compare(of_split, _numbers(second), _numbers(first))
            ranks[split] = iter(np.concatenate([one.ranks for _, one in compared]).tolist())
        return {"bag_of_words": [next(ranks[example.split]) for example in examples]}

    def texts(self, example: LabelledText) -> list[tuple[str, str]]:
        return example.named_texts()

    def sample(self, example: LabelledText, predicted: Any) -> dict[str, Any]:
        return {"text": example.text, "label": example.text_b}

    def facts(self) -> dict[str, Any]:
        """With the number of second texts to choose from in the scored split, and the scores of a random order."""
        candidates = len({example.text_b for example in self.examples if example.split == self.scored_split})
        return {"skipped": dict(self.skipped), "candidates": candidates, "chance": chance(candidates)}

    def head(self) -> TransformersHead:
        return TransformersHead("Model", {}, has_pooler=False)


def _read_pairs(
    columns: PairColumns, files: Mapping[str, Location], skipped: Counter[str] | None
) -> list[LabelledText]:
    """The pairs of the files, in their order; the split is empty where it is still to be drawn. Raises as `read_rows`
    and `valid_rows`."""
    rows = read_rows(
        files,
        [columns.text, columns.text_b],
        split_column=columns.split,
        splits_are_named="split" in columns.model_fields_set,
        skipped=skipped,
    )

    def pair(row: LabelledRow) -> LabelledText:
        text, text_b = row.text(columns.text), row.text(columns.text_b)
        return LabelledText(row.number, row.split, text_b, text, text_b, where=row.where)

    return valid_rows(rows, pair, skipped)


def _columns(pairs: Sequence[LabelledText]) -> tuple[list[str], list[str]]:
    return [pair.text for pair in pairs], [pair.text_b or "" for pair in pairs]


def _numbers(texts: Sequence[str]) -> Ints:
    """A number for each text [n], in the order in which they first appear: equal ones for equal texts."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[text] for text in texts], np.int64)


def _compared(answers: Sequence[Vectors], data: EncodedPairs) -> Iterator[tuple[slice, Compared]]:
    """Each text of a split and the distinct second texts, by the cosine of their vectors."""
    first, second = np.stack(answers).swapaxes(0, 1)
    _, candidates, right = np.unique(data.second_numbers, return_index=True, return_inverse=True)
    return compare(lambda some: first[some] @ second[candidates].T, right, data.first_numbers)


def _scores(ranks: ArrayLike) -> dict[str, Estimate]:
    return {
        "mrr": mean_reciprocal_rank(ranks),
        "accuracy_at_1": accuracy_at(1, ranks),
        "accuracy_at_10": accuracy_at(10, ranks),
    }
