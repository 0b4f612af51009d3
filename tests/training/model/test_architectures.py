"""An architecture is a file and an entry in ARCHITECTURES: here a dummy, from its configuration to transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import identity, load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.tokenizer import build_tokenizer, tokenizer_config_json
from cloze.training.checkpoints import huggingface
from cloze.training.checkpoints.fill_mask import load_model, predict_masked
from cloze.training.checkpoints.warm_start import initial_weights
from cloze.training.model.architectures import ARCHITECTURES, Architecture
from cloze.training.model.batch_totals import Totals
from cloze.training.model.bert import BertConfig, BertForPreTraining, BertModel, Layer
from cloze.training.model.transformers_names import BERT
from tests.paths import QUICKSTART
from tests.training.small_examples import PIECES
from tests.training.small_pretraining import config, last, single_worker, small_inputs

# The content of an architecture's file


class DummyConfig(BertConfig):
    architecture: Literal["dummy"] = "dummy"
    logit_divisor: float = 2.0

    def training_flops(self, totals: Totals, vocab_size: int) -> float:
        return 1.0 + super().training_flops(totals, vocab_size)


class DummyForPreTraining(BertForPreTraining):
    def forward(self, *given: Any) -> tuple[Tensor, Tensor | None]:
        mlm_logits, nsp_logits = super().forward(*given)
        assert isinstance(self.config, DummyConfig)
        return mlm_logits / self.config.logit_divisor, nsp_logits


LAYOUT = replace(
    BERT,
    model_type="dummy",
    classes=("DummyForPreTraining", "DummyForMaskedLM"),
    modules={**BERT.modules, "nsp": "cls.pairs"},
    optional_prefixes=("bert.pooler.", "cls.predictions.", "cls.pairs."),
    supported_values={"model_type": ("dummy",)},
)

# The entry

ENTRY = Architecture(DummyConfig, DummyForPreTraining, BertModel, Layer, LAYOUT, False, "A dummy")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "dummy", ENTRY)


def dummy(**changed: Any) -> dict[str, Any]:
    return config().model.model_dump() | {"architecture": "dummy"} | changed


def test_the_architecture_decides_which_keys_a_model_has() -> None:
    change = [f"pretrain.model.{pair}" for pair in ("architecture=dummy", "logit_divisor=3.5")]
    found = load(RunConfig, QUICKSTART, change).pretrain
    assert type(found.model) is DummyConfig and found.model.logit_divisor == 3.5
    assert identity(found)["model"]["architecture"] == "dummy"
    with pytest.raises(UserError, match=r"pretrain\.model\.logit_divisor: unknown key"):
        load(RunConfig, QUICKSTART, change[1:])


def test_bert_is_the_default_architecture() -> None:
    plain = load(RunConfig, QUICKSTART).pretrain
    for default in ("bert", "null"):
        named = load(RunConfig, QUICKSTART, [f"pretrain.model.architecture={default}"]).pretrain
        assert named == plain and type(named.model) is BertConfig
    assert "architecture" not in plain.model.model_dump()


@pytest.mark.parametrize("value", ["berd", "[1]", "4"])
def test_an_unknown_architecture_is_an_error_of_one_line(value: str) -> None:
    override = f"pretrain.model.architecture={value}"
    with pytest.raises(UserError) as error:
        load(RunConfig, QUICKSTART, [override])
    line = str(error.value)
    assert line.startswith(f"{override}: pretrain.model.architecture") and line.endswith("give one of bert, dummy")


@pytest.mark.usefixtures("single_process_group")
def test_a_dummy_architecture_trains_exports_and_is_read_back(tmp_path: Path) -> None:
    phases = [{"max_seq_length": 16, "max_predictions_per_seq": 3, "steps": 2}]
    inputs = small_inputs(tmp_path / "inputs")
    for name, model in (("dummy", dummy()), ("bert", config().model.model_dump())):
        worker = single_worker(config(model=model, phases=phases, zero_stage=0), inputs, tmp_path / name)
        worker.train()
        assert worker.state.step == 2
    checkpoint, of_bert = last(tmp_path / "dummy"), last(tmp_path / "bert")
    saved = json.loads((checkpoint.location / "config.json").read_bytes())["model"]
    assert (saved["architecture"], saved["logit_divisor"]) == ("dummy", 2.0)
    weights = checkpoint.weights()
    assert any(not torch.equal(weights[name], weight) for name, weight in of_bert.weights().items())

    model = load_model(checkpoint)
    assert type(model) is DummyForPreTraining
    tokenizer = Tokenizer.from_str(build_tokenizer(PIECES, True).to_str())
    assert len(predict_masked(model, tokenizer, "piece1 [MASK]")) == 1

    vocab, exported = tmp_path / "vocab", Location(str(tmp_path / "exported"))
    vocab.mkdir()
    (vocab / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    (vocab / "tokenizer.json").write_text(build_tokenizer(PIECES, True).to_str())
    (vocab / "tokenizer_config.json").write_text(tokenizer_config_json())
    huggingface.export(checkpoint, Location(str(vocab)), exported, "# A card\n")
    exported_config = json.loads((exported / "config.json").read_bytes())
    assert (exported_config["architectures"], exported_config["model_type"]) == (["DummyForPreTraining"], "dummy")
    assert exported_config["logit_divisor"] == 2.0 and "architecture" not in exported_config
    back = huggingface.read(exported)
    assert back.model == checkpoint.config().model and type(back.model) is DummyConfig
    assert back.weights.keys() == weights.keys()
    assert all(torch.equal(back.weights[name], weight) for name, weight in weights.items())

    given = SourceFile((exported / "model.safetensors").uri, "0", 1)
    assert initial_weights(given, checkpoint.config().model, None, nsp=True).weights.keys() == weights.keys()
    with pytest.raises(
        UserError, match=r"has the architecture dummy; set pretrain.model.architecture to it, .* is bert"
    ):
        initial_weights(given, config().model, None, nsp=True)
