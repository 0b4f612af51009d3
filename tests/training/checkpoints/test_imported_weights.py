"""The weights of other people's BERTs are the same bits whatever their files add; what cannot be used is one line."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification
from transformers import BertConfig as TransformersConfig
from transformers import BertForPreTraining as TransformersBert

import cloze
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.training.checkpoints.huggingface import read
from cloze.training.checkpoints.warm_start import initial_weights, weights_files
from cloze.training.model.bert import BertForPreTraining
from tests.training.checkpoints.published_folders import (
    CONFIG,
    CONFIG_JSON,
    PIECES,
    STORED,
    WEIGHTS,
    refusal,
    same,
    write_config,
    write_shards,
    write_vocab,
    write_weights,
)

EMBEDDINGS, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"
PADDED = 1112  # the next multiple of 8


def write(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Location:
    write_config(folder, **changes)
    write_weights(weights, folder / "model.safetensors")
    return Location(str(folder))


def padded(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The same weights with other numbers in additional rows, and the decoder stored as well."""
    random = torch.Generator().manual_seed(1)
    more = {name: torch.randn(rows, *weights[name].shape[1:], generator=random) for name in (EMBEDDINGS, BIAS)}
    longer = weights | {name: torch.cat([weights[name], more[name]]) for name in more}
    return longer | {"cls.predictions.decoder.weight": longer[EMBEDDINGS], "cls.predictions.decoder.bias": longer[BIAS]}


def wrapped(name: str, before: list[int]) -> str:
    """A name with `module` or `_orig_mod` before some of its parts."""
    parts = name.split(".")
    for position in sorted(before, reverse=True):
        parts.insert(position % len(parts), ("module", "_orig_mod")[position % 2])
    return ".".join(parts)


# The same bits


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_wrappers_padding_old_names_heads_and_shards_change_no_bit(data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([0, PADDED - len(PIECES), 1024 - len(PIECES) % 8 - 8]))
    weights = padded(STORED, rows) if rows else dict(STORED)
    positions = data.draw(st.lists(st.integers(0, 6), max_size=3))
    if data.draw(st.booleans()):
        old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
        for new, former in old.items():
            weights = {name.replace(new, former): tensor for name, tensor in weights.items()}
    if data.draw(st.booleans()):
        weights = {
            (name.removeprefix("bert.") if name.startswith("bert.") else name): tensor
            for name, tensor in weights.items()
        }
    heads = data.draw(st.sets(st.sampled_from(["classifier", "qa_outputs", "crf"])))
    weights |= {f"{head}.weight": torch.full((3,), torch.nan) for head in heads}
    weights = {wrapped(name, positions): tensor for name, tensor in weights.items()}
    file = data.draw(st.sampled_from(["model.safetensors", "pytorch_model.bin"]))
    original = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder, "bert_config.json" if original else "config.json", vocab_size=len(PIECES) + rows)
        write_vocab(folder)
        if data.draw(st.booleans()):
            write_shards(weights, {name: data.draw(st.integers(0, 2)) for name in weights}, folder, file)
        else:
            write_weights(weights, folder / file)
        found = read(Location(name))
    assert same(found.weights, WEIGHTS)
    assert (found.model, found.vocab_size) == (CONFIG, len(PIECES))
    assert len(found.notes) == bool(rows) + bool(heads)
    assert all(head in found.notes[0] for head in heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_types_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in STORED.items()}
    found = read(write(tmp_path, stored)).weights
    assert same(found, {name: tensor.to(dtype).float() for name, tensor in WEIGHTS.items()})


@pytest.fixture(scope="module")
def transformers_model() -> TransformersBert:
    torch.manual_seed(2)
    return TransformersBert(TransformersConfig(**CONFIG_JSON))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
)
def test_the_names_of_data_parallel_and_compile_are_read(
    wrap: Callable[[nn.Module], nn.Module], transformers_model: TransformersBert, tmp_path: Path
) -> None:
    expected = read(write(tmp_path / "plain", transformers_model.state_dict())).weights
    names = wrap(transformers_model).state_dict()
    assert not names.keys() & transformers_model.state_dict().keys()
    assert same(read(write(tmp_path / "wrapped", names)).weights, expected)


