"""Weights in several files are read as if they were in one, and a damaged or incomplete set of files is an error."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig as TransformersConfig
from transformers import BertForPreTraining as TransformersBert

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import MissingFile, UserError
from cloze.pipeline.core.file_digests import SourceFile, source_file_by_digest
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text import vocab_file
from cloze.training.checkpoints.huggingface import read
from cloze.training.checkpoints.warm_start import initial_weights, weights_files
from cloze.training.checkpoints.weight_files import find_weight_files
from cloze.training.model.transformers_names import BERT
from tests.training.checkpoints.published_folders import (
    CONFIG,
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

SHARD = {name: number % 3 for number, name in enumerate(STORED)}
FILES = ("model.safetensors", "pytorch_model.bin")


@pytest.fixture(params=FILES)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The index of a model in three shards."""
    write_config(tmp_path)
    return write_shards(STORED, SHARD, tmp_path, request.param)


def change_index(index: Path, **changes: Any) -> None:
    content = json.loads(index.read_text())
    content["weight_map"] |= changes
    index.write_text(json.dumps(content))


def shard(index: Path, number: int) -> Path:
    stem, suffix = index.name.removesuffix(".index.json").split(".")
    return index.parent / f"{stem}-{number:05}-of-00003.{suffix}"


@settings(max_examples=20, deadline=None)
@given(st.data(), st.sampled_from(FILES))
def test_weights_are_the_same_for_every_division_into_shards(data: st.DataObject, file: str) -> None:
    shards = {name: data.draw(st.integers(0, 4)) for name in STORED}
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder))
        index = write_shards(STORED, shards, Path(folder), file)
        found = find_weight_files(Location(folder))
        assert found[0] == Location(str(index))
        assert len(found) == 1 + len(set(shards.values()))
        assert same(read(Location(folder)).weights, WEIGHTS)


def test_the_shards_of_transformers_are_read(tmp_path: Path) -> None:
    torch.manual_seed(5)
    config = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
    model = TransformersBert(TransformersConfig(vocab_size=len(PIECES), **config))
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    files = [file.name for file in find_weight_files(Location(str(tmp_path)))]
    assert files[0] == "model.safetensors.index.json"
    assert files[1:] == sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    back = BERT.to_transformers(read(Location(str(tmp_path))).weights)
    expected = model.state_dict()
    assert same(back, {name: expected[name] for name in back})
    assert expected.keys() - back.keys() == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def test_shards_are_read_from_any_storage(index: Path, folder: str) -> None:
    for path in index.parent.iterdir():
        (Location(folder) / path.name).write_bytes(path.read_bytes())
    assert same(read(Location(folder)).weights, WEIGHTS)
    assert len(weights_files(folder, Location("runs"))) == 4


def test_training_starts_from_shards(index: Path) -> None:
    write_vocab(index.parent)
    vocab = vocab_file.read_file(Location(str(index.parent / "vocab.txt")))
    init = SourceFile(weights_files(str(index.parent), Location("runs"))[0], "0", 1)
    assert init.uri == str(index)
    assert same(initial_weights(init, CONFIG, vocab, nsp=True).weights, WEIGHTS)


def test_the_files_are_found_in_the_order_of_transformers(tmp_path: Path) -> None:
    names = [name + suffix for name in FILES for suffix in ("", ".index.json")]
    for name in reversed(names):
        (tmp_path / name).write_text('{"weight_map": {}}')
        assert [file.name for file in find_weight_files(Location(str(tmp_path)))] == [name]


def test_a_missing_shard_is_an_error_also_before_the_run_starts(index: Path) -> None:
    missing = shard(index, 2)
    missing.unlink()
    expected = f"{missing.name}: no such file, but {index.name} lists it; download the whole folder again"
    assert refusal(index.parent) == expected
    with pytest.raises(MissingFile, match="download the whole folder again"):
        weights_files(str(index.parent), Location("runs"))


def test_an_index_and_shards_that_differ_are_an_error(index: Path) -> None:
    name = next(iter(STORED))
    change_index(index, **{name: shard(index, 2).name})
    line = f"{shard(index, 1).name}: has {name}, which is in {shard(index, 2).name} according to {index.name}; "
    assert refusal(index.parent).startswith(line)
    content = json.loads(index.read_text())
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    line = f"{shard(index, 1).name}: has {name}, which is not in {index.name}; "
    assert refusal(index.parent).startswith(line)
    change_index(index, **{name: shard(index, 1).name, "bert.more": shard(index, 3).name})
    line = f"{shard(index, 3).name}: has no bert.more, which {index.name} lists there; "
    assert refusal(index.parent).startswith(line)


def test_a_name_in_two_shards_is_an_error(index: Path) -> None:
    first, *others = (name for name in STORED if SHARD[name] == 0)
    write_weights({name: STORED[name] for name in STORED if SHARD[name] == 1 or name == first}, shard(index, 2))
    line = f"{shard(index, 2).name}: has {first}, which is in {shard(index, 1).name} according to {index.name}; "
    assert others
    assert refusal(index.parent).startswith(line)


