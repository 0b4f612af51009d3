"""A step over workers and micro-batches equals the step of one process, in PyTorch and at any DeepSpeed stage."""

import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import fastest_precision
from cloze.training.model.optim import LossScale, OptimizerConfig, adamw, parameter_groups
from cloze.training.pretrain.data_loader import IGNORE_INDEX, Batch
from cloze.training.pretrain.deepspeed_config import DeepSpeedConfig, ZeroOptimization
from cloze.training.pretrain.engine import Engine
from tests.paths import QUICKSTART

VOCAB_SIZE, STEPS, RATE = 97, 6, 1e-3
OPTIMIZER = OptimizerConfig(learning_rate=RATE, max_grad_norm=0.5)
TUNED = DeepSpeedConfig.model_validate(
    {
        "communication_data_type": "fp32",
        "zero_optimization": {
            "overlap_comm": False,
            "reduce_bucket_size": 500,
            "allgather_bucket_size": 700,
            "contiguous_gradients": False,
            "reduce_scatter": False,
            "allgather_partitions": False,
            "sub_group_size": 4000,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 1000,
        },
    }
)


def model(dropout: float = 0.0, hidden_size: int = 32, **settings: bool) -> BertForPreTraining:
    config = BertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForPreTraining(config, VOCAB_SIZE, seed=1, **settings)


def batches(step: int) -> list[Batch]:
    """Four micro-batches of a global batch, of unequal sizes, lengths and numbers of masked positions."""
    draw = torch.Generator().manual_seed(step)
    made = []
    for rows, length, masked in ((2, 16, 9), (3, 9, 1), (1, 12, 0), (4, 8, 5)):
        ids = torch.randint(5, VOCAB_SIZE, (rows, length), generator=draw)
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, length - 3 :] = 0
        positions = torch.randperm(rows * length, generator=draw)[:masked]
        labels = torch.randint(5, VOCAB_SIZE, (masked,), generator=draw)
        nsp = torch.randint(0, 2, (rows,), generator=draw)
        made.append(Batch(ids, torch.zeros_like(ids), mask, positions, labels, nsp, torch.ones_like(nsp)))
    return made


