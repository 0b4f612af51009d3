"""One worker's part of pretraining; `Trainer.train` is the loop: take a batch, step, judge the loss, log, save.

A step depends on nothing but the weights before it and its number, by which data, masks and dropout are keyed: the same
processors with the same workers give the same bits. What happens when

    a loss spikes        the weights are spoiled by the time it is seen: all workers go back to the newest checkpoint,
                         and step over that step's batch when they come to it again; after `max_rollbacks` training
                         ends with one line (`_fault`, `_go_back`, loss_spikes.py)
    a worker is lost     its group ends. The next one, of at most `max_failures`, begins with `Trainer.__init__` from
                         the newest checkpoint: the steps since then are made again (ray_train.py, elastic.py)
    a node gives notice  heard within five seconds: the last finished step is saved, training goes on, and the loss of
                         the node is no failure (run_control.py)
    the driver asks to stop (SIGTERM, or to make room for a larger group)
                         the last finished step is saved and training ends: the same command goes on from there
                         (run_control.py, heartbeat.py)
    the disk is full     a checkpoint is tried three times, then training goes on without it; only the last one has to
                         be written (async_save.py, `_save`)
    the budget ends      seen after each step: it is the last of its phase, and of training if it is the last phase's.
                         The learning rate falls to zero towards that time (`_end_phase`, `_learning_rate`)
"""

import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import nn

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.masking import mask_rules
from cloze.training.checkpoints.checkpoint import (
    KINDS,
    CheckpointRef,
    Heldout,
    SavedConfig,
    Standing,
    Tensors,
    newest,
)
from cloze.training.checkpoints.warm_start import starting_weights
from cloze.training.cluster.collectives import Item, agreed, new_exchange
from cloze.training.cluster.heartbeat import Tell
from cloze.training.cluster.ray_train import group_size, node_is_going
from cloze.training.model.architectures import pretraining_model
from cloze.training.model.hardware import Peak, fastest, layer_seconds, peak, processor, worker_device
from cloze.training.model.optim import LossScale, Precision, learning_rate_at, learning_rate_in_time
from cloze.training.pretrain import loss_spikes
from cloze.training.pretrain.async_save import AsyncSaver
from cloze.training.pretrain.baselines import Baseline, unigram_baseline
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.data_loader import Batch, Examples, Masking, Prefetched, Rows, batch, paired, share
from cloze.training.pretrain.engine import Engine
from cloze.training.pretrain.loss_spikes import Fault, RecentSteps, Skip
from cloze.training.pretrain.metrics import Recorder
from cloze.training.pretrain.objective import Step
from cloze.training.pretrain.run_control import RunControl

Hook = Callable[[int, int], None]  # called in each worker with its rank and the number of steps done

_HELDOUT_SEED = 0  # the same held-out examples for every run


@dataclass(frozen=True)
class Setup:
    """What every worker is given."""

    config: PretrainConfig
    examples: tuple[Artifact, ...]  # of each phase
    location: Location
    pieces: tuple[str, ...]  # of the vocabulary
    init: SourceFile | None = None  # another model's weights

    @property
    def nsp(self) -> bool:
        """Whether the model has a head for pairs."""
        return paired(self.examples)


