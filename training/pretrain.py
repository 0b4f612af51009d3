"""examples -> a pretrained checkpoint: Ray Train runs the workers, DeepSpeed the updates, our checkpoints the restarts.

A worker that dies takes its group with it; Ray starts a new group, which goes on from the newest verified checkpoint,
and so does the same command after everything was killed. A step depends on nothing but the weights before it and its
number, by which data, masks and dropout are keyed: the same machine with the same workers gives the same bits.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.config import Compute, Config, UserError
from pipeline.masking import mask_rules
from pipeline.storage import Location
from training.checkpoint import CheckpointRef, SavedConfig, newest, prune, save
from training.data import Batch, Examples, Masking, Prefetched, Rows, batch, share
from training.model import BertConfig
from training.optim import OptimizerConfig, learning_rate_at
from training.record import Recorder, lines, summary
from training.workers import Group, Tell, fit

if TYPE_CHECKING:
    from training.engine import Precision

VERSION = 2

Hook = Callable[[int, int], None]  # called in each worker with its rank and the number of steps done

_SAVE_ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt
_HELDOUT_SEED = 0  # the same held-out examples for every run


class Phase(Config):
    """So many updates on the examples of one sequence length."""

    max_seq_length: int = Field(ge=8)
    max_predictions_per_seq: int = Field(gt=0)
    steps: int = Field(gt=0)


class PretrainConfig(Config):
    """What is trained, on what, for how long.

    What is marked Compute changes rounding alone, but that workers and micro_batch_size also change dropout's draws.
    """

    model: BertConfig
    phases: list[Phase] = Field(min_length=1)
    optimizer: OptimizerConfig
    global_batch_size: int = Field(gt=0)
    group_by_length: int = Field(default=64, gt=0)  # rows of like length that come together: a micro-batch, or more
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch_size: Annotated[int, Compute, Field(gt=0)] = 32
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    workers: Annotated[int | None, Compute, Field(gt=0)] = None  # one for each GPU, two without any
    threads: Annotated[int, Compute, Field(gt=0)] = 1  # of a worker's processor cores
    zero_stage: Annotated[Literal[0, 1, 2, 3], Compute] = 1
    checkpoint_every: Annotated[int, Compute, Field(gt=0)] = 1000
    keep_checkpoints: Annotated[int, Compute, Field(gt=0)] = 2
    log_every: Annotated[int, Compute, Field(gt=0)] = 50
    eval_every: Annotated[int, Compute, Field(gt=0)] = 1000
    eval_batches: Annotated[int, Compute, Field(gt=0)] = 16
    max_failures: Annotated[int, Compute, Field(ge=0)] = 3

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @model_validator(mode="after")
    def _warmup_ends(self) -> "PretrainConfig":
        warmup = self.optimizer.warmup_steps
        if warmup > self.total_steps:
            raise ValueError(f"optimizer.warmup_steps {warmup} is more than all {self.total_steps} steps; lower it")
        return self

    @model_validator(mode="after")
    def _positions_suffice(self) -> "PretrainConfig":
        longest = max(phase.max_seq_length for phase in self.phases)
        if longest > self.model.max_position_embeddings:
            raise ValueError(
                f"max_seq_length {longest} is more than the model's {self.model.max_position_embeddings} positions; "
                "raise model.max_position_embeddings"
            )
        return self


def examples_input(max_seq_length: int) -> str:
    """The name of the input that holds a phase's examples."""
    return f"examples-{max_seq_length}"


@dataclass(frozen=True)
class Setup:
    """What every worker is given."""

    config: PretrainConfig
    inputs: Mapping[str, Artifact]
    location: Location
    pieces: tuple[str, ...]  # of the vocabulary


# In a worker


