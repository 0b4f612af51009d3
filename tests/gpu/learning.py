"""Part 3: BERT-base on the packed examples, the same time in the stage and in transformers' Trainer; held-out losses.

Both start from the same weights and have new masks in each epoch. The packed corpus is small: `make gpu-pack
ARGS="--books ..."` adds texts. The time covers everything from the first step on, compiling included.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cloze.pipeline.core.artifacts import Artifact
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.pretrain.data_loader import ExampleDataset, collate
from cloze.training.pretrain.objective import Objective
from cloze.training.pretrain.stage import final_checkpoint, train_in_worker
from tests.gpu.kit import Figures, Kit
from tests.gpu.settings import output, pretrain_config
from tests.gpu.stages import run_stage, train_rows
from tests.gpu.training import artifact, pieces, shape

MINUTES = 3.0  # for each side
WARMUP = 0.05  # of the time
OPTIMIZER = {"learning_rate": 2e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "max_grad_norm": 1.0}
SEED = 1


def compare(kit: Kit) -> Figures:
    minutes, batch = (0.15, 16) if kit.tiny else (MINUTES, 256)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    model = shape(kit) if kit.tiny else base
    folder = kit.folder("learning")
    steps, weights = train_stage(kit, model, minutes, batch, folder)
    trainer = train_transformers(kit, model, minutes, batch, folder / "trainer")
    return {
        "cloze": heldout_loss(kit, model, weights),
        "trainer": heldout_loss(kit, model, load_file(trainer["points"][-1][1])),
        "cloze_sequences": steps * batch,
        "trainer_sequences": trainer["sequences"],
        "minutes": minutes,
        "training_examples": len(ExampleDataset(artifact(kit, "examples-128"), "train")),
    }


def train_stage(
    kit: Kit, model: dict[str, Any], minutes: float, batch: int, folder: Path
) -> tuple[int, dict[str, Tensor]]:
    """The number of steps, and the last weights."""
    changed = {
        "budget": f"{round(60 * minutes)}s",
        "phases": [{"max_seq_length": 128, "max_predictions_per_seq": 20}],
        "optimizer": {**OPTIMIZER, "bias_correction": True, "warmup_steps": 2 if kit.tiny else 200},
        "global_batch_size": batch,
        "micro_batch_size": batch,
        "group_by_length": batch,
        "precision": "auto",
        "compile": "auto",
        "seed": SEED,
        "log_every": 20,
        "checkpoint_every": 10**6,
        "eval_every": 10**6,
    }
    run_stage(kit, pretrain_config(kit, 1, model, **changed), folder, worker=train_in_worker)
    checkpoint = final_checkpoint(Artifact(output(folder).location, "pretrain", "0"))
    return train_rows(folder)[-1]["step"], checkpoint.weights()


def train_transformers(kit: Kit, model: dict[str, Any], minutes: float, batch: int, folder: Path) -> dict[str, Any]:
    """The record that tests.benchmarks._trainer writes."""
    folder.mkdir()
    settings = {"seed": SEED, "minutes": minutes, "save_minutes": [minutes], "batch": batch, "warmup": WARMUP}
    settings |= {"model": model, "optimizer": OPTIMIZER, "device": kit.device}
    examples = artifact(kit, "examples-128").location.uri
    command = [sys.executable, "-m", "tests.benchmarks._trainer", str(folder), examples, json.dumps(settings)]
    subprocess.run(command, check=True, timeout=60 * minutes + 90)
    return json.loads((folder / "record.json").read_text())


@torch.no_grad()
def heldout_loss(kit: Kit, model: dict[str, Any], weights: Mapping[str, Tensor]) -> float:
    """The mean loss per masked token on all held-out examples, in fp32, with the masks that are stored."""
    device, heldout = torch.device(kit.device), ExampleDataset(artifact(kit, "examples-128"), "heldout")
    trained = BertForPreTraining(BertConfig.model_validate(model), len(pieces(kit))).eval()
    trained.load_state_dict(weights)
    objective, one = Objective(trained.to(device), "fp32"), torch.ones((), device=device)
    samples = heldout.sample(0, len(heldout), 64)
    sums = sum(objective(collate(rows).to(device), one, one)[1] for rows in samples)
    return float(sums[0] / sums[2])
