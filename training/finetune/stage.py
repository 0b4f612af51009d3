"""Encoder + labelled files -> a fine-tuned model, its predictions and its scores, next to those of baselines."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.training.checkpoints.checkpoint import CheckpointRef
from cloze.training.cluster.elastic import Placement, capacity
from cloze.training.cluster.heartbeat import Progress
from cloze.training.cluster.job_queue import run_jobs
from cloze.training.finetune.encode.encoded_files import StoredSplits
from cloze.training.finetune.encoders.pretrained_encoder import PretrainedEncoder, from_checkpoint, from_weights_file
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.probing.probe_run import check_layers
from cloze.training.finetune.tasks.probe import Probe
from cloze.training.finetune.tasks.probe_config import ProbeConfig
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import ModelTask, splits_of
from cloze.training.finetune.tasks.task_config import TaskConfig, TrainedTaskConfig, task_files
from cloze.training.finetune.trial_runs import run_job
from cloze.training.finetune.trials import FinetuneSetup, over_seeds, part_name, unfinished_jobs

VERSION = 6

_SHOWN = 4  # examples of each kind for the report
_SHOWN_CHARS = 400


def check(config: TaskConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when a labelled file cannot be read, learned from or scored, or `init` is not an encoder that
    the task can start from."""
    task = task_of(config).read(config, task_files(config, sources))
    if init := sources.get("init"):
        encoder = from_weights_file(init)
        _check_positions(encoder, config)
        if isinstance(task, Probe):
            check_layers(task, encoder)
        else:
            encoder.check_head(cast(ModelTask, task).head())