class Worker:
    """One worker's part of the training: it differs from the others' by `rank` alone."""

    def __init__(self, setup: Setup, tell: Tell, on_step: Hook | None) -> None:
        import torch.distributed as dist

        from training.engine import Engine
        from training.model import BertForPreTraining

        self.setup, self.config = setup, setup.config
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.tell, self.on_step = tell, on_step
        self.unsaved = ""  # what is shown while the newest checkpoint could not be written
        start = _agreed(newest(setup.location) if self.rank == 0 else None)
        state = start.state() if start else {}
        self.step: int = state.get("step", 0)
        self.started_at = self.step
        self.precision: Precision = state.get("precision") or _precision(self.config.precision)
        self.recorder = Recorder(state.get("metrics"))
        model = BertForPreTraining(self.config.model, len(setup.pieces), self.config.seed)
        self.engine = Engine(model, self.config.optimizer, zero_stage=self.config.zero_stage, precision=self.precision)
        if start:
            self.engine.load(start.tensors(), state["updates"])

    def train(self) -> None:
        """From the checkpoint to the last step of the last phase."""
        first = 0
        for phase in self.config.phases:
            if self.step < first + phase.steps:
                self._phase(phase, first)
            first += phase.steps

    def _phase(self, phase: Phase, first: int) -> None:
        artifact = self.setup.inputs[examples_input(phase.max_seq_length)]
        examples, heldout = Examples(artifact, "train"), Examples(artifact, "heldout")
        size = self.config.global_batch_size
        masking = None if examples.masked else _masking(self.config.seed, artifact, self.setup.pieces)
        sample = [self._share(rows) for rows in heldout.sample(_HELDOUT_SEED, self.config.eval_batches * size, size)]
        position = (self.step - first) * size
        batches = examples.batches(self.config.seed, position, size, self.config.group_by_length)
        steps = Prefetched(self._share(rows, masking) for rows in batches)
        try:
            while self.step < first + phase.steps:
                self._step(steps)
                last = self.step == self.config.total_steps
                if last or self.step == first + phase.steps or self.step % self.config.eval_every == 0:
                    self.recorder.heldout_row(self.step, self.engine.evaluate(iter(sample)))
                if last or self.step % self.config.checkpoint_every == 0:
                    self._save(last)
                if self.on_step:
                    self.on_step(self.rank, self.step)
        finally:
            steps.close()

    def _share(self, rows: Rows, masking: Masking | None = None) -> list[Batch]:
        pieces = share(rows, self.rank, self.workers, self.config.micro_batch_size)
        return [batch(piece, masking) for piece in pieces]

    def _step(self, steps: Prefetched[list[Batch]]) -> None:
        began, waited = time.monotonic(), steps.waited
        rate = learning_rate_at(self.step, self.config.optimizer, self.config.total_steps)
        totals, grad_norm = self.engine.step(next(steps), rate, _noise(self.config.seed, self.step, self.rank))
        self.step += 1
        loss = totals.means()["loss"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):  # the same in every worker, and before it is saved
            raise UserError(
                f"pretrain: loss {loss} and gradient norm {grad_norm} at step {self.step}; "
                "lower pretrain.optimizer.learning_rate or raise its warmup_steps"
            )
        self.recorder.add(totals, time.monotonic() - began, steps.waited - waited)
        if self.step % self.config.log_every == 0 or self.step == self.config.total_steps:
            self.recorder.train_row(self.step, rate, grad_norm)
        resumed = f"went on from step {self.started_at}" if self.started_at else ""
        self.tell(self.step, ", ".join(filter(None, (f"loss {loss:.3f}", resumed, self.unsaved))))

    def _save(self, last: bool) -> None:
        """Worker 0 writes what all gather. A disk or an S3 that fails does not end training, but for the last step."""
        tensors = self.engine.tensors()
        if tensors is None:
            return
        from training.engine import processor

        state = {
            "step": self.step,
            "samples": self.step * self.config.global_batch_size,
            "updates": self.engine.updates,
            "precision": self.precision,
            "processor": processor(self.engine.device),
            "workers": self.workers,
            "metrics": self.recorder.state(),
        }
        saved = SavedConfig(model=self.config.model, vocab_size=len(self.setup.pieces))
        for attempt in range(1, _SAVE_ATTEMPTS + 1):
            try:
                save(self.setup.location, self.step, tensors, saved, state)
                (self.setup.location / "metrics.jsonl").write_bytes(lines(self.recorder.rows))
                prune(self.setup.location, self.config.keep_checkpoints)
                self.unsaved = ""
                return
            except OSError as error:
                self.unsaved = f"checkpoint at step {self.step} not written ({error}), attempt {attempt}"
                self.tell(self.step, self.unsaved)
                if last and attempt == _SAVE_ATTEMPTS:
                    raise UserError(
                        f"{self.setup.location}: the last checkpoint cannot be written ({error}); "
                        "make room and run again, it goes on from the checkpoint before"
                    ) from error
                time.sleep(attempt * _PAUSE)


