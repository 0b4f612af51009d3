"""The jobs of a worker group: run a trial and store its result, or evaluate a variant's best trial and save its model.

Each job ends with a part of the artifact, so that a killed run continues after it.
"""

from typing import Any, cast

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.errors import UserError
from cloze.training.cluster.collectives import broadcast_object
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.finetune.model_files import model_files
from cloze.training.finetune.probing.probe_run import evaluate_probe
from cloze.training.finetune.tasks.probe import Probe
from cloze.training.finetune.tasks.task import ModelTask, splits_of
from cloze.training.finetune.tasks.task_config import Trial
from cloze.training.finetune.trainer import FinetuneTrainer, TrialResult
from cloze.training.finetune.trials import (
    FinetuneSetup,
    best_trial,
    finished_trials,
    part_name,
    possible_best,
    selection_keys,
    trial_facts,
)


def run_job(setup: FinetuneSetup, argument: tuple[str, Trial | None], report_progress: ReportProgress) -> None:
    """Run a job of `unfinished_jobs` in every worker of a group.

    Nothing is left to do if the workers were killed after its end, or if another run of the same task was faster.
    """
    trainer, (variant, trial) = FinetuneTrainer(setup, report_progress), argument
    if broadcast_object(trainer.rank == 0 and _is_finished(setup, variant, trial)):
        return
    if trial is None:
        (evaluate_probe if isinstance(setup.task, Probe) else _evaluate_best)(trainer, variant)
        return
    result = trainer.run_trial(variant, trial)
    if trainer.rank == 0:
        _store(setup, variant, trial, result)


def _is_finished(setup: FinetuneSetup, variant: str, trial: Trial | None) -> bool:
    if trial is None:
        return setup.out.finished_part(variant) is not None
    return trial in finished_trials(setup, variant)


def _store(setup: FinetuneSetup, variant: str, trial: Trial, result: TrialResult) -> None:
    """Store the weights, then commit the trial. Delete the weights of trials that can no longer be the best."""
    from safetensors.torch import save

    if result.weights:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in result.weights.items()}
        setup.weights_file(variant, trial).write_bytes(save(tensors), setup.out.check_lease)
    setup.out.commit(part_name(variant, trial), {}, facts={"trial": trial.facts(), **result.facts()})
    keys = selection_keys(trial_facts(setup, variant))
    needed = possible_best(keys, setup.config.trials)
    stored = {file.name: file for file in setup.trials_folder.files()}
    for other in keys.keys() - needed:
        if file := stored.get(setup.weights_file(variant, other).name):
            setup.out.check_lease()
            file.delete()


def _evaluate_best(trainer: FinetuneTrainer, variant: str) -> None:
    """Predict dev, test and the extra files with the best trial's weights, and commit the variant: the facts of its
    training, predictions, and its model. The model of the random variant is not kept.

    Raises UserError if all trials have diverged.
    """
    from safetensors.torch import load

    setup, task, facts = trainer.setup, cast(ModelTask, trainer.setup.task), dict[str, Any]()
    model = trainer.new_model(variant)
    if trials := trial_facts(setup, variant):
        best = best_trial(selection_keys(trials))
        if best is None:
            raise UserError(f"finetune-{setup.config.name}: the loss of every trial is nan or inf; lower learning_rate")
        model.load_state_dict(load(setup.weights_file(variant, best).read_bytes()))
        facts = {"trial": best.facts(), "precision": trainer.precision, **trials[best]}
    files, scored = dict[str, bytes](), setup.scored_splits
    values: dict[str, dict[str, list[Any]]] = {"predicted": {}, setup.config.scored_value: {}}
    for split in splits_of(task.examples)[1:]:
        if not (examples := setup.examples(split)):
            continue
        data = setup.splits[split]
        answers, _ = trainer.answers(model, data)
        predictions = task.predictions(examples, answers, data)
        name = variant if split == task.scored_split else f"{variant}-{split}"
        files[f"predictions/{name}.jsonl"] = json_lines.encode(predictions.rows, escaped=False)
        files |= {f"predictions/{name}/{file}": content for file, content in predictions.files.items()}
        if split in scored:
            for value, of_splits in values.items():
                of_splits[split] = [row[value] for row in predictions.rows]
    if trainer.rank:
        return
    if variant == "pretrained":
        files |= model_files(setup.encoder, task, model.state_dict())
    setup.out.commit(variant, files, facts={**facts, **values})
