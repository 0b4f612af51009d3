"""One fine-tuning by transformers' Trainer -> its score on dev and the CPU time that it takes."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from cloze.training.finetune.trainer import FinetuneSetup

Head = Mapping[str, np.ndarray]  # the head's weights before the first step, by transformers' names


class FinetuneResult(NamedTuple):
    """The task's metric on dev after the last epoch, and the CPU seconds of training and of evaluating dev."""

    score: float
    seconds: float


def fine_tune(folder: Path, setup: FinetuneSetup, head: Head, bf16: bool) -> FinetuneResult:
    """With dynamic padding, batches grouped by length and the batch size of Cloze's evaluation."""
    options = {"bf16": bf16, "train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 128}
    datasets = {split: _dataset(folder, setup, split, padding=False) for split in ("train", "dev")}
    score, train_seconds, dev_seconds = _fine_tune(folder, setup, head, datasets, options)
    return FinetuneResult(score, train_seconds + dev_seconds)


def seconds_as_it_comes(folder: Path, setup: FinetuneSetup, head: Head, rows: int) -> float:
    """With the Trainer's defaults and each input padded to max_seq_length, as in transformers' run_glue.py.

    Measured on the first `rows` examples of train and of dev, and multiplied to all.
    """
    datasets = {split: _dataset(folder, setup, split, padding="max_length") for split in ("train", "dev")}
    timed = {split: dataset[:rows] for split, dataset in datasets.items()}
    _, *seconds = _fine_tune(folder, setup, head, timed, {})
    return sum(
        one * len(datasets[split]) / len(timed[split]) for split, one in zip(("train", "dev"), seconds, strict=True)
    )


def _fine_tune(
    folder: Path,
    setup: FinetuneSetup,
    head: Head,
    datasets: Mapping[str, Sequence[dict[str, Any]]],
    options: dict[str, Any],
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
        trainer = Trainer(
            model, arguments, DataCollatorWithPadding(tokenizer), datasets["train"], processing_class=tokenizer
        )
        start = time.process_time()
        trainer.train()
        trained = time.process_time()
        predicted = trainer.predict(datasets["dev"])
        evaluated = time.process_time()
    answers = torch.from_numpy(predicted.predictions).float()
    dev: Any = replace(setup.data.splits["dev"], targets=predicted.label_ids)  # in the order of the Trainer's batches
    answers = answers[:, 0].tolist() if outputs == 1 else list(answers.softmax(-1).numpy())
    score = setup.task.selection_key(setup.task.evaluate(answers, dev))[0]
    return score, trained - start, evaluated - trained


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
    targets: Any = setup.data.splits[split]
    return [
        {**{name: encoded[name][row] for name in encoded}, "labels": target}
        for row, target in enumerate(targets.targets.tolist())
    ]