def test_the_names_of_compiled_parts_are_read(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = TransformersBert(TransformersConfig(**CONFIG_JSON))
    expected = read(write(tmp_path / "plain", model.state_dict())).weights
    layers = model.bert.encoder.layer
    layers[1] = torch.compile(layers[1])  # type: ignore[assignment]
    model.bert = torch.compile(model.bert)  # type: ignore[assignment]
    names = nn.DataParallel(model).state_dict()
    assert any(name.startswith("module.bert._orig_mod.encoder.layer.1._orig_mod.") for name in names)
    assert same(read(write(tmp_path / "wrapped", names)).weights, expected)


@pytest.mark.parametrize(
    ("auto", "head"),
    [(AutoModelForSequenceClassification, "classifier"), (AutoModelForQuestionAnswering, "qa_outputs")],
)
def test_a_fine_tuned_model_is_read_without_its_head_and_the_note_says_so(
    auto: Any, head: str, transformers_model: TransformersBert, tmp_path: Path
) -> None:
    transformers_model.save_pretrained(tmp_path / "pretrained")
    model = auto.from_pretrained(tmp_path / "pretrained")
    model.save_pretrained(tmp_path / "tuned")
    found = read(Location(str(tmp_path / "tuned")))
    expected = read(Location(str(tmp_path / "pretrained"))).weights
    assert found.notes == (f"model.safetensors has heads of other tasks, which are not used: {head}",)
    assert same(found.weights, {name: expected[name] for name in found.weights})
    pooled = {name for name in found.weights if name.startswith("bert.pooler.")}
    assert len(pooled) == (2 if head == "classifier" else 0)


def test_many_heads_are_counted_in_the_note(tmp_path: Path) -> None:
    heads = {f"{name}.weight": torch.ones(1) for name in ("a", "b", "c\n", "d", "e")}
    (note,) = read(write(tmp_path, STORED | heads)).notes
    assert note.endswith("not used: a, b, 'c\\n' (and 2 more)")


@pytest.mark.parametrize("rows", [PADDED, 2128])
def test_padding_rows_are_left_out_and_the_note_says_so(rows: int, tmp_path: Path) -> None:
    write_vocab(tmp_path)
    found = read(write(tmp_path, padded(STORED, rows - len(PIECES)), vocab_size=rows))
    assert found.vocab_size == len(PIECES)
    assert same(found.weights, WEIGHTS)
    number = rows - len(PIECES)
    assert found.notes == (f"the last {number} rows of the embeddings, beyond the 1110 pieces, are left out",)


@pytest.mark.parametrize(
    ("rows", "pieces"),
    [
        (1111, 1110),  # not a multiple of 8: a vocab.txt that lost its end
        (2136, 1110),  # 1,026 more: another model's vocabulary
        (1104, 1110),
    ],
)
def test_a_vocabulary_of_another_size_is_an_error(rows: int, pieces: int, tmp_path: Path) -> None:
    write_vocab(tmp_path, pieces)
    location = write(tmp_path, STORED, vocab_size=rows)
    line = f"vocab.txt: has {pieces} pieces, but vocab_size in config.json is {rows}; give the vocabulary that "
    assert refusal(Path(location.uri)).startswith(line)


@pytest.mark.parametrize("stored_rows", [1110, 1120])
def test_embeddings_have_as_many_rows_as_config_json_says(stored_rows: int, tmp_path: Path) -> None:
    write_vocab(tmp_path)
    weights = padded(STORED, stored_rows - len(PIECES)) if stored_rows > len(PIECES) else STORED
    write(tmp_path, weights, vocab_size=PADDED)
    line = f"model.safetensors: {EMBEDDINGS} has shape {stored_rows} x 16, but 1112 x 16 according to config.json; "
    assert refusal(tmp_path).startswith(line)


def test_a_single_number_in_place_of_a_weight_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {**STORED, EMBEDDINGS: torch.tensor(1.0)})
    assert f"{EMBEDDINGS} has shape (), but " in refusal(tmp_path)


