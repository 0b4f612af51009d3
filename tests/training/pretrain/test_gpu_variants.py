"""What a GPU does differently equals the plain step on a CPU: compiled layers, the fused loss, padded shapes."""

import sysconfig
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.compiled import _can_build_extensions, can_compile, compile_layers
from cloze.training.model.optim import OptimizerConfig
from cloze.training.pretrain.data_loader import (
    IGNORE_INDEX,
    Batch,
    ExampleDataset,
    ShapeMultiples,
    collate,
    worker_micro_batches,
)
from cloze.training.pretrain.engine import Engine
from cloze.training.pretrain.trainer import _compiles
from tests.training.small_examples import VOCAB_SIZE, examples_artifact
from tests.training.small_pretraining import config

RATE, STEPS = 1e-3, 5
OPTIMIZER = OptimizerConfig(learning_rate=RATE, max_grad_norm=0.5)
MULTIPLES = ShapeMultiples(length=16, masked=32)

pytestmark = pytest.mark.usefixtures("single_process_group")


def model(dropout: float = 0.0, **settings: bool) -> BertForPreTraining:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForPreTraining(BertConfig(**shape, **dropouts, max_position_embeddings=32), VOCAB_SIZE, 1, **settings)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ExampleDataset:
    return ExampleDataset(examples_artifact(tmp_path_factory.mktemp("examples")), "train")


def batches(examples: ExampleDataset, multiples: ShapeMultiples | None = None) -> Iterator[list[Batch]]:
    """The two micro-batches of each step, whose rows have different lengths."""
    for arrays in examples.batches(0, 0, 8, 4):
        yield [collate(arrays.take(torch.arange(half, half + 4).numpy()), None, multiples) for half in (0, 4)]


def trained(
    engine: Engine, examples: ExampleDataset, multiples: ShapeMultiples | None = None, steps: int = STEPS
) -> dict[str, Any]:
    """The sums and gradient norms of some steps, and the weights and moments after them."""
    rows = list[list[float]]()
    for step, micro_batches in zip(range(steps), batches(examples, multiples), strict=False):
        result = engine.step(micro_batches, RATE, dropout_seed=step)
        assert result
        rows.append([*astuple(result.totals), result.grad_norm])
    return {"rows": torch.tensor(rows, dtype=torch.float64), "tensors": engine.tensors()}


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-5) -> None:
    """The distances of each column of rows, of all weights and of all moments, over their norms."""
    distances = {}
    for column in range(expected["rows"].shape[1]):
        distances[column] = relative_distance(found["rows"][:, column], expected["rows"][:, column])
    for kind, tensors in expected["tensors"].items():
        one, other = (
            torch.cat([side["tensors"][kind][name].flatten() for name in tensors]) for side in (found, expected)
        )
        distances[kind] = relative_distance(one, other)
    assert max(distances.values()) < tolerance, distances


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


@pytest.fixture(scope="module")
def plain(examples: ExampleDataset, single_process_group: None) -> dict[str, Any]:
    return trained(Engine(model(), OPTIMIZER, zero_stage=0), examples)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_steps_with_the_fused_loss_equal_plain_steps(plain, examples, stage: int) -> None:
    assert_close(trained(Engine(model(), OPTIMIZER, zero_stage=stage, fused_loss=True), examples), plain)


@pytest.mark.parametrize("fused_loss", [False, True])
def test_steps_on_padded_shapes_equal_plain_steps(plain, examples, fused_loss: bool) -> None:
    found = trained(Engine(model(), OPTIMIZER, zero_stage=0, fused_loss=fused_loss), examples, MULTIPLES)
    slots = 10  # of Totals: the padding counts as what it is
    assert (found["rows"][:, slots] > plain["rows"][:, slots]).any()
    found["rows"][:, slots] = plain["rows"][:, slots]
    assert_close(found, plain)


def test_padding_to_multiples_repeats_shapes_and_changes_no_example(examples: ExampleDataset) -> None:
    arrays = next(examples.batches(0, 0, 8))
    plain, padded = collate(arrays), collate(arrays, None, ShapeMultiples(length=24, masked=64))
    width, masked = plain.input_ids.shape[1], len(plain.masked_lm_labels)
    assert padded.input_ids.shape == (8, 24) and padded.masked_lm_positions.shape == (64,)
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        whole, part = getattr(padded, name), getattr(plain, name)
        assert torch.equal(whole[:, :width], part) and not whole[:, width:].any()
    rows, columns = padded.masked_lm_positions[:masked] // 24, padded.masked_lm_positions[:masked] % 24
    assert torch.equal(rows * width + columns, plain.masked_lm_positions)
    assert torch.equal(padded.masked_lm_labels[:masked], plain.masked_lm_labels)
    assert (padded.masked_lm_labels[masked:] == IGNORE_INDEX).all() and padded.padded


