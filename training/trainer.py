"""One worker's part of pretraining: its steps, what it does about those at fault, when it saves and when it leaves.

A step depends on nothing but the weights before it and its number, by which data, masks and dropout are keyed: the same
processors with the same workers give the same bits. One whose loss or gradient is at fault (training/guards.py) has
spoiled the weights by the time it is seen: all workers go back to the newest checkpoint, and step over that step's
batch when they come to it again.
"""

import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist

from pipeline import json_lines
from pipeline.artifacts import Artifact, SourceFile
from pipeline.config import UserError
from pipeline.masking import mask_rules
from pipeline.storage import Location
from training import events, guards
from training.agreement import Item, agreed, new_exchange
from training.checkpoint import KINDS, CheckpointRef, Heldout, SavedConfig, Standing, Tensors, newest, prune, save
from training.data import Batch, Examples, Masking, Prefetched, Rows, batch, paired, share
from training.device import Precision, fastest, layer_seconds, peak, processor, worker_device
from training.engine import Engine
from training.guards import Fault, Guard, Skip
from training.metrics import Baseline
from training.model import BertForPreTraining
from training.optim import LossScale, learning_rate_at, learning_rate_in_time
from training.record import Recorder, Row, training_flops
from training.saves import Saves
from training.start import starting_weights
from training.unigram import unigram_baseline
from training.workers import Tell

if TYPE_CHECKING:
    from training.pretrain import PretrainConfig

Hook = Callable[[int, int], None]  # called in each worker with its rank and the number of steps done

_LONG_STEP = 2.0  # seconds, from which on a step is left between its micro-batches
_ASK_SECONDS = 5.0  # between two looks for a notice that a node will be taken away
_WRITE_SECONDS = 30.0  # after which metrics are written though no checkpoint is
_HELDOUT_SEED = 0  # the same held-out examples for every run


@dataclass(frozen=True)
class Setup:
    """What every worker is given."""

    config: "PretrainConfig"
    examples: tuple[Artifact, ...]  # of each phase
    location: Location
    pieces: tuple[str, ...]  # of the vocabulary
    init: SourceFile | None = None  # another model's weights

    @property
    def nsp(self) -> bool:
        """Whether the model has a head for pairs."""
        return paired(self.examples)


class Turn(NamedTuple):
    """A global batch: its place in the phase's data, its examples, and what of it is this worker's."""

    number: int
    rows: Rows
    batches: list[Batch]


class _Left(Exception):
    """A step that all workers have left between its micro-batches."""


