"""Part 1, without Ray: the numbers of the GPU against those of the CPU, and of one way to compute against another."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from cloze.training.checkpoints.checkpoint import newest_checkpoint
from cloze.training.model.bert import BertConfig
from cloze.training.model.hardware import fastest_precision, has_bf16, layer_seconds
from cloze.training.model.optim import Precision, adamw, parameter_groups
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch
from cloze.training.pretrain.engine import Engine
from cloze.training.pretrain.objective import Objective
from cloze.training.pretrain.trainer import PretrainTrainer
from tests.gpu.kit import Figures, Kit, require
from tests.gpu.settings import batches_of, pretrain_config, recorded, setup_of, zero_stage_of
from tests.gpu.training import NO_DROPOUT, OPTIMIZER, engine, join_group, model, packed_batches, synchronize

STEPS = 5
TOLERANCE = 1e-4  # relative norm, in fp32 without TF32
LEARNING_RATES = (1e-4, 2e-4, 3e-4, 4e-4, 5e-4)  # a warmup: the first updates of Adam amplify small differences


def same_as_cpu(kit: Kit) -> Figures:
    """Five steps on both devices, each with its own weights."""
    torch.set_float32_matmul_precision("highest")
    batches = list(packed_batches(kit, STEPS, 32))
    cpu, device = (list(plain_steps(kit, torch.device(name), batches)) for name in ("cpu", kit.device))
    figures = {
        name: max(difference(one[name], other[name]) for one, other in zip(device, cpu, strict=True))
        for name in ("loss", "logits", "gradients", "weights")
    }
    for name in ("loss", "logits", "gradients"):
        require(figures[name] < TOLERANCE, f"{name} differ by {figures[name]:.1e} of their norm: {figures}")
    return figures


def plain_steps(kit: Kit, device: torch.device, batches: Sequence[Batch]) -> Iterator[dict[str, Tensor]]:
    """Yields the loss, the masked-LM logits, all gradients and the updated weights of each step, on the CPU."""
    trained = model(kit, **NO_DROPOUT).to(device).train()
    objective = Objective(trained, "fp32")
    optimizer = adamw(parameter_groups(trained, OPTIMIZER.weight_decay), OPTIMIZER)
    for batch, learning_rate in zip(batches, LEARNING_RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        with torch.no_grad():
            inputs = (batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_lm_positions)
            logits, _ = trained(*(tensor.to(device) for tensor in inputs))
        labels = (batch.masked_lm_labels, batch.next_sentence_label)
        counts = ((one != IGNORE_INDEX).sum().float().to(device) for one in labels)
        loss, _ = objective(batch.to(device), *counts)
        loss.backward()
        gradients = flat(parameter.grad for parameter in trained.parameters())
        optimizer.step()
        optimizer.zero_grad()
        yield {
            "loss": loss.detach().cpu(),
            "logits": logits.cpu(),
            "gradients": gradients,
            "weights": flat(trained.parameters()),
        }


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors if tensor is not None])


def difference(one: Tensor, other: Tensor) -> float:
    """The norm of the difference relative to the norm."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def variants(kit: Kit) -> Figures:
    """The engine's steps in fp32: the fused loss and the compiled layers against the eager step."""
    torch.set_float32_matmul_precision("highest")
    eager = engine_steps(kit, {})
    figures = {}
    for name, variant in {
        "fused": {"fused_loss": True},
        "compiled": {"compiled": True},
        "both": {"compiled": True, "fused_loss": True},
    }.items():
        losses, norms, weights = engine_steps(kit, variant)
        worst = max(*map(relative, losses, eager[0]), *map(relative, norms, eager[1]))
        figures[name] = worst
        require(worst < TOLERANCE, f"{name}: losses or gradient norms differ by {worst:.1e}; {losses} {eager[0]}")
        require(difference(weights, eager[2]) < 1e-3, f"{name}: weights differ by {difference(weights, eager[2]):.1e}")
    return figures


def engine_steps(kit: Kit, variant: dict[str, bool]) -> tuple[list[float], list[float], Tensor]:
    """Losses, gradient norms and the last weights of five steps."""
    trained = engine(kit, model(kit, **NO_DROPOUT), **variant)
    losses, norms = [], []
    for step, (batch, rate) in enumerate(zip(packed_batches(kit, STEPS, 32), LEARNING_RATES, strict=True)):
        result = trained.step([batch], rate, step)
        losses.append(result.totals.means()["loss"])
        norms.append(result.grad_norm)
    return losses, norms, flat(trained.tensors(["model"])["model"].values())


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(other)


