"""Pretraining that starts from the weights of another model."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load as load_config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer, tokenizer_config_json
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.checkpoint import CheckpointPayload, CheckpointRef, SavedConfig, save_checkpoint
from cloze.training.checkpoints.fill_mask import load_model
from cloze.training.checkpoints.warm_start import initial_weights, register_digest, weights_files
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.pretrain.trainer import PretrainSetup, PretrainTrainer
from tests.training.small_examples import PIECES, examples_artifact
from tests.training.small_pretraining import config, ignore_progress, last, single_worker, small_inputs

MODEL = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16
)
VOCAB = VocabFile(list(PIECES), lowercase=True, strip_accents=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> CheckpointRef:
    return finished_checkpoint(Location(str(tmp_path / "runs")), MODEL)


def finished_checkpoint(root: Location, config: BertConfig, nsp: bool = True) -> CheckpointRef:
    """A checkpoint in a finished artifact, with its vocabulary in another one under the same root."""
    vocab = Output(root / "vocab/v1", "vocab", 1, "v1")
    lines = "".join(f"{piece}\n" for piece in PIECES)
    files = {
        "vocab.txt": lines,
        "tokenizer.json": build_tokenizer(PIECES).to_str(),
        "tokenizer_config.json": tokenizer_config_json(),
    }
    vocab.finish([vocab.commit("vocab", {name: text.encode() for name, text in files.items()})], {}, {})
    model = BertForPreTraining(config, len(PIECES), seed=3, nsp=nsp)
    out = Output(root / "pretrain/p1", "pretrain", 1, "p1")
    saved = SavedConfig(model=config, vocab_size=len(PIECES), nsp=nsp)
    ref = save_checkpoint(out.location, 4, {"model": model.state_dict()}, CheckpointPayload(saved, {}))
    fact = {"path": f"checkpoints/{ref.location.name}", "digest": ref.digest, "step": 4}
    register_digest(root, ref)
    out.finish([], {}, {"vocab": "v1"}, facts={"checkpoint": fact, "best": None})
    return ref


@pytest.mark.usefixtures("single_process_group")
def test_training_starts_from_the_initial_weights_and_can_roll_back_to_them(tmp_path: Path) -> None:
    settings, inputs = config(workers=1), small_inputs(tmp_path)
    ref = finished_checkpoint(Location(str(tmp_path / "runs")), settings.model)
    init = source(f"{ref.location}/model.safetensors")
    setup = PretrainSetup(settings, (inputs["examples-16"],), Location(str(tmp_path / "out")), PIECES, init)
    worker = PretrainTrainer(setup, ignore_progress, None)
    assert same(worker.engine.tensors()["model"], ref.weights())
    assert same(worker._initial_tensors()["model"], ref.weights())
    assert not same(single_worker(settings, inputs, tmp_path / "other").engine.tensors()["model"], ref.weights())
    worker.train()
    assert worker.state.step == 8


@pytest.mark.usefixtures("single_process_group")
def test_a_model_without_a_pair_head_gets_one_from_the_seed(
    tmp_path: Path,
) -> None:
    settings, inputs = config(workers=1, seed=7), small_inputs(tmp_path)
    ref = finished_checkpoint(Location(str(tmp_path / "runs")), settings.model, nsp=False)
    init = source(f"{ref.location}/model.safetensors")
    setup = PretrainSetup(settings, (inputs["examples-16"],), Location(str(tmp_path / "out")), PIECES, init)
    fresh = BertForPreTraining(settings.model, len(PIECES), seed=7).state_dict()
    assert same(PretrainTrainer(setup, ignore_progress, None).engine.tensors()["model"], fresh | ref.weights())


@pytest.mark.usefixtures("single_process_group")
def test_masked_lm_only_training_loads_and_saves_no_pair_head(tmp_path: Path) -> None:
    settings = config(workers=1)
    ref = finished_checkpoint(Location(str(tmp_path / "runs")), settings.model)
    init, examples = source(f"{ref.location}/model.safetensors"), examples_artifact(tmp_path, objective="mlm")
    worker = PretrainTrainer(
        PretrainSetup(settings, (examples,), Location(str(tmp_path / "out")), PIECES, init), ignore_progress, None
    )
    needed = {name: tensor for name, tensor in ref.weights().items() if not name.startswith(("bert.pooler.", "nsp."))}
    assert same(worker.engine.tensors()["model"], needed)
    worker.train()
    ended = last(tmp_path / "out")
    assert not ended.config().nsp
    for tensors in ended.tensors().values():
        assert tensors.keys() == needed.keys()
        assert all(tensor.any() for tensor in tensors.values())
    assert {"mlm_loss", "nsp_loss"} & ended.state()["metrics"]["rows"][-1].keys() == {"mlm_loss"}
    load_model(ended)


@pytest.mark.parametrize("exported", [False, True])
def test_missing_heads_are_noted_and_unused_heads_are_left_out(exported: bool, tmp_path: Path) -> None:
    ref = finished_checkpoint(Location(str(tmp_path / "runs")), MODEL, nsp=False)
    file = f"{ref.location}/model.safetensors"
    if exported:
        huggingface.export(ref, Location(str(tmp_path / "runs/vocab/v1")), Location(str(tmp_path / "exported")), "")
        file = f"{tmp_path}/exported/model.safetensors"
    without = initial_weights(source(file), MODEL, VOCAB, nsp=False)
    assert same(without.weights, ref.weights())
    assert without.notes == ()
    start = initial_weights(source(file), MODEL, VOCAB, nsp=True)
    assert same(start.weights, ref.weights())
    name = file.split("/")[-2]
    assert start.notes == (
        f"{name} has no pooler: it began with random weights",
        f"{name} has no next-sentence head: it began with random weights",
    )


def test_the_fingerprint_covers_the_bytes_of_the_weights_and_not_their_path(
    checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    def nth_kept_batch(*overrides: str) -> str:
        settings = load_config(RunConfig, "configs/quickstart.yaml", [f"root={tmp_path}/runs", *overrides])
        step = next(step for step in Run(settings).plan() if step.stage.name == "pretrain")
        assert step.output
        return step.output.fingerprint

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(checkpoint.location.path, elsewhere)
    by_digest, by_place = (
        nth_kept_batch(f"pretrain.init='{checkpoint.digest}'"),
        nth_kept_batch(f"pretrain.init={elsewhere}"),
    )
    assert by_digest == by_place != nth_kept_batch()


def source(file: str) -> SourceFile:
    data = Path(file).read_bytes()
    return SourceFile(file, hashlib.sha256(data).hexdigest(), len(data))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_checkpoint_in_two_artifacts_is_found_when_one_of_them_is_deleted(
    checkpoint: CheckpointRef, tmp_path: Path
) -> None:
    root = Location(str(tmp_path / "runs"))
    second = root / f"pretrain/p2/checkpoints/{checkpoint.location.name}"
    shutil.copytree(checkpoint.location.path, second.path)
    register_digest(root, CheckpointRef(second, checkpoint.digest, checkpoint.step))
    second.delete()
    assert weights_files(checkpoint.digest[:8], root) == [f"{checkpoint.location}/model.safetensors"]


def test_a_checkpoint_is_found_by_the_first_digits_of_its_digest(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    root = Location(str(tmp_path / "runs"))
    (file,) = weights_files(checkpoint.digest[:8], root)
    assert file == f"{checkpoint.location}/model.safetensors"
    assert weights_files(checkpoint.digest, root) == [file]
    assert same(initial_weights(source(file), MODEL, VOCAB, nsp=True).weights, checkpoint.weights())
    with pytest.raises(UserError, match=r"init: no finished checkpoint under .* that begins with 00000000; give"):
        weights_files("00000000", root)


def test_an_exported_model_has_the_same_weights(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "exported"))
    huggingface.export(checkpoint, Location(str(tmp_path / "runs/vocab/v1")), folder, "# A card")
    start = initial_weights(source(*weights_files(folder.uri, folder)), MODEL, VOCAB, nsp=True)
    assert same(start.weights, checkpoint.weights())
    assert start.notes == ()


def test_for_a_folder_without_weights_the_missing_file_is_named(tmp_path: Path) -> None:
    root = Location(str(tmp_path))
    assert weights_files(str(tmp_path / "none"), root) == [f"{tmp_path}/none/model.safetensors"]
    (tmp_path / "pytorch_model.bin").touch()
    assert weights_files(str(tmp_path), root) == [f"{tmp_path}/pytorch_model.bin"]


@pytest.mark.parametrize(
    ("model", "vocab", "message"),
    [
        (
            {},
            {"pieces": [*PIECES[:-1], "other"]},
            r"has another vocabulary \(97 pieces, this run's 97\); set vocab\.file to .*the vocab",
        ),
        ({}, {"pieces": PIECES[:-1]}, r"has another vocabulary \(97 pieces, this run's 96\)"),
        (
            {},
            {"lowercase": False},
            r"was built with lowercase: true and vocab\.lowercase is false; set vocab",
        ),
        ({}, {"strip_accents": False}, r"was built with strip_accents: true and vocab\.strip_accents is false; set"),
        ({"hidden_size": 16}, {}, r"has hidden_size 8; set pretrain\.model\.hidden_size to it, which is 16"),
        ({"max_position_embeddings": 32}, {}, r"has max_position_embeddings 16; set pretrain\.model\.max_position"),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_another_vocabulary_or_shape_is_an_error_of_one_line(
    checkpoint: CheckpointRef,
    tmp_path: Path,
    model: dict[str, Any],
    vocab: dict[str, Any],
    message: str,
    exported: bool,
) -> None:
    folder = checkpoint.location
    if exported:
        folder = Location(str(tmp_path / "the vocabulary"))
        huggingface.export(checkpoint, Location(str(tmp_path / "runs/vocab/v1")), folder, "")
    file = source(f"{folder.path}/model.safetensors")
    with pytest.raises(UserError, match=r"^pretrain\.init: .*" + message):
        initial_weights(file, MODEL.model_copy(update=model), VOCAB._replace(**vocab), nsp=True)


def test_a_checkpoint_without_its_vocabulary_is_an_error_of_one_line(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    (tmp_path / "runs/vocab/v1/tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"the vocabulary it was trained with is not under .*; export the model"):
        initial_weights(source(f"{checkpoint.location}/model.safetensors"), MODEL, VOCAB, nsp=True)


def test_a_hugging_face_model_without_a_vocabulary_is_an_error(checkpoint: CheckpointRef, tmp_path: Path) -> None:
    folder = Location(str(tmp_path / "exported"))
    huggingface.export(checkpoint, Location(str(tmp_path / "runs/vocab/v1")), folder, "# A card")
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).delete()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    with pytest.raises(UserError, match=r"has no vocab\.txt or tokenizer\.json; copy the model's vocabulary into"):
        initial_weights(source(f"{folder}/model.safetensors"), MODEL, VOCAB, nsp=True)