def test_no_row_is_padded_beyond_the_positions_of_the_model(examples: ExampleDataset) -> None:
    arrays = next(examples.batches(0, 0, 8))
    longest = int(arrays.input_ids.lengths.max())
    shapes = [
        collate(arrays, None, ShapeMultiples(length=longest - 1, longest=positions)).input_ids.shape[1]
        for positions in (longest, longest + 1, 8 * longest)
    ]
    assert shapes == [longest, longest + 1, 2 * (longest - 1)]


def test_a_placeholder_is_padded_like_any_other_batch(examples: ExampleDataset) -> None:
    """Kernels would be compiled once more for no masked positions at all."""
    arrays = next(examples.batches(0, 0, 1))
    *_, placeholder = worker_micro_batches(arrays, 1, 2, 4)
    assert not placeholder.counted and len(collate(placeholder).masked_lm_labels) == 0
    labels = collate(placeholder, None, MULTIPLES).masked_lm_labels
    assert labels.tolist() == [IGNORE_INDEX] * MULTIPLES.masked


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_steps_of_compiled_layers_equal_plain_steps(plain, examples, stage: int) -> None:
    compiled = Engine(model(), OPTIMIZER, zero_stage=stage, compiled=True, fused_loss=True)
    found = trained(compiled, examples, MULTIPLES)
    found["rows"][:, 10] = plain["rows"][:, 10]
    assert_close(found, plain)
    names = {name for name, _ in model().named_parameters()}
    assert found["tensors"]["model"].keys() == names, "a checkpoint has the names of the plain model"
    heldout = [next(batches(examples))]
    one, other = (engine.evaluate(iter(heldout)) for engine in (compiled, resumed(found["tensors"], stage)))
    assert one.mlm_loss == pytest.approx(other.mlm_loss, rel=1e-5)


def resumed(tensors: Any, stage: int, **settings: Any) -> Engine:
    engine = Engine(model(**settings), OPTIMIZER, zero_stage=stage)
    engine.load(tensors, STEPS)
    return engine


@pytest.mark.slow
def test_compiled_dropout_depends_only_on_its_seed_also_with_activation_checkpointing(examples) -> None:
    build = partial(Engine, optimizer=OPTIMIZER, zero_stage=0, compiled=True)
    first, again, recomputed = (
        trained(build(model(0.1, activation_checkpointing=recomputes)), examples, steps=2)
        for recomputes in (False, False, True)
    )
    assert torch.equal(first["rows"], again["rows"])
    assert_close(recomputed, first)
    without = trained(Engine(model(), OPTIMIZER, zero_stage=0), examples, steps=2)
    assert not torch.allclose(first["rows"], without["rows"], rtol=1e-3)


def test_compiled_layers_run_as_they_are_compiled(examples: ExampleDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that only counts, each layer is one graph without breaks."""
    graphs = list[Any]()

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = model(0.1)
    compile_layers(compiled)
    for layer in compiled.bert.layers:
        torch.compiler.reset()
        layer.compile(backend=count, fullgraph=True)
    batch = next(batches(examples))[0]
    compiled(batch.input_ids, batch.token_type_ids, batch.attention_mask, batch.masked_lm_positions)
    assert len(graphs) == 1, "the layers share what is compiled"


def test_layers_are_compiled_on_gpus_only_unless_configured() -> None:
    cpu = torch.device("cpu")
    assert not can_compile(cpu) and not _compiles(config(), cpu)
    assert _compiles(config(compile=True), cpu) and not _compiles(config(compile=False), cpu)


def test_triton_needs_a_c_compiler_and_the_headers_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    assert not _can_build_extensions()
    (tmp_path / "gcc").touch(0o755)
    assert not _can_build_extensions(), "without Python.h"
    (tmp_path / "Python.h").touch()
    assert _can_build_extensions()
    monkeypatch.setenv("CC", "missing-compiler")
    assert not _can_build_extensions(), "Triton calls what CC names"


def test_zero_3_cannot_be_compiled() -> None:
    assert config(zero_stage=3).compile == "auto"
    with pytest.raises(ValueError, match="set compile to auto or false, or zero_stage to 2 or less"):
        config(zero_stage=3, compile=True)
