"""A trial of fine-tuning: encoded examples, an encoder, hyperparameters -> the weights of the best epoch on dev.

The variant "random" is trained like "pretrained" (data order, dropout, hyperparameters, head), from an encoder with
random weights. A trial depends on its own seed alone, and not on what its process has trained before.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.finetune.tasks.task import EncodedSplit, ModelTask, RowIndices, TrainedTask
from cloze.training.finetune.tasks.task_config import TrainedTaskConfig, Trial
from cloze.training.finetune.trials import FinetuneSetup, SelectionKey
from cloze.training.model.hardware import has_bf16, worker_device
from cloze.training.model.optim import OptimizerConfig, Precision, adamw, autocast, learning_rate_at, parameter_groups

_WARMUP = 0.1  # of the steps, as in BERT's run_classifier.py
_EVAL_BATCH = 128
_CURVE_POINTS = 200


@dataclass
class TrialResult:
    """A trial's curves, its best epoch on dev (the first of equals) and the weights of that epoch."""

    losses: list[float] = field(default_factory=list)  # of each step
    dev: list[Mapping[str, float]] = field(default_factory=list)  # the task's metrics after each epoch
    selection_key: SelectionKey = ()  # of the best epoch: see Task.selection_key
    best_epoch: int = 0  # from 1
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    stopped_epoch: int | None = None  # the last one, if it is not that of the configuration
    diverged_step: int | None = None  # from 1: the loss of this step, or an output for dev after it, is not finite

    def add_epoch(self, metrics: Mapping[str, float], selection_key: SelectionKey, model: nn.Module) -> None:
        self.dev.append(metrics)
        key = tuple(-math.inf if math.isnan(value) else value for value in selection_key)
        if not self.best_epoch or key > self.selection_key:
            self.best_epoch, self.selection_key = len(self.dev), key
            self.weights = copy.deepcopy(model.state_dict())

    def facts(self) -> dict[str, Any]:
        """The curves as the part's record and the manifest store them."""
        metrics = self.dev[0] if self.dev else ()
        curves = {
            "loss": downsampled(self.losses),
            **{f"dev_{name}": [metrics[name] for metrics in self.dev] for name in metrics},
        }
        if self.diverged_step:
            return {**curves, "diverged_step": self.diverged_step}
        stopped = {"stopped_epoch": self.stopped_epoch} if self.stopped_epoch else {}
        return {**curves, "best_epoch": self.best_epoch, "merit": list(self.selection_key), **stopped}


def downsampled(losses: Sequence[float]) -> list[tuple[int, float]]:
    """The loss of every step -> at most 200 points: (last step of an interval, mean loss of the interval)."""
    interval = max(1, math.ceil(len(losses) / _CURVE_POINTS))
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


