"""Encoder + labelled files -> a fine-tuned model, its predictions and its scores, next to those of baselines."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from cloze.pipeline.core.artifacts import Artifact, Manifest, Output
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.cluster.elastic import Placement, nodes
from cloze.training.cluster.heartbeat import Progress
from cloze.training.cluster.ray_train import RestartPolicy, run_workers
from cloze.training.finetune.encoders import PretrainedEncoder, from_checkpoint, from_weights_file
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import SPLITS, TaskConfig, Trial
from cloze.training.finetune.trainer import FinetuneSetup, train_in_worker

VERSION = 4

_SHOWN = 4  # examples of each kind for the report
_SHOWN_CHARS = 400


def check(config: TaskConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when a labelled file cannot be read, learned from or scored, or `init` is not an encoder that
    the task can start from."""
    task = task_of(config).read(config, _files(sources))
    if init := sources.get("init"):
        encoder = from_weights_file(init)
        _check_positions(encoder, config)
        if task.head() is None:  # the task scores with the head of the pretrained model
            encoder.check_masked_lm_head()


def run(config: TaskConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "checkpoint" (CheckpointRef) and "vocab" (Artifact), or "init" (SourceFile: the weights in a Hugging Face
    folder or a checkpoint); "data", or "train", "dev" and "test" (SourceFile). Requires a Ray session.

    facts: the task's facts about its files, "scores" (pretrained, random and the baselines -> numbers by name),
    "scored_split" and "metric", "variants" (pretrained, random -> trial, loss, the task's metrics on dev, best_epoch),
    "trials" (the same for each), "seeds" (see `over_seeds`), "examples" (some correct and some wrong predictions),
    "notes" (for the user).
    Raises UserError.
    """
    encoder = _encoder(inputs)
    _check_positions(encoder, config)
    task = task_of(config).read(config, _files(inputs))
    data = task.encode(encoder.tokenizer())
    setup = FinetuneSetup(config, task, data, encoder, out)
    names = [name for variant in setup.variants for name in setup.parts(variant)]
    FinetuneFacts.model_validate(task.facts())  # fail now, not after hours of training
    if len(out.finished_parts(names)) < len(names):
        _train(setup)
    parts = out.require_parts(names)
    facts = _facts(setup, {part.name: part.facts for part in parts})
    scores = json.dumps(facts.plain["scores"], indent=1, ensure_ascii=False)
    return out.finish(
        [*parts, out.commit("scores", {"scores.json": scores.encode()})],
        identity(config),
        {name: _input_identity(item) for name, item in inputs.items()},
        counts={
            **{split: len(setup.examples(split)) for split in SPLITS},
            "truncated": data.truncated,
            **data.counts,
        },
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
    total = len(setup.variants) * sum(map(setup.steps, config.trials))
    finished = sum(map(setup.finished_steps, setup.variants))
    progress = Progress(setup.out, total, "steps", finished) if total else Progress(setup.out, 1, "task", 0)
    run_workers(train_in_worker, setup, placement, RestartPolicy(), progress)


def _files(inputs: Mapping[str, Any]) -> dict[str, Location]:
    """The labelled files among the inputs, by the names that tasks know."""
    return {name: inputs[name].location for name in ("data", *SPLITS) if name in inputs}


def _encoder(inputs: Mapping[str, Any]) -> PretrainedEncoder:
    init: SourceFile | None = inputs.get("init")
    return from_weights_file(init) if init else from_checkpoint(inputs["checkpoint"], inputs["vocab"].location)


def _input_identity(item: SourceFile | CheckpointRef | Artifact) -> str:
    """What an input contributes to the fingerprint."""
    if isinstance(item, SourceFile):
        return item.identity
    return item.digest if isinstance(item, CheckpointRef) else item.fingerprint


def _check_positions(encoder: PretrainedEncoder, config: TaskConfig) -> None:
    """Raises UserError when the encoder has too few positions."""
    if encoder.max_tokens is not None and config.max_seq_length > encoder.max_tokens:
        raise UserError(
            f"finetune-{config.name}: max_seq_length {config.max_seq_length} is more than the model's "
            f"{encoder.max_tokens} positions; lower it"
        )


def _facts(setup: FinetuneSetup, parts: Mapping[str, dict[str, Any]]) -> FinetuneFacts:
    """The manifest's facts, from those of the finished parts."""
    task = setup.task
    examples = setup.examples(task.scored_split)
    predicted = {variant: parts[variant]["predicted"] for variant in setup.variants} | task.baselines(examples)
    scores = {name: task.scores(examples, answers) for name, answers in predicted.items()}
    facts = {
        **task.facts(),
        "scores": scores,
        "scored_split": task.scored_split,
        "metric": next(iter(scores["pretrained"])),
        "variants": {
            variant: {key: value for key, value in parts[variant].items() if key != "predicted"}
            for variant in setup.variants
        },
        "trials": {name: facts for name, facts in parts.items() if name not in setup.variants},
        "seeds": over_seeds(setup, parts),
        "examples": _shown([task.sample(example) for example in examples], predicted["pretrained"], setup.config.seed),
        "notes": list(setup.encoder.notes),
    }
    return FinetuneFacts.model_validate(facts)


def over_seeds(setup: FinetuneSetup, parts: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By variant: the mean and the standard deviation of the dev metrics over the seeds, for each combination of
    hyperparameters. Empty for a task without `seeds`.
    """
    groups = dict[Trial, list[Trial]]()
    for trial in setup.config.trials:
        if trial.seed is not None:
            groups.setdefault(trial.hyperparameters, []).append(trial)
    found = dict[str, list[dict[str, Any]]]()
    for variant in setup.variants if groups else ():
        found[variant] = []
        for hyperparameters, trials in groups.items():
            metrics = [_best_epoch(parts[f"{variant}-{trial.name}"]) for trial in trials]
            columns = {name: [one[name] for one in metrics] for name in metrics[0]}
            values = {name: column for name, column in columns.items() if None not in column}  # JSON has no NaN
            found[variant].append(
                {
                    "trial": hyperparameters.facts(),
                    "seeds": [trial.seed for trial in trials],
                    "mean": {name: fmean(values[name]) for name in values},
                    "standard_deviation": {name: stdev(values[name]) for name in values if len(trials) > 1},
                }
            )
    return found


def _best_epoch(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics on dev of a trial's best epoch, by name."""
    curves = {name.removeprefix("dev_"): curve for name, curve in facts.items() if name.startswith("dev_")}
    return {name: curve[facts["best_epoch"] - 1] for name, curve in curves.items()}


def _shown(test: Sequence[Mapping[str, Any]], predicted: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Some correctly and some wrongly predicted examples, drawn at random, each kind in the file's order."""
    order = np.random.default_rng(seed).permutation(len(test))
    correct = [i for i in order if test[i]["label"] == predicted[i]][:_SHOWN]
    wrong = [i for i in order if test[i]["label"] != predicted[i]][:_SHOWN]
    return [
        {**test[i], "text": test[i]["text"][:_SHOWN_CHARS], "predicted": predicted[i]}
        for i in [*sorted(correct), *sorted(wrong)]
    ]
