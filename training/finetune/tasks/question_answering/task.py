"""Files in SQuAD's form -> windows of their contexts -> the span that answers each question, and its EM and F1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from cloze.pipeline.core.storage import Location
from cloze.training.finetune.heads import SpanClassifier
from cloze.training.finetune.metrics.question_answering import (
    normalize_answer,
    score_question,
    score_question_v2,
    squad,
    squad_v2,
)
from cloze.training.finetune.tasks.labelled_files import LabelledExample, check_splits, scored_split, with_splits
from cloze.training.finetune.tasks.published_scores import published_fact
from cloze.training.finetune.tasks.question_answering.answers import AnswersToQuestion, prediction_files, rank_answers
from cloze.training.finetune.tasks.question_answering.squad_files import Question, read_questions
from cloze.training.finetune.tasks.question_answering.windows import QuestionWindows, build_windows
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
from cloze.training.vectors.text_inputs import TextInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from cloze.training.model.bert import BertConfig


class QuestionAnsweringConfig(TrainedTaskConfig):
    """Extractive question answering: files in the form of SQuAD v1.1 or v2.0."""

    kind: Literal["question_answering"] = "question_answering"
    """Kind of the task."""
    max_seq_length: int = Field(default=384, ge=8)
    """Longest input in tokens: [CLS] question [SEP] part of the context [SEP]."""
    dataset: Annotated[Literal["SQuAD-v1.1", "SQuAD-v2.0"] | None, Training] = None
    """The dataset whose published files these are: the page has the scores of the BERT paper next to the task's."""
    doc_stride: int = Field(default=128, gt=0)
    """Step, in tokens, from one window of a long context to the next."""
    max_query_length: int = Field(default=64, gt=0)
    """Longest question in tokens; longer ones are truncated."""
    n_best: Annotated[int, Training, Field(ge=2)] = 20
    """Number of ranked answers in nbest_predictions.json and, as in run_squad.py, of the likeliest starts and ends of a
    window that are combined: a small one may miss the best answer."""
    max_answer_length: Annotated[int, Training, Field(gt=0)] = 30
    """Longest answer in tokens."""
    null_threshold: Annotated[float, Training] = 0.0
    """No answer is given if its score exceeds the best answer's by more than this (SQuAD v2.0)."""
    skip_invalid: bool = False
    """Leave out, and count, questions whose answer is not where its offset says, in place of an error."""
    metric: Annotated[Literal["f1", "exact_match"], Training] = "f1"
    """The score by which epochs and trials are compared."""

    @model_validator(mode="after")
    def _contexts_have_room(self) -> Self:
        if self.max_seq_length <= self.max_query_length + 3:
            raise ValueError(
                f"{self.name}: max_seq_length {self.max_seq_length} has no room for a context after a question of "
                f"max_query_length {self.max_query_length} and 3 special tokens; raise the first or lower the second"
            )
        return self


@dataclass(frozen=True)
class QuestionExample(LabelledExample):
    """A question; its label is the text of its first answer, "" if it has none."""

    question: Question


