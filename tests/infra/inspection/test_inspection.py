"""`cloze inspect`: the page's data are those of the model, for each kind of model and text; errors in one line."""

import base64
import json
import re
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import cloze
from cloze.infra.cli import main
from cloze.infra.inspection.attention import AttentionSection, quantize
from cloze.infra.inspection.command import heldout_sentences
from cloze.infra.inspection.masks import masks_section
from cloze.infra.inspection.model import InspectedModel, InspectedText
from cloze.infra.inspection.nearest import Sentences, nearest_section
from cloze.infra.inspection.word import common_word, occurrences, word_section
from cloze.infra.inspection.word_charts import principal_plane
from cloze.pipeline.core.errors import DamagedFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import document
from cloze.training.finetune.encoders.cloze_encoder import ClozeEncoder
from cloze.training.finetune.encoders.pretrained_encoder import from_folder
from cloze.training.finetune.encoders.transformers_heads import PieceModel
from cloze.training.finetune.tasks.minimal_pairs import PieceScorer
from cloze.training.vectors.representation import Representation
from tests.golden import documents_artifact
from tests.infra.inspection import small_encoder
from tests.infra.inspection.small_encoder import HEADS, LAYERS, POSITIONS, SENTENCES, A, B
from tests.infra.report.test_report import Reader
from tests.infra.test_export import CONFIG, objective, own_folder, run  # noqa: F401
from tests.training.finetune.encoders import transformers_folders


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_encoder.write_folder(tmp_path_factory.mktemp("models") / "little")


@pytest.fixture(scope="module")
def model(little: Path) -> InspectedModel:
    return InspectedModel(from_folder(Location(str(little))))


@pytest.fixture
def sentences(tmp_path: Path) -> str:
    (tmp_path / "sentences.txt").write_text("\n".join([*SENTENCES, "", SENTENCES[0]]))
    return str(tmp_path / "sentences.txt")


def page_of(encoder: Path, to: Path, *arguments: str) -> str:
    assert main(["inspect", str(encoder), *arguments, "--to", str(to / "page.html")]) == 0
    return (to / "page.html").read_text()


def weights_of(page: str) -> np.ndarray[Any, Any]:
    """[layers, heads, tokens, tokens]: what attention.js reads."""
    layers = re.findall(r'class="layer-weights">(.*?)<', page)
    rows = np.stack([np.frombuffer(zlib.decompress(base64.b64decode(layer)), np.uint8) for layer in layers])
    tokens = len(data_of(page)["tokens"])
    return (rows.reshape(len(layers), -1, tokens, tokens) / 255.0) ** 2


def data_of(page: str) -> dict[str, Any]:
    return json.loads(re.findall(r'id="attention-data">(.*?)</script>', page)[0])


def test_the_page_has_every_weight_to_within_four_thousandths(
    little: Path, model: InspectedModel, tmp_path: Path
) -> None:
    page = page_of(little, tmp_path, A, B)
    data, weights = data_of(page), weights_of(page)
    assert data["tokens"][:5] == ["[CLS]", "she", "sat", "on", "the"]
    assert data["tokens"][data["secondStart"]] == "the" and data["tokens"][data["secondStart"] - 1] == "[SEP]"
    special = [token in ("[CLS]", "[SEP]") for token in data["tokens"]]
    assert data["special"] == special and (data["layers"], data["heads"]) == (LAYERS, HEADS)
    expected = model.attention(model.read([A, B]))
    assert weights.shape == expected.shape == (LAYERS, HEADS, len(special), len(special))
    assert np.abs(weights - expected).max() <= 0.004
    assert expected.sum(-1) == pytest.approx(1, abs=1e-5)


def test_small_weights_are_kept() -> None:
    values = np.array([0, 1e-5, 1e-3, 0.5, 1], np.float32)
    assert (quantize(values) / 255) ** 2 == pytest.approx(values, abs=0.004)
    assert quantize(values)[1] > 0 and quantize(values)[-1] == 255


