"""`cloze export --format sentence-transformers`: SentenceTransformer has the vectors of `cloze embed`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from cloze.infra.cli import main
from cloze.pipeline.core.storage import Location
from cloze.training.checkpoints.sentence_transformers import Pooling, with_sentence_vectors
from cloze.training.finetune.encoders.pretrained_encoder import from_folder
from cloze.training.finetune.prediction.text_embedder import load_embedder
from cloze.training.finetune.tasks.task import TransformersHead
from cloze.training.vectors.representation import Representation
from tests.infra.test_embed import vectors_of
from tests.infra.test_export import CONFIG, mistake, objective, own_folder, run  # noqa: F401
from tests.paths import REPOSITORY
from tests.training.finetune.encoders.transformers_folders import texts, write_folder

TEXTS = ["a d a", "d [MASK] d", "x", "ab d [SEP] a", "a d " * 600]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_has_the_vectors_of_embed(run: Any, pooling: str, capsys: Any, monkeypatch: Any) -> None:  # noqa: F811
    export = ["export", CONFIG, "--to", "encoder", "--format", "sentence-transformers", "--pooling", pooling]
    assert main(export) == 0
    expected, _ = vectors_of(capsys, monkeypatch, TEXTS, CONFIG, "--pooling", pooling)
    model = SentenceTransformer("encoder", device="cpu")
    assert model.max_seq_length == 512
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
    names = ["1_Pooling", "README.md", "config.json", "config_sentence_transformers.json", "model.safetensors"]
    names += ["modules.json", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    assert sorted(path.name for path in Path("encoder").iterdir()) == names
    embedded, _ = vectors_of(capsys, monkeypatch, TEXTS, "encoder", "--pooling", pooling)
    np.testing.assert_allclose(embedded, expected, atol=1e-6)


def test_the_card_and_the_guide_show_how_to_use_it(run: Any) -> None:  # noqa: F811
    assert main(["export", CONFIG, "--to", "my-encoder", "--format", "sentence-transformers"]) == 0
    card = Path("my-encoder/README.md").read_text()
    _, front, _ = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "sentence-transformers"
    assert "fill-mask" not in card and "the mean over all tokens, [CLS] and [SEP] included, of the last layer" in card
    Path("path/to/this").mkdir(parents=True)
    Path("path/to/this/folder").symlink_to(Path("my-encoder").absolute())
    guide = (REPOSITORY / "docs/guide/vectors.md").read_text()
    for page in (card, guide):
        [code] = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SentenceTransformer" in one]
        found: dict[str, Any] = {}
        exec(code, found)
        assert found["vectors"].shape == (2, 128)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_fine_tuned_model_that_transformers_runs_has_them_too(tmp_path: Path, pooling: Pooling) -> None:
    lines = [*(text[:60] for text in texts()), "a <mask> day", "long " * 200][-20:]
    encoder = from_folder(Location(str(write_folder(tmp_path / "roberta", "roberta"))))
    layered = encoder.layered_encoder(0, pretrained=True)
    files = encoder.model_files(TransformersHead("ForMaskedLM", {}), _weights(encoder))
    for name, data in with_sentence_vectors(files, layered.hidden_size, 128, pooling).items():
        (tmp_path / "exported" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "exported" / name).write_bytes(data)
    embedder = load_embedder(encoder, Representation(pooling=pooling), None)
    [(expected, cut)] = embedder.embed({"text": line} for line in lines)
    assert cut == 1
    found = SentenceTransformer(str(tmp_path / "exported"), device="cpu").encode(lines)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _weights(encoder: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(f"{encoder.folder}/model.safetensors")


def test_what_the_format_cannot_express_is_an_error_of_one_line(run: Any, capsys: Any) -> None:  # noqa: F811
    export = ["export", CONFIG, "--to", "encoder"]
    assert "add --format sentence-transformers" in mistake(capsys, *export, "--pooling", "cls")
    assert "--onnx: is not written" in mistake(capsys, *export, "--format", "sentence-transformers", "--onnx")
    assert not Path("encoder").exists()
