"""`cloze export` and `cloze predict` on a finished run, whose model has random weights."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cloze.infra.cli import main
from cloze.infra.model_card import _hub_licence, card
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.config import load
from cloze.pipeline.extract.document import Document, document
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, build_tokenizer, tokenizer_config_json
from cloze.training.checkpoints.checkpoint import CheckpointPayload, SavedConfig, save_checkpoint
from cloze.training.model.bert import BertForPreTraining
from tests.golden import documents_artifact, finished, output
from tests.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs/quickstart.yaml")
PIECES = [*SPECIAL_TOKENS, "a", "##b", "[c", "d"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that holds the quickstart's sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


@pytest.fixture
def objective() -> str:
    return "mlm+nsp"


@pytest.fixture
def run(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The quickstart, finished, with a vocabulary of nine pieces and four documents."""
    config = load(RunConfig, CONFIG, [f"examples.objective={objective}"])
    artifacts = {name: make(tmp_path / "made", config) for name, make in MAKERS.items()}
    monkeypatch.setattr(Run, "artifact", lambda _, name: artifacts[name])
    return config


def extract(root: Path, config: RunConfig) -> Artifact:
    out = output(root, "extract")
    inputs = {"enwiki/0e6dbc00ed97/enwiki|excerpt.xml.bz2": "0e6d", "novels/9f005a64529b/mars.txt": "9f00"}
    out.finish([], config.extract.model_dump(mode="json"), inputs)
    return finished(out)


def dedup(root: Path, config: RunConfig) -> Artifact:
    def of(source: str, number: int, heldout: float, licence: str, language: str = "en") -> Document:
        return document(
            ["one two three"],
            doc_id=f"{source}:{number}",
            source=source,
            heldout_fraction=heldout,
            language=language,
            licence=licence,
        )

    wiki = [of("enwiki", number, heldout, "CC BY-SA 4.0") for number, heldout in enumerate((0, 0, 1))]
    return documents_artifact(root, [*wiki, of("novels", 0, 0, "public domain in the USA", "")], shards=2)


def vocab(root: Path, config: RunConfig) -> Artifact:
    out = output(root, "vocab")
    files = {
        "vocab.txt": "".join(f"{piece}\n" for piece in PIECES),
        "tokenizer.json": build_tokenizer(PIECES).to_str(),
        "tokenizer_config.json": tokenizer_config_json(),
    }
    part = out.commit("vocab", {name: text.encode() for name, text in files.items()})
    out.finish([part], config.vocab.model_dump(mode="json"), {}, counts={"pieces": len(PIECES)})
    return finished(out)


def pretrain(root: Path, config: RunConfig) -> Artifact:
    out = output(root, "pretrain")
    model = config.pretrain.model
    nsp = config.examples.objective != "mlm"
    weights = BertForPreTraining(model, len(PIECES), nsp=nsp).state_dict()
    standing = CheckpointPayload(SavedConfig(model=model, vocab_size=len(PIECES), nsp=nsp), {})
    saved = save_checkpoint(out.location, 640, {"model": weights}, standing)
    heldout = {"mlm_loss": 6.39915, "mlm_accuracy": 0.1008, "masked": 2540, "examples": 256}
    heldout |= {"mlm_loss_baseline": 6.6783, "mlm_accuracy_baseline": 0.0563}
    heldout |= {"choice_accuracy": 0.606, "choice_accuracy_baseline": 0.5, "choices": 2000}
    if nsp:
        heldout |= {"nsp_loss": 0.7289, "nsp_accuracy": 118 / 256, "pairs": 256, "pairs_1": 118, "answers_1": 256}
        heldout |= {"nsp_loss_baseline": 0.6901, "nsp_accuracy_baseline": 138 / 256}
    facts = {
        "checkpoint": {"path": f"checkpoints/{saved.location.name}", "digest": saved.digest, "step": 640},
        "precision": "bf16",
        "processor": "AMD EPYC",
        "workers": 2,
        "metrics": {"heldout": heldout, "seconds": 41.0},
    }
    out.finish([], config.pretrain.model_dump(mode="json"), {}, facts=facts)
    return finished(out)


MAKERS = {"extract": extract, "dedup": dedup, "vocab": vocab, "pretrain": pretrain}