@dataclass(frozen=True)
class QuestionAnswering:
    """The task of finding the answer to a question in its context."""

    config: QuestionAnsweringConfig
    examples: list[QuestionExample]
    with_null: bool  # questions may have no answer
    skipped: Mapping[str, int] = field(default_factory=dict)  # questions that were left out, by reason
    split_kind: ClassVar[type] = QuestionWindows

    @classmethod
    def read(cls, config: QuestionAnsweringConfig, files: Mapping[str, Location]) -> Self:
        examples, skipped, with_null = list[QuestionExample](), 0, False
        for name, location in files.items():
            found = read_questions(location, train=name in ("train", "data"), skip_invalid=config.skip_invalid)
            split = "" if name == "data" else name
            examples += [
                _example(row, split, question, f"{location}: question {question.id}")
                for row, question in enumerate(found.questions, start=1)
            ]
            skipped += found.skipped
            with_null |= found.has_impossible_questions
        examples = _with_splits(examples, config.seed)
        check_splits(examples, next(iter(files.values())))
        return cls(config, examples, with_null, {"invalid answer": skipped} if skipped else {})

    @classmethod
    def for_inputs(
        cls, config: QuestionAnsweringConfig, head: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]
    ) -> Self:
        questions = (Question(str(row), one["question"], one["context"], None, "") for row, one in enumerate(inputs))
        return cls(config, [_example(row, "test", one) for row, one in enumerate(questions)], head["with_null"])

    @classmethod
    def input_names(cls, config: QuestionAnsweringConfig, head: Mapping[str, Any]) -> tuple[str, ...]:
        return ("question", "context")

    @classmethod
    def input_columns(cls, config: QuestionAnsweringConfig, head: Mapping[str, Any]) -> InputColumns:
        return {"question": ["question"], "context": ["context"]}

    @classmethod
    def prediction_types(cls, head: Mapping[str, Any]) -> dict[str, pa.DataType]:
        return {"predicted": pa.string(), "probability": pa.float64()}

    @property
    def scored_split(self) -> str:
        return scored_split(self.examples)

    def encode(self, tokenizer: "Tokenizer") -> EncodedTask:
        config, splits, truncated = self.config, dict[str, QuestionWindows](), 0
        for split in splits_of(self.examples):
            questions = [example.question for example in self.examples if example.split == split]
            if not questions:
                continue
            windows = build_windows(
                questions,
                tokenizer,
                max_seq_length=config.max_seq_length,
                doc_stride=config.doc_stride,
                max_query_length=config.max_query_length,
            )
            splits[split] = windows
            truncated += windows.truncated_questions
        return EncodedTask(splits, truncated)

    def model(self, encoder: nn.Module, config: "BertConfig") -> nn.Module:
        return SpanClassifier(encoder, config, self.config.seed)

    def inputs(self, data: QuestionWindows, rows: RowIndices, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, token_type_ids and attention_mask, each [batch, length of the longest window]."""
        return TextInputs(data.ids, data.context_positions).batch(rows, device)

    def loss(self, outputs: Tensor, data: QuestionWindows, rows: RowIndices) -> Tensor:
        """Half the cross-entropies of the start and the end of the answer, summed over windows; outputs [batch, s, 2].

        The target of a window without the answer is [CLS], as in run_squad.py.
        """
        targets = np.stack([data.start_positions[rows], data.end_positions[rows]], axis=1)
        logits = outputs.transpose(1, 2)  # [batch, 2, s]
        losses = functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets).flatten().to(outputs.device), reduction="sum"
        )
        return losses / 2

    def loss_terms(self, data: QuestionWindows, rows: RowIndices) -> int:
        return len(rows)

    def answers(self, outputs: Tensor, data: QuestionWindows, rows: RowIndices) -> list[NDArray[np.float32]]:
        """The start and end logits of each window [tokens, 2]."""
        lengths = data.lengths[rows]
        return [logits[:length] for logits, length in zip(outputs.cpu().numpy(), lengths, strict=True)]

    def _ranked(
        self, questions: Sequence[Question], answers: Sequence[NDArray[np.float32]], data: QuestionWindows
    ) -> list[AnswersToQuestion]:
        start_logits, end_logits = np.concatenate(answers).T
        return rank_answers(
            questions,
            data,
            start_logits,
            end_logits,
            with_null=self.with_null,
            n_best=self.config.n_best,
            max_answer_length=self.config.max_answer_length,
        )

    def evaluate(self, answers: Sequence[NDArray[np.float32]], data: QuestionWindows) -> dict[str, float]:
        """F1 and exact match."""
        questions = [example.question for example in self.examples if example.split == "dev"]
        predicted = [ranked.answer(self.config.null_threshold) for ranked in self._ranked(questions, answers, data)]
        score = score_question_v2 if self.with_null else score_question
        scores = [score(*pair) for pair in zip(_texts(questions), predicted, strict=True)]
        return {
            "f1": float(np.mean([one.f1 for one in scores])),
            "exact_match": float(np.mean([one.exact_match for one in scores])),
        }

    def selection_key(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """The task's metric, then the other one."""
        return metrics[self.config.metric], metrics["f1"], metrics["exact_match"]

    def predictions(
        self, examples: Sequence[QuestionExample], answers: Sequence[NDArray[np.float32]], data: QuestionWindows
    ) -> Predictions:
        """The rows, and the files that run_squad.py writes and the official scorers read."""
        ranked_answers = self._ranked([example.question for example in examples], answers, data)
        rows = [
            {
                "row": example.row,
                "id": example.question.id,
                "label": _matching(example, predicted := ranked.answer(self.config.null_threshold)),
                "predicted": predicted,
                "probability": round(ranked.probability(predicted), 6),
            }
            for example, ranked in zip(examples, ranked_answers, strict=True)
        ]
        return Predictions(rows, prediction_files(ranked_answers, self.config.null_threshold))

    def scores(self, examples: Sequence[QuestionExample], predicted: Sequence[str]) -> dict[str, Any]:
        texts = _texts([example.question for example in examples])
        if self.with_null:
            found = squad_v2(texts, predicted)
            parts = {"": found.overall, "has_answer_": found.has_answer, "no_answer_": found.no_answer}
        else:
            parts = {"": squad(texts, predicted)}
        scores = {
            f"{prefix}{name}": getattr(part, name)
            for prefix, part in parts.items()
            if part is not None
            for name in ("f1", "exact_match")
        }
        return score_facts(scores, self.config.metric)

    def baselines(self, examples: Sequence[QuestionExample]) -> dict[str, list[str]]:
        """No answer to any question, where questions may have none."""
        return {"no_answer": [""] * len(examples)} if self.with_null else {}

    def texts(self, example: QuestionExample) -> list[tuple[str, str]]:
        return [("question", example.question.text), ("context", example.question.context)]

    def sample(self, example: QuestionExample, predicted: str) -> dict[str, Any]:
        text = f"{example.question.text} / {example.question.context}"
        return {"text": text, "label": _matching(example, predicted)}

    def facts(self) -> dict[str, Any]:
        return {"skipped": sum(self.skipped.values()), **published_fact(self.config.dataset)}

    def head(self) -> TransformersHead:
        return TransformersHead("ForQuestionAnswering", {"with_null": self.with_null}, has_pooler=False)


def _example(row: int, split: str, question: Question, where: str = "") -> QuestionExample:
    label = None if question.answers is None else question.answers[0].text if question.answers else ""
    return QuestionExample(row, split, label, question, where=where)


def _with_splits(examples: list[QuestionExample], seed: int) -> list[QuestionExample]:
    """The examples divided as `with_splits` does, by contexts: the questions about a context stay together."""
    contexts = dict.fromkeys((example.split, example.question.context) for example in examples)
    undivided = [LabelledExample(number, split, None) for number, (split, _) in enumerate(contexts)]
    divided = dict(zip(contexts, with_splits(undivided, seed, lambda context: 0), strict=True))
    return [replace(one, split=divided[one.split, one.question.context].split) for one in examples]


def _texts(questions: Sequence[Question]) -> list[list[str]]:
    """The texts of the answers to each question; none where it has no answer."""
    return [[answer.text for answer in question.answers or ()] for question in questions]


def _matching(example: QuestionExample, predicted: str) -> str | None:
    """The label: the prediction, if it is one of the answers (SQuAD's exact match), else the first answer."""
    answers = [answer.text for answer in example.question.answers or ()]
    is_right = normalize_answer(predicted) in map(normalize_answer, answers or [""])
    return predicted if is_right and example.label is not None else example.label
