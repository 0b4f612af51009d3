"""Fine-tuning of a real pretrained BERT (MiniLM, 6 layers of 384) compared with transformers' Trainer.

Both sides start from the same weights and the same head, and train one epoch with the same settings on SST-2 (the first
10,000 rows of train), MRPC and STS-B, once with each seed. For the scores the Trainer has Cloze's batches, in Cloze's
order, and Cloze's precision; dropout is each side's own.

`score_gap` is the largest absolute mean of the paired differences between the dev scores of Cloze and of the Trainer,
over the tasks; `score_gap_bound` is two standard errors of the mean difference of that task. Scores are the task's
metrics: accuracy, F1, Spearman.

`ratio_grouped` is Cloze's speed over that of the Trainer with dynamic padding, its own grouping by length, Cloze's
precision and its batch size in evaluation. `ratio` is relative to the Trainer as it comes: its defaults (fp32, 8 rows
per batch in evaluation) and each input padded to 128 tokens, as transformers' run_glue.py does by default. Speed is
measured in CPU time for the epoch and the evaluation of dev, on one thread (threads busy-wait for each other), in one
process for each side. Cloze's has the memory settings of the stage's workers. The Trainer is timed on the first rows
(--grouped-rows with each seed; --padded-rows as it comes, --repeats times), and its time is in proportion to the rows.
Time for reading files, tokenizing and loading the model is not counted.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median, stdev
from unittest.mock import patch

import torch

from cloze.pipeline.core.file_digests import source_file
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.cluster.ray_train import keep_freed_memory
from cloze.training.finetune.encoders.pretrained_encoder import from_weights_file
from cloze.training.finetune.tasks.classification import ClassificationConfig
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.regression import RegressionConfig
from cloze.training.finetune.trainer import FinetuneTrainer
from cloze.training.finetune.trials import FinetuneSetup
from cloze.training.model.hardware import has_bf16, processor_name
from tests.benchmarks import _finetune_trainer as transformers_side
from tests.benchmarks._show import show
from tests.paths import SHARED
from tests.pretrained_bert import PackageIndexError, pretrained_bert

GLUE = SHARED / "data/finetune/glue"
BF16 = has_bf16(torch.device("cpu"))  # what Cloze's precision "auto" is
TASKS = ("SST-2", "MRPC", "STS-B")
SETTINGS = {"learning_rate": 5e-5, "batch_size": 32, "epochs": 1, "max_seq_length": 128}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=finetune", description=__doc__)
    parser.add_argument("--glue", type=Path, default=GLUE, help="folder with GLUE's SST-2, MRPC and STS-B")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rows", type=int, default=10_000, help="of train, at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grouped-rows", type=int, default=3200, help="of train and dev, to time the grouped Trainer")
    parser.add_argument("--padded-rows", type=int, default=320, help="of train and dev, to time it as it comes")
    parser.add_argument("--repeats", type=int, default=1, help="of the Trainer as it comes")
    options = parser.parse_args(arguments)
    if options.seeds < 2 or options.repeats > options.seeds:
        parser.error("--seeds: give at least 2, for a standard error, and no more repeats than seeds")
    if not options.glue.is_dir():
        parser.error(f"--glue: there is no folder {options.glue}")
    try:
        model = pretrained_bert()
    except PackageIndexError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        folder, context = Path(name), get_context("spawn")
        with patch.dict(os.environ, THP_MEM_ALLOC_ENABLE="1"):  # as the Ray session sets it for workers
            cloze = ProcessPoolExecutor(1, context, start_cloze, (folder / "store",))
            cloze.submit(torch.get_num_threads).result()  # start the process here
        with cloze, ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as trainer:
            tasks = {task: compare(task, options, model, folder, cloze, trainer) for task in options.tasks}
    show(
        f"fine-tuning on {processor_name(torch.device('cpu'))}",
        summary(tasks),
        {"benchmark": "finetune", "cores": os.cpu_count(), "bf16": BF16, "rows": options.rows, "seeds": options.seeds},
        "{:,.4g}".format,
    )


@dataclass
class Comparison:
    """A task's scores on dev and CPU seconds, with each seed."""

    cloze: list[float]
    trainer: list[float]
    seconds: dict[str, list[float]]  # cloze, grouped, as_it_comes

    def figures(self) -> dict[str, float]:
        gaps = [one - other for one, other in zip(self.cloze, self.trainer, strict=True)]
        return {
            "cloze": fmean(self.cloze),
            "trainer": fmean(self.trainer),
            "score_gap": fmean(gaps),
            "score_gap_bound": 2 * stdev(gaps) / math.sqrt(len(gaps)),
            **{f"seconds_{side}": median(values) for side, values in self.seconds.items()},
        }


