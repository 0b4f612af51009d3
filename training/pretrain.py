"""examples -> a pretrained checkpoint: Ray Train runs the workers, DeepSpeed the updates, our checkpoints the restarts.

A worker that dies takes its group with it; a new group goes on from the newest verified checkpoint (of as many workers
as there is room for, where a range of them is given), and so does the same command after everything was killed, or
ended by SIGTERM. A worker's part: training/trainer.py.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline import json_lines, vocab_file
from pipeline.artifacts import Artifact, FileRecord, Manifest, Output, SourceFile
from pipeline.config import Compute, Config, InputPath, UserError
from pipeline.storage import Location
from training import events, guards
from training.architectures import ModelConfig
from training.checkpoint import CheckpointRef, best, final, newest, prune
from training.data import Examples, paired
from training.deepspeed_config import DeepSpeedConfig
from training.elastic import Placement, nodes
from training.facts import CheckpointFact, InitFact, MetricsFact, PeakFact, PretrainFacts
from training.heartbeat import Progress
from training.optim import OptimizerConfig
from training.ray_train import RestartPolicy, run_workers
from training.record import summary
from training.start import is_digest, register, starting_weights, weights_file
from training.trainer import Hook, Setup, TrainState, work

VERSION = 7

_Count = Annotated[int, Field(gt=0)]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Phase(Config):
    """So many updates, or such a share of the time budget, on the examples of one sequence length."""

    max_seq_length: int = Field(ge=8)
    max_predictions_per_seq: int = Field(gt=0)
    steps: int | None = Field(default=None, gt=0)
    share: float | None = Field(default=None, gt=0, le=1)


class PretrainConfig(Config):
    """What is trained, on what, for how long.

    What is marked Compute changes rounding alone, but that workers and micro_batch_size also change dropout's draws.
    """

    model: ModelConfig
    #: The folder of a model whose weights to begin with, or a finished checkpoint's digest; the weights' bytes count.
    init: Annotated[str | None, InputPath(file_in=weights_file, is_name=is_digest)] = None
    phases: list[Phase] = Field(min_length=1)
    #: How long training may take, such as 90s, 20m or 2h: the schedule ends when the time does, whatever the machine.
    budget: str | None = None
    optimizer: OptimizerConfig
    global_batch_size: int = Field(gt=0)
    group_by_length: int = Field(default=64, gt=0)  # rows of like length that come together: a micro-batch, or more
    seed: int = Field(default=0, ge=0, lt=2**31)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    micro_batch_size: Annotated[int, Compute, Field(gt=0)] = 32
    gpus: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], Compute] = "auto"
    #: By itself one for each GPU, two without any; of [least, most] as many as there is room for and divide the batch.
    workers: Annotated[_Count | tuple[_Count, _Count] | None, Compute] = None
    threads: Annotated[int, Compute, Field(gt=0)] = 1  # of a worker's processor cores
    zero_stage: Annotated[Literal[0, 1, 2, 3], Compute] = 1
    deepspeed: Annotated[DeepSpeedConfig, Compute] = DeepSpeedConfig()  # more of its keys
    activation_checkpointing: Annotated[bool, Compute] = False  # less memory, a third more work
    checkpoint_every: Annotated[int, Compute, Field(gt=0)] = 1000
    keep_checkpoints: Annotated[int, Compute, Field(gt=0)] = 2
    log_every: Annotated[int, Compute, Field(gt=0)] = 50
    eval_every: Annotated[int, Compute, Field(gt=0)] = 1000
    eval_batches: Annotated[int, Compute, Field(gt=0)] = 16
    max_failures: Annotated[int, Compute, Field(ge=0)] = 3
    step_timeout: Annotated[float, Compute, Field(gt=0)] = 1800.0  # seconds for a step, and what is evaluated after it
    guard_factor: Annotated[float, Field(gt=0)] | None = 20.0  # robust deviations above recent steps that are a fault
    max_rollbacks: Annotated[int, Compute, Field(ge=0)] = 3  # of the whole run, a batch skipped for each

    @property
    def total_steps(self) -> int | None:
        """None where a budget says when to end."""
        return None if self.budget else sum(phase.steps or 0 for phase in self.phases)

    @property
    def budget_seconds(self) -> float | None:
        return float(self.budget[:-1]) * _SECONDS[self.budget[-1]] if self.budget else None

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_or_a_range(cls, given: Any) -> Any:
        numbers = given if isinstance(given, list | tuple) and len(given) == 2 else [given]
        if given is not None and not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError("is neither a number nor a range; give one such as 4, or [least, most] such as [2, 8]")
        return tuple(given) if isinstance(given, list) else given

    @field_validator("budget", mode="before")
    @classmethod
    def _is_a_time(cls, given: Any) -> Any:
        if given is not None and not re.fullmatch(r"[0-9]+(\.[0-9]+)?[smhd]", str(given)):
            raise ValueError("is no time; give one such as 90s, 20m, 2h or 1d")
        return given

    @model_validator(mode="after")
    def _phases_have_an_end(self) -> "PretrainConfig":
        for number, phase in enumerate(self.phases):
            if self.budget and phase.steps:
                raise ValueError(
                    f"phases.{number}.steps is {phase.steps} beside budget {self.budget}, which ends the phases; "
                    "remove one of them"
                )
            if not self.budget and phase.share:
                raise ValueError(f"phases.{number}.share is of a budget; set budget, or steps in place of share")
            if not self.budget and not phase.steps:
                raise ValueError(f"phases.{number} has no end; set its steps, or budget for all of them")
        if self.budget_seconds == 0:
            raise ValueError(f"budget is {self.budget}; give the time that training may take, such as 20m or 2h")
        if self.budget and not math.isclose(sum(self.shares), 1):
            raise ValueError(
                f"the phases' shares of the budget add up to {sum(self.shares):g}; give each one, 1 in all"
            )
        return self

    @property
    def extent(self) -> tuple[float, str]:
        """How much training is, as progress shows it, and in what."""
        budget = self.budget_seconds
        if budget is None:
            return self.total_steps or 0, "steps"
        return (budget / 60, "minutes") if budget >= 120 else (budget, "seconds")

    def done(self, step: int, spent: float) -> float:
        """How much of `extent` is done after so many steps, in so many seconds."""
        budget = self.budget_seconds
        return spent / budget * self.extent[0] if budget else step

    @property
    def allowed_worker_counts(self) -> list[int]:
        """The numbers of workers that a group may have, where it is to shrink and to grow: rising."""
        if not isinstance(self.workers, tuple):
            return []
        least, most = self.workers
        return [count for count in range(least, most + 1) if self.global_batch_size % count == 0]

    @property
    def shares(self) -> list[float]:
        """Of the budget, each phase's; one that is alone has all of it."""
        alone = 1.0 if len(self.phases) == 1 else 0.0
        return [phase.share or alone for phase in self.phases]

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "PretrainConfig":
        if not isinstance(self.workers, tuple):
            return self
        least, most = self.workers
        if least > most:
            raise ValueError(f"workers: {least} to {most} is no range; give [least, most]")
        if isinstance(self.gpus, int) and self.gpus:
            raise ValueError(
                f"gpus is {self.gpus} beside workers from {least} to {most}; remove gpus, or give one number"
            )
        if not self.allowed_worker_counts:
            raise ValueError(
                f"workers: no number from {least} to {most} divides global_batch_size {self.global_batch_size}; "
                "give another range"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "PretrainConfig":
        warmup, total = self.optimizer.warmup_steps, self.total_steps
        if total and warmup > total:
            raise ValueError(f"optimizer.warmup_steps {warmup} is more than all {total} steps; lower it")
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


def check(config: PretrainConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when the model to begin with cannot be read, or has another shape."""
    if init := sources.get("init"):
        starting_weights(init, config.model, None, nsp=False)  # no head is needed yet


def _check_examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises UserError when a phase has too few examples, none held out, or another objective than the others."""
    paired(_examples(config, inputs))
    for artifact in _examples(config, inputs):
        Examples(artifact, "train").batches(config.seed, 0, config.global_batch_size)
        Examples(artifact, "heldout")


def run(config: PretrainConfig, inputs: Mapping[str, Any], out: Output, on_step: Hook | None = None) -> Manifest:
    """inputs: "vocab", "examples-<max_seq_length>" for each phase, and a SourceFile "init" where there is one.

    Wants a Ray session. Raises UserError; KeyboardInterrupt, which says what is saved, when it was ended by a signal.

    `on_step` is called in each worker after each step, with its rank and the number of steps done.
    """
    _check_examples(config, inputs)
    pieces, init = tuple(vocab_file.pieces_in(inputs["vocab"].location)), inputs.get("init")
    examples = _examples(config, inputs)
    notes: tuple[str, ...] = ()
    if init:
        vocab = vocab_file.read_file(inputs["vocab"].location / "tokenizer.json")
        notes = starting_weights(init, config.model, vocab, nsp=paired(examples)).notes
    setup = Setup(config, tuple(examples), out.location, pieces, init)
    last = _trained(setup, on_step, out)
    prune(out.location, config.keep_checkpoints)
    state, better = TrainState.from_json(last.state()), best(out.location)
    rows = state.metrics.rows
    files = {"metrics.jsonl": json_lines.encode(rows), events.FILE: events.EventFile()(rows)}
    if state.skipped:
        files[guards.FILE] = guards.lines(state.skipped)
    written = _files(out.location, last) | (_files(out.location, better) if better else {})
    part = out.commit("checkpoint", files, written=written)
    facts = PretrainFacts(
        checkpoint=_fact(out.location, last),
        best=_fact(out.location, better) if better else None,
        precision=state.precision or "",
        processor=state.processor,
        workers=state.workers,
        peak=PeakFact(**state.peak._asdict()) if state.peak else None,
        skipped=len(state.skipped),
        init=InitFact(sha256=init.sha256, notes=list(notes)) if init else None,
        metrics=MetricsFact(**summary(rows)),
    )
    for checkpoint in filter(None, (last, better)):
        register(out.root, checkpoint)
    fingerprints = {name: given.sha256 if given is init else given.fingerprint for name, given in inputs.items()}
    return out.finish([part], config.model_dump(mode="json"), fingerprints, counts={"steps": last.step}, facts=facts)


def _trained(setup: Setup, on_step: Hook | None, out: Output) -> CheckpointRef:
    """The last checkpoint, after what training is still to be done."""
    if ended := final(out.location):
        return ended
    config, before = setup.config, newest(out.location)
    state = TrainState.from_json(before.state()) if before else TrainState()
    placement = Placement.fitting(
        nodes(),
        stage="pretrain",
        gpus=config.gpus,
        workers=config.allowed_worker_counts or config.workers,
        threads=config.threads,
        without_gpus=2,
    )
    restart = RestartPolicy(config.max_failures, config.step_timeout, leaves=True)
    progress = Progress(out, *config.extent, config.done(state.step, state.seconds))
    try:
        run_workers(work, (setup, on_step), placement, restart, progress)
    except KeyboardInterrupt as end:
        raise KeyboardInterrupt(_saved(out.location)) from end
    if ended := final(out.location):
        return ended
    raise UserError(
        f"{out.location}: another run of the same settings has taken the last checkpoint away; run it again"
    )


def _saved(artifact: Location) -> str:
    """What a user who has ended the training should read."""
    with suppress(OSError):
        if saved := newest(artifact):
            return f"pretrain: step {saved.step} is saved"
    return ""


def _path(artifact: Location, checkpoint: CheckpointRef) -> str:
    return checkpoint.location.uri.removeprefix(f"{artifact.uri}/")


def _files(artifact: Location, checkpoint: CheckpointRef) -> dict[str, FileRecord]:
    """A checkpoint's files as the artifact's manifest has them."""
    path, manifest = _path(artifact, checkpoint), (checkpoint.location / "manifest.json").read_bytes()
    own = FileRecord(sha256=hashlib.sha256(manifest).hexdigest(), bytes=len(manifest))
    return {f"{path}/{name}": record for name, record in {**checkpoint.manifest().files, "manifest.json": own}.items()}


def _fact(artifact: Location, checkpoint: CheckpointRef) -> CheckpointFact:
    heldout = checkpoint.manifest().heldout
    return CheckpointFact(
        path=_path(artifact, checkpoint),
        digest=checkpoint.digest,
        step=checkpoint.step,
        heldout_loss=heldout and heldout.loss,
    )


def final_checkpoint(artifact: Artifact) -> CheckpointRef:
    """The checkpoint that a finished artifact ends with; what hangs on it hangs on its digest. Raises UserError."""
    fact = PretrainFacts.final(artifact.manifest)
    return CheckpointRef(artifact.location / fact.path, fact.digest, fact.step)


def _examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """Those of each phase."""
    return [inputs[examples_input(phase.max_seq_length)] for phase in config.phases]