class Worker:
    """One worker's part of the training: it differs from the others' by `rank` alone."""

    def __init__(
        self, setup: Setup, tell: Tell, on_step: Hook | None, preempted: Callable[[], bool] = lambda: False
    ) -> None:
        """All workers ask `preempted` together now and then; it says whether a node will be taken away."""
        self.setup, self.config = setup, setup.config
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.tell, self.on_step, self.preempted = tell, on_step, preempted
        self.exchange = new_exchange(self.workers)
        self.saves = Saves(lambda note: tell(self._progress(), note), self.exchange)
        self.asked, self.warned = time.monotonic(), False
        self.written = time.monotonic()  # when the metrics were, by the clock
        self.wanted_out, self.leaving = False, False  # the driver's wish, and what all workers agreed on
        self.spent = 0.0  # seconds of training, by the clock of worker 0, up to the end of the last step
        self.step_seconds, self.loss = 0.0, math.nan  # of the last step
        noted = guards.noted(setup.location) if self.rank == 0 else []
        start, state = self._begin(agreed(noted))
        self.history = f"went on from step {self.step}{self._other_number(state)}" if start else ""
        self.precision: Precision = state.get("precision") or _precision(self.config)
        model = self._model(None if start else setup.init)
        self.engine = Engine(
            model,
            self.config.optimizer,
            zero_stage=self.config.zero_stage,
            precision=self.precision,
            more=self.config.deepspeed,
        )
        self.peak = peak(self.engine.device, self.precision)
        if start:
            self.engine.load(_read(start.tensors), state["updates"], _loss_scale(state))

    def _begin(self, known: Sequence[Skip]) -> tuple[CheckpointRef | None, dict[str, Any]]:
        """Stand where the newest checkpoint does, or at the beginning; the weights are still to be loaded."""
        start = agreed(newest(self.setup.location) if self.rank == 0 else None)
        state = _read(start.state) if start else {}
        self.step: int = state.get("step", 0)
        self.phase: int = state.get("phase", 0)
        self.first: int = state.get("first", 0)  # steps before this phase
        self.spent = max(self.spent, state.get("spent", 0.0))  # what was undone has taken its time
        skipped = [Skip(**row) for row in state.get("skipped", [])]
        # one of a step before this that the state does not have was skipped by another run, not on the way here
        self.skipped = skipped + [skip for skip in known if skip.step > self.step and skip not in skipped]
        self.recorder, self.events = Recorder(state.get("metrics")), events.EventFile()
        remembered = state.get("recent", ((), ()))
        self.guard = Guard(self.config.guard_factor, self.config.optimizer.warmup_steps, remembered)
        self.heldout: Heldout | None = None  # as it was evaluated at this step
        return start, state

    def _other_number(self, state: Mapping[str, Any]) -> str:
        before = state["workers"]
        return f" with {self.workers} workers, {before} before" if before != self.workers else ""

    def train(self) -> None:
        """From the checkpoint to the last step of the last phase, or to where the driver wants an end."""
        self.since = time.monotonic() - self.spent
        try:
            while not self._done() and not self.leaving:
                try:
                    self._train_phase()
                except Fault as fault:
                    self._go_back(fault)
        finally:
            self.saves.close()

    def _done(self) -> bool:
        return self.phase == len(self.config.phases)

    def _train_phase(self) -> None:
        """To the end of the phase in which the next step is."""
        number, first, size = self.phase, self.first, self.config.global_batch_size
        artifact = self.setup.examples[number]
        examples, heldout = Examples(artifact, "train"), Examples(artifact, "heldout")
        masking = None if examples.masked else _masking(self.config.seed, artifact, self.setup.pieces)
        evaluated = heldout.sample(_HELDOUT_SEED, self.config.eval_batches * size, size)
        sample = [self._share(rows) for rows in evaluated]
        unigram = agreed(self._unigram(examples, evaluated))
        if self.step == first:
            self.guard.forget()
        steps = Prefetched(
            Turn(place, rows, self._share(rows, masking)) for place, rows in self._data(examples, number, first)
        )
        try:
            while self.phase == number and not self.leaving:
                try:
                    now = self._step(steps, number)
                except _Left:
                    self._save(last=True)
                    break
                warned = self._look()
                if self._phase_is_over():
                    self.phase, self.first = number + 1, self.step
                if self._done() or self.step % self.config.log_every == 0:
                    self._log(now)
                if self.phase > number or self.step % self.config.eval_every == 0:
                    self._evaluate(sample, number, unigram)
                if self._done() or warned or self.leaving or self.step % self.config.checkpoint_every == 0:
                    self._save(self._done() or self.leaving)
                if self.on_step:
                    self.on_step(self.rank, self.step)
        finally:
            steps.close()

    def _unigram(self, train: Examples, heldout: Sequence[Rows]) -> Baseline:
        """Worker 0's, which alone has to read the examples for it."""
        return unigram_baseline(train, heldout, self.setup.pieces) if self.rank == 0 else Baseline(math.nan, math.nan)

    def _log(self, of_now: Mapping[str, float]) -> None:
        self.recorder.train_row(
            self.step,
            partial(training_flops, model=self.config.model, vocab_size=len(self.setup.pieces)),
            self.peak.flops,
            **of_now,
            **self._scaling(),
            skipped=len(self.skipped),
            peak_memory=_peak_memory(self.engine.device),
        )
        if self.rank == 0 and time.monotonic() - self.written > _WRITE_SECONDS:
            self.written = time.monotonic()
            self.saves.between(partial(self._write_metrics, list(self.recorder.rows)))

    def _phase_is_over(self) -> bool:
        """Whether the phase has had its steps, or the time of all up to it is over."""
        budget = self.config.budget_seconds
        if budget is None:
            return self.step - self.first == self.config.phases[self.phase].steps
        return self.spent >= budget * sum(self.config.shares[: self.phase + 1])

    def _learning_rate(self) -> float:
        optimizer, total, budget = self.config.optimizer, self.config.total_steps, self.config.budget_seconds
        if total:
            return learning_rate_at(self.step, optimizer, total)
        assert budget, "neither steps nor time"
        return learning_rate_in_time(self.step, optimizer, self.spent / budget)

    def _data(self, examples: Examples, phase: int, first: int) -> Iterator[tuple[int, Rows]]:
        """From the next step on: each global batch with its place in the phase's data, without those to be skipped."""
        skipped, size = {skip.batch for skip in self.skipped if skip.phase == phase}, self.config.global_batch_size
        start = guards.place(self.step - first, skipped)
        batches = examples.batches(self.config.seed, start * size, size, self.config.group_by_length)
        return ((place, rows) for place, rows in enumerate(batches, start) if place not in skipped)

    def _share(self, rows: Rows, masking: Masking | None = None) -> list[Batch]:
        pieces = share(rows, self.rank, self.workers, self.config.micro_batch_size)
        return [batch(piece, masking) for piece in pieces]

    def _step(self, steps: Prefetched[Turn], phase: int) -> dict[str, float]:
        """One update; what of it belongs into a row of metrics, beside the means."""
        began, waited, rate = time.monotonic(), steps.waited, self._learning_rate()
        turn = next(steps)
        noise = _noise(self.config.seed, self.step, self.rank)
        done = self.engine.step(turn.batches, rate, noise, self._between)
        totals, grad_norm = done.totals, done.grad_norm
        loss = totals.means()["loss"]
        passed = done.overflowed and math.isfinite(loss)  # no weight was changed, and a lower loss scale mends it
        fault = None if passed else self.guard.fault(self.step + 1, loss, grad_norm)
        if fault:  # all workers judge the same sums
            examples = [[int(epoch), int(index)] for epoch, index in zip(turn.rows.epoch, turn.rows.index, strict=True)]
            skip = Skip(self.step + 1, phase, turn.number, fault[0], str(fault[1]), examples)
            raise Fault(skip, loss, grad_norm)
        self.step += 1
        self.heldout = None
        self.recorder.add(totals, time.monotonic() - began, steps.waited - waited)
        self.loss = loss
        self._tell()
        return {"learning_rate": rate, **({} if passed else {"grad_norm": grad_norm})}  # infinity is no JSON

    def _tell(self) -> None:
        """Show how far training is, and hear whether the driver wants it to leave."""
        step = "" if self.config.total_steps else f"step {self.step}"
        notes = (step, f"loss {self.loss:.3f}", self.history, self.saves.failed)
        self.wanted_out = self.tell(self._progress(), ", ".join(filter(None, notes)))

    def _progress(self) -> float:
        return self.config.done(self.step, self.spent)

    def _between(self) -> None:
        """Between a long step's micro-batches: leave where the driver wants it, save when a node's end is announced.

        All workers took the step before to be long, or none.
        """
        if self.step_seconds > _LONG_STEP:
            self._tell()
            _, warned = self._hear()
            if self.leaving:
                raise _Left
            if warned:
                self._save(last=False)

    def _scaling(self) -> dict[str, float]:
        """What a row says of fp16: the loss scale, and the steps without an update because gradients overflowed."""
        scale = self.engine.loss_scale
        return {"loss_scale": scale.factor, "overflows": self.step - self.engine.updates} if scale else {}

    def _evaluate(self, sample: Sequence[list[Batch]], phase: int, unigram: Baseline) -> None:
        totals = self.engine.evaluate(iter(sample))
        self.recorder.heldout_row(self.step, totals, unigram)
        loss = totals.means()["loss"]
        self.heldout = Heldout(phase=phase, loss=loss) if math.isfinite(loss) else None

    def _look(self) -> bool:
        """After a step: agree on the time that is spent; whether a node's end has just been announced."""
        before, (self.spent, warned) = self.spent, self._hear()
        self.step_seconds = self.spent - before
        return warned

    def _hear(self) -> tuple[float, bool]:
        """Agree on whether to leave, as the driver wants it; the time by worker 0's clock, and whether a node's end has
        just been announced."""
        now = time.monotonic()
        ask = self.rank == 0 and not self.warned and now - self.asked > _ASK_SECONDS
        asking, spent = self._agree(ask, now - self.since)
        if not asking:
            return spent, False
        self.asked, self.warned = now, self.preempted()
        return spent, self.warned

    def _agree(self, *of_worker_0: float) -> list[float]:
        """Whether to leave, and worker 0's numbers (none below 0), in every worker."""
        mine = of_worker_0 if self.rank == 0 else [0.0] * len(of_worker_0)
        told = torch.tensor([self.wanted_out, *mine], dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        leaving, *numbers = told.tolist()
        self.leaving = bool(leaving)
        return numbers

    def _go_back(self, fault: Fault) -> None:
        """Undo what was done since the newest checkpoint, and note the batch that is not to be used again."""
        skip, known = fault.skip, [*self.skipped, fault.skip]
        if len(self.skipped) >= self.config.max_rollbacks:
            raise UserError(
                f"pretrain: loss {fault.loss} and gradient norm {fault.grad_norm} at step {skip.step}; "
                "lower pretrain.optimizer.learning_rate or raise its warmup_steps "
                f"({skip.reason}; batches skipped before: {len(self.skipped)})"
            )
        note = partial((self.setup.location / guards.FILE).write_bytes, guards.lines(known))
        self.saves.begin(skip.step, note if self.rank == 0 else lambda: None, guards.FILE)
        self.saves.wait()
        start, state = self._begin(known)
        self.history = f"went back to step {self.step}, {len(self.skipped)} batches skipped"
        self.engine.load(
            _read(start.tensors) if start else self._first_tensors(), state.get("updates", 0), _loss_scale(state)
        )

    def _model(self, init: SourceFile | None) -> BertForPreTraining:
        """With random weights, or those of another model."""
        config, pieces, nsp = self.config, self.setup.pieces, self.setup.nsp
        model = BertForPreTraining(
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

    def _save(self, last: bool) -> None:
        """Each worker writes its kinds of tensors, in the background unless it is the last thing that the workers do; a
        fault is none of training."""
        self.saves.wait()  # or two checkpoints were in memory at once
        tensors = self.engine.tensors(KINDS[self.rank :: self.workers])
        standing = Standing(self._saved_config(), self._state(), self.heldout, self._done()) if self.rank == 0 else None
        self.saves.begin(self.step, partial(self._write, self.step, tensors, standing))
        if last:
            self.saves.wait()
            if self.saves.failed and self._done():  # else the checkpoint before is there to go on from
                raise UserError(
                    f"{self.setup.location}: the last checkpoint cannot be written ({self.saves.failed}); "
                    "make room and run again, it goes on from the newest that is whole"
                )

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "phase": self.phase,
            "first": self.first,
            "spent": self.spent,
            "updates": self.engine.updates,
            "precision": self.precision,
            "loss_scale": self.engine.loss_scale,
            "processor": processor(self.engine.device),
            "workers": self.workers,
            "peak": self.peak._asdict(),
            "metrics": self.recorder.state(),
            "recent": self.guard.state(),
            "skipped": [asdict(skip) for skip in self.skipped],
        }

    def _saved_config(self) -> SavedConfig:
        return SavedConfig(model=self.config.model, vocab_size=len(self.setup.pieces), nsp=self.setup.nsp)

    def _write(self, step: int, tensors: Tensors, standing: Standing | None) -> None:
        save(self.setup.location, step, tensors, standing, self.exchange)
        if standing:
            prune(self.setup.location, self.config.keep_checkpoints)
            self._write_metrics(standing.state["metrics"]["rows"])

    def _write_metrics(self, rows: Sequence[Row]) -> None:
        if (self.setup.location / "manifest.json").exists():  # another run of the same fingerprint has finished it
            return
        (self.setup.location / "metrics.jsonl").write_bytes(json_lines.encode(rows))
        (self.setup.location / events.FILE).write_bytes(self.events(rows))


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


def _noise(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's dropout in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def _peak_memory(device: torch.device) -> int:
    """The most bytes that this worker has held: of its GPU's memory where it has one, else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _loss_scale(state: Mapping[str, Any]) -> LossScale | None:
    saved = state.get("loss_scale")
    return LossScale(*saved) if saved else None


def _precision(config: "PretrainConfig") -> Precision:
    """As it is wanted; if the choice is ours, what is the fastest here."""
    if config.precision != "auto":
        return config.precision
    device = worker_device()
    return fastest(device, partial(layer_seconds, config.model, device))


def work(argument: tuple[Setup, Hook | None], tell: Tell) -> None:
    """What every worker does, again after each failure of the group."""
    import ray.train

    setup, on_step = argument
    if ray.train.get_context().get_world_size() == 1:  # one has nobody to split with, and saves a sixth of a small step
        setup = replace(setup, config=setup.config.model_copy(update={"zero_stage": 0}))
    Worker(setup, tell, on_step, lambda: ray.train.get_preemption_info() is not None).train()
