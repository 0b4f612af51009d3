"""Trains with transformers' Trainer for a given time: python -m tests.benchmarks._trainer FOLDER ARTIFACT SETTINGS.

Writes to FOLDER the weights at the requested times, with Cloze's tensor names, and at the end record.json.
"""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import BertConfig as TransformersConfig
from transformers import BertForPreTraining as TransformersModel
from transformers import Trainer, TrainerCallback, TrainingArguments

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.masking import mask_rules
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.transformers_names import BERT
from cloze.training.pretrain.data_loader import DynamicMasking, ExampleDataset, collate
from cloze.training.pretrain.example_arrays import ExampleArrays
from tests.benchmarks._reference import VOCAB_SIZE, vocabulary

TIMED_STEPS = 6  # per precision, after two steps of warm-up


class ExamplesDataset(Dataset):
    """Examples in memory. `collate` pads to the longest row of a batch, and draws masks if none are stored."""

    def __init__(self, rows: ExampleArrays, seed: int) -> None:
        self.rows = rows
        self.masking = None if rows.masks else DynamicMasking(seed, mask_rules(vocabulary(), 0.15, 20))
        self.uses = np.zeros(len(rows), np.int64)  # of each row: new masks each time
        self.ids = np.split(rows.input_ids.values, rows.input_ids.offsets[1:-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "index": index}  # the length-grouped sampler reads input_ids

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        index = np.array([row["index"] for row in rows])
        self.uses[index] += 1
        collated = collate(replace(self.rows.take(index), epoch=self.uses[index]), self.masking)
        labels = torch.full_like(collated.input_ids, -100)
        labels.view(-1)[collated.masked_lm_positions] = collated.masked_lm_labels
        names = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")
        return {**{name: getattr(collated, name) for name in names}, "labels": labels}


class Clock(TrainerCallback):
    """Ends the training after `seconds`, counted from the first step. Time for saving weights is not counted."""

    def __init__(self, folder: Path, seconds: float, save_times: list[float]) -> None:
        self.folder, self.seconds, self.save_times = folder, seconds, save_times  # ascending, in seconds
        self.start = self.reported = 0.0
        self.points: list[tuple[float, str]] = []

    def elapsed(self) -> float:
        return time.monotonic() - self.start if self.start else 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.start:
            self.start = self.reported = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        control.should_training_stop = self.elapsed() >= self.seconds
        if control.should_training_stop or self.elapsed() >= self.save_times[0]:
            self.save_weights(model)
        if time.monotonic() - self.reported > 30:
            self.reported = time.monotonic()
            print(f"  {state.global_step:,} steps, {self.elapsed() / 60:.1f} minutes", flush=True)

    def save_weights(self, model: Any) -> None:
        began, at = time.monotonic(), self.elapsed()
        file = self.folder / f"{len(self.points):03}.safetensors"
        weights = BERT.from_transformers(model.state_dict())
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
        self.points.append((at / 60, str(file)))
        self.save_times.pop(0)
        self.start += time.monotonic() - began


def build_trainer(folder: Path, dataset: ExamplesDataset, settings: dict[str, Any]) -> Trainer:
    """Returns a Trainer with its defaults, except for the settings of both sides, length grouping and no logs."""
    shape, optimizer = settings["model"], settings["optimizer"]
    model = TransformersModel(TransformersConfig(vocab_size=VOCAB_SIZE, attn_implementation="sdpa", **shape))
    initial = BertForPreTraining(BertConfig.model_validate(shape), VOCAB_SIZE, settings["seed"]).state_dict()
    result = model.load_state_dict(BERT.to_transformers(initial), strict=False)
    assert all("decoder" in name for name in result.missing_keys), result  # tied to the embeddings
    on_cpu = settings.get("device", "cpu") == "cpu"
    return Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=settings["batch"],
            max_steps=10**6,  # Clock ends the training
            learning_rate=optimizer["learning_rate"],
            adam_beta1=optimizer["betas"][0],
            adam_beta2=optimizer["betas"][1],
            adam_epsilon=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            max_grad_norm=optimizer["max_grad_norm"],
            seed=settings["seed"],
            bf16=not on_cpu or bf16_is_faster(model, dataset, settings["batch"]),
            use_cpu=on_cpu,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=not on_cpu,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=dataset.collate,
        train_dataset=dataset,
    )


def bf16_is_faster(model: TransformersModel, dataset: ExamplesDataset, size: int) -> bool:
    seconds = {}
    for bf16 in (False, True):
        for step in range(2 + TIMED_STEPS):
            if step == 2:
                start = time.monotonic()
            inputs = dataset.collate([dataset[row] for row in range(step * size, (step + 1) * size)])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**inputs).loss
            loss.backward()
            model.zero_grad()
        seconds[bf16] = (time.monotonic() - start) / TIMED_STEPS
    print(f"  a step of the Trainer takes {seconds[False]:.2f} s in fp32, {seconds[True]:.2f} s in bf16", flush=True)
    return seconds[True] < seconds[False]


def main(folder: Path, artifact: Artifact, settings: dict[str, Any]) -> None:
    torch.set_num_threads(2)
    examples, seed = ExampleDataset(artifact, "train"), settings["seed"]
    trainer = build_trainer(folder, ExamplesDataset(next(examples.batches(seed, 0, len(examples))), seed), settings)
    clock = Clock(
        folder, 60 * settings["minutes"], [*(60 * minute for minute in settings["save_minutes"][:-1]), math.inf]
    )
    trainer.add_callback(clock)
    optimizer = trainer.create_optimizer()

    def peak_fraction(_: int) -> float:
        """Returns the learning rate over its peak, as learning_rate_in_time; the warm-up is a fraction of the time."""
        elapsed = clock.elapsed() / clock.seconds
        return min(1.0, max(elapsed, 1 / clock.seconds) / settings["warmup"]) * max(0.0, 1 - elapsed)

    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, peak_fraction)
    trainer.train()
    record = {
        "steps": trainer.state.global_step,
        "sequences": trainer.state.global_step * settings["batch"],
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "points": clock.points,
    }
    (folder / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Artifact(Location(sys.argv[2]), "examples", "0"), json.loads(sys.argv[3]))
