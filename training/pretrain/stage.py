"""Examples -> a pretrained checkpoint, with Ray Train for the workers and DeepSpeed for the updates.

When a worker dies, its group ends, and a new group continues from the newest verified checkpoint (with as many workers
as fit on the cluster, if a range is given). The same command continues from there as well, after the run was killed or
stopped by SIGTERM. What each worker does: trainer.py.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, FileRecord, Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.training.checkpoints.checkpoint import (
    CheckpointRef,
    best_checkpoint,
    finished_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
)
from cloze.training.checkpoints.warm_start import initial_weights, register_digest
from cloze.training.cluster.elastic import Placement, capacity
from cloze.training.cluster.heartbeat import Progress
from cloze.training.cluster.ray_train import RestartPolicy, run_workers
from cloze.training.pretrain import loss_spikes, tensorboard
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.data_loader import ExampleDataset, has_pair_labels
from cloze.training.pretrain.manifest_facts import CheckpointFact, InitFact, MetricsFact, PeakFact, PretrainFacts
from cloze.training.pretrain.metrics import summary
from cloze.training.pretrain.train_state import PretrainSetup, TrainState
from cloze.training.pretrain.trainer import StepHook, train_in_worker

VERSION = 7


def examples_input(max_seq_length: int) -> str:
    """The name of the input that holds a phase's examples."""
    return f"examples-{max_seq_length}"


def check(config: PretrainConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when the model of `init` cannot be read, or has another shape."""
    if init := sources.get("init"):
        initial_weights(init, config.model, None, nsp=False)  # the objective is not known yet


def _check_examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> None:
    """Raises UserError when a phase has too few examples, none held out, or a different objective."""
    has_pair_labels(_phase_examples(config, inputs))
    sizes = zip(config.global_batch_sizes, config.global_batch_size_keys, strict=True)
    for artifact, (size, key) in zip(_phase_examples(config, inputs), sizes, strict=True):
        ExampleDataset(artifact, "train").check_batch_size(size, key)
        ExampleDataset(artifact, "heldout")


def run(config: PretrainConfig, inputs: Mapping[str, Any], out: Output, on_step: StepHook | None = None) -> Manifest:
    """inputs: "vocab", "examples-<max_seq_length>" for each phase, and the SourceFile "init" if it is set.

    Requires a Ray session. `on_step` is called in each worker after each step. Raises UserError, and KeyboardInterrupt
    with a message about the last checkpoint when a signal ended the training.
    """
    _check_examples(config, inputs)
    pieces, init = tuple(vocab_file.read_pieces(inputs["vocab"].location)), inputs.get("init")
    examples = _phase_examples(config, inputs)
    notes: tuple[str, ...] = ()
    if init:
        vocab = vocab_file.read_file(inputs["vocab"].location / "tokenizer.json")
        notes = initial_weights(init, config.model, vocab, nsp=has_pair_labels(examples)).notes
    setup = PretrainSetup(config, tuple(examples), out.location, pieces, init, out.lease)
    last = _train(setup, on_step, out)
    out.check_lease()
    prune_checkpoints(out.location, config.keep_checkpoints)
    state, best = TrainState.from_json(last.state()), best_checkpoint(out.location)
    rows = state.metrics.rows
    files = {"metrics.jsonl": json_lines.encode(rows), tensorboard.FILE: tensorboard.EventFile()(rows)}
    if state.skipped:
        files[loss_spikes.FILE] = loss_spikes.encode_skipped(state.skipped)
    written = _files(out.location, last) | (_files(out.location, best) if best else {})
    part = out.commit("checkpoint", files, written=written)
    facts = PretrainFacts(
        checkpoint=_checkpoint_fact(out.location, last),
        best=_checkpoint_fact(out.location, best) if best else None,
        precision=state.precision or "",
        processor=state.processor,
        workers=state.workers,
        peak=PeakFact(**state.peak._asdict()) if state.peak else None,
        skipped=len(state.skipped),
        init=InitFact(sha256=init.sha256, notes=list(notes)) if init else None,
        metrics=MetricsFact(**summary(rows)),
    )
    for checkpoint in filter(None, (last, best)):
        register_digest(out.root, checkpoint)
    fingerprints = {name: item.sha256 if item is init else item.fingerprint for name, item in inputs.items()}
    return out.finish([part], config.model_dump(mode="json"), fingerprints, counts={"steps": last.step}, facts=facts)


def _train(setup: PretrainSetup, on_step: StepHook | None, out: Output) -> CheckpointRef:
    """Train, or continue to train, until the end; returns the last checkpoint."""
    if finished := finished_checkpoint(out.location):
        return finished
    config, newest = setup.config, newest_checkpoint(out.location)
    state = TrainState.from_json(newest.state()) if newest else TrainState()
    placement = Placement.fitting(
        capacity(),
        stage="pretrain",
        gpus=config.gpus,
        workers=config.allowed_worker_counts or config.workers,
        threads=config.threads,
        without_gpus=2,
    )
    restart = RestartPolicy(config.max_failures, config.step_timeout, can_stop=True)
    progress = Progress(out, *config.extent, config.done(state.step, state.seconds))
    try:
        run_workers(train_in_worker, (setup, on_step), placement, restart, progress)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_saved_message(out.location)) from error
    if finished := finished_checkpoint(out.location):
        return finished
    raise UserError(f"{out.location}: another run with the same settings has deleted the last checkpoint; run it again")


def _saved_message(artifact: Location) -> str:
    """The message for a user who has stopped the training."""
    with suppress(OSError):
        if saved := newest_checkpoint(artifact):
            return f"pretrain: step {saved.step} is saved"
    return ""


def _path(artifact: Location, checkpoint: CheckpointRef) -> str:
    return checkpoint.location.uri.removeprefix(f"{artifact.uri}/")


def _files(artifact: Location, checkpoint: CheckpointRef) -> dict[str, FileRecord]:
    """The records of a checkpoint's files for the manifest of the artifact."""
    path, manifest = _path(artifact, checkpoint), (checkpoint.location / "manifest.json").read_bytes()
    manifest_record = FileRecord(sha256=hashlib.sha256(manifest).hexdigest(), bytes=len(manifest))
    return {
        f"{path}/{name}": record
        for name, record in {**checkpoint.manifest().files, "manifest.json": manifest_record}.items()
    }


def _checkpoint_fact(artifact: Location, checkpoint: CheckpointRef) -> CheckpointFact:
    heldout = checkpoint.manifest().heldout
    return CheckpointFact(
        path=_path(artifact, checkpoint),
        digest=checkpoint.digest,
        step=checkpoint.step,
        heldout_loss=heldout and heldout.loss,
    )


def final_checkpoint(artifact: Artifact) -> CheckpointRef:
    """The last checkpoint of a finished artifact. Stages that use it depend on its digest. Raises UserError."""
    fact = PretrainFacts.final(artifact.manifest)
    return CheckpointRef(artifact.location / fact.path, fact.digest, fact.step)


def _phase_examples(config: PretrainConfig, inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """The examples of each phase."""
    return [inputs[examples_input(phase.max_seq_length)] for phase in config.phases]
