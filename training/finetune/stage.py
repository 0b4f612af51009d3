"""Checkpoint + labelled file -> a fine-tuned model and its scores, next to those of the same model trained from random
weights.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.text.tokenizer import load_tokenizer
from cloze.training.checkpoints.checkpoint import CheckpointRef, SavedConfig
from cloze.training.cluster.elastic import Placement, nodes
from cloze.training.cluster.heartbeat import Progress
from cloze.training.cluster.ray_train import RestartPolicy, run_workers
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import SPLITS, TaskConfig
from cloze.training.finetune.trainer import VARIANTS, FinetuneSetup, train_in_worker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 3

_NO_POOLER = (
    "The checkpoint has no pooler (examples.objective mlm): it began with random weights, as the classifier does"
)
_SHOWN = 4  # test examples of each kind for the report
_SHOWN_CHARS = 400


def check(config: TaskConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when the labelled file cannot be read, learned from or scored."""
    task_of(config).read(config, sources["data"].location)


def run(config: TaskConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "checkpoint" (CheckpointRef), "vocab" (Artifact), "data" (SourceFile). Requires a Ray session.

    facts: the task's facts about its file, "scores" (pretrained, random and the task's baseline -> numbers by name),
    "variants" (pretrained, random -> trial, loss, the task's metrics on dev, best_epoch), "trials" (the same for each),
    "examples" (some correct and some wrong predictions on the test split), "notes" (for the user).
    Raises UserError.
    """
    checkpoint: CheckpointRef = inputs["checkpoint"]
    vocab: Artifact = inputs["vocab"]
    file: SourceFile = inputs["data"]
    task = task_of(config).read(config, file.location)
    tokenizer = load_tokenizer(vocab.location / "tokenizer.json")
    _check_model(checkpoint.config(), tokenizer, config)
    data = task.encode(tokenizer)
    setup = FinetuneSetup(config, task, data, checkpoint, vocab, out)
    names = [name for variant in VARIANTS for name in setup.parts(variant)]
    FinetuneFacts.model_validate(task.facts())  # fail now, not after hours of training
    if len(out.finished_parts(names)) < len(names):
        _train(setup)
    parts = out.require_parts(names)
    facts = _facts(setup, {part.name: part.facts for part in parts})
    scores = json.dumps(facts.plain["scores"], indent=1, ensure_ascii=False)
    return out.finish(
        [*parts, out.commit("scores", {"scores.json": scores.encode()})],
        identity(config),
        {"checkpoint": checkpoint.digest, "vocab": vocab.fingerprint, "data": file.identity},
        counts={split: len(data.splits[split].lengths) for split in SPLITS} | {"truncated": data.truncated},
        facts=facts,
    )


def _train(setup: FinetuneSetup) -> None:
    """Train what is not finished, on a group of workers."""
    config = setup.config
    placement = Placement.fitting(
        nodes(),
        stage=f"finetune-{config.name}",
        gpus=config.gpus,
        workers=config.workers,
        threads=config.threads,
        without_gpus=1,
    )
    total = len(VARIANTS) * sum(map(setup.steps, config.trials))
    progress = Progress(setup.out, total, "steps", sum(map(setup.finished_steps, VARIANTS)))
    run_workers(train_in_worker, setup, placement, RestartPolicy(), progress)


def _check_model(saved: SavedConfig, tokenizer: "Tokenizer", config: TaskConfig) -> None:
    """Raises UserError when the checkpoint does not match the vocabulary or has too few positions."""
    if saved.vocab_size != tokenizer.get_vocab_size():
        raise UserError(
            f"finetune-{config.name}: the checkpoint has {saved.vocab_size} pieces, the vocabulary "
            f"{tokenizer.get_vocab_size()}; use the vocabulary that the checkpoint was trained with"
        )
    if config.max_seq_length > saved.model.max_position_embeddings:
        raise UserError(
            f"finetune-{config.name}: max_seq_length {config.max_seq_length} is more than the model's "
            f"{saved.model.max_position_embeddings} positions; lower it"
        )


def _facts(setup: FinetuneSetup, parts: Mapping[str, dict[str, Any]]) -> FinetuneFacts:
    """The manifest's facts, from those of the finished parts."""
    task = setup.task
    test = [example for example in task.examples if example.split == "test"]
    baseline, baseline_predictions = task.baseline(test)
    predicted = {**{variant: parts[variant]["predicted"] for variant in VARIANTS}, baseline: baseline_predictions}
    facts = {
        **task.facts(),
        "scores": {name: task.scores(test, answers) for name, answers in predicted.items()},
        "variants": {
            variant: {key: value for key, value in parts[variant].items() if key != "predicted"} for variant in VARIANTS
        },
        "trials": {name: facts for name, facts in parts.items() if name not in VARIANTS},
        "examples": _shown([task.sample(example) for example in test], predicted["pretrained"], setup.config.seed),
        "notes": [] if setup.checkpoint.config().nsp else [_NO_POOLER],
    }
    return FinetuneFacts.model_validate(facts)


def _shown(test: Sequence[Mapping[str, Any]], predicted: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Some correctly and some wrongly predicted test examples, drawn at random, each kind in the file's order."""
    order = np.random.default_rng(seed).permutation(len(test))
    correct = [i for i in order if test[i]["label"] == predicted[i]][:_SHOWN]
    wrong = [i for i in order if test[i]["label"] != predicted[i]][:_SHOWN]
    return [
        {**test[i], "text": test[i]["text"][:_SHOWN_CHARS], "predicted": predicted[i]}
        for i in [*sorted(correct), *sorted(wrong)]
    ]
