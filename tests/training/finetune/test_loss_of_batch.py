"""A loss of the whole batch, that of contrastive training: the same for any number of workers and micro-batches."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cloze.training.finetune import trainer
from cloze.training.finetune.trainer import FinetuneTrainer
from cloze.training.finetune.trials import FinetuneSetup
from tests.training.finetune.tasks.pairs import GOOD, LETTERS, config, toy_rows, write
from tests.training.finetune.tasks.trained import MODEL, setup_of

#: Batches of 9, then one of a single row: with two workers one of them has no row of it.
MANY = {"batch_size": 9, "epochs": 2, "learning_rate": 0.003}


def losses(setup: FinetuneSetup) -> list[float]:
    try:
        worker = FinetuneTrainer(setup, lambda done, note: False)
        return worker.run_trial("pretrained", setup.config.trials[0]).losses
    finally:
        torch.use_deterministic_algorithms(False)


def in_worker(rank: int, setup: FinetuneSetup, folder: str) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = losses(setup)
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_neither_workers_nor_micro_batches_change_the_negatives(tmp_path, single_process_group):
    files = {"data": write(tmp_path / "pairs.jsonl", [*toy_rows()[:37], *GOOD[2:]])}
    model = MODEL.model_copy(update={"attention_probs_dropout_prob": 0.0})
    setup, _ = setup_of(config(**MANY), files, list(LETTERS), tmp_path, model)
    expected = losses(setup)
    assert len(expected) == 10 and expected.count(0.0) == 2 and expected[-1] < expected[0]
    in_parts = replace(setup, config=config(**MANY, micro_batch_size=2))
    np.testing.assert_allclose(losses(in_parts), expected, atol=1e-5)
    torch.multiprocessing.spawn(in_worker, (in_parts, str(tmp_path)), nprocs=2)
    for rank in range(2):
        np.testing.assert_allclose(json.loads((tmp_path / f"{rank}.json").read_text()), expected, atol=1e-5)


def test_what_is_computed_again_has_the_same_dropout(tmp_path, single_process_group, monkeypatch):
    files = {"data": write(tmp_path / "pairs.jsonl", [*toy_rows()[:18], *GOOD[2:]])}
    setup, _ = setup_of(config(**MANY, micro_batch_size=2), files, list(LETTERS), tmp_path)
    found = losses(setup)
    monkeypatch.setattr(trainer, "checkpoint", lambda model, *inputs, use_reentrant: model(*inputs))
    assert losses(setup) == pytest.approx(found, abs=1e-6)
