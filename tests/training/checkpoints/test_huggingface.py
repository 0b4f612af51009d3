"""transformers loads an export as the same model; a model saved by transformers is read without executing code."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertForMaskedLM,
    pipeline,
)
from transformers import BertConfig as TheirConfig
from transformers import BertForPreTraining as TheirBert

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, load_tokenizer, tokenizer_config_json
from cloze.pipeline.text.vocab_file import VocabFile
from cloze.training.checkpoints.checkpoint import CheckpointPayload, CheckpointRef, SavedConfig, save_checkpoint
from cloze.training.checkpoints.fill_mask import load_model, predict_masked
from cloze.training.checkpoints.huggingface import export, read
from cloze.training.model.bert import BertConfig, BertForPreTraining, load_encoder
from cloze.training.model.transformers_names import BERT
from tests.golden import published_vocabulary, unpack
from tests.paths import SHARED

CONFIG = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    layer_norm_eps=1e-7,
)
LEGACY = SHARED / "data/checkpoints/tiny-ja-pt"
LINES = [line for line in unpack("sentences.txt").split("\n") if line][:200]


def trained(model: BertForPreTraining) -> BertForPreTraining:
    """A model with all weights different from their initial values."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> BertForPreTraining:
    return trained(BertForPreTraining(CONFIG, len(published_vocabulary())))


def saved(model: BertForPreTraining, folder: Path) -> CheckpointRef:
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    said = SavedConfig(model=CONFIG, vocab_size=len(published_vocabulary()), nsp=model.nsp is not None)
    return save_checkpoint(Location(str(folder)), 7, {"model": weights}, CheckpointPayload(said, {}))