def test_a_name_twice_in_the_index_is_an_error(index: Path) -> None:
    text, name = index.read_text(), next(iter(STORED))
    index.write_text(text.replace('"weight_map": {', f'"weight_map": {{"{name}": "{shard(index, 2).name}", '))
    assert refusal(index.parent) == f"{index.name}: has {name} twice; download it again"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0b", "a\nb", "s3://b/k", "x" * 300]
)
def test_a_shard_outside_the_folder_is_an_error_and_is_not_read(index: Path, name: str) -> None:
    (index.parent.parent / "secret.safetensors").write_bytes(b"")
    change_index(index, **{next(iter(STORED)): name})
    line = refusal(index.parent)
    assert line.startswith(f"{index.name}: {next(iter(STORED))} is in ")
    assert line.endswith(", which is not the name of a file in this folder; put all shards next to the index")
    assert len(line) < 400


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "is not JSON (Expecting value"),
        ("[" * 100_000, "is not JSON (maximum recursion depth"),
        ("[]", "is not a JSON object; "),
        ("{}", "has no weight_map from names to files; "),
        ('{"weight_map": ["a"]}', "has no weight_map from names to files; "),
        ('{"weight_map": {"a": 1}}', "has no weight_map from names to files; "),
    ],
)
def test_a_damaged_index_is_an_error(index: Path, content: str, line: str) -> None:
    index.write_text(content)
    assert refusal(index.parent).startswith(f"{index.name}: {line}")


def test_a_damaged_shard_is_an_error(index: Path) -> None:
    shard(index, 3).write_bytes(b"version https://git-lfs")
    line = f"{shard(index, 3).name}: is damaged or is not a file of weights; download it again"
    assert refusal(index.parent) == line


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(FILES), st.booleans())
def test_damaged_bytes_are_an_error_of_one_line_or_other_weights(data: st.DataObject, file: str, sharded: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder)
        if sharded:
            write_shards(STORED, SHARD, folder, file)
        else:
            write_weights(STORED, folder / file)
        path = data.draw(st.sampled_from(sorted(folder.iterdir())))
        content = bytearray(path.read_bytes())
        start = data.draw(st.integers(0, min(len(content), 3000) - 1))  # where the names and sizes are
        content[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=4))
        path.write_bytes(content)
        try:
            read(Location(name))
        except UserError as error:
            assert "\n" not in str(error)


def test_an_empty_index_lacks_the_weights(index: Path) -> None:
    index.write_text('{"weight_map": {}}')
    assert refusal(index.parent).startswith(f"config.json: hidden_size is 16, too large for {index.name}, ")


def test_a_tensorflow_checkpoint_is_an_error_with_the_command_that_converts_it(tmp_path: Path) -> None:
    write_config(tmp_path, "bert_config.json")
    for name in ("index", "meta", "data-00000-of-00001"):
        (tmp_path / f"bert_model.ckpt.{name}").touch()
    with pytest.raises(UserError) as refused:
        read(Location(str(tmp_path)))
    line = str(refused.value)
    assert line.startswith(
        f"{tmp_path}: has only bert_model.ckpt, a TensorFlow checkpoint, which Cloze does not read; "
    )
    assert f"--config {tmp_path}/bert_config.json --pytorch_dump_output {tmp_path}/pytorch_model.bin" in line
    write_weights(STORED, tmp_path / "pytorch_model.bin")
    assert same(read(Location(str(tmp_path))).weights, WEIGHTS)


def test_the_fingerprint_covers_the_index_and_every_shard(index: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"

    def fingerprint_of_pretrain() -> str:
        overrides = [f"root={root}", f"pretrain.init={index.parent}"]
        step = next(
            step
            for step in Run(load(RunConfig, "configs/quickstart.yaml", overrides)).plan()
            if step.stage.name == "pretrain"
        )
        assert step.output, step.reason
        return step.output.fingerprint

    fingerprints = [fingerprint_of_pretrain()]
    assert fingerprint_of_pretrain() == fingerprints[0]
    for file in (index, *(shard(index, number) for number in (1, 2, 3))):
        file.write_bytes(file.read_bytes() + b" ")
        fingerprints.append(fingerprint_of_pretrain())
    assert len(set(fingerprints)) == 5


def test_a_sharded_model_is_one_input_with_a_record_of_its_digest(index: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = Run(load(RunConfig, "configs/quickstart.yaml", [f"root={root}", f"pretrain.init={index.parent}"]))
    stage = run.stage("pretrain")
    files = stage.sources["init"].find(run.root)
    init = stage.sources["init"].load(files)
    assert init == files[0] == source_file_by_digest(run.root / "sources", files[0].sha256)
    assert files[0].uri == str(index)
    assert files[0].bytes == sum(path.stat().st_size for path in (index, *(shard(index, n) for n in (1, 2, 3))))
