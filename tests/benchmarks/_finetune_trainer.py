"""Fine-tuning by transformers' Trainer -> the score on dev, or the CPU time that it takes."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from cloze.training.finetune.trainer import epoch_batches
from cloze.training.finetune.trials import FinetuneSetup

Head = Mapping[str, np.ndarray]  # the head's weights before the first step, by transformers' names


class TrainerWithBatches(Trainer):
    """The Trainer with given batches, as row numbers."""

    batches: Sequence[Sequence[int]]

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)


def score(folder: Path, setup: FinetuneSetup, head: Head, bf16: bool) -> float:
    """Returns the task's metric on dev after one epoch with Cloze's batches, in Cloze's order."""
    [trial], lengths = setup.config.trials, setup.splits["train"].lengths
    batches = [rows.tolist() for rows in epoch_batches(lengths, trial.batch_size, setup.config.seed, 0)]
    datasets = {split: _dataset(folder, setup, split, padding=False) for split in ("train", "dev")}
    return _fine_tune(folder, setup, head, datasets, {"bf16": bf16, "per_device_eval_batch_size": 128}, batches)[0]


def seconds_grouped(folder: Path, setup: FinetuneSetup, head: Head, bf16: bool, rows: int) -> float:
    """With dynamic padding, batches grouped by length and the batch size of Cloze's evaluation: see `_seconds`."""
    options = {"bf16": bf16, "train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 128}
    return _seconds(folder, setup, head, rows, False, options)


def seconds_as_it_comes(folder: Path, setup: FinetuneSetup, head: Head, rows: int) -> float:
    """With the Trainer's defaults and each input padded to max_seq_length, as in run_glue.py: see `_seconds`."""
    return _seconds(folder, setup, head, rows, "max_length", {})


def _seconds(
    folder: Path, setup: FinetuneSetup, head: Head, rows: int, padding: bool | str, options: dict[str, Any]
) -> float:
    """Returns the CPU seconds of an epoch and of evaluating dev, in proportion to those of the first `rows` of each."""
    datasets = {split: _dataset(folder, setup, split, padding) for split in ("train", "dev")}
    timed = {split: dataset[:rows] for split, dataset in datasets.items()}
    _, *seconds = _fine_tune(folder, setup, head, timed, options)
    return sum(
        one * len(datasets[split]) / len(timed[split]) for split, one in zip(("train", "dev"), seconds, strict=True)
    )


def _fine_tune(
    folder: Path,
    setup: FinetuneSetup,
    head: Head,
    datasets: Mapping[str, Sequence[dict[str, Any]]],
    options: dict[str, Any],
    batches: Sequence[Sequence[int]] | None = None,
) -> tuple[float, float, float]:
    """Returns the score on dev, and the CPU seconds of training and of evaluating dev."""
    logging.set_verbosity_error()
    [trial], seed = setup.config.trials, setup.config.seed
    outputs = len(head["classifier.bias"])  # one: transformers computes the mean squared error
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=outputs)
    for name, weight in head.items():
        model.get_parameter(name).data.copy_(torch.from_numpy(weight))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=trial.batch_size,
            num_train_epochs=trial.epochs,
            learning_rate=trial.learning_rate,
            warmup_steps=round(0.1 * setup.steps(trial)),
            weight_decay=0.01,
            adam_epsilon=1e-6,
            max_grad_norm=1.0,
            seed=seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        trainer = (Trainer if batches is None else TrainerWithBatches)(
            model, arguments, DataCollatorWithPadding(tokenizer), datasets["train"], processing_class=tokenizer
        )
        if isinstance(trainer, TrainerWithBatches) and batches is not None:
            trainer.batches = batches
        start = time.process_time()
        trainer.train()
        trained = time.process_time()
        predicted = trainer.predict(datasets["dev"])
        evaluated = time.process_time()
    answers = torch.from_numpy(predicted.predictions).float()
    dev: Any = replace(setup.splits["dev"], targets=predicted.label_ids)  # in the order of the Trainer's batches
    answers = answers[:, 0].tolist() if outputs == 1 else list(answers.softmax(-1).numpy())
    dev_score = setup.task.selection_key(setup.task.evaluate(answers, dev))[0]
    return dev_score, trained - start, evaluated - trained


def _dataset(folder: Path, setup: FinetuneSetup, split: str, padding: bool | str) -> list[dict[str, Any]]:
    """Returns the examples of a split as transformers' tokenizer encodes them, with the labels that Cloze has read."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = setup.examples(split)
    second = [example.text_b for example in examples]
    encoded = tokenizer(
        [example.text for example in examples],
        None if second[0] is None else second,
        truncation=True,
        max_length=setup.config.max_seq_length,
        padding=padding,
    )
    targets: Any = setup.splits[split]
    return [
        {**{name: encoded[name][row] for name in encoded}, "labels": target}
        for row, target in enumerate(targets.targets.tolist())
    ]