class FinetuneTrainer:
    """The training in one worker. All workers do the same; `rank` decides which rows of each batch are this one's."""

    def __init__(self, setup: FinetuneSetup, report_progress: ReportProgress) -> None:
        self.setup, self.report_progress = setup, report_progress
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        torch.use_deterministic_algorithms(True, warn_only=self.device.type == "cuda")  # attention has none there
        # No kernel reads uninitialized memory; filling it takes a twelfth of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        configured = setup.config.precision
        auto: Precision = "bf16" if has_bf16(self.device) else "fp32"
        self.precision: Precision = auto if configured == "auto" else configured

    def run_trial(self, variant: str, trial: Trial) -> TrialResult:
        """Train with a trial's hyperparameters, and evaluate on dev after each epoch.

        A trial whose loss, or output for dev, is not finite ends there. Raises UserError if it is the only one.
        """
        data, seed, task = self.setup.splits["train"], self.setup.seed(trial), cast(TrainedTask, self.setup.task)
        config, steps = cast(TrainedTaskConfig, self.setup.config), self.setup.steps(trial)
        # Rows of similar length would meet the same others in every epoch.
        lengths = np.zeros_like(data.lengths) if config.loss_of_batch else data.lengths
        number = config.trials.index(trial) + 1
        place = f"{variant}, trial {number} of {len(config.trials)}" if len(config.trials) > 1 else variant
        # Adam's bias correction: without it some seeds fail on small sets (arXiv:2006.05987)
        optimizer_config = OptimizerConfig(
            learning_rate=trial.learning_rate, warmup_steps=round(_WARMUP * steps), bias_correction=True
        )
        model = self.new_model(variant, trial)
        optimizer = adamw(parameter_groups(model, optimizer_config.weight_decay), optimizer_config)
        result = TrialResult()
        torch.manual_seed(seed * self.workers + self.rank)  # dropout
        for epoch in range(trial.epochs):
            for rows in epoch_batches(lengths, trial.batch_size, seed, epoch):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = learning_rate_at(len(result.losses), optimizer_config, steps)
                loss = self._step(model, optimizer, rows, optimizer_config.max_grad_norm)
                if not math.isfinite(loss):
                    if len(config.trials) == 1:
                        raise UserError(f"finetune-{config.name}: the loss is {loss}; lower learning_rate")
                    result.diverged_step = len(result.losses) + 1
                    return result
                result.losses.append(loss)
                self.report_progress(
                    len(result.losses), f"{place}, epoch {epoch + 1} of {trial.epochs}, loss {loss:.3f}"
                )
            dev = self.setup.splits["dev"]
            answers, is_finite = self.answers(model, dev)
            if not is_finite:  # by the epoch's last step: no loss has shown it
                if len(config.trials) == 1:
                    raise UserError(f"finetune-{config.name}: the loss on dev is nan or inf; lower learning_rate")
                result.diverged_step = len(result.losses)
                return result
            metrics = task.evaluate(answers, dev)
            result.add_epoch(metrics, task.selection_key(metrics), model)
            if config.early_stopping and len(result.dev) - result.best_epoch >= config.early_stopping:
                result.stopped_epoch = len(result.dev) if len(result.dev) < trial.epochs else None
                break
        return result

    def new_model(self, variant: str, trial: Trial | None = None) -> nn.Module:
        """The task's model before the first step of a trial; without one, with the task's own seed."""
        encoder, config = self.setup.encoder, self.setup.config
        seed = self.setup.seed(trial) if trial else config.seed
        model = encoder.new_model(cast(ModelTask, self.setup.task), seed, pretrained=variant == "pretrained")
        if isinstance(config, TrainedTaskConfig) and config.freeze_encoder:
            for parameter in encoder.frozen_parameters(model):
                parameter.requires_grad_(False)
        return model.to(self.device)

    def _step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: RowIndices, max_grad_norm: float
    ) -> float:
        """Update the model by the mean loss over the batch `rows`, which the workers split. Returns that loss.

        The model stays as it is if the loss is not finite.
        """
        model.train()
        optimizer.zero_grad()
        assert isinstance(self.setup.config, TrainedTaskConfig)
        backward = self._backward_of_batch if self.setup.config.loss_of_batch else self._backward_of_rows
        loss = self._all_reduce(model, backward(model, rows, self.setup.config.micro_batch_size))
        if math.isfinite(loss):
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            optimizer.step()
        return loss

    def _backward_of_rows(self, model: nn.Module, rows: RowIndices, micro_batch_size: int | None) -> torch.Tensor:
        """Add this worker's part of the gradients. Returns its part of the mean loss over the batch."""
        data, task = self.setup.splits["train"], cast(TrainedTask, self.setup.task)
        worker_rows = rows[self.rank :: self.workers]
        total, terms = torch.zeros((), device=self.device), task.loss_terms(data, rows)
        size = micro_batch_size or max(1, len(worker_rows))
        for start in range(0, len(worker_rows), size):
            micro_batch = worker_rows[start : start + size]
            with autocast(self.device, self.precision):
                outputs = model(*task.inputs(data, micro_batch, self.device))
            loss = task.loss(outputs, data, micro_batch) / terms
            loss.backward()
            total += loss.detach()
        return total

    def _backward_of_batch(self, model: nn.Module, rows: RowIndices, micro_batch_size: int | None) -> torch.Tensor:
        """The same where a row's loss depends on the other rows: each worker computes the loss of the whole batch from
        the outputs of all workers, and its gradient goes back through the worker's own.

        Micro-batches are computed again in the backward pass, one after another, with the same dropout: only their
        outputs are kept, as in gradient caching (arXiv:2101.06983).
        """
        data, task = self.setup.splits["train"], cast(TrainedTask, self.setup.task)
        # All workers compute equally many rows. Those that some repeat have no part in the loss.
        worker_rows = np.resize(rows, -(-len(rows) // self.workers) * self.workers)[self.rank :: self.workers]
        size, parts = micro_batch_size or len(worker_rows), list[torch.Tensor]()
        for start in range(0, len(worker_rows), size):
            inputs = task.inputs(data, worker_rows[start : start + size], self.device)
            with autocast(self.device, self.precision):
                again = size < len(worker_rows)
                parts.append(checkpoint(model, *inputs, use_reentrant=False) if again else model(*inputs))
        own = torch.cat(parts)
        gathered = [torch.empty_like(own) for _ in range(self.workers)]
        dist.all_gather(gathered, own.detach().contiguous())
        outputs = torch.stack(gathered, 1).flatten(0, 1).requires_grad_()  # in the order of the rows
        loss = task.loss(outputs[: len(rows)], data, rows) / task.loss_terms(data, rows)
        loss.backward()
        assert outputs.grad is not None
        own.backward(outputs.grad[self.rank :: self.workers])
        return loss.detach() / self.workers  # every worker has the whole loss

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

    def answers(self, model: nn.Module, data: EncodedSplit) -> tuple[list[Any], bool]:
        """The task's answer for each example of a split, in order, and whether all outputs of the model are finite. The
        workers divide the examples among them.
        """
        order = np.argsort(data.lengths, kind="stable")  # rows of similar length together: little padding
        worker_rows = order[self.rank :: self.workers]
        worker_answers, is_finite, task = list[Any](), True, cast(ModelTask, self.setup.task)
        model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for start in range(0, len(worker_rows), _EVAL_BATCH):
                rows = worker_rows[start : start + _EVAL_BATCH]
                outputs = model(*task.inputs(data, rows, self.device))
                is_finite = is_finite and bool(outputs.isfinite().all())
                worker_answers += task.answers(outputs, data, rows)
        gathered: list[Any] = [None] * self.workers
        dist.all_gather_object(gathered, (worker_answers, is_finite))
        answers: list[Any] = [None] * len(order)
        for rank, (rank_answers, _) in enumerate(gathered):
            for row, answer in zip(order[rank :: self.workers], rank_answers, strict=True):
                answers[row] = answer
        return answers, all(rank_is_finite for _, rank_is_finite in gathered)
