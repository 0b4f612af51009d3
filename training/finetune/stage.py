"""checkpoint + labelled file -> a fine-tuned model and its scores, beside what the same model learns from nothing.

Two variants are trained alike (data order, dropout, settings, head): the pretrained encoder and one of random weights.
Each keeps the epoch that is best on dev, and of several trials the best; the test part is looked at once, by that one.
A finished trial and a finished variant are parts: a killed run goes on after them.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Manifest, Output, Part
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import Ints
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.text import vocab_file
from cloze.pipeline.text.tokenizer import load_tokenizer
from cloze.training.checkpoints.checkpoint import CheckpointRef, SavedConfig
from cloze.training.cluster.collectives import agreed
from cloze.training.cluster.elastic import Placement, nodes
from cloze.training.cluster.heartbeat import Progress, Tell
from cloze.training.cluster.ray_train import RestartPolicy, run_workers
from cloze.training.finetune.facts import FinetuneFacts
from cloze.training.finetune.tasks.registry import task_of
from cloze.training.finetune.tasks.task import SPLITS, Encoded, Prepared, Rows, Task, TaskConfig, Trial
from cloze.training.model.bert import load_encoder
from cloze.training.model.hardware import has_bf16, worker_device
from cloze.training.model.optim import OptimizerConfig, Precision, adamw, autocast, learning_rate_at, parameter_groups

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 3
VARIANTS = ("pretrained", "random")

_NO_POOLER = (
    "The checkpoint has no pooler (examples.objective mlm): it began with random weights, as the classifier does"
)
_WARMUP = 0.1  # of the steps, as in BERT's run_classifier.py
_EVAL_BATCH = 128
_CURVE_POINTS = 200
_SHOWN = 4  # test examples of each kind for the report
_SHOWN_CHARS = 400


@dataclass(frozen=True)
class Setup:
    """What every worker is given."""

    config: TaskConfig
    task: Task
    prepared: Prepared
    checkpoint: CheckpointRef
    vocab: Artifact
    out: Output

    def steps(self, trial: Trial) -> int:
        return trial.epochs * math.ceil(len(self.prepared.splits["train"].lengths) / trial.batch_size)

    def parts(self, variant: str) -> list[str]:
        """The names of the parts that a variant has: one for each trial and, once all are there, its own."""
        return [*(f"{variant}-{trial.name}" for trial in self.config.trials), variant]

    def finished(self, variant: str) -> int:
        """Steps of the variant that need not be made again."""
        there = self.out.finished_parts(self.parts(variant))
        return sum(self.steps(trial) for trial in self.config.trials if f"{variant}-{trial.name}" in there)


@dataclass
class Outcome:
    """What a trial gives: curves, its best epoch (of equal ones the first) and that one's weights."""

    losses: list[float] = field(default_factory=list)  # a step
    dev: list[Mapping[str, float]] = field(default_factory=list)  # the task's metrics, an epoch
    merit: tuple[float, ...] = ()  # what trials and epochs are compared by
    best_epoch: int = 0  # from 1
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def add_epoch(self, metrics: Mapping[str, float], merit: tuple[float, ...], model: nn.Module) -> None:
        self.dev.append(metrics)
        if not self.best_epoch or merit > self.merit:
            self.best_epoch, self.merit = len(self.dev), merit
            self.weights = copy.deepcopy(model.state_dict())

    def facts(self) -> dict[str, Any]:
        return {
            "loss": thinned(self.losses),
            **{f"dev_{name}": [metrics[name] for metrics in self.dev] for name in self.dev[0]},
            "best_epoch": self.best_epoch,
            "merit": list(self.merit),
        }


def thinned(losses: Sequence[float]) -> list[tuple[int, float]]:
    """A loss for every step -> at most 200 points (last step of a stretch, mean loss over it)."""
    stretch = math.ceil(len(losses) / _CURVE_POINTS)
    parts = [losses[start : start + stretch] for start in range(0, len(losses), stretch)]
    return [(min((i + 1) * stretch, len(losses)), sum(part) / len(part)) for i, part in enumerate(parts)]