def summary(tasks: Mapping[str, Comparison]) -> dict[str, float]:
    """Returns the figures of all tasks together, then those of each."""
    by_task = {task: comparison.figures() for task, comparison in tasks.items()}
    widest = max(by_task.values(), key=lambda figures: abs(figures["score_gap"]))
    seconds = {
        side: sum(figures[f"seconds_{side}"] for figures in by_task.values())
        for side in ("cloze", "grouped", "as_it_comes")
    }
    return {
        "ratio": seconds["as_it_comes"] / seconds["cloze"],
        "ratio_grouped": seconds["grouped"] / seconds["cloze"],
        "score_gap": abs(widest["score_gap"]),
        "score_gap_bound": widest["score_gap_bound"],
        **{f"{name}_{task}": value for task, figures in by_task.items() for name, value in figures.items()},
    }


def compare(
    task: str,
    options: argparse.Namespace,
    model: Path,
    folder: Path,
    cloze: ProcessPoolExecutor,
    trainer: ProcessPoolExecutor,
) -> Comparison:
    """Fine-tunes both sides with each seed, one after the other."""
    header, *rows = (options.glue / task / "train.tsv").read_text().splitlines(keepends=True)
    train = folder / f"{task}.tsv"
    train.write_text("".join([header, *rows[: options.rows]]))
    files = {"train": train, "dev": options.glue / task / "dev.tsv"}
    found = Comparison([], [], {"cloze": [], "grouped": [], "as_it_comes": []})
    for seed in range(1, options.seeds + 1):
        setup = task_setup(model, files, task, seed, folder)
        score, seconds, head = cloze.submit(fine_tune, setup).result()
        reference = trainer.submit(transformers_side.score, model, setup, head, BF16).result()
        grouped = trainer.submit(
            transformers_side.seconds_grouped, model, setup, head, BF16, options.grouped_rows
        ).result()
        found.cloze.append(score)
        found.trainer.append(reference)
        found.seconds["cloze"].append(seconds)
        found.seconds["grouped"].append(grouped)
        print(
            f"{task}, seed {seed}: {score:.4f} in {seconds:.1f} s; {reference:.4f}, grouped {grouped:.1f} s", flush=True
        )
        if seed <= options.repeats:
            found.seconds["as_it_comes"].append(
                trainer.submit(transformers_side.seconds_as_it_comes, model, setup, head, options.padded_rows).result()
            )
    return found


def task_setup(model: Path, files: Mapping[str, Path], task: str, seed: int, folder: Path) -> FinetuneSetup:
    settings = {"name": task, "glue": task, "files": {split: str(file) for split, file in files.items()}, "seed": seed}
    kind = RegressionConfig if task == "STS-B" else ClassificationConfig
    config = kind.model_validate(settings | SETTINGS)
    read = task_of(config).read(config, {split: Location(str(file)) for split, file in files.items()})
    weights = source_file(Location(str(model / "model.safetensors")), Location(str(folder / "sources")))
    encoder = from_weights_file(weights)
    out = Output(Location(str(folder / "artifact")), f"finetune-{task}", 1, "0")
    return FinetuneSetup(config, read, read.encode(encoder.tokenizer()).splits, encoder, out)


def start_cloze(store: Path) -> None:
    """Prepares a process like a worker of the stage."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def fine_tune(setup: FinetuneSetup) -> tuple[float, float, transformers_side.Head]:
    """Returns Cloze's score, its CPU seconds, and the head's weights before the first step."""
    trainer = FinetuneTrainer(setup, lambda done, note: None)
    model = trainer.new_model("pretrained")
    head = {name: weight.numpy().copy() for name, weight in model.state_dict().items() if "classifier" in name}
    with patch.object(trainer, "new_model", return_value=model):
        start = time.process_time()
        result = trainer.run_trial("pretrained", setup.config.trials[0])
        seconds = time.process_time() - start
    return result.selection_key[0], seconds, head
