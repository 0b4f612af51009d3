"""Checks in a Ray session: the stages pretrain and finetune, what a kill leaves, the export, and the stage's speed."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest, read_manifest
from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.checkpoint import CheckpointRef, newest_checkpoint
from cloze.training.pretrain import stage
from cloze.training.pretrain.config import PretrainConfig
from cloze.training.pretrain.stage import final_checkpoint
from cloze.training.pretrain.trainer import StepHook
from tests.gpu.kit import Failed, Figures, Kit, require
from tests.gpu.settings import (
    VARIANTS,
    batches_of,
    inputs,
    output,
    pretrain_config,
    reference_config,
    train_in_worker,
    train_reference_and_variants,
    variant_config,
)
from tests.gpu.training import artifact, shape

REFERENCE = "reference"  # folder of the undisturbed run
LOSS_TOLERANCE = 1e-3  # relative, fp32: sums on a GPU have no fixed order; other masks or dropout change more


def run_stage(
    kit: Kit,
    config: PretrainConfig,
    folder: Path,
    on_step: StepHook | None = None,
    worker: Callable[..., None] = train_in_worker,
) -> Manifest:
    """Run the pretrain stage with another worker function than its own."""
    with patch.object(stage, "train_in_worker", worker):
        return stage.run(config, inputs(kit), output(folder), on_step)


def train_rows(folder: Path) -> list[dict[str, Any]]:
    rows = json_lines.read(output(folder).location / "metrics.jsonl")
    return [row for row in rows if row["split"] == "train"]


def losses_of(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in train_rows(folder)}


def pretrain(kit: Kit) -> Figures:
    """The undisturbed run, in fp32 at ZeRO 1. Its worker then trains the VARIANTS, which `variant` reads."""
    folder = kit.folder(REFERENCE)
    config = reference_config(kit)
    run_stage(kit, config, folder, worker=train_reference_and_variants)
    return figures_of(kit, config, train_rows(folder))


def variant(kit: Kit, precision: str, zero_stage: int) -> Figures:
    """What the worker has recorded of one of the VARIANTS; mfu and memory are in its rows, and possible."""
    lines = kit.folder(REFERENCE) / "variants.jsonl"
    recorded = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for found in recorded:
        if (found["precision"], found["zero_stage"]) == (precision, zero_stage):
            require("rows" in found, found.get("error", ""))
            return figures_of(kit, variant_config(kit, precision, zero_stage), found["rows"])
    raise Failed(f"the worker ended before it; it trained {len(recorded)} of {len(VARIANTS)} variants")


def figures_of(kit: Kit, config: PretrainConfig, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a short training, whose loss must fall."""
    losses = [row["loss"] for row in rows]
    require(all(map(math.isfinite, losses)), f"losses: {losses}")
    require(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    overflows = {"overflows": rows[-1]["overflows"]} if "overflows" in rows[-1] else {}
    return {"losses": [losses[0], losses[-1]], **overflows, **checked_row(kit, rows[-1], config)}


def checked_row(kit: Kit, row: dict[str, Any], config: PretrainConfig) -> dict[str, float]:
    """mfu and peak_memory of a row of metrics, which must be possible values."""
    mfu, memory = row["mfu"], row["peak_memory"]
    require(0 < mfu < 1, f"mfu is {mfu}")
    hidden, layers = config.model.hidden_size, config.model.num_hidden_layers
    least = 16 * 12 * hidden**2 * layers  # weights, gradients and moments of the layers
    require(least < memory < total_memory(kit), f"peak_memory is {memory}, the model alone needs {least}")
    return {"mfu": mfu, "peak_mib": memory / 2**20, "sequences_per_second": row["sequences_per_second"]}


def total_memory(kit: Kit) -> float:
    if kit.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def reference(kit: Kit) -> Path:
    """The folder of the undisturbed run. It is trained now if it is missing."""
    folder = kit.folder(REFERENCE)
    if read_manifest(output(folder).location) is None:
        run_stage(kit, reference_config(kit), folder)
    return folder


def compared(kit: Kit, folder: Path) -> dict[str, float]:
    """Requires the batches of the reference, also in repeated steps, and nearly its losses."""
    expected, found = batches_of(reference(kit)), batches_of(folder)
    unequal = [step for step in expected if found.get(step) != expected[step]]
    require(not unequal, f"the batches of steps {unequal} are not those of an undisturbed run")
    losses, undisturbed = losses_of(folder), losses_of(reference(kit))
    require(losses.keys() == undisturbed.keys(), f"rows of steps {list(losses)} in place of {list(undisturbed)}")
    worst = max(abs(losses[step] - loss) / loss for step, loss in undisturbed.items())
    require(worst < LOSS_TOLERANCE, f"losses differ by {worst:.1e}: {losses}, undisturbed {undisturbed}")
    return {"loss_difference": worst, "steps": len(losses)}


@dataclass(frozen=True)
class KillOnce:
    """Kills the worker with SIGKILL after a step, once."""

    marker: str
    step: int

    def __call__(self, rank: int, step: int) -> None:
        if step == self.step and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Slowly:
    """Makes steps take at least `seconds`, so that a signal arrives in the middle of the training."""

    seconds: float

    def __call__(self, rank: int, step: int) -> None:
        time.sleep(self.seconds)


def worker_killed(kit: Kit) -> Figures:
    folder = kit.folder("killed")
    marker = folder / "was-killed"
    run_stage(kit, reference_config(kit, max_failures=1), folder, KillOnce(str(marker), 5))
    require(marker.exists(), "no worker was killed")
    return compared(kit, folder)


def stopped(kit: Kit) -> Figures:
    """SIGTERM to this process, the driver, after three steps; then the same again without."""
    folder = kit.folder("stopped")
    after(folder, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        run_stage(kit, reference_config(kit, checkpoint_every=1000), folder, Slowly(0.4))
    except KeyboardInterrupt:
        saved = newest_checkpoint(output(folder).location)
    else:
        raise Failed("SIGTERM did not stop the training")
    require(saved is not None, "SIGTERM saved no checkpoint")
    run_stage(kit, reference_config(kit, checkpoint_every=1000), folder)
    return {"saved_step": saved.step, **compared(kit, folder)}


def after(folder: Path, steps: int, act: Callable[[], None]) -> None:
    """Call `act` in a thread once a training in the folder has begun so many steps; not after five minutes."""

    def wait() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with suppress(OSError):
                if len((folder / "batches.jsonl").read_text().splitlines()) > steps:
                    act()
                    return
            time.sleep(0.05)

    threading.Thread(target=wait, daemon=True).start()


def driver_killed(kit: Kit) -> Figures:
    """A driver with a Ray session of its own is killed with SIGKILL; the stage continues in this session."""
    folder = kit.folder("driver-killed")
    command = [sys.executable, "-m", "tests.gpu.stages", kit.to_json(), str(folder)]
    with subprocess.Popen(command) as driver:
        after(folder, 5, driver.kill)
        require(
            driver.wait(300 if kit.tiny else 75) == -signal.SIGKILL, f"the driver ended with status {driver.returncode}"
        )
    saved = newest_checkpoint(output(folder).location)
    require(saved is not None, "no checkpoint was saved before the kill")
    run_stage(kit, reference_config(kit), folder)
    return {"saved_step": saved.step, **compared(kit, folder)}


def main() -> None:
    """The driver that `driver_killed` kills."""
    from cloze.infra.ray_session import ray_session

    kit, folder = Kit(**json.loads(sys.argv[1])), Path(sys.argv[2])
    with ray_session():
        run_stage(kit, reference_config(kit), folder, Slowly(0.4))


def as_configured(kit: Kit) -> Figures:
    """The stage as it is, with the default precision (auto), compile (auto) and ZeRO stage."""
    folder = kit.folder("as-configured")
    size = shape(kit) if kit.tiny else shape(kit, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    optimizer = {"learning_rate": 2e-4, "warmup_steps": 2}
    config = pretrain_config(kit, 6, size, precision="auto", compile="auto", optimizer=optimizer)
    manifest = run_stage(kit, config, folder, worker=stage.train_in_worker)
    rows = train_rows(folder)
    require(rows[-1]["loss"] < rows[0]["loss"], f"the loss does not fall: {[row['loss'] for row in rows]}")
    facts = manifest.facts
    return {"precision": facts["precision"], "peak": facts["peak"]["origin"], **checked_row(kit, rows[-1], config)}


def final(kit: Kit) -> CheckpointRef:
    """The last checkpoint of the reference."""
    out = output(reference(kit))
    return final_checkpoint(Artifact(out.location, "pretrain", "0"))


def finetune(kit: Kit) -> Figures:
    from cloze.training.finetune import stage as finetuning
    from cloze.training.finetune.encode import stage as encode_stage
    from cloze.training.finetune.tasks.classification import ClassificationConfig

    file = Path(kit.corpus, "labelled.jsonl")
    settings = {"name": "authors", "file": str(file), "max_seq_length": 64, "learning_rate": 5e-4, "batch_size": 16}
    settings |= {"epochs": 1 if kit.tiny else 2, "compare_random": True}
    config: Any = ClassificationConfig.model_validate(settings)
    if kit.device == "cpu":
        config = config.model_copy(update={"gpus": 0})
    folder = kit.folder("finetune")
    out = Output(Location(str(folder / "finetune-authors/0")), "finetune-authors", 1, "0")
    data = source_file(Location(str(file)), Location(str(folder / "cache")))
    inputs = {"vocab": artifact(kit, "vocab"), "data": data}
    encoded = Output(Location(str(folder / "encode/0")), "encode", 1, "0")
    encode_stage.run(encode_stage.encode_config(config), inputs, encoded)
    inputs |= {"checkpoint": final(kit), "encoded": Artifact(encoded.location, "encode", "0")}
    manifest = finetuning.run(config, inputs, out)
    scores = manifest.facts["scores"]
    require({"pretrained", "random"} <= scores.keys(), f"scores: {scores}")
    losses = [loss for variant in manifest.facts["variants"].values() for _, loss in variant["loss"]]
    require(all(map(math.isfinite, losses)), f"losses: {losses}")
    return {"accuracy": scores["pretrained"]["accuracy"], "steps": len(losses), "counts": dict(manifest.counts)}


def exported(kit: Kit) -> Figures:
    """The exported folder in transformers, and this project's model: the same logits in fp32 on the device."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from cloze.training.checkpoints.fill_mask import load_model
    from cloze.training.checkpoints.huggingface import export
    from tests.gpu.numerics import difference
    from tests.gpu.training import packed_batches

    torch.set_float32_matmul_precision("highest")
    to = kit.folder("export") / "model"
    export(final(kit), artifact(kit, "vocab").location, Location(str(to)), "a model of the checks\n")
    (batch,) = packed_batches(kit, 1, 16)
    batch = batch.to(torch.device(kit.device))
    theirs = AutoModelForMaskedLM.from_pretrained(to).to(kit.device).eval()
    own = load_model(final(kit)).to(kit.device).eval()
    with torch.no_grad():
        inputs = (batch.input_ids, batch.token_type_ids, batch.attention_mask)
        logits, _ = own(*inputs, batch.masked_lm_positions)
        named = dict(zip(("input_ids", "token_type_ids", "attention_mask"), inputs, strict=True))
        other = theirs(**named).logits.flatten(0, 1)[batch.masked_lm_positions]
    found = difference(logits.cpu(), other.cpu())
    require(found < 1e-4, f"logits differ by {found:.1e} of their norm")
    return {"logits": found, "tokens": len(AutoTokenizer.from_pretrained(to)("The heath was dark.")["input_ids"])}


def speed(kit: Kit, zero_stage: int) -> Figures:
    """BERT-base at 128 on the packed examples through the stage: medians over the rows after the first third."""
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    size, rows, every = (16, 6, 2) if kit.tiny else (256, 6, 20)
    changed = {
        "global_batch_size": size,
        "micro_batch_size": size,
        "group_by_length": size,
        "log_every": every,
        "checkpoint_every": 10**6,
        "precision": "fp32" if kit.device == "cpu" else "bf16",
        "zero_stage": zero_stage,
        "compile": "auto",
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 10},
    }
    config = pretrain_config(kit, steps=rows * every, model=shape(kit) if kit.tiny else base, **changed)
    folder = kit.folder(f"speed-{zero_stage}")
    run_stage(kit, config, folder)
    timed = train_rows(folder)[rows // 3 :]
    checked_row(kit, timed[-1], config)
    names = ("sequences_per_second", "mfu", "wait", "tokens_per_second")
    figures = {name: median(row[name] for row in timed) for name in names}
    first = train_rows(folder)[0]["seconds"]
    return {**figures, "peak_mib": timed[-1]["peak_memory"] / 2**20, "first_row_seconds": first}


if __name__ == "__main__":
    main()