def test_embeddings_without_a_vocabulary_keep_all_rows(tmp_path: Path) -> None:
    found = read(write(tmp_path, padded(STORED, 2), vocab_size=PADDED))
    assert (found.vocab_size, found.vocab, found.notes) == (PADDED, None, ())
    assert len(found.weights["mlm.bias"]) == PADDED


# The pooler


def test_a_pooler_without_a_pair_head_is_kept(tmp_path: Path) -> None:
    write_vocab(tmp_path)
    stored = {name: tensor for name, tensor in STORED.items() if not name.startswith("cls.seq_relationship")}
    folder = write(tmp_path, stored)
    expected = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("nsp.")}
    assert same(read(folder).weights, expected)

    start = initial_weights(init(folder), CONFIG, None, nsp=True)
    assert same(start.weights, expected)
    assert start.notes == (f"{folder.name} has no next-sentence head: it began with random weights",)
    fresh = BertForPreTraining(CONFIG, len(PIECES))
    fresh.load_state_dict(start.weights, strict=False)
    assert same({name: fresh.state_dict()[name] for name in expected}, expected)

    loaded = cloze.load(tmp_path).model
    assert same(loaded.state_dict(), expected)


def test_training_without_pairs_drops_the_pooler_and_the_notes_say_so(tmp_path: Path) -> None:
    write_vocab(tmp_path)
    folder = write(tmp_path, STORED)
    start = initial_weights(init(folder), CONFIG, None, nsp=False)
    expected = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith(("nsp.", "bert.pooler."))}
    assert same(start.weights, expected)
    assert same(BertForPreTraining(CONFIG, len(PIECES), nsp=False).state_dict() | start.weights, expected)
    assert start.notes == tuple(
        f"the {head} of {folder.name} was left out: examples.objective mlm does not train it"
        for head in ("pooler", "next-sentence head")
    )


def init(folder: Location) -> SourceFile:
    return SourceFile(weights_files(folder.uri, folder)[0], "0", 1)


def test_a_folder_of_googles_with_converted_weights_starts_training_and_a_notebook(tmp_path: Path) -> None:
    write_config(tmp_path, "bert_config.json")
    write_vocab(tmp_path)
    write_weights(STORED, tmp_path / "pytorch_model.bin")
    vocab = vocab_file.read_file(Location(str(tmp_path / "vocab.txt")))
    start = initial_weights(init(Location(str(tmp_path))), CONFIG, vocab, nsp=True)
    assert same(start.weights, WEIGHTS)
    assert start.notes == ()
    assert same(cloze.load(tmp_path).model.state_dict(), WEIGHTS)


# What is refused


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [EMBEDDINGS, "bert.encoder.layer.1.output.dense.bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_an_error(value: float, name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {key: tensor.to(dtype, copy=True) for key, tensor in STORED.items()}
    weights[name].view(-1)[3] = value
    count = weights[name].numel()
    assert refusal(Path(write(tmp_path, weights).uri)) == (
        f"model.safetensors: {name} has 1 of {count} values that are NaN or infinite; "
        "download it again, or give weights from before the training diverged"
    )


def test_a_value_too_large_for_float32_is_an_error(tmp_path: Path) -> None:
    weights = {name: tensor.double() for name, tensor in STORED.items()}
    weights[BIAS][0] = 1e39
    line = "has 1 of 1110 values that are too large for float32; "
    assert refusal(Path(write(tmp_path, weights).uri)).startswith(f"model.safetensors: {BIAS} {line}")


def test_a_shard_with_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    weights = STORED | {BIAS: torch.full((len(PIECES),), torch.nan)}
    write_shards(weights, {name: int(name == BIAS) for name in weights}, tmp_path, "model.safetensors")
    assert refusal(tmp_path).startswith(
        f"model-00002-of-00002.safetensors: {BIAS} has 1110 of 1110 values that are NaN"
    )


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(16, dtype=torch.int8),
        torch.ones(16).to(torch.float8_e4m3fn),
        torch.ones(16, dtype=torch.complex64),
        torch.ones(16).to_sparse(),
        torch.ones(1).expand(16),
        torch.ones(16, device="meta"),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tensor.layout} {tensor.device}",
)
def test_tensors_that_are_not_dense_floats_are_an_error(tensor: Tensor, tmp_path: Path) -> None:
    write_config(tmp_path)
    name = "bert.pooler.dense.bias"
    torch.save(STORED | {name: tensor}, tmp_path / "pytorch_model.bin")
    line = f"pytorch_model.bin: {name} is not a dense floating-point tensor; save the model in float32"
    assert refusal(tmp_path) == line


