"""Finished task + pretraining documents -> which dev and test examples share text with them, and the score without."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ray_cluster import cluster_cpus
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.warm_start import folder_of
from cloze.training.finetune.manifest_facts import FinetuneFacts, ScoreFact
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts, SplitOverlapFact
from cloze.training.finetune.overlap.ngrams import NgramIndex
from cloze.training.finetune.overlap.pretraining_documents import PretrainingDocuments
from cloze.training.finetune.overlap.shard_search import search
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import Task, splits_of
from cloze.training.finetune.tasks.task_config import TaskConfig, task_files

VERSION = 1


class SharedNgram(NamedTuple):
    """The first 13-gram that a text shares with the documents, and that document."""

    ngram: str
    doc_id: str
    title: str


@dataclass(frozen=True)
class EvaluationTexts:
    """The texts of a task's examples except train's. They are numbered: equal texts have one number."""

    examples: dict[str, list[Any]]  # by split, of those that have some
    texts: list[str]  # by number
    numbers: dict[str, list[list[tuple[str, int]]]]  # split -> of each example, its texts' names and numbers

    @classmethod
    def of(cls, task: Task) -> Self:
        splits = {split: [one for one in task.examples if one.split == split] for split in splits_of(task.examples)[1:]}
        examples = {split: found for split, found in splits.items() if found}
        numbers_by_text = dict[str, int]()
        numbers = {
            split: [
                [(name, numbers_by_text.setdefault(text, len(numbers_by_text))) for name, text in task.texts(example)]
                for example in found
            ]
            for split, found in examples.items()
        }
        return cls(examples, list(numbers_by_text), numbers)

    def overlapping(self, split: str, shared: Mapping[int, SharedNgram]) -> list[int]:
        """The numbers of a split's examples with a text that is shared."""
        texts_of_examples = enumerate(self.numbers.get(split, []))
        return [number for number, texts in texts_of_examples if any(text in shared for _, text in texts)]

    def fact(self, split: str, shared: Mapping[int, SharedNgram], too_short: Sequence[bool]) -> SplitOverlapFact:
        """`too_short`: whether each text has fewer than 13 words."""
        names = ({name for name, text in texts if text in shared} for texts in self.numbers[split])
        counts = Counter(name for of_example in names for name in of_example)
        return SplitOverlapFact(
            examples=len(self.examples[split]),
            too_short=sum(all(too_short[text] for _, text in texts) for texts in self.numbers[split]),
            overlapping=len(self.overlapping(split, shared)),
            overlapping_texts={name: counts[name] for name, _ in self.numbers[split][0]},
        )

    def rows(self, shared: Mapping[int, SharedNgram]) -> Iterator[dict[str, Any]]:
        """A row for each shared text of each example, in order."""
        for split, examples in self.examples.items():
            for example, texts in zip(examples, self.numbers[split], strict=True):
                for name, text in texts:
                    if found := shared.get(text):
                        yield {"split": split, "row": example.row, "text": name, **found._asdict()}


def run(config: TaskConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "finetuned" (the task's Artifact), "checkpoint" (CheckpointRef) or "init" (SourceFile), and the task's
    labelled files (SourceFile). Requires a Ray session.

    Writes overlaps.jsonl, with a row for each text of an example that shares a 13-gram with a document. Raises
    UserError.
    """
    finetuned: Artifact = inputs["finetuned"]
    task = task_of(config).read(config, task_files(config, inputs))
    evaluation, documents = EvaluationTexts.of(task), PretrainingDocuments.of(_model(inputs))
    fingerprints = {"finetuned": finetuned.fingerprint}
    if not documents.artifacts:
        return out.finish([], identity(config), fingerprints, facts=OverlapFacts(unknown=list(documents.unknown)))
    index = NgramIndex(evaluation.texts)
    artifacts = {artifact.fingerprint: artifact for artifact in documents.artifacts}
    parts = search(artifacts, index, out, cluster_cpus())
    shared = dict[int, SharedNgram]()
    for part in parts:
        for number, *found in part.facts["shared"]:
            shared.setdefault(number, SharedNgram(*found))
    finetune_facts = FinetuneFacts.of(finetuned.manifest)
    facts = OverlapFacts(
        splits={split: evaluation.fact(split, shared, index.too_short) for split in evaluation.examples},
        documents=[f"{artifact.stage}/{artifact.fingerprint}" for artifact in documents.artifacts],
        unknown=list(documents.unknown),
        metric=finetune_facts.metric,
        scored_split=task.scored_split,
        scores=_scores(task, evaluation, shared, finetuned),
    )
    rows = out.commit("overlaps", {"overlaps.jsonl": json_lines.encode(evaluation.rows(shared), escaped=False)})
    return out.finish([*parts, rows], identity(config), fingerprints, counts=_counts(facts), facts=facts)


def _model(inputs: Mapping[str, Any]) -> Location:
    """The folder of the model that the task starts from."""
    return folder_of(inputs["init"]) if "init" in inputs else inputs["checkpoint"].location


def _counts(facts: OverlapFacts) -> dict[str, int]:
    """The manifest's counts of examples, next to that of documents."""
    counts = dict[str, int]()
    for split, fact in facts.splits.items():
        counts |= {split: fact.examples, f"{split}_too_short": fact.too_short, f"{split}_overlapping": fact.overlapping}
    return counts


def _scores(
    task: Task, evaluation: EvaluationTexts, shared: Mapping[int, SharedNgram], finetuned: Artifact
) -> dict[str, Any]:
    """The scores of the pretrained variant: of all examples of the scored split, and without those that overlap."""
    scores = {"all": FinetuneFacts.of(finetuned.manifest).scores["pretrained"]}
    examples = evaluation.examples[task.scored_split]
    overlapping = set(evaluation.overlapping(task.scored_split, shared))
    if overlapping and len(overlapping) < len(examples):
        predictions = json_lines.read(finetuned.location / "predictions/pretrained.jsonl")
        kept = [pair for i, pair in enumerate(zip(examples, predictions, strict=True)) if i not in overlapping]
        without = task.scores([example for example, _ in kept], [row[task.config.scored_value] for _, row in kept])
        scores["without_overlap"] = ScoreFact.model_validate(without)
    return scores