def rows(card: str) -> dict[str, list[str]]:
    """The tables' rows by their first cells."""
    lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in card.split("\n") if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_export_writes_the_model_and_prints_its_folder(run, tmp_path, capsys):
    assert main(["export", CONFIG, "--to", "bert", "root=elsewhere"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/bert\n"
    names = "README.md config.json model.safetensors tokenizer.json tokenizer_config.json vocab.txt"
    assert sorted(file.name for file in Path("bert").iterdir()) == names.split()


def test_the_onnx_file_of_a_pretrained_model_predicts_every_position_as_transformers_does(run):
    import onnxruntime
    from transformers import AutoModelForMaskedLM

    assert main(["export", CONFIG, "--to", "bert", "--onnx"]) == 0
    ids = np.array([[2, 5, 4, 3], [2, 6, 3, 0]])
    inputs = {"input_ids": ids, "attention_mask": np.sign(ids), "token_type_ids": np.zeros_like(ids)}
    [logits] = onnxruntime.InferenceSession("bert/model.onnx").run(["logits"], inputs)
    with torch.inference_mode():
        model = AutoModelForMaskedLM.from_pretrained("bert").eval()
        expected = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_the_card_lists_sources_settings_and_metrics(run):
    main(["export", CONFIG, "--to", "bert"])
    card = Path("bert/README.md").read_text()
    table = rows(card)
    assert table["enwiki"] == ["wikipedia", "en", "CC BY-SA 4.0", "3", "9", "1"]
    assert table["novels"] == ["books", "unknown", "public domain in the USA", "1", "3", "0"]
    assert "[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). Files: enwiki|excerpt.xml.bz2." in card
    assert table["pretrain.phases.1.steps"] == ["100"]
    assert table["pretrain.optimizer.learning_rate"] == ["0.002"]
    assert table["examples.masked_lm_prob"] == ["0.15"]
    assert "pretrain.micro_batch_size" not in table  # it does not change the result
    assert table["masked-LM loss, nats per masked token"] == ["6.399", "6.678"]
    assert table["masked-token accuracy"] == ["10.1 %", "5.6 %"]
    assert table["cloze choice: the true token over one of the same frequency"] == ["60.6 %", "50.0 %"]
    assert table["next-sentence accuracy"] == ["46.1 %", "53.9 %"]
    assert table["held-out examples"] == ["256", ""]
    assert "The model's loss is only 4.2 % lower: it makes little use of context yet." in card
    assert 'It answers "NotNext" for all 256 pairs.' in card
    assert table["training"] == ["bf16 on 2 workers, AMD EPYC"]
    weights = sum(weight.numel() for weight in BertForPreTraining(run.pretrain.model, len(PIECES)).parameters())
    assert "2 layers, hidden size 128, 2 attention heads, 512 positions" in card
    assert f"a WordPiece vocabulary of 9 tokens (uncased), {weights:,} parameters." in card
    assert "maximum sequence length in training was 128 tokens" in card


def test_the_card_names_initial_weights_and_then_claims_no_licence(tmp_path):
    config = load(RunConfig, CONFIG, ["extract.sources.novels.licence=CC BY-SA 4.0"])
    artifacts = {name: make(tmp_path / "made", config) for name, make in MAKERS.items()}
    documents = [document(["one"], doc_id="a", source="enwiki", heldout_fraction=0, licence="CC BY-SA 4.0")]
    artifacts["dedup"] = documents_artifact(tmp_path / "alike", documents, shards=1)
    assert "\nlicense: cc-by-sa-4.0\n" in card(config, artifacts)
    note = "theirs has no pooler: it began with random weights"
    artifacts["pretrain"].manifest.facts["init"] = {"sha256": "f00d", "notes": [note, note]}
    text = card(config, artifacts)
    assert "\nlicense:" not in text
    assert "started from the weights of another model (file SHA-256: f00d)" in text
    assert f"here. {note}. {note}.\n" in text


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("mlm+nsp", "AutoModelForPreTraining the encoder with both heads"),
        ("mlm+sop", "label 0: the segments are in order, 1: they are swapped"),
        ("mlm", "the model has no next-sentence head and no pooler"),
    ],
)
def test_the_card_names_the_objectives_and_heads(tmp_path, objective, expected):
    config = load(RunConfig, CONFIG, [f"examples.objective={objective}"])
    text = card(config, {name: make(tmp_path / "made", config) for name, make in MAKERS.items()})
    nsp = objective != "mlm"
    model = BertForPreTraining(config.pretrain.model, len(PIECES), nsp=nsp)
    assert expected in text
    assert (" accuracy | 46.1 % | 53.9 % |" in text) is ("always answering" in text) is nsp
    assert ('It answers "swapped" for all' in text) is (objective == "mlm+sop")
    assert f" {sum(weight.numel() for weight in model.parameters()):,} parameters." in text
    assert ("not pooler_output" in text) is not nsp
    assert ("AutoModelForPreTraining" in text) is nsp


def test_the_front_matter_has_the_hubs_keys(run):
    main(["export", CONFIG, "--to", "bert"])
    _, front, _ = Path("bert/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "cloze", "masked-lm"],
    }  # no licence, as the sources have two


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CC BY-SA 4.0", {"license": "cc-by-sa-4.0"}),
        ("cc-by-3.0", {"license": "cc-by-3.0"}),
        ("MIT", {"license": "mit"}),
        ("Ours, all rights reserved", {"license": "other", "license_name": "ours-all-rights-reserved"}),
    ],
)
def test_a_licence_is_mapped_to_the_hubs_identifiers(name, expected):
    assert _hub_licence(name) == expected