@dataclass
class TrainState:
    """Where training stands: what a checkpoint stores beside the weights and their moments."""

    step: int = 0  # steps done
    phase: int = 0  # of the next step
    phase_start: int = 0  # steps before that phase
    seconds: float = 0.0  # of training, by the clock of worker 0; steps that were undone have taken theirs
    updates: int = 0  # fewer than the steps where fp16's gradients overflowed
    loss_scale: LossScale | None = None
    recent: RecentSteps = field(default_factory=RecentSteps)  # what the next step is judged by
    skipped: Sequence[Skip] = ()
    metrics: Recorder = field(default_factory=Recorder)
    heldout: Heldout | None = None  # of this very step, where it was evaluated
    precision: Precision | None = None  # None until it is chosen
    workers: int = 0
    processor: str = ""
    peak: Peak | None = None

    def to_json(self) -> dict[str, Any]:
        """A checkpoint's state.json; `heldout` is in its manifest.json."""
        return {
            "step": self.step,
            "phase": self.phase,
            "first": self.phase_start,
            "spent": self.seconds,
            "updates": self.updates,
            "precision": self.precision,
            "loss_scale": self.loss_scale,
            "processor": self.processor,
            "workers": self.workers,
            "peak": self.peak and self.peak._asdict(),
            "metrics": self.metrics.state(),
            "recent": self.recent.to_json(),
            "skipped": [asdict(skip) for skip in self.skipped],
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        return cls(
            step=saved["step"],
            phase=saved["phase"],
            phase_start=saved["first"],
            seconds=saved["spent"],
            updates=saved["updates"],
            loss_scale=LossScale(*saved["loss_scale"]) if saved["loss_scale"] else None,
            recent=RecentSteps(*saved["recent"]),
            skipped=[Skip(**skip) for skip in saved["skipped"]],
            metrics=Recorder(saved["metrics"]),
            precision=saved["precision"],
            workers=saved["workers"],
            processor=saved["processor"],
            peak=Peak(**saved["peak"]),
        )


class Trainer:
    """One worker of the group: it differs from the others by its rank alone."""

    def __init__(
        self, setup: Setup, tell: Tell, on_step: Hook | None, preempted: Callable[[], bool] = lambda: False
    ) -> None:
        """Stands where the newest checkpoint does, or at the beginning. `tell` and `preempted`: see RunControl."""
        self.setup, self.config, self.on_step = setup, setup.config, on_step
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.control = RunControl(tell, preempted)
        self.history, self.loss = "", math.nan  # shown beside the progress: where training went on, the last loss
        self.saver = AsyncSaver(
            setup.location,
            self.config.keep_checkpoints,
            show=lambda note: tell(self._done(), note),
            exchange=new_exchange(self.workers),
        )
        noted = agreed(loss_spikes.noted(setup.location) if self.rank == 0 else [])
        checkpoint, state = self._newest(noted)
        if checkpoint:
            with_others = f" with {self.workers} workers, {state.workers} before"
            self.history = f"went on from step {state.step}{with_others if state.workers != self.workers else ''}"
        device, precision = worker_device(), state.precision or _precision(self.config)
        self.engine = Engine(
            self._model(None if checkpoint else setup.init),
            self.config.optimizer,
            zero_stage=self.config.zero_stage,
            precision=precision,
            more=self.config.deepspeed,
        )
        self.state = replace(
            state,
            precision=precision,
            workers=self.workers,
            processor=processor(device),
            peak=peak(device, precision),
        )
        if checkpoint:
            self.engine.load(_read(checkpoint.tensors), state.updates, state.loss_scale)

    def train(self) -> None:
        """From the next step to the last one of the last phase, or to where the driver wants an end."""
        config, engine, data = self.config, self.engine, PhaseData(self.setup, self.rank, self.workers)
        self.control.start(self.state.seconds)
        leaving = False
        try:
            while not self.is_over and not leaving:
                data.open(self.state)
                if self.state.step == self.state.phase_start:
                    self.state.recent.forget()
                began = time.monotonic()
                batch, waited = data.next()
                learning_rate, dropout_seed = self._learning_rate(), self._dropout_seed()
                step = engine.step(batch.micro_batches, learning_rate, dropout_seed, self._between_micro_batches)
                if step is None:  # all workers have left it; the weights are those of the step before
                    self._save(wait=True)
                    break
                if fault := self._fault(step, batch):
                    data.close()
                    self._go_back(fault)
                    continue
                self._count(step, time.monotonic() - began, waited)
                leaving, noticed, self.state.seconds = self.control.after_step(self._done(), self._note())
                phase_ended = self._end_phase()
                if self.is_over or self.state.step % config.log_every == 0:
                    self._log(learning_rate, step)
                if phase_ended or self.state.step % config.eval_every == 0:
                    self._evaluate(data)
                if self.is_over or leaving or noticed or self.state.step % config.checkpoint_every == 0:
                    self._save(wait=self.is_over or leaving)
                if self.on_step:
                    self.on_step(self.rank, self.state.step)
        finally:
            data.close()
            self.saver.close()

    @property
    def is_over(self) -> bool:
        """Whether all phases have had their steps."""
        return self.state.phase == len(self.config.phases)

    def _learning_rate(self) -> float:
        """Of the next step, by how much of all steps, or of the time, is over."""
        optimizer, total, budget = self.config.optimizer, self.config.total_steps, self.config.budget_seconds
        if total:
            return learning_rate_at(self.state.step, optimizer, total)
        assert budget, "neither steps nor time"
        return learning_rate_in_time(self.state.step, optimizer, self.state.seconds / budget)

    def _dropout_seed(self) -> int:
        """Of this worker in the next step."""
        return keyed_seed(self.config.seed, self.state.step, self.rank)

    def _between_micro_batches(self) -> bool:
        """In a long step: save at the notice that a node goes. Whether to leave the step."""
        decision = self.control.within_step(self._done(), self._note())
        if decision and decision.save and not decision.leave:
            self._save(wait=False)
        return decision is not None and decision.leave

    def _fault(self, step: Step, batch: "GlobalBatch") -> Fault | None:
        """What is wrong with a step, if anything. All workers judge the same sums; to read them waits for a GPU."""
        loss, config = step.totals.means()["loss"], self.config
        if step.overflowed and math.isfinite(loss):  # no weight was changed, and a lower loss scale helps
            return None
        number = self.state.step + 1
        factor = config.guard_factor if number > config.optimizer.warmup_steps else None
        found = self.state.recent.fault(loss, step.grad_norm, factor)
        if found is None:
            return None
        reason, value = found
        skip = Skip(number, self.state.phase, batch.number, reason, str(value), batch.examples)
        return Fault(skip, loss, step.grad_norm)

    def _go_back(self, fault: Fault) -> None:
        """Undo what was done since the newest checkpoint, and note the batch that is not to be used again."""
        skip, now = fault.skip, self.state
        if len(now.skipped) >= self.config.max_rollbacks:
            raise UserError(
                f"pretrain: loss {fault.loss} and gradient norm {fault.grad_norm} at step {skip.step}; "
                "lower pretrain.optimizer.learning_rate or raise its warmup_steps "
                f"({skip.reason}; batches skipped before: {len(now.skipped)})"
            )
        skipped = [*now.skipped, skip]
        self.saver.save_skips(skip.step, skipped, self.rank)
        checkpoint, state = self._newest(skipped)
        self.state = replace(
            state,
            seconds=max(state.seconds, now.seconds),
            precision=now.precision,
            workers=now.workers,
            processor=now.processor,
            peak=now.peak,
        )
        self.history = f"went back to step {state.step}, {len(state.skipped)} batches skipped"
        tensors = _read(checkpoint.tensors) if checkpoint else self._first_tensors()
        self.engine.load(tensors, state.updates, state.loss_scale)

    def _count(self, step: Step, seconds: float, waited: float) -> None:
        """A step is done, in so many seconds, of which `waited` were spent on waiting for data."""
        state, self.loss = self.state, step.totals.means()["loss"]
        state.step += 1
        state.updates, state.loss_scale, state.heldout = self.engine.updates, self.engine.loss_scale, None
        state.metrics.add(step.totals, seconds, waited)

    def _end_phase(self) -> bool:
        """Go to the next phase when this one has had its steps, or the time of all phases up to it is over."""
        state, budget = self.state, self.config.budget_seconds
        if budget is None:
            ended = state.step - state.phase_start == self.config.phases[state.phase].steps
        else:
            ended = state.seconds >= budget * sum(self.config.shares[: state.phase + 1])
        if ended:
            state.phase, state.phase_start = state.phase + 1, state.step
        return ended

    def _log(self, learning_rate: float, step: Step) -> None:
        """A row of metrics; of fp16, the loss scale and the steps without an update because gradients overflowed."""
        state, scale = self.state, self.state.loss_scale
        assert state.peak
        state.metrics.train_row(
            state.step,
            partial(self.config.model.training_flops, vocab_size=len(self.setup.pieces)),
            state.peak.flops,
            learning_rate=learning_rate,
            **({} if step.overflowed else {"grad_norm": step.grad_norm}),  # infinity is no JSON
            **({"loss_scale": scale.factor, "overflows": state.step - state.updates} if scale else {}),
            skipped=len(state.skipped),
            peak_memory=_peak_memory(self.engine.device),
        )
        if self.rank == 0:
            self.saver.save_metrics(state.metrics.rows)

    def _evaluate(self, data: "PhaseData") -> None:
        """On the held-out examples of the phase in which the step was."""
        totals = self.engine.evaluate(iter(data.heldout))
        self.state.metrics.heldout_row(self.state.step, totals, data.unigram)
        loss = totals.means()["loss"]
        self.state.heldout = Heldout(phase=data.phase, loss=loss) if math.isfinite(loss) else None

    def _save(self, wait: bool) -> None:
        """Each worker writes its kinds of tensors, in the background unless the workers `wait` before they end."""
        state = self.state
        self.saver.wait()  # or two checkpoints were in memory at once
        tensors = self.engine.tensors(KINDS[self.rank :: self.workers])
        standing = None
        if self.rank == 0:
            saved = SavedConfig(model=self.config.model, vocab_size=len(self.setup.pieces), nsp=self.setup.nsp)
            standing = Standing(saved, state.to_json(), state.heldout, self.is_over)
        self.saver.save(state.step, tensors, standing)
        if wait:
            self.saver.wait()
            if self.saver.failed and self.is_over:  # else the checkpoint before is there to go on from
                raise UserError(
                    f"{self.setup.location}: the last checkpoint cannot be written ({self.saver.failed}); "
                    "make room and run again, it goes on from the newest that is whole"
                )

    def _newest(self, skips: Sequence[Skip]) -> tuple[CheckpointRef | None, TrainState]:
        """The newest checkpoint and its state, or the state of the beginning; batches of `skips` will be skipped."""
        checkpoint = agreed(newest(self.setup.location) if self.rank == 0 else None)
        state = TrainState.from_json(_read(checkpoint.state)) if checkpoint else TrainState()
        # one of a step before this that the state does not have was skipped by another run, not on the way here
        to_come = [skip for skip in skips if skip.step > state.step and skip not in state.skipped]
        return checkpoint, replace(state, skipped=[*state.skipped, *to_come])

    def _model(self, init: SourceFile | None) -> nn.Module:
        """With random weights, or those of another model."""
        config, pieces, nsp = self.config, self.setup.pieces, self.setup.nsp
        model = pretraining_model(
            config.model,
            len(pieces),
            config.seed,
            nsp=nsp,
            activation_checkpointing=config.activation_checkpointing,
        )
        if init:
            found = starting_weights(init, config.model, None, nsp=nsp)  # the driver has compared the vocabularies
            model.load_state_dict(found.weights, strict=False)  # a head that they lack stays random
        return model

    def _first_tensors(self) -> Tensors:
        """The engine's before its first step."""
        weights = {name: parameter.detach() for name, parameter in self._model(self.setup.init).named_parameters()}
        zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        return {"model": weights, "exp_avg": zeros, "exp_avg_sq": zeros}

    def _done(self) -> float:
        """How much of `config.extent` is done."""
        return self.config.done(self.state.step, self.state.seconds)

    def _note(self) -> str:
        step = "" if self.config.total_steps else f"step {self.state.step}"
        return ", ".join(filter(None, (step, f"loss {self.loss:.3f}", self.history, self.saver.failed)))


class GlobalBatch(NamedTuple):
    """The examples of one step of all workers."""

    number: int  # its place in the phase's data
    rows: Rows
    micro_batches: list[Batch]  # this worker's

    @property
    def examples(self) -> list[list[int]]:
        """The epoch and the index of each."""
        return [[int(epoch), int(index)] for epoch, index in zip(self.rows.epoch, self.rows.index, strict=True)]


class PhaseData:
    """The examples of the phase in which training stands, made ready by a thread: one worker's part of them."""

    def __init__(self, setup: Setup, rank: int, workers: int) -> None:
        self._setup, self._rank, self._workers = setup, rank, workers
        self._batches: Prefetched[GlobalBatch] | None = None
        self.phase = -1
        self.heldout: list[list[Batch]] = []  # what evaluations look at, in global batches
        self.unigram = Baseline(math.nan, math.nan)  # what is scored on these without a model

    def open(self, state: TrainState) -> None:
        """Stand before the next step's batch; nothing to do unless that is of another phase, or this is closed."""
        if self._batches and self.phase == state.phase:
            return
        self.close()
        self.phase, config, artifact = state.phase, self._setup.config, self._setup.examples[state.phase]
        examples, heldout = Examples(artifact, "train"), Examples(artifact, "heldout")
        masking = None if examples.masked else _masking(config.seed, artifact, self._setup.pieces)
        size = config.global_batch_size
        sample = heldout.sample(_HELDOUT_SEED, config.eval_batches * size, size)
        self.heldout = [self._share(rows) for rows in sample]
        if self._rank == 0:  # which alone has to read the examples for it
            self.unigram = unigram_baseline(examples, sample, self._setup.pieces)
        self.unigram = agreed(self.unigram)
        skipped = {skip.batch for skip in state.skipped if skip.phase == state.phase}
        first = loss_spikes.place(state.step - state.phase_start, skipped)
        self._batches = Prefetched(self._from(first, examples, masking, skipped))

    def next(self) -> tuple[GlobalBatch, float]:
        """The batch, and the seconds that were spent on waiting for it."""
        assert self._batches
        before = self._batches.waited
        return next(self._batches), self._batches.waited - before

    def close(self) -> None:
        if self._batches:
            self._batches.close()
            self._batches = None

    def _from(
        self, first: int, examples: Examples, masking: Masking | None, skipped: set[int]
    ) -> Iterator[GlobalBatch]:
        """The phase's batches from the `first` on, without those to be skipped."""
        config, size = self._setup.config, self._setup.config.global_batch_size
        batches = examples.batches(config.seed, first * size, size, config.group_by_length)
        for number, rows in enumerate(batches, first):
            if number not in skipped:
                yield GlobalBatch(number, rows, self._share(rows, masking))

    def _share(self, rows: Rows, masking: Masking | None = None) -> list[Batch]:
        pieces = share(rows, self._rank, self._workers, self._setup.config.micro_batch_size)
        return [batch(piece, masking) for piece in pieces]


def _masking(seed: int, examples: Artifact, pieces: Sequence[str]) -> Masking:
    """Masks drawn anew for each epoch, by the rules with which the held-out examples were masked once."""
    made_with = examples.manifest.config
    names = ("masked_lm_prob", "max_predictions_per_seq", "mask_unit")
    return Masking(seed, mask_rules(pieces, *(made_with[name] for name in names)))


def _read(what: Callable[[], Item]) -> Item:
    """Of a checkpoint that was whole a moment ago. Raises OSError where another run has pruned it since: the next group
    of workers looks for the newest anew."""
    try:
        return what()
    except UserError as error:
        raise OSError(str(error)) from error


def keyed_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's dropout in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def _peak_memory(device: torch.device) -> int:
    """The most bytes that this worker has held: of its GPU's memory where it has one, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _precision(config: PretrainConfig) -> Precision:
    """As it is wanted; if the choice is ours, what is the fastest here."""
    if config.precision != "auto":
        return config.precision
    device = worker_device()
    return fastest(device, partial(layer_seconds, config.model, device))


def work(argument: tuple[Setup, Hook | None], tell: Tell) -> None:
    """What every worker does, again after each failure of the group."""
    setup, on_step = argument
    if group_size() == 1:  # one has nobody to split with, and saves a sixth of a small step
        setup = replace(setup, config=setup.config.model_copy(update={"zero_stage": 0}))
    Trainer(setup, tell, on_step, node_is_going).train()