def test_a_token_cannot_end_the_script_element_of_the_data() -> None:
    token = "</script><script>alert(1)"
    text = InspectedText((token,), [5], [0], [token], [(0, len(token))], [0])
    data = AttentionSection(text, 1, 1, []).json
    assert "<" not in data and json.loads(data)["tokens"] == [token]


def test_predictions_are_those_of_predict(little: Path, model: InspectedModel, tmp_path: Path) -> None:
    text = "[MASK] sat on the [MASK]."
    expected = cloze.load(str(little)).fill_mask(text, top=10)
    found = model.fill_masks(model.read([text]), 10)
    assert [[one.piece for one in best] for best in found] == [[one.piece for one in best] for best in expected]
    np.testing.assert_allclose(
        [[p for _, p in best] for best in found], [[p for _, p in best] for best in expected], 1e-4
    )
    shown = Reader(page_of(little, tmp_path, A, text)).text
    best = found[1][0]
    assert f"[MASK] sat on the [MASK] . {best.piece} {100 * best.probability:.1f}" in shown.replace("\xa0", " ")


def test_without_a_head_or_a_mask_the_section_says_why(tmp_path: Path) -> None:
    headless = small_encoder.write_folder(tmp_path / "headless", "BertModel")
    assert "The model has no masked-LM head" in page_of(headless, tmp_path, "the [MASK]")
    assert "The text has no [MASK]" in page_of(headless, tmp_path, "the bank")


def test_damaged_weights_are_not_taken_for_a_missing_head(little: Path) -> None:
    def damaged() -> Any:
        raise DamagedFile("model.safetensors: is damaged")

    model = InspectedModel(from_folder(Location(str(little))))
    assert isinstance(model.encoder, ClozeEncoder)
    model.encoder = replace(model.encoder, read_weights=damaged)
    with pytest.raises(DamagedFile, match="is damaged"):
        masks_section(model, ["the [MASK]"])


@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_the_masks_of_a_text_are_filled_in_one_row(model_type: str, little: Path, tmp_path: Path) -> None:
    folder = little if model_type == "bert" else transformers_folders.write_folder(tmp_path / model_type, model_type)
    model, rows = InspectedModel(from_folder(Location(str(folder)))), list[int]()
    text = model.read(["the [MASK] of the [MASK]."])

    def count(module: nn.Module, arguments: Any) -> None:
        if isinstance(module, PieceScorer | PieceModel):
            rows.append(len(arguments[0]))

    with register_module_forward_pre_hook(count):
        first, second = model.fill_masks(text, 3)
    assert rows == [1] and first != second


@pytest.mark.parametrize("model_type", transformers_folders.MODEL_TYPES)
def test_encoders_that_transformers_runs_are_inspected(model_type: str, tmp_path: Path) -> None:
    encoder = transformers_folders.write_folder(tmp_path / model_type, model_type)
    page = page_of(encoder, tmp_path, "The team won the [MASK] again.", "Which team has won?")
    data = data_of(page)
    assert weights_of(page).shape[:2] == (data["layers"], data["heads"]) == (2, 2)
    assert 0 < data["secondStart"] < len(data["tokens"])
    assert {token[0] for token in data["tokens"]}.isdisjoint("Ġ▁")
    assert len(re.findall('class="prediction"', page)) == 10
    assert "“team” in context" in page


def test_the_nearest_sentences_have_the_largest_cosines(little: Path, model: InspectedModel) -> None:
    section = nearest_section(model, [A, "money"], Sentences(SENTENCES, "given"))
    loaded = cloze.load(str(little))
    for text, group in zip([A, "money"], section.groups, strict=True):
        others = [sentence for sentence in SENTENCES if sentence != text]
        query, vectors = loaded.embed([text])[0], loaded.embed(others)
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosines)[:8]
        assert group.sentences == [(others[index], f"{cosines[index]:.2f}") for index in order]


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_a_mask_in_a_text_is_the_mask_in_its_vector_too(model_type: str, little: Path, tmp_path: Path) -> None:
    folder = little if model_type == "bert" else transformers_folders.write_folder(tmp_path / model_type, model_type)
    model = InspectedModel(from_folder(Location(str(folder))))
    text = "the [MASK] of the river"
    read = model.read([text])
    assert model.masks(read)
    assert model.vectors(["money", text])[1] == pytest.approx(model.hidden_states(read)[-1].mean(0), abs=1e-5)