def run(config: TaskConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "checkpoint" (CheckpointRef) and "vocab" (Artifact), or "init" (SourceFile: the weights in a Hugging Face
    folder or a checkpoint); "encoded" (Artifact: the task's examples as token ids); "data", or "train", "dev", "test"
    and the names of extra files (SourceFile). Requires a Ray session.

    facts: the task's facts about its files, "scores" (pretrained, random and the baselines -> numbers by name),
    "scored_split" and "metric", "extra_scores" (the same scores for each extra file with labels), "variants"
    (pretrained, random -> trial, loss, the task's metrics on dev, best_epoch), "trials" (the same for each), "seeds"
    (for each variant: see `over_seeds`), "examples" (some correct and some wrong predictions), "notes" (for the user).
    Raises UserError.
    """
    encoder = _encoder(inputs)
    _check_positions(encoder, config)
    task = task_of(config).read(config, task_files(config, inputs))
    splits = splits_of(task.examples)
    stored = StoredSplits(inputs["encoded"].location, splits, task.split_kind)
    setup = FinetuneSetup(config, task, stored, encoder, out)
    names = [name for variant in setup.variants for name in setup.parts(variant)]
    FinetuneFacts.model_validate(task.facts())  # fail now, not after hours of training
    if len(out.finished_parts(names)) < len(names):
        _train(setup)
    parts = out.require_parts(names)
    out.check_lease()
    setup.trials_folder.delete()
    facts = _facts(setup, {part.name: part.facts for part in parts})
    return out.finish(
        [*parts, out.commit("scores", _score_files(facts.plain))],
        identity(config),
        {name: _input_identity(item) for name, item in inputs.items()},
        counts={split: len(setup.examples(split)) for split in splits},
        facts=facts,
    )


def _train(setup: FinetuneSetup) -> None:
    """Run what is not finished, on as many groups of workers as fit."""
    config, nodes = setup.config, capacity()
    is_probe = isinstance(setup.task, Probe)  # which one worker does
    placement = Placement.fitting(
        nodes,
        stage=f"finetune-{config.name}",
        gpus=gpus_of_trial(config, nodes.gpus),
        workers=1 if is_probe else config.workers,
        threads=config.threads,
        without_gpus=1,
    )
    jobs = unfinished_jobs(setup)
    total = len(setup.variants) * sum(map(setup.steps, config.trials))
    finished = total - sum(job.work for job in jobs)
    progress = Progress(setup.out, total, "steps", finished) if total else Progress(setup.out, 1, "task", 0)
    most = config.max_concurrent_trials if isinstance(config, TrainedTaskConfig) else None
    run_jobs(run_job, setup, jobs, placement, progress, most)


def gpus_of_trial(config: TaskConfig, gpus_found: int) -> int | Literal["auto"]:
    """The number of GPUs for a trial. "auto" divides those of the cluster among the trials that run at once, at least
    one each. A probe has one at most."""
    if isinstance(config, ProbeConfig):
        return min(1, gpus_found if config.gpus == "auto" else config.gpus)
    if config.gpus != "auto" or config.workers or len(config.trials) < 2:
        return config.gpus
    at_once = len(config.trials) * (1 + config.compare_random)
    if isinstance(config, TrainedTaskConfig) and config.max_concurrent_trials:
        at_once = min(at_once, config.max_concurrent_trials)
    return min(gpus_found, max(1, gpus_found // at_once))


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
    scored_value = setup.config.scored_value
    scores, *extra_scores = _scores(setup, {variant: parts[variant][scored_value] for variant in setup.variants})
    examples, predicted = setup.examples(task.scored_split), parts["pretrained"]["predicted"][task.scored_split]
    seeds = {
        variant: rows
        for variant in setup.variants
        if (rows := over_seeds({trial: parts[part_name(variant, trial)] for trial in setup.config.trials}))
    }
    facts = {
        **task.facts(),
        "scores": scores,
        **({"extra_scores": dict(zip(setup.scored_splits[1:], extra_scores, strict=True))} if extra_scores else {}),
        "scored_split": task.scored_split,
        "metric": next(iter(scores["pretrained"])),
        "variants": {
            variant: {key: value for key, value in parts[variant].items() if key not in ("predicted", scored_value)}
            for variant in setup.variants
        },
        "trials": {name: facts for name, facts in parts.items() if name not in setup.variants},
        "seeds": seeds,
        "examples": _shown(list(map(task.sample, examples, predicted)), predicted, setup.config.seed),
        "notes": list(setup.encoder.notes),
    }
    return FinetuneFacts.model_validate(facts)


def _scores(setup: FinetuneSetup, predicted: Mapping[str, Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    """For each scored split: the scores of the variants and of the baselines, by their names.

    `predicted`: variant -> split -> the `scored_value` of the variant's predictions.
    """
    examples = {split: setup.examples(split) for split in setup.scored_splits}
    baselines = setup.task.baselines(list(itertools.chain(*examples.values())))  # of all at once: they are fitted once
    scores, start = list[dict[str, Any]](), 0
    for split, of_split in examples.items():
        stop = start + len(of_split)
        answers = {variant: found[split] for variant, found in predicted.items()}
        answers |= {name: found[start:stop] for name, found in baselines.items()}
        scores.append({name: setup.task.scores(of_split, found) for name, found in answers.items()})
        start = stop
    return scores


def _score_files(facts: Mapping[str, Any]) -> dict[str, bytes]:
    """scores.json, and scores-NAME.json for each extra file with labels."""
    files = {
        "scores": facts["scores"],
        **{f"scores-{name}": found for name, found in facts.get("extra_scores", {}).items()},
    }
    return {f"{name}.json": json.dumps(found, indent=1, ensure_ascii=False).encode() for name, found in files.items()}


def _shown(test: Sequence[Mapping[str, Any]], predicted: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Some correctly and some wrongly predicted examples, drawn at random, each kind in the file's order."""
    order = np.random.default_rng(seed).permutation(len(test))
    correct = [i for i in order if test[i]["label"] == predicted[i]][:_SHOWN]
    wrong = [i for i in order if test[i]["label"] != predicted[i]][:_SHOWN]
    return [
        {**test[i], "text": test[i]["text"][:_SHOWN_CHARS], "predicted": predicted[i]}
        for i in [*sorted(correct), *sorted(wrong)]
    ]
