"""One worker of the pretraining. `PretrainTrainer.train` is the loop: batch, step, check, log, evaluate, save.

A step depends only on the weights before it and on its number, which keys data, masks and dropout: the same processors
with the same workers produce the same bits. What happens when

    a loss spikes        The update is undone: all workers roll back to the newest checkpoint, and skip the batch of
                         that step when they reach it again. After `max_rollbacks` rollbacks training ends with an
                         error (`_check_step`, `_roll_back`, loss_spikes.py).
    a worker is lost     Its group ends. The next group, after at most `max_failures` failures, starts with
                         `PretrainTrainer.__init__` from the newest checkpoint and repeats the steps since then
                         (ray_train.py, elastic.py).
    a node is preempted  All workers know within five seconds of the notice. The last finished step is saved and
                         training continues. The loss of the node does not count as a failure (run_control.py).
    the driver requests to stop (SIGTERM, or a larger group is possible)
                         The last finished step is saved and training ends. The same command resumes it
                         (run_control.py, heartbeat.py).
    the disk is full     A checkpoint is tried three times, then training continues without it. Only the last
                         checkpoint must be written (async_save.py, `_save`).
    the budget ends      This is checked after each step: it is the last step of its phase, and of the training if
                         the phase is the last one. The learning rate falls to zero by then (`_end_phase`,
                         `_learning_rate`, phases.py).
"""

import hashlib
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.training.checkpoints.checkpoint import (
    KINDS,
    CheckpointPayload,
    CheckpointRef,
    Heldout,
    SavedConfig,
    Tensors,
    newest_checkpoint,
)
from cloze.training.checkpoints.warm_start import initial_weights
from cloze.training.cluster.collectives import broadcast_object, new_all_gather
from cloze.training.cluster.heartbeat import ReportProgress
from cloze.training.cluster.ray_train import is_preempted, world_size
from cloze.training.model.architectures import architecture_of, pretraining_model
from cloze.training.model.compiled import can_compile
from cloze.training.model.hardware import fastest_precision, layer_seconds, peak_flops, processor_name, worker_device
from cloze.training.model.optim import Precision
from cloze.training.pretrain.async_save import AsyncSaver
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.engine import Engine
from cloze.training.pretrain.loss_spikes import BadStep, SkippedBatch, read_skipped
from cloze.training.pretrain.objective import StepResult
from cloze.training.pretrain.phases import LearningRateSchedule
from cloze.training.pretrain.prefetch import GlobalBatch, PhaseData
from cloze.training.pretrain.run_control import RunControl
from cloze.training.pretrain.train_state import GroupInfo, PretrainSetup, TrainState

Value = TypeVar("Value")
StepHook = Callable[[int, int], None]  # called in each worker with its rank and the number of finished steps


