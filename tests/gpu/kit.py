"""What every check of the kit is given, and the list of checks, in the order in which they run."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

Host = Literal["plain", "ray"]  # the process that runs a check; those of one host share a process, "ray" a Ray session
Figures = Mapping[str, Any]

#: Default minutes of each part. Preflight (part 0) has no budget, only its check's limit.
MINUTES = {0: 0.6, 1: 4.0, 2: 4.0, 3: 9.0}


@dataclass(frozen=True)
class Kit:
    """The options of a run. `tiny`: shapes for a dry run on a CPU."""

    device: Literal["cuda", "cpu"]
    tiny: bool
    corpus: str  # folder of the pack with vocab, examples-128, examples-512, labelled.jsonl
    work: str  # folder for what the checks write, deleted at the end
    out: str  # folder of the results

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def folder(self, name: str) -> Path:
        """A folder below `work`, which exists."""
        folder = Path(self.work, name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Failed(Exception):
    """A check has found what must not be; the message has the numbers."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


class Check(NamedTuple):
    """`function` is "module:function", called as function(kit, **arguments) -> figures.

    It is killed after `seconds`, and not started when less than `least` seconds of its part's time are left.
    """

    name: str
    part: int
    host: Host
    function: str
    arguments: Mapping[str, Any]
    seconds: float
    least: float

    def call(self, kit: Kit) -> Figures:
        module, _, name = self.function.partition(":")
        function: Callable[..., Figures] = getattr(import_module(module), name)
        return partial(function, kit)(**self.arguments)


def _check(
    part: int, host: Host, function: str, name: str, seconds: float, least: float = 8, **arguments: Any
) -> Check:
    return Check(name, part, host, f"tests.gpu.{function}", arguments, seconds, least)


def checks() -> list[Check]:
    return [
        _check(0, "plain", "preflight:preflight", "preflight: five steps of a tiny model", 30, 0),
        *_works(),
        *_speed(),
        _check(3, "ray", "learning:compare", "held-out loss after the same time as transformers' Trainer", 540, 60),
    ]


def _works() -> Iterator[Check]:
    """Part 1, in two processes: without Ray, then in one Ray session. The most important checks come first in each."""
    plain, ray = partial(_check, 1, "plain"), partial(_check, 1, "ray")
    yield plain("numerics:same_as_cpu", "fp32 losses, logits, gradients equal the CPU's", 45)
    yield plain("numerics:variants", "fused loss, compiled layers equal the eager step", 75)
    yield plain("numerics:does_not_wait", "a step does not wait for the GPU", 60)
    yield plain("numerics:between_zero_stages", "checkpoints load at ZeRO 0, 1, 3, 0", 60)
    yield plain("numerics:activation_checkpointing", "activation checkpointing: same loss", 30)
    yield plain("numerics:fastest", "precision auto for BERT-base", 20)
    yield ray("stages:pretrain", "pretrain fp32 at ZeRO 1 through Ray Train and DeepSpeed", 120)
    for precision in ("bf16", "fp16"):
        for stage in (0, 1, 2, 3):
            variant = {"precision": precision, "zero_stage": stage}
            yield ray("stages:variant", f"pretrain {precision} at ZeRO {stage}", 10, 0, **variant)
    yield ray("stages:worker_killed", "kill -9 of the worker: same data and losses", 90)
    yield ray("stages:stopped", "SIGTERM, then continued: same data and losses", 90)
    yield ray("stages:finetune", "fine-tuning from the checkpoint", 60)
    yield ray("stages:exported", "export: transformers computes the same logits", 40)
    yield ray("stages:as_configured", "pretrain as configured by default: precision and compile auto", 90)
    yield ray("stages:driver_killed", "kill -9 of driver and workers: same data and losses", 90, 20)


def _speed() -> Iterator[Check]:
    """Part 2: the figures of the step first, then of the stage, then what is good to know."""
    plain, ray = partial(_check, 2, "plain"), partial(_check, 2, "ray")

    def step(workload: str, compiled: bool, fused: bool) -> Check:
        variant = {(0, 0): "eager", (1, 0): "compiled", (0, 1): "fused loss", (1, 1): "compiled, fused loss"}
        name = f"{workload} {variant[compiled, fused]}"
        return plain("speed:step", name, 70, 10, workload=workload, compiled=compiled, fused_loss=fused)

    yield step("base_128", False, False)
    yield step("base_128", True, True)
    yield step("large_512", False, False)
    yield step("large_512", True, True)
    yield plain("speed:transformers", "base_128 transformers", 40, 10, workload="base_128", compile=False)
    yield plain("speed:transformers", "large_512 transformers", 40, 10, workload="large_512", compile=False)
    for workload in ("base_128", "large_512"):
        yield plain("speed:ceiling", f"{workload} matrix products alone", 30, workload=workload)
    yield plain("speed:kernels", "base_128 ten costliest kernels", 40, workload="base_128")
    yield step("base_128", False, True)
    yield step("base_128", True, False)
    yield step("large_512", False, True)
    yield step("large_512", True, False)
    yield plain("speed:kernels", "large_512 ten costliest kernels", 40, workload="large_512")
    yield ray("stages:speed", "BERT-base through Ray on real examples", 80, 20, zero_stage=0)
    yield ray("stages:speed", "BERT-base through Ray and DeepSpeed ZeRO 1", 80, 20, zero_stage=1)
    yield plain("speed:transformers", "base_128 transformers compiled", 60, 20, workload="base_128", compile=True)
    yield plain("speed:transformers", "large_512 transformers compiled", 60, 20, workload="large_512", compile=True)
