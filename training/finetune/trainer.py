"""Prepared data and an encoder -> the fine-tuned model and its predictions, by every worker.

On request a second variant is trained alike (data order, dropout, hyperparameters, head) from an encoder with random
weights. Each trial keeps its best epoch on dev, each variant its best trial; only that one predicts the test split.
With several seeds the best trial is the best of the hyperparameters whose mean over the seeds is best.
Finished trials and variants are committed as parts, so that a killed run continues after them.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Output, Part
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.training.cluster.collectives import broadcast_object
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.finetune.encoders import PretrainedEncoder
from cloze.training.finetune.model_files import model_files
from cloze.training.finetune.tasks.task import (
    SPLITS,
    EncodedSplit,
    EncodedTask,
    RowIndices,
    Task,
    TaskConfig,
    TrainedTask,
    TrainedTaskConfig,
    Trial,
)
from cloze.training.model.hardware import has_bf16, worker_device
from cloze.training.model.optim import OptimizerConfig, Precision, adamw, autocast, learning_rate_at, parameter_groups

_WARMUP = 0.1  # of the steps, as in BERT's run_classifier.py
_EVAL_BATCH = 128
_CURVE_POINTS = 200


@dataclass(frozen=True)
class FinetuneSetup:
    """The input of every worker."""

    config: TaskConfig
    task: Task
    data: EncodedTask
    encoder: PretrainedEncoder
    out: Output

    @property
    def variants(self) -> tuple[str, ...]:
        """The initial weights of the encoder: "pretrained" and, if the user asks for it, "random"."""
        return ("pretrained", "random") if self.config.compare_random else ("pretrained",)

    def examples(self, split: str) -> list[Any]:
        """The task's examples of a split."""
        return [example for example in self.task.examples if example.split == split]

    def steps(self, trial: Trial) -> int:
        """The number of optimizer steps of a trial."""
        return trial.epochs * math.ceil(len(self.data.splits["train"].lengths) / trial.batch_size)

    def seed(self, trial: Trial) -> int:
        """The seed of a trial's data order, dropout and initial weights."""
        return self.config.seed if trial.seed is None else trial.seed

    def parts(self, variant: str) -> list[str]:
        """The names of a variant's parts: one for each trial, then the variant's own."""
        return [*(f"{variant}-{trial.name}" for trial in self.config.trials), variant]

    def finished_steps(self, variant: str) -> int:
        """The number of steps in the variant's trials that are finished already."""
        finished = self.out.finished_parts(self.parts(variant))
        return sum(self.steps(trial) for trial in self.config.trials if f"{variant}-{trial.name}" in finished)


@dataclass
class TrialResult:
    """A trial's curves, its best epoch on dev (the first of equals) and the weights of that epoch."""

    losses: list[float] = field(default_factory=list)  # of each step
    dev: list[Mapping[str, float]] = field(default_factory=list)  # the task's metrics after each epoch
    selection_key: tuple[float, ...] = ()  # of the best epoch: see Task.selection_key
    best_epoch: int = 0  # from 1
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def add_epoch(self, metrics: Mapping[str, float], selection_key: tuple[float, ...], model: nn.Module) -> None:
        self.dev.append(metrics)
        if not self.best_epoch or selection_key > self.selection_key:
            self.best_epoch, self.selection_key = len(self.dev), selection_key
            self.weights = copy.deepcopy(model.state_dict())

    def facts(self) -> dict[str, Any]:
        """The curves as the part's record and the manifest store them."""
        return {
            "loss": downsampled(self.losses),
            **{f"dev_{name}": [metrics[name] for metrics in self.dev] for name in self.dev[0]},
            "best_epoch": self.best_epoch,
            "merit": list(self.selection_key),
        }


def downsampled(losses: Sequence[float]) -> list[tuple[int, float]]:
    """The loss of every step -> at most 200 points: (last step of an interval, mean loss of the interval)."""
    interval = math.ceil(len(losses) / _CURVE_POINTS)
    parts = [losses[start : start + interval] for start in range(0, len(losses), interval)]
    return [(min((i + 1) * interval, len(losses)), sum(part) / len(part)) for i, part in enumerate(parts)]


def epoch_batches(lengths: Ints, batch_size: int, seed: int, epoch: int) -> list[RowIndices]:
    """The row indices of each batch of an epoch: every row once, in random order, rows of similar length together.

    The rows are shuffled, sorted by length within every 16 batches, cut into batches, and the batches are shuffled.
    Without the sorting, padding would be a quarter of the work.
    """
    random = np.random.default_rng([seed, epoch])
    order, window = random.permutation(len(lengths)), 16 * batch_size
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def train_in_worker(setup: FinetuneSetup, report_progress: ReportProgress) -> None:
    """The function that every worker runs."""
    FinetuneTrainer(setup, report_progress).train_all()


