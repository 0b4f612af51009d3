"""examples -> a pretrained checkpoint: Ray Train runs the workers, DeepSpeed the updates, our checkpoints the restarts.

A worker that dies takes its group with it; a new group goes on from the newest verified checkpoint (of as many workers
as there is room for, where a range of them is given), and so does the same command after everything was killed, or
ended by SIGTERM. A worker's part: training/pretrain/trainer.py.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, FileRecord, Manifest, Output
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.training.checkpoints.checkpoint import CheckpointRef, best, final, newest, prune
from cloze.training.checkpoints.warm_start import register, starting_weights
from cloze.training.cluster.elastic import Placement, nodes
from cloze.training.cluster.heartbeat import Progress
from cloze.training.cluster.ray_train import RestartPolicy, run_workers
from cloze.training.pretrain import loss_spikes, tensorboard
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.data_loader import Examples, paired
from cloze.training.pretrain.facts import CheckpointFact, InitFact, MetricsFact, PeakFact, PretrainFacts
from cloze.training.pretrain.metrics import summary
from cloze.training.pretrain.trainer import Hook, Setup, TrainState, work

VERSION = 7


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
    pieces, init = tuple(vocab_file.read_pieces(inputs["vocab"].location)), inputs.get("init")
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
    files = {"metrics.jsonl": json_lines.encode(rows), tensorboard.FILE: tensorboard.EventFile()(rows)}
    if state.skipped:
        files[loss_spikes.FILE] = loss_spikes.lines(state.skipped)
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
