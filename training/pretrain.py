"""examples -> a pretrained checkpoint: Ray Train runs the workers, DeepSpeed the updates, our checkpoints the restarts.

A worker that dies takes its group with it; Ray starts a new group, which goes on from the newest verified checkpoint,
and so does the same command after everything was killed, or ended by SIGTERM. A worker's part: training/trainer.py.
"""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.artifacts import Artifact, FileRecord, Manifest, Output, SourceFile
from pipeline.config import Compute, Config
from pipeline.storage import Location
from training import guards
from training.checkpoint import CheckpointRef, best, newest, prune
from training.data import Examples, paired
from training.events import FILE, EventFile
from training.guards import Skip
from training.model import BertConfig
from training.optim import OptimizerConfig
from training.record import lines, summary
from training.start import starting_weights
from training.trainer import Hook, Setup, work
from training.workers import Group, fit

VERSION = 3


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
    #: The folder of a model whose weights to begin with, or a finished checkpoint's digest; the weights' bytes count.
    init: Annotated[str | None, Compute] = None
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
    activation_checkpointing: Annotated[bool, Compute] = False  # less memory, a third more work
    checkpoint_every: Annotated[int, Compute, Field(gt=0)] = 1000
    keep_checkpoints: Annotated[int, Compute, Field(gt=0)] = 2
    log_every: Annotated[int, Compute, Field(gt=0)] = 50
    eval_every: Annotated[int, Compute, Field(gt=0)] = 1000
    eval_batches: Annotated[int, Compute, Field(gt=0)] = 16
    max_failures: Annotated[int, Compute, Field(ge=0)] = 3
    step_timeout: Annotated[float, Compute, Field(gt=0)] = 1800.0  # seconds for a step, and what is evaluated after it
    guard_factor: Annotated[float, Field(gt=0)] | None = 20.0  # robust deviations above recent losses that are a fault
    max_rollbacks: Annotated[int, Compute, Field(ge=0)] = 3  # of the whole run, a batch skipped for each

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, step: int) -> tuple[int, Phase, int]:
        """The phase in which the step after so many is: its number, itself, and the steps before it."""
        first = 0
        for number, phase in enumerate(self.phases):
            if step < first + phase.steps:
                return number, phase, first
            first += phase.steps
        raise IndexError(f"no step comes after {step}")

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


def check(config: PretrainConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when the model to begin with cannot be read, or has another shape."""
    if init := sources.get("init"):
        starting_weights(init, config.model, None, config.seed, nsp=False)  # no head is needed yet


def _check_examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises UserError when a phase has too few examples, none held out, or another objective than the others."""
    paired(_examples(config, inputs))
    for artifact in _examples(config, inputs):
        Examples(artifact, "train").batches(config.seed, 0, config.global_batch_size)
        Examples(artifact, "heldout")


def run(config: PretrainConfig, inputs: Mapping[str, Any], out: Output, on_step: Hook | None = None) -> Manifest:
    """inputs: "vocab", "examples-<max_seq_length>" for each phase, and a SourceFile "init" where there is one.

    Wants a Ray session. Raises UserError.

    `on_step` is called in each worker after each step, with its rank and the number of steps done.
    """
    import ray

    _check_examples(config, inputs)
    group = Group.fitting(
        ray.cluster_resources(),
        stage="pretrain",
        gpus=config.gpus,
        workers=config.workers,
        threads=config.threads,
        without_gpus=2,
    )
    pieces, init = _pieces(inputs["vocab"]), inputs.get("init")
    nsp = paired(_examples(config, inputs))
    notes = starting_weights(init, config.model, pieces, config.seed, nsp=nsp).notes if init else ()
    # One worker has nobody to split with, and saves a sixth of a small step.
    trained = config if group.workers > 1 else config.model_copy(update={"zero_stage": 0})
    setup = Setup(trained, tuple(_examples(config, inputs)), out.location, pieces, init)
    last = newest(out.location)
    if last is None or last.step < config.total_steps:
        fit(
            work,
            (setup, on_step),
            group,
            out,
            config.total_steps,
            "steps",
            max_failures=config.max_failures,
            step_timeout=config.step_timeout,
            leaves=True,
        )
        last = newest(out.location)
    assert last and last.step == config.total_steps, "training ended without its last checkpoint"
    state, better = last.state(), best(out.location)
    rows, skipped = state["metrics"]["rows"], [Skip(**row) for row in state["skipped"]]
    files = {"metrics.jsonl": lines(rows), FILE: EventFile()(rows)}
    if skipped:
        files[guards.FILE] = guards.lines(skipped)
    written = _files(out.location, last) | (_files(out.location, better) if better else {})
    out.commit("checkpoint", files, written=written)
    prune(out.location, config.keep_checkpoints)
    facts = {
        "checkpoint": _fact(out.location, last),
        "best": _fact(out.location, better) if better else None,
        **{key: state[key] for key in ("precision", "processor", "workers")},
        "skipped": len(skipped),
        "init": {"sha256": init.sha256, "notes": notes} if init else None,
        "metrics": summary(rows),
    }
    fingerprints = {name: given.sha256 if given is init else given.fingerprint for name, given in inputs.items()}
    return out.finish(config.model_dump(mode="json"), fingerprints, counts={"steps": last.step}, facts=facts)


def _path(artifact: Location, checkpoint: CheckpointRef) -> str:
    return checkpoint.location.uri.removeprefix(f"{artifact.uri}/")


def _files(artifact: Location, checkpoint: CheckpointRef) -> dict[str, FileRecord]:
    """A checkpoint's files as the artifact's manifest has them."""
    path, manifest = _path(artifact, checkpoint), (checkpoint.location / "manifest.json").read_bytes()
    own = FileRecord(sha256=hashlib.sha256(manifest).hexdigest(), bytes=len(manifest))
    return {f"{path}/{name}": record for name, record in {**checkpoint.manifest().files, "manifest.json": own}.items()}


def _fact(artifact: Location, checkpoint: CheckpointRef) -> dict[str, Any]:
    heldout = checkpoint.manifest().heldout
    return {
        "path": _path(artifact, checkpoint),
        "digest": checkpoint.digest,
        "step": checkpoint.step,
        "heldout_loss": heldout and heldout.loss,
    }


def final_checkpoint(artifact: Artifact) -> CheckpointRef:
    """The checkpoint that a finished artifact ends with; what hangs on it hangs on its digest."""
    fact = artifact.manifest.facts["checkpoint"]
    return CheckpointRef(artifact.location / fact["path"], fact["digest"], fact["step"])


def _examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """Those of each phase."""
    return [inputs[examples_input(phase.max_seq_length)] for phase in config.phases]


def _pieces(vocab: Artifact) -> tuple[str, ...]:
    return tuple((vocab.location / "vocab.txt").read_text().split("\n")[:-1])