def between_zero_stages(kit: Kit) -> Figures:
    """Train 2 steps each at ZeRO 0, 1, 3 and 0, from checkpoint to checkpoint, and all of them at 0."""
    join_group(kit)
    whole = train_here(kit, "whole", 0)
    for position, stage in enumerate((0, 1, 3, 0), 1):
        changed = train_here(kit, "changed", stage, stop_after=2 * position)
    pairs = list(zip(changed, whole, strict=True))
    worst = max(relative(one, other) for one, other in pairs)
    require(worst < 1e-3, f"losses with changed ZeRO stages differ by {worst:.1e}: {changed}, at stage 0 {whole}")
    same = batches_of(kit.folder("changed")) == batches_of(kit.folder("whole"))
    require(same, "the batches differ")
    return {"stages": [0, 1, 3, 0], "loss": worst, "last": whole[-1]}


def train_here(kit: Kit, name: str, zero_stage: int, stop_after: int = 10**9) -> list[float]:
    """Train up to a step without Ray, and check that loading has restored every bit; the loss of each step so far."""
    config = pretrain_config(kit, steps=8, precision="fp32", zero_stage=zero_stage)
    setup = setup_of(kit, config, kit.folder(name))
    before = newest_checkpoint(setup.location)
    with recorded(setup):
        trainer = PretrainTrainer(setup, lambda done, note: done >= stop_after, None)
        require(zero_stage_of(trainer.engine) == zero_stage, f"the engine is at ZeRO {zero_stage_of(trainer.engine)}")
        if before:
            require_same_tensors(trainer.engine, before.tensors(), zero_stage)
        trainer.train()
    return [row["loss"] for row in trainer.state.metrics.rows if row["split"] == "train"]


def require_same_tensors(trained: Engine, saved: dict[str, dict[str, Tensor]], zero_stage: int) -> None:
    loaded = trained.tensors()
    unequal = [
        f"{kind} {name}"
        for kind, tensors in saved.items()
        for name, tensor in tensors.items()
        if not torch.equal(tensor, loaded[kind][name])
    ]
    require(not unequal, f"at ZeRO {zero_stage} {len(unequal)} tensors are not those of the checkpoint: {unequal[:3]}")


def does_not_wait(kit: Kit) -> Figures:
    """A step of each variant without DeepSpeed never waits for the GPU: PyTorch raises an error where it would."""
    figures = {}
    [batch] = packed_batches(kit, 1, 32)
    for name, variant in {"eager": {}, "compiled": {"compiled": True, "fused_loss": True}}.items():
        trained = engine(kit, model(kit), "bf16", **variant)
        trained.step([batch, batch], 1e-4, 0)  # compiles, and creates what later steps reuse
        synchronize(kit)
        if kit.device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            result = trained.step([batch, batch], 1e-4, 1)
        finally:
            if kit.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        figures[name] = result.totals.means()["loss"]
        require(math.isfinite(figures[name]), f"{name}: the loss is {figures[name]}")
    return figures


def activation_checkpointing(kit: Kit) -> Figures:
    """The same loss and gradient norm, with dropout, and less memory."""
    losses: dict[bool, list[float]] = {}
    memory: dict[bool, float] = {}
    layers = {} if kit.tiny else {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    precision: Precision = "bf16" if kit.device == "cuda" else "fp32"
    for recompute in (False, True):
        trained = engine(kit, model(kit, activation_checkpointing=recompute, **layers), precision)
        if kit.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        results = [trained.step([batch], 1e-4, step) for step, batch in enumerate(packed_batches(kit, 3, 64))]
        losses[recompute] = [value for result in results for value in (result.totals.means()["loss"], result.grad_norm)]
        memory[recompute] = torch.cuda.max_memory_allocated() / 2**20 if kit.device == "cuda" else 0.0
        del trained
    first, worst = relative(losses[True][0], losses[False][0]), max(map(relative, losses[True], losses[False]))
    require(first < 1e-5, f"the first losses differ by {first:.1e}: {losses}")
    require(worst < 5e-3, f"losses or gradient norms differ by {worst:.1e}: {losses}")  # sums in no fixed order
    if kit.device == "cuda":
        require(memory[True] < memory[False], f"no less memory: {memory}")
    return {"difference": worst, "mib": memory[False], "mib_recomputed": memory[True]}


def fastest(kit: Kit) -> Figures:
    """The precision that auto chooses for BERT-base, and the milliseconds of one layer in each."""
    join_group(kit)
    device = torch.device(kit.device)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    config = BertConfig.model_validate(base)
    measured: dict[str, float] = {}

    def seconds(precisions: Sequence[Precision]) -> list[float]:
        found = layer_seconds(config, device, precisions)
        measured.update({f"{name}_ms": 1000 * value for name, value in zip(precisions, found, strict=True)})
        return found

    precision = fastest_precision(device, seconds)
    expected = "bf16" if has_bf16(device) else "fp16"
    require(kit.device == "cpu" or precision == expected, f"{precision} in place of {expected}: {measured}")
    return {"precision": precision, **measured}