def _masking(seed: int, examples: Artifact, pieces: Sequence[str]) -> Masking:
    """Masks drawn anew for each epoch, by the rules with which the held-out examples were masked once."""
    made_with = examples.manifest.config
    names = ("masked_lm_prob", "max_predictions_per_seq", "mask_unit")
    return Masking(seed, mask_rules(pieces, *(made_with[name] for name in names)))


def _noise(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's dropout in one step."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def _agreed(ref: CheckpointRef | None) -> CheckpointRef | None:
    """What worker 0 has found, in every worker."""
    import torch.distributed as dist

    box = [ref]
    dist.broadcast_object_list(box)
    return box[0]


def _precision(wanted: Literal["auto", "fp32", "bf16"]) -> "Precision":
    """bf16 where every worker is the faster for it, if the choice is ours."""
    import torch
    import torch.distributed as dist

    from training.engine import has_bf16, worker_device

    if wanted != "auto":
        return wanted
    device = worker_device()
    everywhere = torch.tensor([int(has_bf16(device))], device=device)
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return "bf16" if everywhere.item() else "fp32"


def _work(argument: tuple[Setup, Hook | None], tell: Tell) -> None:
    """What every worker does, again after each failure of the group."""
    setup, on_step = argument
    Worker(setup, tell, on_step).train()


# In the driver


def check(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises UserError when a phase has too few examples, or none held out."""
    for phase in config.phases:
        artifact = inputs[examples_input(phase.max_seq_length)]
        Examples(artifact, "train").batches(config.seed, 0, config.global_batch_size)
        Examples(artifact, "heldout")


def run(config: PretrainConfig, inputs: Mapping[str, Artifact], out: Output, on_step: Hook | None = None) -> Manifest:
    """inputs: "vocab", and "examples-<max_seq_length>" for each phase. Wants a Ray session. Raises UserError.

    `on_step` is called in each worker after each step, with its rank and the number of steps done.
    """
    import ray

    check(config, inputs)
    group = Group.fitting(
        ray.cluster_resources(),
        stage="pretrain",
        gpus=config.gpus,
        workers=config.workers,
        threads=config.threads,
        without_gpus=2,
    )
    setup = Setup(config, inputs, out.location, _pieces(inputs["vocab"]))
    last = newest(out.location)
    if last is None or last.step < config.total_steps:
        fit(_work, (setup, on_step), group, out, config.total_steps, "steps", config.max_failures)
        last = newest(out.location)
    assert last and last.step == config.total_steps, "training ended without its last checkpoint"
    state = last.state()
    rows = state["metrics"]["rows"]
    path = last.location.uri.removeprefix(f"{out.location.uri}/")
    manifest = (last.location / "manifest.json").read_bytes()
    weights = {f"{path}/{name}": record for name, record in last.files().items()}
    out.commit("checkpoint", {"metrics.jsonl": lines(rows), f"{path}/manifest.json": manifest}, written=weights)
    prune(out.location, config.keep_checkpoints)
    facts = {
        "checkpoint": {"path": path, "digest": last.digest, "step": last.step},
        **{key: state[key] for key in ("precision", "processor", "workers")},
        "metrics": summary(rows),
    }
    fingerprints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    return out.finish(config.model_dump(mode="json"), fingerprints, counts={"steps": last.step}, facts=facts)


def final_checkpoint(artifact: Artifact) -> CheckpointRef:
    """The checkpoint that a finished artifact ends with; what hangs on it hangs on its digest."""
    fact = artifact.manifest.facts["checkpoint"]
    return CheckpointRef(artifact.location / fact["path"], fact["digest"], fact["step"])


def _pieces(vocab: Artifact) -> tuple[str, ...]:
    return tuple((vocab.location / "vocab.txt").read_text().split("\n")[:-1])