def test_texts_are_compared_by_the_vectors_and_the_length_that_were_trained(little: Path) -> None:
    encoder = from_folder(Location(str(little)))
    model = InspectedModel(encoder, Representation(pooling="cls"), max_length=4)
    assert model.vector_in_words == "the output of the last layer for [CLS]"
    long, cut = model.vectors(["the river of money", "the river"])
    assert long == pytest.approx(cut, abs=1e-6)
    assert len(model.read(["the river of money"]).tokens) == 6, "what is drawn is not cut"
    words = InspectedModel(encoder, Representation(special_tokens=False)).vector_in_words
    assert words == "the mean of the last layer over all tokens, [CLS] and [SEP] left out"


def test_sentences_are_lines_also_of_files_from_windows_and_with_other_separators(little: Path, tmp_path: Path) -> None:
    file = tmp_path / "windows.txt"
    file.write_bytes("\ufeffa boat\r\nthe river\u2028of money\r\n\r\na boat\r\n".encode())
    page = page_of(little, tmp_path, A, "--sentences", str(file))
    assert sorted(re.findall(r"</span><span>(.*?)</span></li>", page)) == ["a boat", "the river\u2028of money"]


def test_a_word_has_a_vector_in_each_context(little: Path, tmp_path: Path, sentences: str) -> None:
    page = page_of(little, tmp_path, A, B, "--sentences", sentences)
    text = Reader(page).text
    assert "“bank” in context" in text and "1.00 by construction" in text
    contexts = re.findall(r"<li><span class=.source.>(\w+)</span> (.*)<mark>(\w+)</mark>", page)
    assert [(source, word) for source, _, word in contexts] == [
        ("A", "bank"), ("B", "Bank"), ("sentence", "bank"), ("sentence", "bank")
    ]  # fmt: skip
    table = re.findall(r'--shade:(\d+)%">(-?\d\.\d\d)<', page)
    cosines = np.array([float(value) for _, value in table]).reshape(4, 4)
    assert (cosines == cosines.T).all() and (cosines.diagonal() == 1).all() and cosines.min() < 0.999


def test_the_vector_of_a_word_is_the_mean_of_its_pieces(model: InspectedModel) -> None:
    section = word_section(model, ["the banks", "on banks"], [], None)
    read = model.read(["the banks"])
    assert section.word == "banks" and read.tokens == ["[CLS]", "the", "bank", "##s", "[SEP]"]
    assert section.contexts[0].vectors == pytest.approx(model.hidden_states(read)[:, 2:4].mean(1))


def test_the_page_says_which_contexts_of_a_word_are_shown(model: InspectedModel) -> None:
    few = word_section(model, ["the bank", "a bank", "on bank"], [], "bank")
    assert len(few.paragraphs) == 1  # all are shown
    many = word_section(model, ["bank " * 10, "the bank"], [f"bank {'of ' * n}" for n in range(20)], "bank")
    assert many.paragraphs[1] == (
        "The word occurs 31 times, of which the first 24 were read. Shown are the first 12 contexts with the same "
        "pieces, in texts that fit the model."
    )
    long = word_section(model, ["the bank", "a bank"], ["bank " * POSITIONS], "bank")
    assert long.paragraphs[1].startswith(
        "The word occurs 42 times, of which the first 24 were read. Shown are the first 2 "
    )
    assert len(long.contexts) == 2