@pytest.fixture(scope="module")
def checkpoint(model: BertForPreTraining, tmp_path_factory: pytest.TempPathFactory) -> CheckpointRef:
    return saved(model, tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Location:
    return write_vocab(tmp_path_factory.mktemp("vocab"), published_vocabulary())


def write_vocab(folder: Path, pieces: list[str], lowercase: bool = True) -> Location:
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    (folder / "tokenizer.json").write_text(build_tokenizer(pieces, lowercase).to_str())
    (folder / "tokenizer_config.json").write_text(tokenizer_config_json())
    return Location(str(folder))


@pytest.fixture(scope="module")
def exported(checkpoint: CheckpointRef, vocab: Location, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("exported") / "bert"
    export(checkpoint, vocab, Location(str(folder)), "# A card\n")
    return str(folder)


# Export


def encoded(exported: str) -> dict[str, Tensor]:
    """Eight pairs of lines, padded."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    return dict(tokenizer(LINES[:8], LINES[8:16], padding=True, truncation=True, return_tensors="pt"))


def loaded(auto: Any, folder: str) -> tuple[Any, dict[str, Any]]:
    found, info = auto.from_pretrained(folder, output_loading_info=True)
    return found.eval(), info


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_transformers_computes_the_same_logits(model: BertForPreTraining, exported: str) -> None:
    batch = encoded(exported)
    real = batch["attention_mask"].bool()
    assert not real.all()
    places = real.flatten().nonzero().flatten()
    hidden, pooled = model.bert(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    mlm, nsp = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], places)

    both, info = loaded(AutoModelForPreTraining, exported)
    assert not any(info.values()), info
    close(both(**batch).prediction_logits[real], mlm)
    close(both(**batch).seq_relationship_logits, nsp)
    masked, info = loaded(AutoModelForMaskedLM, exported)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    close(masked(**batch).logits[real], mlm)
    encoder, info = loaded(AutoModel, exported)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    close(encoder(**batch).last_hidden_state[real], hidden[real])
    close(encoder(**batch).pooler_output, pooled)


def test_a_masked_lm_only_export_loads_completely_in_transformers(vocab: Location, tmp_path: Path) -> None:
    checkpoint = saved(trained(BertForPreTraining(CONFIG, len(published_vocabulary()), nsp=False)), tmp_path)
    exported = str(tmp_path / "bert")
    export(checkpoint, vocab, Location(exported), "")
    batch, model = encoded(exported), load_model(checkpoint).eval()
    real = batch["attention_mask"].bool()
    places = real.flatten().nonzero().flatten()
    mlm, nsp = model(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"], places)
    assert nsp is None
    assert TheirConfig.from_pretrained(exported).architectures == ["BertForMaskedLM"]
    masked, info = loaded(AutoModelForMaskedLM, exported)
    assert not any(info.values()), info
    close(masked(**batch).logits[real], mlm)
    encoder, info = loaded(AutoModel, exported)
    assert set(info["missing_keys"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    hidden, _ = model.bert(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"])
    close(encoder(**batch).last_hidden_state[real], hidden[real])

    again = read(Location(exported)).weights
    assert again.keys() == checkpoint.weights().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in checkpoint.weights().items())


def test_the_export_is_what_transformers_itself_would_save(exported: str, tmp_path: Path) -> None:
    AutoModelForPreTraining.from_pretrained(exported).save_pretrained(tmp_path)
    mine, again = (load_file(Path(folder) / "model.safetensors") for folder in (exported, tmp_path))
    assert mine.keys() == again.keys()
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    config = TheirConfig.from_pretrained(exported)
    assert config.architectures == ["BertForPreTraining"]
    assert (config.layer_norm_eps, config.pad_token_id, config.hidden_act) == (1e-7, 0, "gelu")


def test_transformers_returns_the_same_ids(exported: str) -> None:
    tokenizer, mine = AutoTokenizer.from_pretrained(exported), build_tokenizer(published_vocabulary())
    assert tokenizer(LINES)["input_ids"] == [encoding.ids for encoding in mine.encode_batch(LINES)]
    pairs = tokenizer(LINES[:50], LINES[50:100])
    ours = mine.encode_batch(list(zip(LINES[:50], LINES[50:100], strict=True)))
    assert pairs["input_ids"] == [encoding.ids for encoding in ours]
    assert pairs["token_type_ids"] == [encoding.type_ids for encoding in ours]
    assert tokenizer.model_max_length == CONFIG.max_position_embeddings
    assert (tokenizer.mask_token, tokenizer.pad_token_id) == ("[MASK]", 0)


@pytest.mark.parametrize(("nsp", "lowercase"), [(True, True), (True, False), (False, True)])
def test_fill_mask_returns_the_pieces_and_probabilities_of_predict(nsp: bool, lowercase: bool, tmp_path: Path) -> None:
    (tmp_path / "vocab").mkdir()
    vocab = write_vocab(tmp_path / "vocab", published_vocabulary(), lowercase)
    checkpoint = saved(trained(BertForPreTraining(CONFIG, len(published_vocabulary()), nsp=nsp)), tmp_path / "made")
    export(checkpoint, vocab, Location(str(tmp_path / "bert")), "")
    fill = pipeline("fill-mask", model=str(tmp_path / "bert"))
    model, tokenizer = load_model(checkpoint), load_tokenizer(vocab / "tokenizer.json")
    texts = ["She opened the [MASK].", "[MASK]", "Ein café[MASK]ΑΣ, 東京 [MASK] [MASK]!", LINES[0] + " [MASK]"]
    for text, filled in zip(texts, fill(texts, batch_size=2), strict=True):
        guesses = predict_masked(model, tokenizer, text)
        fills = [filled] if len(guesses) == 1 else filled
        for of_ours, of_theirs in zip(guesses, fills, strict=True):
            pieces = fill.tokenizer.convert_ids_to_tokens([one["token"] for one in of_theirs])
            assert pieces == [guess.piece for guess in of_ours]
            scores = [one["score"] for one in of_theirs]
            assert scores == pytest.approx([guess.probability for guess in of_ours], abs=1e-5)


def test_a_marker_is_a_special_token_in_the_export_and_text_on_request_and_in_cloze(exported: str) -> None:
    text = "a [MASK]b [SEP] [CLS]. [PAD] [UNK]"
    theirs, ours = AutoTokenizer.from_pretrained(exported), load_tokenizer(Location(exported) / "tokenizer.json")
    special = set(theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    assert special <= set(theirs(text, add_special_tokens=False)["input_ids"])
    as_text = ours.encode(text, add_special_tokens=False).ids
    assert not special & set(as_text)
    assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == as_text
    asked = AutoTokenizer.from_pretrained(exported, split_special_tokens=True)
    assert asked(text, add_special_tokens=False)["input_ids"] == as_text


def test_an_export_is_read_back_bit_for_bit(
    model: BertForPreTraining, checkpoint: CheckpointRef, vocab: Location, folder: str
) -> None:
    to = Location(folder) / "bert"
    export(checkpoint, vocab, to, "")
    found = read(to)
    expected = model.state_dict()
    assert found.weights.keys() == expected.keys()
    assert all(torch.equal(found.weights[name], expected[name]) for name in expected)
    assert (found.model, found.vocab) == (CONFIG, VocabFile(published_vocabulary(), True, True))
    assert found.vocab_size == len(published_vocabulary())
    assert found.notes == ()


def test_an_export_that_is_killed_leaves_nothing_that_loads(
    checkpoint: CheckpointRef, vocab: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Location.write_bytes, list[str]()

    def killed(file: Location, data: bytes) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(file.name)
        write(file, data)

    monkeypatch.setattr(Location, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, vocab, Location(str(tmp_path)), "")
    assert "config.json" not in written
    with pytest.raises(ValueError, match=r"config\.json"):
        AutoModel.from_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not empty; delete it"):
        export(checkpoint, vocab, Location(str(tmp_path)), "")


def test_an_export_that_cannot_be_written_is_an_error(
    checkpoint: CheckpointRef, vocab: Location, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for to, line in (
        (tmp_path, f"{tmp_path}: already exists and is not empty; "),
        (tmp_path / "file", f"{tmp_path}/file: already exists and is not empty; "),
        (tmp_path / "file/inside", f"{tmp_path}/file/inside: cannot be written (Not a directory); "),
    ):
        with pytest.raises(UserError) as refused:
            export(checkpoint, vocab, Location(str(to)), "")
        assert str(refused.value).startswith(line)
    (tmp_path / "other").mkdir()
    other = write_vocab(tmp_path / "other", published_vocabulary()[:2000])
    with pytest.raises(UserError, match=r"has 2000 pieces but .* was trained with 30522; "):
        export(checkpoint, other, Location(str(tmp_path / "new")), "")
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


# Import

PIECES = published_vocabulary()[:1100]
SIZES = {name: value for name, value in CONFIG.model_dump().items() if name != "hidden_act"}


@pytest.fixture(scope="module")
def small() -> BertForPreTraining:
    return trained(BertForPreTraining(CONFIG, len(PIECES)))


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Location]:
    """Weights, changes to config.json -> the folder of a model in safetensors, without a vocabulary."""

    def write(weights: dict[str, Tensor], **changes: Any) -> Location:
        config = {**CONFIG.model_dump(), "model_type": "bert", "vocab_size": len(PIECES), **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
        return Location(str(tmp_path))

    return write


def save_legacy(weights: Any, folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink(missing_ok=True)


def refusal(location: Location) -> str:
    with pytest.raises(UserError) as refused:
        read(location)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(location.uri)
    assert "; " in line
    return line.removeprefix(f"{location.uri}/")


def test_an_old_pickle_of_an_encoder_without_heads_is_read(
    small: BertForPreTraining, folder_of: Callable[..., Location], tmp_path: Path
) -> None:
    location = folder_of({})
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "vocab_size": len(PIECES), "hidden_act": "gelu"}))
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenize_chinese_chars": false}')
    encoder = {
        name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): tensor
        for name, tensor in BERT.to_transformers(small.state_dict()).items()
        if name.startswith("bert.")
    }
    assert "embeddings.LayerNorm.gamma" in encoder and "encoder.layer.1.output.LayerNorm.beta" in encoder
    save_legacy({**encoder, "embeddings.position_ids": torch.arange(64)[None]}, tmp_path)

    found = read(location)
    assert found.weights.keys() == {name for name in small.state_dict() if name.startswith("bert.")}
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in found.weights.items())
    assert found.vocab == VocabFile(PIECES, False, False)
    assert [note.split(": ", 1)[1] for note in found.notes] == [
        "tokenize_chinese_chars is false; here each ideograph is a word, so such text has other pieces",
    ]


@pytest.mark.skipif(not LEGACY.is_dir(), reason="wants ../shared/data")
def test_a_published_legacy_pickle_has_the_hidden_states_of_transformers() -> None:
    found = read(Location(str(LEGACY)))
    assert (found.vocab_size, found.vocab and found.vocab.lowercase) == (32006, False)
    model = BertForPreTraining(found.model, found.vocab_size)
    load_encoder(model, found.weights)
    expected = AutoModel.from_config(TheirConfig.from_pretrained(LEGACY))
    expected.load_state_dict(torch.load(LEGACY / "pytorch_model.bin", weights_only=True))
    ids = torch.arange(5, 405).view(8, 50)
    batch = (ids, torch.zeros_like(ids), torch.ones_like(ids))
    states = expected.eval()(input_ids=ids).last_hidden_state
    close(model.eval().bert(*batch)[0], states)


@pytest.mark.parametrize("kind", [TheirBert, BertForMaskedLM])
def test_what_transformers_saves_is_read(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved = kind(TheirConfig(vocab_size=len(PIECES), **CONFIG.model_dump())).half()
    saved.save_pretrained(tmp_path)
    found = read(Location(str(tmp_path)))
    assert found.model == CONFIG
    assert found.vocab is None
    assert found.notes == ()
    back = BERT.to_transformers(found.weights)
    expected = load_file(tmp_path / "model.safetensors")
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name].float()) for name in expected)


def test_a_decoder_stored_twice_is_read_if_it_is_tied(
    small: BertForPreTraining, folder_of: Callable[..., Location]
) -> None:
    weights = BERT.to_transformers(small.state_dict())
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias")
    found = read(folder_of(weights)).weights
    assert all(torch.equal(found[name], tensor) for name, tensor in small.state_dict().items())
    weights["cls.predictions.decoder.weight"] = weights["cls.predictions.decoder.weight"] + 1
    line = refusal(folder_of(weights))
    assert line.startswith("model.safetensors: cls.predictions.decoder.weight differs from bert.embeddings.word")


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def write_plain(weights: Any, folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights, protocol=2))
    (folder / "model.safetensors").unlink()


def write_zip(weights: Any, folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("write", [save_legacy, write_zip, write_plain])
def test_a_pickle_that_contains_code_is_an_error_and_the_code_is_not_executed(
    write: Callable[[Any, Path], None],
    small: BertForPreTraining,
    folder_of: Callable[..., Location],
    tmp_path: Path,
) -> None:
    location, target = folder_of({}), tmp_path / "created"
    write({"first": Malicious(target), **BERT.to_transformers(small.state_dict())}, tmp_path)
    assert refusal(location).startswith("pytorch_model.bin: contains code (posix.mkdir), which was not executed; ")
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()  # unpickling does execute it


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model_type": "roberta"}, 'config.json: model_type is "roberta"; give a BERT whose model_type is "bert"'),
        ({"hidden_act": "gelu_new"}, 'config.json: hidden_act is "gelu_new"; give a BERT whose hidden_act is "gelu"'),
        ({"position_embedding_type": "relative_key"}, 'config.json: position_embedding_type is "relative_key"; '),
        ({"is_decoder": True}, "config.json: is_decoder is true; "),
        ({"hidden_size": "wide"}, 'config.json: hidden_size is "wide": Input should be a valid integer'),
        ({"num_attention_heads": 5}, "config.json: the configuration: hidden_size 32 is not a multiple of num_att"),
        ({"vocab_size": None}, "config.json: vocab_size is null; "),
        (
            {"num_hidden_layers": 3},
            "model.safetensors: has no bert.encoder.layer.2.attention.output.LayerNorm.bias (and ",
        ),
        ({"num_hidden_layers": 1}, "model.safetensors: bert.encoder.layer.1.attention.output.LayerNorm.bias (and "),
        (
            {"intermediate_size": 64},
            "model.safetensors: bert.encoder.layer.0.intermediate.dense.bias has shape 48, but",
        ),
        (
            {"vocab_size": 1101},
            "model.safetensors: bert.embeddings.word_embeddings.weight has shape 1100 x 32, but 1101 x 32 acc",
        ),
    ],
)
def test_a_model_that_is_not_a_supported_bert_is_an_error(
    small: BertForPreTraining, folder_of: Callable[..., Location], changes: dict[str, Any], line: str
) -> None:
    assert refusal(folder_of(BERT.to_transformers(small.state_dict()), **changes)).startswith(line)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"bert.classifier.weight": torch.ones(2, 32)}, "bert.classifier.weight is not a weight of the BERT in config"),
        ({"cls.tags.weight": torch.ones(2, 32)}, "cls.tags.weight is not a weight of the BERT in config.json; give"),
        ({"bert.pooler.dense.bias": None}, "has no bert.pooler.dense.bias; "),
        (
            {"bert.pooler.dense.bias": torch.ones(32, dtype=torch.int8)},
            "bert.pooler.dense.bias is not a dense floating-point tensor",
        ),
        (
            {"cls.predictions.decoder.bias": torch.ones(7)},
            "cls.predictions.decoder.bias differs from cls.predictions.bias; ",
        ),
    ],
)
def test_weights_that_are_not_those_of_a_bert_are_an_error(
    small: BertForPreTraining, folder_of: Callable[..., Location], more: dict[str, Any], line: str
) -> None:
    weights = {**BERT.to_transformers(small.state_dict()), **more}
    location = folder_of({name: tensor for name, tensor in weights.items() if tensor is not None})
    assert refusal(location).startswith(f"model.safetensors: {line}")


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("config.json", b"{", "config.json: is not JSON (Expecting"),
        ("config.json", b"[]", "config.json: is not a JSON object; "),
        (
            "model.safetensors",
            b"version https://git-lfs",
            "model.safetensors: is damaged or is not ",
        ),
        (
            "pytorch_model.bin",
            b"version https://git-lfs",
            "pytorch_model.bin: is damaged or is not ",
        ),
        ("pytorch_model.bin", b"", "pytorch_model.bin: is damaged or is not a file of weights; download it again"),
        ("vocab.txt", b"a\nb\n", "vocab.txt: the vocabulary has no [PAD]; "),
        (
            "vocab.txt",
            "\n".join(PIECES[:1099]).encode(),
            "vocab.txt: has 1099 pieces, but vocab_size in config.json is 11",
        ),
        ("tokenizer.json", b"{}", "tokenizer.json: is no"),
    ],
)
def test_a_damaged_or_wrong_file_is_an_error(
    small: BertForPreTraining, folder_of: Callable[..., Location], tmp_path: Path, name: str, data: bytes, line: str
) -> None:
    location = folder_of(BERT.to_transformers(small.state_dict()))
    if name == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(data)
    assert refusal(location).startswith(line)


def test_a_pickle_without_weights_by_name_is_an_error(folder_of: Callable[..., Location], tmp_path: Path) -> None:
    location = folder_of({})
    save_legacy([torch.ones(2)], tmp_path)
    assert refusal(location).startswith("pytorch_model.bin: is not a mapping of names to weights; ")
    save_legacy({"state_dict": {"bert.pooler.dense.bias": torch.ones(32)}}, tmp_path)
    assert refusal(location).startswith("pytorch_model.bin: state_dict is not a tensor; ")


def test_a_folder_without_a_model_is_an_error(folder_of: Callable[..., Location], tmp_path: Path) -> None:
    assert refusal(Location(str(tmp_path / "gone"))).startswith("config.json: no such file; ")
    location = folder_of({})
    (tmp_path / "model.safetensors").unlink()
    assert refusal(location).startswith(f"{tmp_path}: has neither model.safetensors nor pytorch_model.bin; ")