class FinetuneTrainer:
    """The training in one worker. All workers do the same; `rank` decides which rows of each batch are this one's."""

    def __init__(self, setup: FinetuneSetup, report_progress: ReportProgress) -> None:
        self.setup, self.report_progress = setup, report_progress
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        self.steps_done = 0  # in all trials of both variants
        torch.use_deterministic_algorithms(True, warn_only=self.device.type == "cuda")  # attention has none there
        # No kernel reads uninitialized memory; filling it takes a twelfth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        configured = setup.config.precision
        auto: Precision = "bf16" if has_bf16(self.device) else "fp32"
        self.precision: Precision = auto if configured == "auto" else configured

    def train_all(self) -> None:
        """Train and test each variant that is not finished."""
        for variant in self.setup.variants:
            if all(map(self._finished_part, self.setup.parts(variant))):
                self.steps_done += sum(map(self.setup.steps, self.setup.config.trials))
            else:
                self._train_variant(variant)

    def _train_variant(self, variant: str) -> None:
        """Run the trials that are not finished, then test the best of all."""
        selection_keys: dict[Trial, tuple[float, ...]] = {}
        results: dict[Trial, TrialResult] = {}  # of trials that this process has run and that may be the best
        for trial in self.setup.config.trials:
            name = f"{variant}-{trial.name}"
            if part := self._finished_part(name):
                selection_keys[trial] = tuple(part.facts["merit"])
                self.steps_done += self.setup.steps(trial)
                continue
            result = self.run_trial(variant, trial)
            selection_keys[trial] = result.selection_key
            if self.rank == 0:
                self.setup.out.commit(name, {}, facts={"trial": trial.facts(), **result.facts()})
            results[trial] = result
            results = {other: results[other] for other in possible_best(selection_keys, trial) if other in results}
        if not selection_keys:
            self._test(variant, self.new_model(variant), {})
            return
        best = best_trial(selection_keys)
        if best not in results:  # run by a process that was killed, and its weights are lost
            self.steps_done -= self.setup.steps(best)
            results[best] = self.run_trial(variant, best)
        model = self.new_model(variant)
        model.load_state_dict(results[best].weights)
        self._test(variant, model, {"trial": best.facts(), "precision": self.precision, **results[best].facts()})

    def _finished_part(self, name: str) -> Part | None:
        """The part as worker 0 finds it: another run of the same fingerprint may be finishing it right now."""
        return broadcast_object(self.setup.out.finished_part(name) if self.rank == 0 else None)

    def run_trial(self, variant: str, trial: Trial) -> TrialResult:
        """Train with a trial's hyperparameters, and evaluate on dev after each epoch."""
        data, seed, task = self.setup.data.splits["train"], self.setup.seed(trial), cast(TrainedTask, self.setup.task)
        steps = self.setup.steps(trial)
        # Adam's bias correction: without it some seeds fail on small sets (arXiv:2006.05987)
        optimizer_config = OptimizerConfig(
            learning_rate=trial.learning_rate, warmup_steps=round(_WARMUP * steps), bias_correction=True
        )
        model = self.new_model(variant, trial)
        optimizer = adamw(parameter_groups(model, optimizer_config.weight_decay), optimizer_config)
        result = TrialResult()
        torch.manual_seed(seed * self.workers + self.rank)  # dropout
        for epoch in range(trial.epochs):
            for rows in epoch_batches(data.lengths, trial.batch_size, seed, epoch):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = learning_rate_at(len(result.losses), optimizer_config, steps)
                loss = self._step(model, optimizer, rows, optimizer_config.max_grad_norm)
                result.losses.append(loss)
                self.steps_done += 1
                note = f"{variant}, epoch {epoch + 1} of {trial.epochs}, loss {loss:.3f}"
                self.report_progress(self.steps_done, note)
            dev = self.setup.data.splits["dev"]
            metrics = task.evaluate(self._answers(model, dev), dev)
            result.add_epoch(metrics, task.selection_key(metrics), model)
        return result

    def new_model(self, variant: str, trial: Trial | None = None) -> nn.Module:
        """The task's model before the first step of a trial; without one, with the task's own seed."""
        encoder, config = self.setup.encoder, self.setup.config
        seed = self.setup.seed(trial) if trial else config.seed
        model = encoder.new_model(self.setup.task, seed, pretrained=variant == "pretrained")
        if isinstance(config, TrainedTaskConfig) and config.freeze_encoder:
            for parameter in encoder.frozen_parameters(model):
                parameter.requires_grad_(False)
        return model.to(self.device)

    def _step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: RowIndices, max_grad_norm: float
    ) -> float:
        """Update the model by the mean loss over the batch `rows`, which the workers split. Returns that loss."""
        data, task = self.setup.data.splits["train"], cast(TrainedTask, self.setup.task)
        worker_rows = rows[self.rank :: self.workers]
        model.train()
        optimizer.zero_grad()
        total, terms = torch.zeros((), device=self.device), task.loss_terms(data, rows)
        assert isinstance(self.setup.config, TrainedTaskConfig)
        size = self.setup.config.micro_batch_size or max(1, len(worker_rows))
        for start in range(0, len(worker_rows), size):
            micro_batch = worker_rows[start : start + size]
            with autocast(self.device, self.precision):
                outputs = model(*task.inputs(data, micro_batch, self.device))
            loss = task.loss(outputs, data, micro_batch) / terms
            loss.backward()
            total += loss.detach()
        loss = self._all_reduce(model, total)
        if not math.isfinite(loss):
            raise UserError(f"finetune-{self.setup.config.name}: the loss is {loss}; lower learning_rate")
        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        return loss

    def _all_reduce(self, model: nn.Module, loss: torch.Tensor) -> float:
        """Sum the gradients and the loss over all workers, each of which has divided by the whole batch's size."""
        if self.workers == 1:
            return loss.item()
        for parameter in model.parameters():
            if parameter.grad is None and parameter.requires_grad:  # this worker has no row of the batch
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([loss.flatten(), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        total, *summed = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, values in zip(gradients, summed, strict=True):
            gradient.copy_(values.view_as(gradient))
        return total.item()

    def _answers(self, model: nn.Module, data: EncodedSplit) -> list[Any]:
        """The task's answer for each example of a split, in order. The workers divide the examples among them."""
        order = np.argsort(data.lengths, kind="stable")  # rows of similar length together: little padding
        worker_rows = order[self.rank :: self.workers]
        worker_answers = list[Any]()
        model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for start in range(0, len(worker_rows), _EVAL_BATCH):
                rows = worker_rows[start : start + _EVAL_BATCH]
                outputs = model(*self.setup.task.inputs(data, rows, self.device))
                worker_answers += self.setup.task.answers(outputs, data, rows)
        gathered: list[Any] = [None] * self.workers
        dist.all_gather_object(gathered, worker_answers)
        answers: list[Any] = [None] * len(order)
        for rank, rank_answers in enumerate(gathered):
            for row, answer in zip(order[rank :: self.workers], rank_answers, strict=True):
                answers[row] = answer
        return answers

    def _test(self, variant: str, model: nn.Module, facts: Mapping[str, Any]) -> None:
        """Predict dev and test, and commit the variant: `facts` of its training, predictions, and its model.

        The model of the random variant is not kept.
        """
        task = self.setup.task
        files, predicted = dict[str, bytes](), list[Any]()
        for split in SPLITS[1:]:
            if not (examples := self.setup.examples(split)):
                continue
            data = self.setup.data.splits[split]
            answers = self._answers(model, data)
            predictions = task.predictions(examples, answers, data)
            name = variant if split == task.scored_split else f"{variant}-{split}"
            files[f"predictions/{name}.jsonl"] = json_lines.encode(predictions, escaped=False)
            others = task.prediction_files(split, predictions, answers, data)
            files |= {f"predictions/{name}/{file}": content for file, content in others.items()}
            if split == task.scored_split:
                predicted = [row["predicted"] for row in predictions]
        if self.rank:
            return
        if variant == "pretrained":
            files |= model_files(self.setup.encoder, task, model.state_dict())
        self.setup.out.commit(variant, files, facts={**facts, "predicted": predicted})


def best_trial(selection_keys: Mapping[Trial, tuple[float, ...]]) -> Trial:
    """The best trial on dev of the hyperparameters with the best mean over their seeds; the first of equals."""
    keys_of_seeds = dict[Trial, list[tuple[float, ...]]]()
    for trial, key in selection_keys.items():
        keys_of_seeds.setdefault(trial.hyperparameters, []).append(key)
    means = {trial: tuple(map(fmean, zip(*keys, strict=True))) for trial, keys in keys_of_seeds.items()}
    best = max(means, key=means.__getitem__)
    return max(
        (trial for trial in selection_keys if trial.hyperparameters == best), key=lambda trial: selection_keys[trial]
    )


def possible_best(selection_keys: Mapping[Trial, tuple[float, ...]], last: Trial) -> set[Trial]:
    """The trials so far that may still be the best: with the hyperparameters of the last one, and before those."""
    current = {trial: key for trial, key in selection_keys.items() if trial.hyperparameters == last.hyperparameters}
    before = {trial: key for trial, key in selection_keys.items() if trial not in current}
    return {best_trial(keys) for keys in (current, before) if keys}
