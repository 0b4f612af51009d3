"""transformers' Trainer for so many minutes on an artifact's examples: python -m tests.benchmarks._trainer TO ARTIFACT
JSON. Into TO go its weights at the moments asked for, by Cloze's names, and at last record.json."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import BertConfig as TheirConfig
from transformers import BertForPreTraining as TheirModel
from transformers import Trainer, TrainerCallback, TrainingArguments

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.storage import Location
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.transformers_names import BERT
from cloze.training.pretrain.data_loader import ExampleArrays, ExampleDataset, collate
from tests.benchmarks._reference import VOCAB_SIZE

TIMED = 6  # steps of each precision before the choice; two more warm up


class Given(Dataset):
    """Examples in memory, as Trainer wants them; `collate` makes tensors no wider than the longest of a batch."""

    def __init__(self, rows: ExampleArrays) -> None:
        self.rows = rows
        self.ids = np.split(rows.input_ids.values, rows.input_ids.offsets[1:-1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "index": index}  # the sampler by length asks for input_ids

    def collate(self, some: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        made = collate(self.rows.take(np.array([one["index"] for one in some])))
        labels = torch.full_like(made.input_ids, -100)
        labels.view(-1)[made.masked_lm_positions] = made.masked_lm_labels
        names = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")
        return {**{name: getattr(made, name) for name in names}, "labels": labels}


class Clock(TrainerCallback):
    """Ends the training with its time, which begins with the first step; what is saved on the way does not count."""

    def __init__(self, to: Path, seconds: float, moments: list[float]) -> None:
        self.to, self.seconds, self.moments = to, seconds, moments  # rising, in seconds
        self.start = self.told = 0.0
        self.points: list[tuple[float, str]] = []

    def elapsed(self) -> float:
        return time.monotonic() - self.start if self.start else 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.start:
            self.start = self.told = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        control.should_training_stop = self.elapsed() >= self.seconds
        if control.should_training_stop or self.elapsed() >= self.moments[0]:
            self.keep(model)
        if time.monotonic() - self.told > 30:
            self.told = time.monotonic()
            print(f"  {state.global_step:,} steps, {self.elapsed() / 60:.1f} minutes", flush=True)

    def keep(self, model: Any) -> None:
        began, at = time.monotonic(), self.elapsed()
        file = self.to / f"{len(self.points):03}.safetensors"
        save_file({name: one.contiguous() for name, one in BERT.from_transformers(model.state_dict()).items()}, file)
        self.points.append((at / 60, str(file)))
        self.moments.pop(0)
        self.start += time.monotonic() - began


def trainer_of(to: Path, given: Given, asked: dict[str, Any]) -> Trainer:
    """As Trainer comes, but for what both sides were asked; with rows of like length together and no logs it is the
    faster."""
    shape, optimizer = asked["model"], asked["optimizer"]
    model = TheirModel(TheirConfig(vocab_size=VOCAB_SIZE, attn_implementation="sdpa", **shape))
    first = BertForPreTraining(BertConfig.model_validate(shape), VOCAB_SIZE, asked["seed"]).state_dict()
    lacking = model.load_state_dict(BERT.to_transformers(first), strict=False)
    assert all("decoder" in name for name in lacking.missing_keys), lacking  # tied to what is there
    return Trainer(
        model,
        TrainingArguments(
            output_dir=str(to),
            per_device_train_batch_size=asked["batch"],
            max_steps=10**6,  # the clock ends it
            learning_rate=optimizer["learning_rate"],
            adam_beta1=optimizer["betas"][0],
            adam_beta2=optimizer["betas"][1],
            adam_epsilon=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            max_grad_norm=optimizer["max_grad_norm"],
            seed=asked["seed"],
            bf16=bf16_is_faster(model, given, asked["batch"]),
            use_cpu=True,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=given.collate,
        train_dataset=given,
    )


def bf16_is_faster(model: TheirModel, given: Given, size: int) -> bool:
    seconds = {}
    for bf16 in (False, True):
        for step in range(2 + TIMED):
            if step == 2:
                start = time.monotonic()
            made = given.collate([given[row] for row in range(step * size, (step + 1) * size)])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**made).loss
            loss.backward()
            model.zero_grad()
        seconds[bf16] = (time.monotonic() - start) / TIMED
    print(f"  the Trainer's step takes {seconds[False]:.2f} s in fp32, {seconds[True]:.2f} s in bf16", flush=True)
    return seconds[True] < seconds[False]


def main(to: Path, artifact: Artifact, asked: dict[str, Any]) -> None:
    torch.set_num_threads(2)
    examples = ExampleDataset(artifact, "train")
    trainer = trainer_of(to, Given(next(examples.batches(asked["seed"], 0, len(examples)))), asked)
    clock = Clock(to, 60 * asked["minutes"], [*(60 * moment for moment in asked["moments"][:-1]), math.inf])
    trainer.add_callback(clock)
    optimizer = trainer.create_optimizer()

    def share_of_peak(_: int) -> float:
        """As learning_rate_in_time, with the warm-up a share of the time too."""
        share = clock.elapsed() / clock.seconds
        return min(1.0, max(share, 1 / clock.seconds) / asked["warmup"]) * max(0.0, 1 - share)

    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    trainer.train()
    record = {
        "steps": trainer.state.global_step,
        "sequences": trainer.state.global_step * asked["batch"],
        "precision": "bf16" if trainer.args.bf16 else "fp32",
        "points": clock.points,
    }
    (to / "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Artifact(Location(sys.argv[2]), "examples", "0"), json.loads(sys.argv[3]))