def of_the_guide() -> str:
    return (REPOSITORY / "docs/guide/export.md").read_text()


def of_the_card() -> str:
    return Path("path/to/this/folder/README.md").read_text()


@pytest.mark.parametrize("objective", ["mlm+nsp", "mlm", "mlm+sop"])
@pytest.mark.parametrize(("folder", "text"), [("my-bert", of_the_guide), ("path/to/this/folder", of_the_card)])
def test_the_documented_code_loads_the_model_and_predicts_like_predict(run, folder, text, objective, capsys):
    overrides = [f"examples.objective={objective}"]
    assert main(["export", CONFIG, "--to", folder, *overrides]) == 0
    capsys.readouterr()
    lines = re.search(r"```python\n(.*?)```", text(), re.DOTALL)[1]
    found = {}
    exec(lines, found)
    filled = ast.literal_eval(capsys.readouterr().out)
    assert found["model"].config.vocab_size == len(PIECES)
    assert "She opened the [MASK]." in lines
    assert main(["predict", CONFIG, "She opened the [MASK].", *overrides]) == 0
    _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [PIECES[fill["token"]] for fill in filled] == [piece for piece, _, _ in rows]
    assert [100 * fill["score"] for fill in filled] == pytest.approx([float(share) for _, share, _ in rows], abs=0.06)


def test_the_call_in_the_card_reads_special_tokens_as_text(run):
    from transformers import AutoTokenizer

    main(["export", CONFIG, "--to", "bert"])
    tokenizer = AutoTokenizer.from_pretrained("bert")
    call = re.search(r"`(tokenizer\(.*?\))`", Path("bert/README.md").read_text())[1]
    assert PIECES.index("[MASK]") not in eval(call)["input_ids"]
    assert tokenizer("A [MASK] word.")["input_ids"].count(PIECES.index("[MASK]")) == 1


def test_predict_shows_a_column_for_each_mask(run, capsys):
    assert main(["predict", CONFIG, "a [MASK] [MASK]", "root=elsewhere"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["[MASK]", "1", "[MASK]", "2"]
    assert len(lines) == 5
    assert all(re.fullmatch(r"(\S+) +[\d.]+ % +(\S+) +[\d.]+ % *", line) for line in lines), lines


def test_predictions_as_json_are_a_list_for_each_mask(run, capsys):
    assert main(["predict", CONFIG, "a [MASK] [MASK]"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert main(["predict", CONFIG, "a [MASK] [MASK]", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(list(guess) == ["piece", "probability"] for of_mask in found for guess in of_mask)
    for column, of_mask in zip((0, 3), found, strict=True):
        assert [guess["piece"] for guess in of_mask] == [row[column] for row in table]
        shares = [float(row[column + 1]) / 100 for row in table]
        assert [guess["probability"] for guess in of_mask] == pytest.approx(shares, abs=6e-4)


def test_a_piece_that_looks_like_markup_is_shown_as_it_is(run, monkeypatch, capsys):
    from cloze.training.checkpoints.fill_mask import MaskPrediction

    monkeypatch.setattr(
        "cloze.training.checkpoints.pretrained_model.predict_masked",
        lambda *_: [[MaskPrediction("[c", 0.5), MaskPrediction("[bold]", 0.25)]],
    )
    main(["predict", CONFIG, "[MASK]"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["[MASK]"],
        ["[c", "50.0", "%"],
        ["[bold]", "25.0", "%"],
    ]


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("cloze: ")


def test_an_error_of_export_or_predict_is_one_line(run, tmp_path, capsys):
    assert "'a b' has no [MASK]; put one" in mistake(capsys, "predict", CONFIG, "a b")
    Path("full").mkdir()
    Path("full/file").touch()
    assert "/full: already exists and is not empty; " in mistake(capsys, "export", CONFIG, "--to", "full")
    [weights] = (tmp_path / "made/pretrain/checkpoints").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    line = mistake(capsys, "export", CONFIG, "--to", "bert")
    assert f"{weights}: is damaged: its SHA-256 is not the recorded one; use another" in line
    assert not Path("bert").exists()


def test_a_run_that_is_not_finished_is_said(capsys):
    line = r"pretrain: is not finished under .*/runs; finish it with cloze run and --until pretrain\n"
    assert re.fullmatch(line, mistake(capsys, "export", CONFIG, "--to", "bert"))
    assert re.fullmatch(line, mistake(capsys, "predict", CONFIG, "[MASK]"))
    assert not Path("bert").exists()