@pytest.fixture(scope="module")
def reference() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same training in plain torch: one process, the losses of all rows at once."""
    plain = model()
    optimizer = adamw(parameter_groups(plain, OPTIMIZER.weight_decay), OPTIMIZER)
    found = []
    for step in range(STEPS):
        whole = batches(step)
        outputs = [plain(b.input_ids, b.token_type_ids, b.attention_mask, b.masked_lm_positions) for b in whole]
        mlm = functional.cross_entropy(
            torch.cat([o[0] for o in outputs]), torch.cat([b.masked_lm_labels for b in whole])
        )
        nsp_labels = torch.cat([b.next_sentence_label for b in whole])
        nsp = functional.cross_entropy(torch.cat([o[1] for o in outputs]), nsp_labels)
        optimizer.zero_grad()
        (mlm + nsp).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        found.append({"mlm_loss": mlm.item(), "nsp_loss": nsp.item(), "grad_norm": norm.item()})
    return found, dict(plain.named_parameters())


def steps(trained: Engine, numbers: range, between: Callable[[], object] = lambda: None) -> list[dict[str, float]]:
    found = []
    for step in numbers:
        mine = batches(step)[trained.rank :: trained.workers]

        def should_stop() -> bool:
            between()
            return False

        done = trained.step(mine, RATE, 2 * step + trained.rank, should_stop)
        assert done
        means = done.totals.means()
        found.append({"mlm_loss": means["mlm_loss"], "nsp_loss": means["nsp_loss"], "grad_norm": done.grad_norm})
    return found


def in_worker(rank: int, folder: str) -> None:
    """Run all stages one after the other; worker 0 saves the results."""
    warnings.simplefilter("ignore")
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for stage in range(4):
        exact = Engine(model(), OPTIMIZER, zero_stage=stage)
        found[f"losses-{stage}"], found[f"weights-{stage}"] = steps(exact, range(STEPS)), exact.tensors()
        tuned = Engine(model(), OPTIMIZER, zero_stage=stage, deepspeed=TUNED)
        found[f"tuned-{stage}"] = steps(tuned, range(STEPS)), tuned.tensors()
        if stage:
            found[f"passed-{stage}"] = passed_on(tuned)
        with_dropout = Engine(model(dropout=0.1), OPTIMIZER, zero_stage=stage)
        steps(with_dropout, range(3))
        box = [with_dropout.tensors()]
        dist.broadcast_object_list(box)
        found[f"through-{stage}"] = outcome(with_dropout)
        recomputed = Engine(model(dropout=0.1, activation_checkpointing=True), OPTIMIZER, zero_stage=stage)
        steps(recomputed, range(3))
        found[f"recomputed-{stage}"] = outcome(recomputed)
        for name, target, more in (("resumed", stage, None), ("elsewhere", 3 - stage, TUNED)):
            again = Engine(model(dropout=0.1), OPTIMIZER, zero_stage=target, deepspeed=more)
            again.load(box[0], updates=3)
            found[f"{name}-{stage}"] = outcome(again)
        midway = Engine(model(dropout=0.1), OPTIMIZER, zero_stage=stage)
        found[f"midway-{stage}"] = read_between(midway)
    short = Engine(model(), OPTIMIZER, zero_stage=0, deepspeed=DeepSpeedConfig(communication_data_type="bf16"))
    found["short"] = steps(short, range(STEPS))
    for stage in range(4):
        found[f"fp16-{stage}"] = overflowing(stage)
    for name, recomputes in (("through", False), ("recomputed", True)):
        # ZeRO-3 partitions parameters with 100,000 elements or more: here the qkv and feed-forward matrices
        wide = Engine(model(0.1, hidden_size=320, activation_checkpointing=recomputes), OPTIMIZER, zero_stage=3)
        steps(wide, range(3))
        box = [wide.tensors()]
        dist.broadcast_object_list(box)
        found[f"{name}-partitioned"] = outcome(wide)
    resumed = Engine(model(0.1, hidden_size=320), OPTIMIZER, zero_stage=3)
    resumed.load(box[0], updates=3)
    found["resumed-partitioned"] = outcome(resumed)
    found["midway-partitioned"] = read_between(Engine(model(0.1, hidden_size=320), OPTIMIZER, zero_stage=3))
    found["evaluated"] = astuple(Engine(model(), OPTIMIZER).evaluate([batches(9)[rank::2]]))
    cpu, gains = torch.device("cpu"), ((2.0, 1.2), (2.0, 0.9))  # of each worker
    found["agreed"] = [fastest_precision(cpu, lambda _, gain=gain: [gain[rank], 1.0]) for gain in gains]
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


def passed_on(trained: Engine) -> dict[str, Any]:
    """The values of TUNED's keys in DeepSpeed's configuration."""
    settings = trained._backend._engine._config
    zero = settings.zero_config.model_dump(by_alias=True)
    names = TUNED.zero_optimization.model_dump(exclude_none=True)
    return {"communication_data_type": settings.communication_data_type} | {name: zero[name] for name in names}


def read_between(trained: Engine) -> tuple[Any, ...]:
    """The outcome if weights and moments are read between the micro-batches of each step, as for a checkpoint."""
    steps(trained, range(3), trained.tensors)
    whole, read = trained.tensors(), []
    found = outcome(trained, lambda: read.append(trained.tensors()))
    assert same_tensors(whole, read[0])
    return found


def overflowing(stage: int) -> dict[str, Any]:
    """A step that overflows only in the last worker, then STEPS steps; and the same steps without the overflow."""
    lone = Engine(model(), OPTIMIZER, zero_stage=stage, precision="fp16")
    lone.loss_scale = LossScale(2.0**15)
    after = Engine(model(), OPTIMIZER, zero_stage=stage, precision="fp16")
    before = after.tensors()
    hook = after.objective.register_forward_hook(lambda _, given, out: (out[0] * 1e38, out[1]))
    if after.rank == 0:
        hook.remove()
    mine = batches(0)[after.rank :: after.workers]
    overflow = after.step(mine, RATE, dropout_seed=0)
    hook.remove()
    return {
        "overflow": (overflow.overflowed, overflow.grad_norm, overflow.totals.means()["loss"]),
        "before": before,
        "between": after.tensors(),
        "counts": (after.updates, tuple(after.loss_scale or ())),
        "after": (steps(after, range(STEPS)), after.tensors(), after.updates, tuple(after.loss_scale or ())),
        "undisturbed": (steps(lone, range(STEPS)), lone.tensors(), lone.updates, tuple(lone.loss_scale or ())),
    }


def outcome(
    trained: Engine, between: Callable[[], object] = lambda: None
) -> tuple[list[dict[str, float]], dict[str, float], Any]:
    """Three more steps: their losses, the held-out losses, the weights and moments."""
    losses = steps(trained, range(3, STEPS), between)
    return losses, trained.evaluate([batches(9)[trained.rank :: trained.workers]]).means(), trained.tensors()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("workers"))
    torch.multiprocessing.spawn(in_worker, (folder,), nprocs=2)
    return torch.load(Path(folder) / "found.pt", weights_only=True)


@pytest.mark.parametrize("stage", range(4))
def test_two_workers_with_two_micro_batches_make_the_same_step_as_one_process(
    found: dict[str, Any], reference: Any, stage: int
) -> None:
    losses, weights = reference
    for mine, plain in zip(found[f"losses-{stage}"], losses, strict=True):
        assert mine == pytest.approx(plain, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(found[f"weights-{stage}"]["model"][name], weight.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_settings_are_passed_on_and_change_no_step(found: dict[str, Any], stage: int) -> None:
    if stage:  # stage 0 does not use DeepSpeed
        asked = TUNED.zero_optimization.model_dump(exclude_none=True)
        assert found[f"passed-{stage}"] == {"communication_data_type": torch.float32} | asked
    for mine, plain in zip(found[f"tuned-{stage}"][0], found[f"losses-{stage}"], strict=True):
        assert mine == pytest.approx(plain, abs=1e-5)
    for kind, named in found[f"weights-{stage}"].items():
        for name, value in named.items():
            torch.testing.assert_close(found[f"tuned-{stage}"][1][kind][name], value, atol=1e-5, rtol=0)


def test_16_bit_communication_rounds_only_the_exchanged_gradients(found: dict[str, Any]) -> None:
    for mine, plain in zip(found["short"], found["losses-0"], strict=True):
        assert mine == pytest.approx(plain, rel=0.02)
        assert mine["grad_norm"] != plain["grad_norm"]


def test_deepspeed_has_each_allowed_key() -> None:
    """A new version may have other keys: it would raise an error only when training starts."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {name for key, field in DeepSpeedZeroConfig.model_fields.items() for name in (key, field.alias)}
    assert set(ZeroOptimization.model_fields) < known
    with pytest.raises(ValueError, match="not_a_key"):
        DeepSpeedZeroConfig(not_a_key=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("zero_optimization.reduce_bucket_sise", "500", "unknown key; did you mean reduce_bucket_size"),
        ("wall_clock_brakedown", "true", "unknown key; remove it or correct its name"),
        ("gradient_clipping", "2", "gradient_clipping cannot be set for DeepSpeed; set optimizer.max_grad_norm"),
        ("zero_optimization.stage", "2", "stage cannot be set for DeepSpeed; set zero_stage"),
        ("zero_optimization.offload_optimizer", "{device: cpu}", "offload_optimizer cannot be set .* remove it"),
    ],
)
def test_a_key_that_deepspeed_would_ignore_or_cloze_sets_is_an_error_of_one_line(
    key: str, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"deepspeed.*{message}") as error:
        load(RunConfig, QUICKSTART, [f"pretrain.deepspeed.{key}={value}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("same", "stage"),
    [(same, stage) for same in ("resumed", "midway", "recomputed") for stage in (0, 1, 2, 3, "partitioned")],
)
def test_neither_saving_nor_activation_checkpointing_changes_a_bit(
    found: dict[str, Any], same: str, stage: int | str
) -> None:
    losses, heldout, tensors = found[f"through-{stage}"]
    again = found[f"{same}-{stage}"]
    assert (losses, heldout) == again[:2]
    assert same_tensors(tensors, again[2])


@pytest.mark.parametrize("stage", range(4))
def test_a_checkpoint_of_one_zero_stage_resumes_at_another(found: dict[str, Any], stage: int) -> None:
    losses, heldout, _ = found[f"through-{stage}"]
    elsewhere = found[f"elsewhere-{stage}"]
    for mine, theirs in zip(elsewhere[0], losses, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert elsewhere[1] == pytest.approx(heldout, abs=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_an_fp16_gradient_that_overflows_in_one_worker_changes_no_weight_and_halves_the_scale_of_all(
    found: dict[str, Any], stage: int
) -> None:
    fp16 = found[f"fp16-{stage}"]
    overflowed, grad_norm, loss = fp16["overflow"]
    assert overflowed and not math.isfinite(grad_norm) and math.isfinite(loss)
    assert fp16["counts"] == (0, (2**15, 0))
    assert same_tensors(fp16["before"], fp16["between"])
    assert fp16["after"][0] == fp16["undisturbed"][0] and fp16["after"][2:] == fp16["undisturbed"][2:] == (
        STEPS,
        (2**15, STEPS),
    )
    assert same_tensors(fp16["after"][1], fp16["undisturbed"][1])


@pytest.mark.parametrize("stage", range(4))
def test_fp16_steps_are_nearly_those_of_fp32(found: dict[str, Any], stage: int) -> None:
    for mine, plain in zip(found[f"fp16-{stage}"]["undisturbed"][0], found[f"losses-{stage}"], strict=True):
        assert mine == pytest.approx(plain, rel=0.01)
        assert mine != plain


def same_tensors(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other[kind][name]) for kind in one for name, value in one[kind].items())


def test_dropout_depends_on_its_seed(found: dict[str, Any]) -> None:
    """The control of the test above: with different dropout the losses differ."""
    assert found["through-1"][0][0] != pytest.approx(found["losses-1"][3], abs=1e-4)


def test_two_workers_agree_on_the_precision_that_helps_both(found: dict[str, Any]) -> None:
    assert found["agreed"] == ["bf16", "fp32"]


@pytest.mark.usefixtures("single_process_group")
def test_the_model_gets_an_attention_mask_only_with_padding() -> None:
    padded, *_ = batches(0)
    cut = padded.input_ids.shape[1] - 3  # its first row has three pieces of padding
    full = Batch(
        *(tensor[:, :cut].contiguous() for tensor in padded[:3]),
        torch.tensor([3]),
        torch.tensor([7]),
        *padded[5:7],
        padded=False,
    )
    given, bare = [], model()
    bare.register_forward_pre_hook(lambda _, arguments: given.append(arguments[2]))
    totals = Engine(bare, OPTIMIZER).evaluate(iter([[padded], [full]]))
    assert given[0] is padded.attention_mask
    assert given[1] is None
    assert (totals.tokens, totals.slots) == (2 * 16 - 3 + 2 * cut, 2 * 16 + 2 * cut)


@pytest.mark.usefixtures("single_process_group")
def test_an_evaluation_counts_labels_and_predictions_of_all_workers_without_placeholders(found: dict[str, Any]) -> None:
    whole = batches(9)
    unlabelled = whole[0]._replace(next_sentence_label=torch.full_like(whole[0].next_sentence_label, IGNORE_INDEX))
    labels = torch.cat([batch.next_sentence_label for batch in whole])
    engine = Engine(model(), OPTIMIZER)
    assert found["evaluated"] == pytest.approx(astuple(engine.evaluate(iter([whole]))))
    for bias, answer in ((9.0, 1), (-9.0, 0)):
        with torch.no_grad():
            engine.model.nsp.bias.copy_(torch.tensor([0.0, bias]))
        totals = engine.evaluate(iter([[*whole, unlabelled]]))
        assert (totals.labels, totals.labels_1) == (len(labels), int(labels.sum()))
        assert totals.answers_1 == (len(labels) if answer else 0)
        assert totals.nsp_correct == int((labels == answer).sum())


class NoWaiting(TorchDispatchMode):
    """Inside, reading the value of a floating-point tensor is an error: on a GPU it would wait for the device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert operation is not torch.ops.aten._local_scalar_dense.default or not args[0].is_floating_point()
        return operation(*args, **kwargs or {})


@pytest.mark.usefixtures("single_process_group")
@pytest.mark.parametrize(("precision", "fused_loss"), [("fp32", False), ("bf16", False), ("bf16", True)])
def test_a_step_of_the_torch_backend_does_not_wait_for_the_device(precision: Any, fused_loss: bool) -> None:
    settings = {"zero_stage": 0, "precision": precision, "fused_loss": fused_loss}
    waiting, trained = (Engine(model(0.1), OPTIMIZER, **settings) for _ in range(2))
    with NoWaiting():
        steps_read_later = [trained.step(batches(step), RATE, dropout_seed=step) for step in range(3)]
        with pytest.raises(AssertionError):
            _ = steps_read_later[0].grad_norm
    for step, later in enumerate(steps_read_later):
        at_once = waiting.step(batches(step), RATE, dropout_seed=step)
        assert (later.totals, later.grad_norm) == (at_once.totals, at_once.grad_norm)
    assert same_tensors(trained.tensors(), waiting.tensors())


@pytest.mark.usefixtures("single_process_group")
def test_without_deepspeed_zero_stage_0_works_and_others_are_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert steps(Engine(model(), OPTIMIZER, zero_stage=0), range(1))[0]["grad_norm"] > 0
    with pytest.raises(UserError, match=r"zero_stage is 2, which needs DeepSpeed .*set pretrain.zero_stage to 0"):
        Engine(model(), OPTIMIZER, zero_stage=2)


@pytest.mark.usefixtures("single_process_group")
def test_bf16_keeps_weights_and_moments_in_fp32_and_nearly_the_same_loss() -> None:
    full, half = (Engine(model(), OPTIMIZER, precision=precision) for precision in ("fp32", "bf16"))
    for exact, rounded in zip(steps(full, range(2)), steps(half, range(2)), strict=True):
        assert rounded == pytest.approx(exact, rel=0.02)
        assert rounded != exact
    tensors = half.tensors()
    assert tensors is not None
    assert {value.dtype for named in tensors.values() for value in named.values()} == {torch.float32}


@pytest.mark.usefixtures("single_process_group")
@pytest.mark.parametrize("nsp", [True, False])
def test_without_pairs_the_loss_is_the_masked_lm_loss(nsp: bool) -> None:
    unpaired = [
        batch._replace(next_sentence_label=torch.full_like(batch.next_sentence_label, IGNORE_INDEX))
        for batch in batches(0)
    ]
    trained = Engine(model(nsp=nsp), OPTIMIZER)
    done = trained.step(unpaired, RATE, dropout_seed=0)
    totals = done.totals
    paired = Engine(model(), OPTIMIZER).step(batches(0), RATE, dropout_seed=0).totals
    assert totals.means()["loss"] == totals.means()["mlm_loss"] == paired.means()["mlm_loss"]
    assert (totals.labels, totals.examples) == (0, 10)
    assert 0 < done.grad_norm < float("inf")


@pytest.mark.usefixtures("single_process_group")
def test_token_counts_exclude_padding_and_placeholders() -> None:
    *counted, placeholder = batches(0)
    placeholder = placeholder._replace(counted=torch.zeros_like(placeholder.counted))
    totals = Engine(model(), OPTIMIZER).step([*counted, placeholder], RATE, dropout_seed=0).totals
    lengths = [int(row.sum()) for batch in counted for row in batch.attention_mask]
    assert totals.tokens == sum(lengths) < totals.slots == 2 * 16 + 3 * 9 + 12 + 4 * 8
    assert totals.squares == sum(length**2 for length in lengths)