class PretrainTrainer:
    """One worker of the group. The workers differ only in their rank."""

    def __init__(
        self,
        setup: PretrainSetup,
        report_progress: ReportProgress,
        on_step: StepHook | None,
        is_preempted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Restore the newest checkpoint, if any. `report_progress` and `is_preempted`: see RunControl."""
        self.setup, self.config, self.on_step = setup, setup.config, on_step
        self.schedules = self.config.learning_rate_schedules  # of each phase
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.control = RunControl(report_progress, is_preempted)
        self.loss, self.history = math.nan, ""  # shown with the progress: the last loss, where training resumed
        self.saver = AsyncSaver(
            setup.location,
            self.config.keep_checkpoints,
            report=lambda note: report_progress(self._done(), note),
            all_gather=new_all_gather(self.workers),
            confirm=setup.check_lease,
        )
        skipped = broadcast_object(read_skipped(setup.location) if self.rank == 0 else [])
        checkpoint, state = self._newest_state(skipped)
        if checkpoint:
            workers = f" with {self.workers} workers instead of {state.workers}"
            self.history = f"resumed from step {state.step}{workers if state.workers != self.workers else ''}"
        device, precision = worker_device(), state.precision or _precision(self.config)
        self.engine = Engine(
            self._model(None if checkpoint else setup.init),
            self.config.optimizer,
            zero_stage=self.config.zero_stage,
            precision=precision,
            deepspeed=self.config.deepspeed,
            compiled=_compiles(self.config, device),
            fused_loss=device.type == "cuda" and architecture_of(self.config.model).fused_loss,
        )
        self.group = GroupInfo(precision, self.workers, processor_name(device), peak_flops(device, precision))
        self.state = state.in_group(self.group)
        if checkpoint:
            self.engine.load(_read(checkpoint.tensors), state.updates, state.loss_scale)

    def train(self) -> None:
        """Train from the next step to the end of the last phase, or until the driver requests to stop."""
        config, engine = self.config, self.engine
        data = PhaseData(self.setup, self.rank, self.workers, self.engine.device)
        self.control.start_clock(self.state.seconds)
        stopping = False
        try:
            while not self.is_finished and not stopping:
                data.open(self.state)
                if self.state.step == self.state.phase_start:
                    self.state.recent.clear()
                start = time.monotonic()
                batch, waited = data.next()
                learning_rate, dropout_seed = self._learning_rate(), self._dropout_seed()
                step = engine.step(batch.micro_batches, learning_rate, dropout_seed, self._between_micro_batches)
                if step is None:  # all workers have abandoned it; the weights are those of the step before
                    self._save(wait=True)
                    break
                # a GPU still computes the step while the workers agree
                stopping, preempted, seconds = self.control.after_step(self._done(steps_ahead=1), self._note())
                if bad_step := self._check_step(step, batch):
                    data.close()
                    self._roll_back(bad_step)
                    continue
                self._record_step(step, time.monotonic() - start, waited)
                self.state.seconds = seconds
                phase_ended = self._end_phase()
                if self.is_finished or self.state.step % config.log_every == 0:
                    self._log(learning_rate, step)
                if phase_ended or self.state.step % config.eval_every == 0:
                    self._evaluate(data)
                if self.is_finished or stopping or preempted or self.state.step % config.checkpoint_every == 0:
                    self._save(wait=self.is_finished or stopping)
                if self.on_step:
                    self.on_step(self.rank, self.state.step)
        finally:
            data.close()
            self.saver.close()

    @property
    def is_finished(self) -> bool:
        """Whether all phases have ended."""
        return self.state.phase == len(self.config.phases)

    @property
    def _schedule(self) -> LearningRateSchedule:
        """The learning rate schedule of the next step."""
        return self.schedules[self.state.phase]

    def _learning_rate(self) -> float:
        """The learning rate of the next step, from the steps or the time that its schedule has used."""
        state, budget = self.state, self.config.budget_seconds
        budget_used = state.seconds / budget if budget else 0.0
        return self._schedule.learning_rate(state.step - state.schedule_start, budget_used)

    def _dropout_seed(self) -> int:
        """The dropout seed of this worker in the next step."""
        return keyed_seed(self.config.seed, self.state.step, self.rank)

    def _between_micro_batches(self) -> bool:
        """In a long step, save at the notice of a preemption. Returns whether to abandon the step."""
        decision = self.control.within_step(self._done(), self._note())
        if decision and decision.save and not decision.stop:
            self._save(wait=False)
        return decision is not None and decision.stop

    def _check_step(self, step: StepResult, batch: GlobalBatch) -> BadStep | None:
        """The reason to undo a step, or None. All workers check the same sums. Reading them waits for a GPU."""
        loss = step.totals.means()["loss"]
        if step.overflowed and math.isfinite(loss):  # the weights are unchanged, and a lower loss scale helps
            return None
        number = self.state.step + 1
        is_warm = number - self.state.schedule_start > self._schedule.optimizer.warmup_steps
        factor = self.config.guard_factor if is_warm else None
        problem = self.state.recent.check(loss, step.grad_norm, factor)
        if problem is None:
            return None
        reason, value = problem
        skip = SkippedBatch(number, self.state.phase, batch.number, reason, str(value), batch.examples)
        return BadStep(skip, loss, step.grad_norm)

    def _roll_back(self, bad_step: BadStep) -> None:
        """Restore the newest checkpoint, and record the batch to skip."""
        skip, current = bad_step.skip, self.state
        if len(current.skipped) >= self.config.max_rollbacks:
            raise UserError(
                f"pretrain: loss {bad_step.loss} and gradient norm {bad_step.grad_norm} at step {skip.step}; "
                f"lower pretrain.{self._schedule.learning_rate_key} or raise pretrain.{self._schedule.warmup_key} "
                f"({skip.reason}; batches skipped before: {len(current.skipped)})"
            )
        skipped = [*current.skipped, skip]
        self.saver.save_skipped(skip.step, skipped, self.rank)
        checkpoint, state = self._newest_state(skipped)
        self.state = replace(state.in_group(self.group), seconds=max(state.seconds, current.seconds))
        self.history = f"rolled back to step {state.step}, {len(state.skipped)} batches skipped"
        tensors = _read(checkpoint.tensors) if checkpoint else self._initial_tensors()
        self.engine.load(tensors, state.updates, state.loss_scale)

    def _record_step(self, step: StepResult, seconds: float, waited: float) -> None:
        """Count a finished step, which took `seconds`, of which it `waited` for data."""
        state, self.loss = self.state, step.totals.means()["loss"]
        state.step += 1
        state.updates, state.loss_scale, state.heldout = self.engine.updates, self.engine.loss_scale, None
        state.metrics.add_step(step.totals, seconds, waited)

    def _end_phase(self) -> bool:
        """Start the next phase if this one has had all its steps, or its part of the budget is used up."""
        state, budget = self.state, self.config.budget_seconds
        if budget is None:
            ended = state.step - state.phase_start == self.config.phases[state.phase].steps
        else:
            ended = state.seconds >= budget * sum(self.config.shares[: state.phase + 1])
        if ended:
            state.phase, state.phase_start = state.phase + 1, state.step
            if not self.is_finished and state.phase == self._schedule.phases[0]:
                state.schedule_start = state.step
        return ended

    def _log(self, learning_rate: float, step: StepResult) -> None:
        """Add a row of metrics; with fp16 it includes the loss scale and the number of overflowed steps."""
        state, scale = self.state, self.state.loss_scale
        state.metrics.add_train_row(
            state.step,
            partial(self.config.model.training_flops, vocab_size=len(self.setup.pieces)),
            self.group.peak.flops,
            learning_rate=learning_rate,
            **({} if step.overflowed else {"grad_norm": step.grad_norm}),  # JSON has no infinity
            **({"loss_scale": scale.factor, "overflows": state.step - state.updates} if scale else {}),
            skipped=len(state.skipped),
            peak_memory=_peak_memory(self.engine.device),
        )
        if self.rank == 0:
            self.saver.save_metrics(state.metrics.rows)

    def _evaluate(self, data: PhaseData) -> None:
        """Evaluate the model on the held-out examples of the phase that the step belonged to."""
        totals = self.engine.evaluate(iter(data.heldout))
        self.state.metrics.add_heldout_row(self.state.step, totals, data.unigram)
        loss = totals.means()["loss"]
        self.state.heldout = Heldout(phase=data.phase, loss=loss) if math.isfinite(loss) else None

    def _save(self, wait: bool) -> None:
        """Each worker writes its kinds of tensors, in the background unless the workers `wait` before they return."""
        state = self.state
        self.saver.wait()  # so that only one checkpoint is in memory
        tensors = self.engine.tensors(KINDS[self.rank :: self.workers])
        payload = None
        if self.rank == 0:
            config = SavedConfig(model=self.config.model, vocab_size=len(self.setup.pieces), nsp=self.setup.nsp)
            payload = CheckpointPayload(config, state.to_json(), state.heldout, self.is_finished)
        self.saver.save(state.step, tensors, payload)
        if wait:
            self.saver.wait()
            if self.saver.failure and self.is_finished:  # before the end, training can resume from an earlier one
                raise UserError(
                    f"{self.setup.location}: the last checkpoint cannot be written ({self.saver.failure}); "
                    "free disk space and run again, which resumes from the newest complete checkpoint"
                )

    def _newest_state(self, skipped: Sequence[SkippedBatch]) -> tuple[CheckpointRef | None, TrainState]:
        """The newest checkpoint and its state, or the initial state; either with the batches to skip after it."""
        checkpoint = broadcast_object(newest_checkpoint(self.setup.location) if self.rank == 0 else None)
        state = TrainState.from_json(_read(checkpoint.state)) if checkpoint else TrainState()
        # a batch of an earlier step that is not in the state was skipped by another run: it was used for this state
        upcoming = [skip for skip in skipped if skip.step > state.step and skip not in state.skipped]
        return checkpoint, replace(state, skipped=[*state.skipped, *upcoming])

    def _model(self, init: SourceFile | None) -> nn.Module:
        """A model with random weights, or with those of `init`."""
        config, pieces, nsp = self.config, self.setup.pieces, self.setup.nsp
        model = pretraining_model(
            config.model,
            len(pieces),
            config.seed,
            nsp=nsp,
            activation_checkpointing=config.activation_checkpointing,
        )
        if init:
            initial = initial_weights(init, config.model, None, nsp=nsp)  # the driver has compared the vocabularies
            model.load_state_dict(initial.weights, strict=False)  # heads that are missing there stay random
        return model

    def _initial_tensors(self) -> Tensors:
        """The engine's tensors before the first step."""
        weights = {name: parameter.detach() for name, parameter in self._model(self.setup.init).named_parameters()}
        zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return {"model": weights, "exp_avg": zeros, "exp_avg_sq": zeros}

    def _done(self, steps_ahead: int = 0) -> float:
        """How much of `config.extent` is done, including `steps_ahead` steps that are not counted yet."""
        return self.config.done(self.state.step + steps_ahead, self.state.seconds)

    def _note(self) -> str:
        """The note shown with the progress."""
        step = "" if self.config.total_steps else f"step {self.state.step}"
        return ", ".join(filter(None, (step, f"loss {self.loss:.3f}", self.history, self.saver.failure)))


def _read(read: Callable[[], Value]) -> Value:
    """Read from a checkpoint that was complete a moment ago.

    Raises OSError if another run has pruned it since: the next group of workers then looks for the newest one again.
    """
    try:
        return read()
    except UserError as error:
        raise OSError(str(error)) from error


def keyed_seed(seed: int, step: int, rank: int) -> int:
    """The dropout seed of a worker in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def _peak_memory(device: torch.device) -> int:
    """The peak memory of this worker in bytes: of its GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux reports KiB


def _compiles(config: PretrainConfig, device: torch.device) -> bool:
    """Whether layers are compiled. ZeRO-3 gathers each layer's weights as it runs, which a compiled layer cannot."""
    if config.compile == "auto":
        return config.zero_stage < 3 and can_compile(device)
    return config.compile


def _precision(config: PretrainConfig) -> Precision:
    """The configured precision, or the fastest one if it is auto."""
    if config.precision != "auto":
        return config.precision
    device = worker_device()
    return fastest_precision(device, partial(layer_seconds, config.model, device))


def train_in_worker(argument: tuple[PretrainSetup, StepHook | None], report_progress: ReportProgress) -> None:
    """The function that every worker runs, again after each failure of the group."""
    setup, on_step = argument
    if world_size() == 1:  # a single worker has nothing to partition; without ZeRO a small step is a sixth faster
        setup = replace(setup, config=setup.config.model_copy(update={"zero_stage": 0}))
    PretrainTrainer(setup, report_progress, on_step, is_preempted).train()