def test_an_enormous_view_of_one_number_is_an_error_and_needs_no_memory(tmp_path: Path) -> None:
    write_config(tmp_path)
    torch.save(STORED | {EMBEDDINGS: torch.ones(1).expand(10**12, 16)}, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path).startswith(f"pytorch_model.bin: {EMBEDDINGS} is not a dense floating-point tensor; ")


def test_a_configuration_as_large_as_such_a_view_is_an_error(tmp_path: Path) -> None:
    write_config(tmp_path, hidden_size=2**30, intermediate_size=2**60)
    torch.save(STORED | {EMBEDDINGS: torch.ones(1).expand(2**62)}, tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path).startswith("config.json: hidden_size is 1073741824, too large for pytorch_model.bin, ")


def test_trained_parameters_are_read_without_their_gradients(tmp_path: Path) -> None:
    write_config(tmp_path)
    parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in STORED.items()}
    torch.save(parameters, tmp_path / "pytorch_model.bin")
    found = read(Location(str(tmp_path))).weights
    assert same(found, WEIGHTS)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_a_weight_under_two_names_is_an_error(tmp_path: Path) -> None:
    weights = STORED | {f"module.{BIAS}": STORED[BIAS]}
    line = refusal(Path(write(tmp_path, weights).uri))
    assert line.startswith("model.safetensors: ")
    assert f"module.{BIAS}" in line
    assert " is the same weight as " in line


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (field, text)
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        for text in ("2e12", "1e400", "-1", "0", '"wide"', "null", "[]", "true", "NaN", "1" + "0" * 30)
    ]
    + [(field, "1" + "0" * 9) for field in ("num_hidden_layers", "intermediate_size", "max_position_embeddings")]
    + [("vocab_size", "1" + "0" * 12), ("hidden_size", "2" + "0" * 12), ("type_vocab_size", "9" * 15)]
    + [("layer_norm_eps", "1e400"), ("hidden_dropout_prob", "NaN"), ("initializer_range", "-1")]
    + [("num_hidden_layers", "[" * 100_000), ("num_hidden_layers", "1" * 5000)],
    ids=lambda text: text[:12],
)
def test_absurd_sizes_are_an_error_at_once(field: str, text: str, tmp_path: Path) -> None:
    config = json.dumps({**CONFIG_JSON, field: "VALUE"}).replace('"VALUE"', text)
    write(tmp_path, STORED)
    (tmp_path / "config.json").write_text(config)
    start = time.monotonic()
    line = refusal(tmp_path)
    assert time.monotonic() - start < 5
    assert line.startswith("config.json: ")
    assert field in line or "is not JSON" in line
    assert len(line) < 500


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"])
@settings(max_examples=15, deadline=None)
@given(size=st.one_of(st.integers(1, 2**70), st.floats(), st.text(max_size=5), st.none(), st.lists(st.integers())))
def test_any_other_size_is_an_error_of_one_line(field: str, size: Any) -> None:
    if size == CONFIG_JSON[field] and type(size) is int:
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), STORED, **{field: size})
        refusal(Path(folder))


def test_a_name_that_is_not_printable_is_one_line(tmp_path: Path) -> None:
    name = "bert.\n" + "x" * 1000
    line = refusal(Path(write(tmp_path, STORED | {name: torch.ones(1)}).uri))
    assert line.startswith(r"model.safetensors: 'bert.\nxxx")
    assert len(line) < 400


def test_a_wrong_prefix_is_a_missing_weight(tmp_path: Path) -> None:
    weights = {f"model.{name}": tensor for name, tensor in STORED.items()}
    with pytest.raises(UserError, match=r"has no bert\.embeddings\.LayerNorm\.bias \(and \d+ more\)"):
        read(write(tmp_path, weights))