def test_the_word_is_chosen_and_found_by_rules() -> None:
    assert common_word([A, B]) == "bank"
    assert common_word(["the boats and a sea", "Boats on the SEA, boats and the"]) == "boats"
    assert common_word(["the sea", "the land"]) is None and common_word([A]) is None
    assert list(occurrences("Bank, banker, bank-notes; a BANK", "bank")) == [(0, 4), (14, 18), (28, 32)]
    assert list(occurrences("川の銀行は銀行だ", "銀行")) == [(2, 4), (5, 7)]


def test_a_plane_through_three_points_keeps_their_distances() -> None:
    vectors = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    points, shares = principal_plane(vectors)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(np.linalg.norm(vectors[i] - vectors[j]), rel=1e-5)
    assert sum(shares) == pytest.approx(1) and shares[0] >= shares[1]
    assert principal_plane(vectors[:2])[1] == pytest.approx((1, 0))


def test_the_page_is_well_formed_loads_nothing_and_escapes_the_texts(
    little: Path, tmp_path: Path, sentences: str
) -> None:
    page = page_of(little, tmp_path, A, B, "--sentences", sentences)
    reader = Reader(page)
    assert not reader.open and not reader.values("src")
    links = [value.removeprefix("#") for tag, key, value in reader.attributes if tag == "a" and key == "href"]
    assert links and set(links) <= set(reader.values("id"))
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|<script>alert", page)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))


def test_a_run_is_inspected_with_its_checkpoint(
    run: Any,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = page_of(Path(CONFIG), tmp_path, "a [MASK] d", "vocab.size=9")
    assert re.fullmatch(r"page.html: \d+\.\d kB\n", capsys.readouterr().out)
    assert re.search(r"quickstart, inspected.*Cloze inspection · model \w{16}<", page, re.DOTALL)
    assert len(re.findall('class="prediction"', page)) == 9


def test_a_run_is_inspected_after_its_documents_were_deleted(run: Any, tmp_path: Path) -> None:  # noqa: F811
    deleted = list((tmp_path / "made/documents").rglob("*.parquet"))
    for shard in deleted:
        shard.unlink()
    assert deleted and "There are no sentences to compare with" in page_of(Path(CONFIG), tmp_path, "a", "vocab.size=9")


def test_the_sentences_of_a_run_are_of_its_held_out_documents(tmp_path: Path) -> None:
    def of(number: int, heldout: float) -> Any:
        text = [f"This is the first sentence of {number}. This is the second one of {number}. Short."]
        return document(text, doc_id=f"wiki:{number}", source="wiki", heldout_fraction=heldout)

    documents = documents_artifact(tmp_path, [of(number, number % 2) for number in range(6)], shards=2)
    found = heldout_sentences(documents).texts
    assert set(found) == {
        f"This is the {which} of {number}." for number in (1, 3, 5) for which in ("first sentence", "second one")
    }


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["river " * 40], "the text has 42 pieces with the special ones, the model 40 positions; shorten it"),
        ([A, "river " * 40], r"the texts have 5\d pieces"),
        ([" "], "the text is empty"),
        ([A, "--word", "money"], "--word money: occurs in 0 of the texts"),
        ([A, "--word", "bank"], "--word bank: occurs in 1 of the texts"),
        ([A, "--sentences", "none.txt"], "--sentences none.txt: no such file"),
        ([A, "seed=3"], "little is the folder of a model, which is read as it is"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    little: Path, tmp_path: Path, arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(little), *arguments, "--to", str(tmp_path / "page.html")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(error, line), line
    assert not (tmp_path / "page.html").exists()


def test_the_page_needs_the_name_of_an_html_file(
    little: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(little), A, "--to", str(tmp_path)]) == 2
    assert f"--to {tmp_path}: is no name of an HTML file" in capsys.readouterr().err


def test_the_page_is_written_to_a_folder_or_to_s3(
    little: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = f"{folder}/pages/inspect.html"
    assert main(["inspect", str(little), A, "--to", to]) == 0
    page = Location(to).read_bytes()
    assert capsys.readouterr().out.endswith(f"pages/inspect.html: {len(page) / 1000:.1f} kB\n")
    assert page.startswith(b"<!doctype html>") and page.endswith(b"</html>")