def batches(lengths: Ints, batch_size: int, seed: int, epoch: int) -> list[Rows]:
    """The rows of each batch of an epoch: every row once, by lot, with those of like length together.

    Within every 16 batches' rows the batches are cut along the length, then the batches are shuffled: a quarter of the
    work would be padding otherwise.
    """
    random = np.random.default_rng([seed, epoch])
    order, window = random.permutation(len(lengths)), 16 * batch_size
    found = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        found += [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return [found[i] for i in random.permutation(len(found))]


# In a worker


class Worker:
    """One worker's part of the training: it differs from the others' by `rank` alone."""

    def __init__(self, setup: Setup, tell: Tell) -> None:
        self.setup, self.tell = setup, tell
        self.rank, self.workers = dist.get_rank(), dist.get_world_size()
        self.device = worker_device()
        self.saved = setup.checkpoint.config()
        self.done = 0  # steps, of all trials
        torch.use_deterministic_algorithms(True, warn_only=self.device.type == "cuda")  # attention has none there
        wanted = setup.config.precision
        self.precision: Precision = ("bf16" if has_bf16(self.device) else "fp32") if wanted == "auto" else wanted

    def train_all(self) -> None:
        """Each variant that is not there yet: its trials, then the best of them on the test part."""
        out, trials = self.setup.out, self.setup.config.trials
        for variant in VARIANTS:
            if all(map(self._part, self.setup.parts(variant))):
                self.done += sum(map(self.setup.steps, trials))
                continue
            merits: dict[Trial, tuple[float, ...]] = {}
            kept: tuple[Trial, Outcome] | None = None  # the best of this attempt
            for trial in trials:
                name = f"{variant}-{trial.name}"
                if part := self._part(name):
                    merits[trial] = tuple(part.facts["merit"])
                    self.done += self.setup.steps(trial)
                    continue
                outcome = self.train(variant, trial)
                merits[trial] = outcome.merit
                if self.rank == 0:
                    out.commit(name, {}, facts={"trial": trial._asdict(), **outcome.facts()})
                if trial == _best(merits):
                    kept = (trial, outcome)
            best = _best(merits)
            if kept is None or kept[0] != best:  # its weights went with an earlier attempt
                self.done -= self.setup.steps(best)
                kept = (best, self.train(variant, best))
            self._finish(variant, *kept)

    def _part(self, name: str) -> Part | None:
        """As worker 0 finds it: another run of the same fingerprint may finish it just now."""
        return agreed(self.setup.out.finished_part(name) if self.rank == 0 else None)

    def train(self, variant: str, trial: Trial) -> Outcome:
        """One trial from its first step to its last."""
        data, seed, task = self.setup.prepared.splits["train"], self.setup.config.seed, self.setup.task
        steps = self.setup.steps(trial)
        # with the correction of Adam's bias, without which some seeds fail on small sets (arXiv:2006.05987)
        settings = OptimizerConfig(
            learning_rate=trial.learning_rate, warmup_steps=round(_WARMUP * steps), bias_correction=True
        )
        model = self._model(variant)
        optimizer = adamw(parameter_groups(model, settings.weight_decay), settings)
        outcome = Outcome()
        torch.manual_seed(seed * self.workers + self.rank)  # dropout
        for epoch in range(trial.epochs):
            for rows in batches(data.lengths, trial.batch_size, seed, epoch):
                for parameters in optimizer.param_groups:
                    parameters["lr"] = learning_rate_at(len(outcome.losses), settings, steps)
                loss = self._step(model, optimizer, rows, settings)
                outcome.losses.append(loss)
                self.done += 1
                self.tell(self.done, f"{variant}, epoch {epoch + 1} of {trial.epochs}, loss {loss:.3f}")
            dev = self.setup.prepared.splits["dev"]
            metrics = task.evaluate(self.answers(model, dev), dev)
            outcome.add_epoch(metrics, task.merit(metrics), model)
        return outcome

    def _model(self, variant: str) -> nn.Module:
        model = self.setup.task.model(self.saved)
        if variant == "pretrained":
            load_encoder(model, self.setup.checkpoint.weights())
        return model.to(self.device)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, settings: OptimizerConfig) -> float:
        """An update from the mean loss over `rows`, of which each worker takes its share; that loss."""
        data, mine, task = self.setup.prepared.splits["train"], rows[self.rank :: self.workers], self.setup.task
        model.train()
        optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        if len(mine):
            with autocast(self.device, self.precision):
                outputs = model(*task.inputs(data, mine, self.device))
            loss = task.loss(outputs, data, mine) / len(rows)
            loss.backward()
        loss = self._summed(model, loss.detach())
        if not math.isfinite(loss):
            raise UserError(f"finetune-{self.setup.config.name}: the loss is {loss}; lower learning_rate")
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        return loss

    def _summed(self, model: nn.Module, loss: torch.Tensor) -> float:
        """Add up the gradients and the loss of all workers, each of which has divided by the whole batch's size."""
        if self.workers == 1:
            return loss.item()
        for parameter in model.parameters():
            if parameter.grad is None:  # a worker without a row in this batch
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([loss.flatten(), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        total, *summed = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, values in zip(gradients, summed, strict=True):
            gradient.copy_(values.view_as(gradient))
        return total.item()

    def answers(self, model: nn.Module, data: Encoded) -> list[Any]:
        """The task's answer for each example, in their order; the workers share the examples."""
        order = np.argsort(data.lengths, kind="stable")  # rows of like length together: little padding
        mine = order[self.rank :: self.workers]
        found = list[Any]()
        model.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for start in range(0, len(mine), _EVAL_BATCH):
                rows = mine[start : start + _EVAL_BATCH]
                outputs = model(*self.setup.task.inputs(data, rows, self.device))
                found += self.setup.task.answers(outputs, data, rows)
        shares: list[Any] = [None] * self.workers
        dist.all_gather_object(shares, found)
        answers: list[Any] = [None] * len(order)
        for rank, share in enumerate(shares):
            for row, answer in zip(order[rank :: self.workers], share, strict=True):
                answers[row] = answer
        return answers

    def _finish(self, variant: str, trial: Trial, outcome: Outcome) -> None:
        """Test the best epoch of the best trial, and commit the variant: predictions, and the model if pretrained."""
        model = self._model(variant)
        model.load_state_dict(outcome.weights)
        answers = self.answers(model, self.setup.prepared.splits["test"])
        if self.rank:
            return
        predictions = self.setup.task.predictions(_examples(self.setup.task, "test"), answers)
        files = {f"predictions/{variant}.jsonl": json_lines.encode(predictions, escaped=False)}
        if variant == "pretrained":
            files |= _model_files(self.setup, outcome.weights)
        facts = {
            "trial": trial._asdict(),
            "precision": self.precision,
            **outcome.facts(),
            "predicted": [row["predicted"] for row in predictions],
        }
        self.setup.out.commit(variant, files, facts=facts)


def _best(merits: Mapping[Trial, tuple[float, ...]]) -> Trial:
    """The trial with the best epoch on dev, of equals the first."""
    return max(merits, key=lambda trial: merits[trial])


def _work(setup: Setup, tell: Tell) -> None:
    Worker(setup, tell).train_all()


def _examples(task: Task, split: str) -> list[Any]:
    return [example for example in task.examples if example.split == split]


def _model_files(setup: Setup, weights: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The fine-tuned model and all that is needed to use it."""
    from safetensors.torch import save

    config = setup.checkpoint.config().model_dump_json(indent=1, exclude={"nsp"})  # its head is another one
    return {
        "model/model.safetensors": save({name: weight.cpu().contiguous() for name, weight in weights.items()}),
        "model/config.json": config.encode(),
        **{f"model/{name}": data for name, data in setup.task.model_files().items()},
        **{f"model/{name}": data for name, data in vocab_file.read_files(setup.vocab.location).items()},
    }


# In the driver


def check(config: TaskConfig, sources: Mapping[str, SourceFile]) -> None:
    """Raises UserError when the labelled file cannot be read, learned from or scored."""
    task_of(config).read(config, sources["data"].location)


def run(config: TaskConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """inputs: "checkpoint" (CheckpointRef), "vocab" (Artifact), "data" (SourceFile). Wants a Ray session.

    facts: what the task says of its file, "scores" (pretrained, random and the task's baseline -> numbers by name),
    "variants" (pretrained, random -> trial, loss, the task's metrics on dev, best_epoch), "trials" (the same for each),
    "examples" (some of the test part, right and wrong), "notes" (what a user should know of the start).
    Raises UserError.
    """
    checkpoint: CheckpointRef = inputs["checkpoint"]
    vocab: Artifact = inputs["vocab"]
    data: SourceFile = inputs["data"]
    task = task_of(config).read(config, data.location)
    tokenizer = load_tokenizer(vocab.location / "tokenizer.json")
    _check_model(checkpoint.config(), tokenizer, config)
    prepared = task.prepare(tokenizer)
    setup = Setup(config, task, prepared, checkpoint, vocab, out)
    names = [name for variant in VARIANTS for name in setup.parts(variant)]
    FinetuneFacts.model_validate(task.facts())  # hours before they are told
    if len(out.finished_parts(names)) < len(names):
        placement = Placement.fitting(
            nodes(),
            stage=f"finetune-{config.name}",
            gpus=config.gpus,
            workers=config.workers,
            threads=config.threads,
            without_gpus=1,
        )
        total = len(VARIANTS) * sum(map(setup.steps, config.trials))
        progress = Progress(out, total, "steps", sum(map(setup.finished, VARIANTS)))
        run_workers(_work, setup, placement, RestartPolicy(), progress)
    parts = out.require_parts(names)
    facts = _facts(setup, {part.name: part.facts for part in parts})
    scores = json.dumps(facts.plain["scores"], indent=1, ensure_ascii=False)
    return out.finish(
        [*parts, out.commit("scores", {"scores.json": scores.encode()})],
        identity(config),
        {"checkpoint": checkpoint.digest, "vocab": vocab.fingerprint, "data": data.identity},
        counts={split: len(prepared.splits[split].lengths) for split in SPLITS} | {"truncated": prepared.truncated},
        facts=facts,
    )


def _check_model(saved: SavedConfig, tokenizer: "Tokenizer", config: TaskConfig) -> None:
    """Raises UserError when the checkpoint fits neither the vocabulary nor the length."""
    if saved.vocab_size != tokenizer.get_vocab_size():
        raise UserError(
            f"finetune-{config.name}: the checkpoint has {saved.vocab_size} pieces, the vocabulary "
            f"{tokenizer.get_vocab_size()}; give the vocabulary it was trained with"
        )
    if config.max_seq_length > saved.model.max_position_embeddings:
        raise UserError(
            f"finetune-{config.name}: max_seq_length {config.max_seq_length} is more than the model's "
            f"{saved.model.max_position_embeddings} positions; lower it"
        )


def _facts(setup: Setup, parts: Mapping[str, dict[str, Any]]) -> FinetuneFacts:
    """What the report shows, from the facts of the finished parts."""
    task, test = setup.task, _examples(setup.task, "test")
    baseline, answers = task.baseline(test)
    predicted = {**{variant: parts[variant]["predicted"] for variant in VARIANTS}, baseline: answers}
    told = {
        **task.facts(),
        "scores": {name: task.scores(test, answers) for name, answers in predicted.items()},
        "variants": {
            variant: {key: value for key, value in parts[variant].items() if key != "predicted"} for variant in VARIANTS
        },
        "trials": {name: facts for name, facts in parts.items() if name not in VARIANTS},
        "examples": _shown([task.sample(example) for example in test], predicted["pretrained"], setup.config.seed),
        "notes": [] if setup.checkpoint.config().nsp else [_NO_POOLER],
    }
    return FinetuneFacts.model_validate(told)


def _shown(test: Sequence[Mapping[str, Any]], predicted: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Some test examples that were answered rightly and some that were not, drawn by lot, in the file's order."""
    order = np.random.default_rng(seed).permutation(len(test))
    right = [i for i in order if test[i]["label"] == predicted[i]][:_SHOWN]
    wrong = [i for i in order if test[i]["label"] != predicted[i]][:_SHOWN]
    return [
        {**test[i], "text": test[i]["text"][:_SHOWN_CHARS], "predicted": predicted[i]}
        for i in [*sorted(right), *sorted(wrong)]
    ]
