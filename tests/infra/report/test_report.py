"""The page about a run: made from artifacts that go through the real Output, looked at as text."""

import io
import json
import math
import platform
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cloze.infra.live_report import render_run
from cloze.infra.planner import Run
from cloze.infra.report import charts
from cloze.infra.report import stage as report
from cloze.infra.report.finetuning import verdict
from cloze.infra.report.mask_predictions import heldout_sentences
from cloze.infra.report.page import render
from cloze.infra.report.reading import Known, heldout_texts, read
from cloze.infra.report.views import ExtractView, PretrainView
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact, Output
from cloze.pipeline.core.config import load as load_config
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import document, document_table
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, load_tokenizer
from tests.paths import QUICKSTART as CONFIG

Made = dict[str, Artifact]

TEXT = "The captain looked at his old ship once more. The sea was calm and the town was quiet before the night fell."
PIECES = [*SPECIAL_TOKENS, *sorted(set(re.findall(r"\w+", TEXT.lower()))), "##s", "##ing", ".", ",", "<", ">"]
DIGEST = "ab" * 32


def output(root: Path, stage: str, fingerprint: str) -> Output:
    return Output(Location(str(root / stage / fingerprint)), stage, 1, fingerprint)


def finished(out: Output) -> Artifact:
    return Artifact(out.location, out.stage, out.fingerprint)


def documents(count: int) -> bytes:
    made = [
        document(
            [f"{TEXT} That was page {i}."],
            doc_id=f"enwiki:{i}",
            source="wiki",
            heldout_fraction=0.3,
            language="en",
            title=f"Page {i}",
        )
        for i in range(count)
    ]
    return parquet_bytes(document_table(made))


def extract(root: Path) -> Artifact:
    out = output(root, "extract", "e" * 16)
    cached = {"uri": "dumps/enwiki.xml.bz2", "sha256": DIGEST, "bytes": 905631}
    (Location(str(root)) / "sources/1.json").write_text(json.dumps(cached))
    samples = {"redirect": [{"record": "<script>alert(1)</script>", "text": "#REDIRECT [[Sea]]"}]}
    counts = {"records": 61, "documents": 41, "words": 9017, "heldout": 11}
    drops = {"redirect": 13, "no prose": 7}
    part = out.commit("00000", {"documents/00000-00.parquet": documents(41)}, counts, drops)
    truncated = [{"file": "dumps/enwiki.xml.bz2", "reason": "it ends in the middle of a page"}]
    facts = {"sources": {"wiki": counts, "books": {"records": 0}}, "samples": samples, "truncated": truncated}
    out.finish([part], {"heldout_fraction": 0.25}, {f"wiki/{DIGEST[:12]}/enwiki.xml.bz2": DIGEST}, facts=facts)
    return finished(out)


def dedup(root: Path) -> Artifact:
    out = output(root, "dedup", "d" * 16)
    counts = {"records": 41, "documents": 38, "words": 8714, "heldout": 10}
    part = out.commit("00000", {"documents/00000.parquet": documents(38)}, counts, {"duplicate": 3})
    samples = {"duplicate": [{"doc_id": "enwiki:7", "title": "Sea & ship", "source": "wiki"}]}
    out.finish([part], {}, {"documents": "e" * 16}, facts={"samples": samples})
    return finished(out)


def vocab(root: Path) -> Artifact:
    from cloze.pipeline.text.tokenizer import build_tokenizer

    out = output(root, "vocab", "a" * 16)
    files = {"vocab.txt": "".join(piece + "\n" for piece in PIECES), "tokenizer.json": build_tokenizer(PIECES).to_str()}
    part = out.commit("vocab", {name: text.encode() for name, text in files.items()})
    facts = {
        "heldout": {"words": 2140, "unknown_share": 0.0125, "pieces_per_word": 1.284},
        "compared": {"name": "vocab.txt", "size": 30522, "words": 2140, "unknown_share": 0, "pieces_per_word": 1.416},
        "note": "The vocabulary leaves out 2 of the training text's 40 different characters.",
        "left_out": {"most_frequent": ["☃", "##<♜>"]},
        "warnings": ["vocab.size: 99 cannot be reached, the text gives 40 pieces; lower it"],
    }
    out.finish([part], {"size": len(PIECES)}, {"documents": "d" * 16}, counts={"pieces": len(PIECES)}, facts=facts)
    return finished(out)


def tokens(root: Path) -> Artifact:
    out = output(root, "tokens", "b" * 16)
    out.finish([], {}, {"documents": "d" * 16, "vocab": "a" * 16}, counts={"documents": 38, "tokens": 10231})
    return finished(out)


def example(label: int) -> dict[str, Any]:
    """Sea is hidden, was left as it is, fell replaced by night."""
    ids = [PIECES.index(piece) for piece in re.findall(r"\S+", "[CLS] the [MASK] was calm [SEP] night town [SEP]")]
    labels = [PIECES.index(piece) for piece in ("sea", "was", "fell")]
    masks = {"masked_lm_positions": [2, 3, 6], "masked_lm_labels": labels}
    return {"input_ids": ids, "segment_b": 6, "next_sentence_label": label, **masks}


def examples(root: Path) -> Artifact:
    out = output(root, "examples-32", "c" * 16)
    shard = parquet_bytes(pa.Table.from_pylist([example(0), example(1)]))
    counts = {"train": 517, "heldout": 83, "train_tokens": 12408, "train_random_next": 260}
    part = out.commit("00000", {"train/00000.parquet": shard, "heldout/00000.parquet": shard}, counts)
    out.finish(
        [part],
        {"max_seq_length": 32, "dupe_factor": 5, "masked_lm_prob": 0.15, "objective": "mlm+nsp"},
        {"tokens": "b" * 16, "vocab": "a" * 16},
    )
    return finished(out)


def metric_rows() -> list[dict[str, Any]]:
    rows = []
    for step in range(10, 101, 10):
        means = {
            "loss": 4 - step / 100,
            "mlm_loss": 3.3 - step / 100,
            "nsp_loss": 0.7,
            "mlm_accuracy": step / 1000,
            "nsp_accuracy": 0.52,
        }
        rates = {
            "learning_rate": 1e-4 * (1 - step / 110),
            "grad_norm": 1.0,
            "sequences_per_second": 200.0,
            "tokens_per_second": 5e3,
        }
        rows.append({"split": "train", "step": step, **means, **rates, "seconds": 3.0})
        if step % 50 == 0:
            base = {"loss": 4.2, "mlm_loss": 3.6 - step / 1000, "mlm_accuracy": 0.04, "nsp_loss": 0.68}
            base = {f"{key}_baseline": value for key, value in (base | {"nsp_accuracy": 0.58}).items()}
            counts = {"masked": 600, "pairs": 100, "pairs_1": 58, "answers_1": 90}
            rows.append({"split": "heldout", "step": step, **means, **base, **counts, "examples": 100})
    return rows


def pretrain(root: Path, complete: bool = True, rows: list[dict[str, Any]] | None = None, **settings: Any) -> Artifact:
    from cloze.training.checkpoints.checkpoint import SavedConfig, Standing, save
    from cloze.training.model.bert import BertConfig, BertForPreTraining

    out = output(root, "pretrain", "f" * 16)
    lines = json_lines.encode(rows or metric_rows())
    if not complete:
        (out.location / "metrics.jsonl").write_bytes(lines)
        return finished(out)
    shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(shape, len(PIECES))
    standing = Standing(SavedConfig(model=shape, vocab_size=len(PIECES)), {})
    ref = save(out.location, 100, {"model": model.state_dict()}, standing)
    part = out.commit("checkpoint", {"metrics.jsonl": lines})
    path = ref.location.uri.removeprefix(out.location.uri + "/")
    facts = {
        "checkpoint": {"path": path, "digest": ref.digest, "step": 100},
        "workers": 2,
        "precision": "fp32",
        "processor": "a test's",
    }
    inputs = {"vocab": "a" * 16, "examples-32": "c" * 16}
    config = {"model": shape.model_dump(), "global_batch_size": 32, **settings}
    out.finish([part], config, inputs, counts={"steps": 100}, facts=facts)
    return finished(out)


def finetune(root: Path, checkpoint: str, pretrained: tuple[int, int], random: tuple[int, int]) -> Artifact:
    from cloze.training.finetune.scores import wilson

    def scored(right: int, total: int) -> dict[str, Any]:
        return {"accuracy": right / total, "interval": wilson(right, total), "macro_f1": 0.5, "matthews": 0.4}

    curve = {"loss": [(1, 1.1), (2, 0.9)], "dev_accuracy": [0.5, 0.6], "dev_loss": [1.0, 0.9], "best_epoch": 2}
    trial = {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2}
    predictions = [("Austen", "Austen"), ("Austen", "Melville"), ("Melville", "Melville")]
    rows = [{"row": i, "label": label, "predicted": said} for i, (label, said) in enumerate(predictions)]
    out = output(root, "finetune-authors", "9" * 16)
    part = out.commit("pretrained", {"predictions/pretrained.jsonl": json_lines.encode(rows)})
    facts = {
        "labels": {"train": {"Austen": 5, "Melville": 4}},
        "scores": {"pretrained": scored(*pretrained), "random": scored(*random), "majority": scored(30, 100)},
        "variants": {"pretrained": {"trial": trial, **curve}, "random": {"trial": trial, **curve}},
        "examples": [{"text": "It is a truth <b>", "label": "Austen", "predicted": "Melville"}],
    }
    inputs = {"checkpoint": checkpoint, "vocab": "a" * 16, "data": DIGEST + ".jsonl"}
    out.finish([part], {"name": "authors"}, inputs, counts={"train": 9, "dev": 3, "test": 100}, facts=facts)
    return finished(out)


def whole_run(root: Path, pretrained: tuple[int, int] = (60, 100), random: tuple[int, int] = (55, 100)) -> Made:
    made = [extract(root), dedup(root), vocab(root), tokens(root), examples(root), pretrain(root)]
    digest = made[-1].manifest.facts["checkpoint"]["digest"]
    made.append(finetune(root, digest, pretrained, random))
    return {artifact.stage: artifact for artifact in made}


def page_of(root: Path, made: Made, name: str = "voyage") -> str:
    out = output(root, "report", "7" * 16)
    report.run(report.ReportConfig(name=name), made, out)
    return (out.location / "report.html").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def made(root: Path) -> Made:
    return whole_run(root)


@pytest.fixture(scope="module")
def page(root: Path, made: Made) -> str:
    return page_of(root, made)


class Reader(HTMLParser):
    """The page as a browser sees it: its words, its attributes, and whether every element is closed."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, name, value
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def test_every_number_of_kept_and_dropped_stands_on_the_page(page: str, made: Made) -> None:
    text = Reader(page).text
    for artifact in made.values():
        manifest = artifact.manifest
        for key, value in {**manifest.counts, **manifest.drops}.items():
            words = key.replace("_", " ").replace("heldout", "held-out")
            assert f"{words} {value:,}" in text, (artifact.stage, key)


def test_dropped_records_are_shown_under_their_reason(page: str) -> None:
    assert re.search(r"redirect <script>alert\(1\)</script> #REDIRECT \[\[Sea\]\]", Reader(page).text)
    assert "duplicate Sea & ship" in Reader(page).text


def test_a_cut_file_is_named_with_the_reason(page: str) -> None:
    said = "<b>enwiki.xml.bz2 is cut off</b>: it ends in the middle of a page."
    assert page.count(said) == 1


def test_the_vocabulary_stands_beside_the_one_that_it_was_compared_with(page: str) -> None:
    assert (
        "Held-out documents take 1.28 pieces a word; of their 2,140 words 1.2 % are unknown to it, where vocab.txt of "
        "30,522 pieces takes 1.42 and leaves 0 % unknown."
    ) in Reader(page).text


def test_what_the_vocabulary_leaves_out_is_said_and_shown(page: str) -> None:
    text = Reader(page).text
    assert "unknown. The vocabulary leaves out 2 of the training text's 40 different characters." in text
    assert "The most frequent of the characters left out ☃ ##<♜>" in text


def test_warnings_stand_at_the_top_of_the_page(page: str) -> None:
    said = "Warning: vocab.size: 99 cannot be reached, the text gives 40 pieces; lower it."
    assert page.count(said) == 1
    assert page.index("<h1>") < page.index(said) < page.index("<nav")


def test_what_users_wrote_is_escaped(page: str) -> None:
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "It is a truth &lt;b&gt;" in page


def test_every_element_is_closed_and_every_link_leads_somewhere(page: str) -> None:
    reader = Reader(page)
    assert not reader.open
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    links = [value.removeprefix("#") for tag, key, value in reader.attributes if tag == "a" and key == "href"]
    assert links and set(links) <= set(ids)


def test_the_page_loads_nothing(page: str) -> None:
    reader = Reader(page)
    assert not reader.values("src")
    assert not [value for tag, key, value in reader.attributes if key == "href" and not value.startswith("#")]
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest", page)


def test_masked_pieces_are_shown_with_what_stood_there(page: str) -> None:
    spans = re.findall(r'<span class="masked([^"]*)" title="([^"]*)">([^<]*)<small>([^<]*)</small>', page)
    assert spans[:3] == [
        ("", "sea: hidden", "[MASK]", "sea"),
        ("", "was: left as it was", "was", "was"),
        (" second", "fell: replaced by another piece", "night", "fell"),
    ]
    assert (
        Reader(page).text.count("Is next: B follows A") == Reader(page).text.count("Random: B is from elsewhere") == 1
    )


@pytest.mark.parametrize(
    ("pretrained", "random", "little"),
    [((60, 100), (55, 100), True), ((75, 100), (60, 100), True), ((80, 100), (60, 100), False)],
)
def test_little_gain_is_said_exactly_when_the_intervals_overlap(
    tmp_path: Path, pretrained: tuple[int, int], random: tuple[int, int], little: bool
) -> None:
    artifact = finetune(tmp_path, DIGEST, pretrained, random)
    text = Reader(page_of(tmp_path, {artifact.stage: artifact})).text
    assert ("brings little over random weights" in text) == little
    assert ("helps:" in text) == (not little)
    assert f"{pretrained[0]}.0 % (" in text and f"against {random[0]}.0 % (" in text


def test_what_a_task_began_without_is_said(tmp_path: Path) -> None:
    artifact = finetune(tmp_path, DIGEST, (60, 100), (55, 100))
    artifact.manifest.facts["notes"] = ["The checkpoint has no pooler"]
    (artifact.location / "manifest.json").write_text(artifact.manifest.model_dump_json())
    assert (
        "correlation 0.400. The checkpoint has no pooler." in Reader(page_of(tmp_path, {artifact.stage: artifact})).text
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([(128, 100, None)], "100 steps of 32 sequences of 128 pieces; 2 workers"),
        ([(128, 90, None), (512, 10, None)], "sequences, 90 at length 128, then 10 at length 512; 2 workers"),
        ([(128, None, None)], "100 steps of 32 sequences of 128 pieces; as many as fit into 20m; 2 workers"),
        (
            [(128, None, 0.9), (512, None, 0.1)],
            "90.0 % of the time at length 128, then 10.0 % of the time at length 512",
        ),
    ],
)
def test_the_page_says_how_much_pretraining_there_was_by_steps_or_by_time(
    tmp_path: Path, settings: list[tuple[int, int | None, float | None]], said: str
) -> None:
    phases = [{"max_seq_length": length, "steps": steps, "share": share} for length, steps, share in settings]
    artifact = pretrain(tmp_path, phases=phases, budget=None if phases[0]["steps"] else "20m")
    assert said in Reader(page_of(tmp_path, {artifact.stage: artifact})).text


def test_a_pretraining_that_hurts_is_called_so() -> None:
    low, high, majority = (charts.Estimate("", value, value - 0.05, value + 0.05) for value in (0.4, 0.6, 0.5))
    said = " ".join(verdict(low, high, majority, "Pretraining").split())
    assert said.startswith("Pretraining hurts: 40.0 % (35.0 to 45.0) against 60.0 % (55.0 to 65.0)")
    assert said.endswith(
        "The pretrained model's interval does not lie above the majority class, 50.0 % (45.0 to 55.0)."
    )


def test_the_lineage_names_every_fingerprint_the_files_and_the_checkpoint(page: str, made: Made) -> None:
    picture = page[page.index('class="lineage"') : page.index("</svg>", page.index('class="lineage"'))]
    for artifact in made.values():
        assert artifact.fingerprint in picture
    assert f"enwiki.xml.bz2 · {DIGEST[:10]} · 905.6 kB" in picture
    assert made["pretrain"].manifest.facts["checkpoint"]["digest"][:10] in picture
    assert "authors 60.0\N{NO-BREAK SPACE}%" in picture


def test_what_a_stage_of_the_run_made_is_no_users_file_however_long_its_digest_is(root: Path, made: Made) -> None:
    known = [Known(name, "done", artifact.location, artifact.fingerprint) for name, artifact in made.items()]
    stages = {stage.name: stage for stage in read(known, Location(str(root)))}
    assert {name: list(stage.sources) for name, stage in stages.items() if stage.sources} == {
        "extract": ["wiki"],
        "finetune-authors": ["data"],
    }
    assert len(made["finetune-authors"].manifest.inputs["checkpoint"]) >= 64
    assert stages["finetune-authors"].after == ("pretrain", "vocab")


@pytest.mark.parametrize("by_digest", [True, False])
def test_a_users_file_is_known_by_its_digest_or_by_an_earlier_versions_record(
    tmp_path: Path, by_digest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = extract(tmp_path)
    records = tmp_path / "sources"
    if by_digest:
        (records / "1.json").rename(records / f"{DIGEST}.json")
        monkeypatch.setattr(Location, "files", lambda _: [])  # a listing that lags
    known = [Known("extract", "done", artifact.location, artifact.fingerprint)]
    [source] = read(known, Location(str(tmp_path))).one(ExtractView).sources["wiki"]
    assert (source.name, source.bytes, source.sha256) == ("enwiki.xml.bz2", 905631, DIGEST)


def test_each_stage_shows_its_configuration_versions_and_files(page: str, made: Made) -> None:
    text = Reader(page).text
    for artifact in made.values():
        assert artifact.location.uri in text
        for path, file in artifact.manifest.files.items():
            assert path in text and file.sha256 in text
    assert "heldout_fraction: 0.25" in text and f"python {platform.python_version()}" in text


def test_curves_hold_every_value_for_the_pointer(page: str) -> None:
    charts = [json.loads(value) for value in Reader(page).values("data-series")]
    loss = next(chart for chart in charts if chart["lines"][0]["points"][0][1] == "3.9")
    assert loss["across"] == "step"
    assert [line["label"] for line in loss["lines"]] == ["training", "held-out"]
    assert [point[:2] for point in loss["lines"][1]["points"]] == [[50, "3.5"], [100, "3"]]


def chart_of(page: str, title: str) -> str:
    start = page.index(f"<figcaption><b>{title}</b>")
    return page[start : page.index("</figure>", start)]


def test_held_out_figures_stand_beside_what_is_scored_without_a_model(page: str) -> None:
    text = Reader(page).text
    assert "names 10.0 % of 600 masked pieces (loss 2.300), where a unigram model" in text
    assert "names 4.0 % (loss 3.500). Its loss is 34.3 % lower." in text
    assert 'always answering "random" is right in 58.0 % (loss 0.680). It is no better than that' in text
    assert "a unigram model fills in 4.0 % (3.50)" in text  # under the title
    assert 'always answering "random" 58.0 %' in text
    assert "coin" not in text


def test_an_answer_that_is_always_the_same_is_said_also_of_a_run_that_is_half_way(tmp_path: Path) -> None:
    rows = [row | {"answers_1": 100} if "answers_1" in row else row for row in metric_rows()]
    known = [
        Known("examples-32", "done", examples(tmp_path).location),
        Known("pretrain", "half-done", pretrain(tmp_path, complete=False, rows=rows).location),
    ]
    text = Reader(render("voyage", read(known, Location(str(tmp_path))))).text
    assert 'It answers "random" to every one of the 100 pairs, as a constant would.' in text


def test_each_chart_of_held_out_figures_has_a_line_of_its_baseline_that_steps_where_that_changes(page: str) -> None:
    names = {
        "Loss, all of it": "the baselines' sum",
        "Masked-LM loss": "unigram model",
        "Masked-LM accuracy": "unigram model",
        "Loss of pairs": "best constant answer",
        "Accuracy of pairs": 'always answering "random"',
    }
    for title, name in names.items():
        chart = chart_of(page, title)
        [line] = re.findall(r'<path d="([^"]*)" class="reference"', chart)
        assert len(set(re.findall(r"V([\d.]+)", line))) == (2 if title == "Masked-LM loss" else 1)
        assert name in Reader(chart).text
    assert 'class="reference"' not in chart_of(page, "Learning rate")
    line = re.findall(r'<path d="([^"]*)" class="reference"', chart_of(page, "Masked-LM loss"))[0]
    x, first, second = re.fullmatch(r"M52 ([\d.]+)V\1H([\d.]+)V([\d.]+)H446\.0H446", line).group(2, 1, 3)
    assert float(x) == pytest.approx((52 + 446) / 2)  # where the first phase ended: step 50 of 100
    assert float(second) > float(first)  # drawn from above: a lower loss


def test_without_pairs_no_chart_and_no_sentence_is_about_them(tmp_path: Path) -> None:
    of_pairs = ("nsp", "pairs", "answers")
    rows = [{key: value for key, value in row.items() if not key.startswith(of_pairs)} for row in metric_rows()]
    artifact = pretrain(tmp_path, rows=rows)
    page = page_of(tmp_path, {artifact.stage: artifact})
    assert "Loss of pairs" not in page and "held-out pairs" not in page and "always answering" not in page
    assert "unigram model" in Reader(chart_of(page, "Loss, all of it")).text


def test_fill_ins_hide_words_of_held_out_documents_alone(made: Made) -> None:
    tokenizer = load_tokenizer(made["vocab"].location / "tokenizer.json")
    hidden, english = heldout_sentences(heldout_texts(made["dedup"]), tokenizer)
    table = pq.read_table(io.BytesIO(made["dedup"].files("documents/")[0].read_bytes())).to_pylist()
    heldout = [row["text"] for row in table if row["split"] == "heldout"]
    assert english and hidden
    for each in hidden:
        assert each.original.lower() in PIECES
        assert any(f"{each.before}{each.original}{each.after}" in text for text in heldout)


def test_the_model_guesses_five_pieces_for_each_hidden_word(page: str) -> None:
    assert len(re.findall(r'class="blank"', page)) * 5 == len(re.findall(r'class="guess[ "]', page)) > 0


def test_weights_are_counted_without_loading_them(made: Made, root: Path) -> None:
    from cloze.training.pretrain.stage import final_checkpoint

    tensors = final_checkpoint(made["pretrain"]).weights().values()
    stages = read([Known("pretrain", "done", made["pretrain"].location)], Location(str(root)))
    assert stages.one(PretrainView).weights == sum(map(torch.numel, tensors))


def test_a_half_finished_run_has_its_curves_and_says_what_is_open(tmp_path: Path) -> None:
    done = [extract(tmp_path), dedup(tmp_path)]
    known = [Known(artifact.stage, "done", artifact.location, artifact.fingerprint) for artifact in done]
    known.append(Known("vocab", "not started", after=("dedup",)))
    known.append(Known("pretrain", "half-done", pretrain(tmp_path, complete=False).location, after=("vocab",)))
    known.append(Known("finetune-authors", "waiting", after=("pretrain", "vocab")))
    page = render("voyage", read(known, Location(str(tmp_path))))
    text = Reader(page).text
    assert "This run is not finished: vocab (not started), pretrain (half-done), finetune-authors (waiting)." in text
    assert "Masked-LM loss" in text and 'id="scores"' not in page and 'id="fill-ins"' not in page


def test_a_run_of_which_nothing_is_finished_has_a_page(tmp_path: Path) -> None:
    config = load_config(RunConfig, CONFIG, [f"root={tmp_path}"])
    uri = render_run(Run(config))
    assert uri == str(tmp_path / "quickstart.html")
    text = Reader((tmp_path / "quickstart.html").read_text()).text
    assert "Nothing is finished yet." in text and "finetune-authors (waiting)" in text


def test_a_fact_that_is_missing_leaves_its_section_out(tmp_path: Path) -> None:
    made = {}
    for stage in ("extract", "dedup", "tokens", "examples-32", "pretrain", "finetune-authors"):
        out = output(tmp_path, stage, stage[0] * 16)
        out.finish([], {"max_seq_length": 32}, {})
        made[stage] = finished(out)
    page = page_of(tmp_path, made)
    assert not Reader(page).open
    assert 'id="pretraining"' not in page and 'id="scores"' not in page and 'id="lineage"' in page


def test_the_page_is_published_over_another_configurations(page: str, root: Path) -> None:
    target = Location(str(root)) / "voyage.html"
    target.write_text("the page of another configuration")
    report.publish(Location(str(root)) / "report" / ("7" * 16), target)
    assert target.read_text() == page
    assert "<title>voyage · Cloze</title>" in page


def test_a_loss_that_is_no_number_leaves_a_gap_and_the_others_their_scale() -> None:
    lines = [
        charts.Series("bad", [(1, 2.0), (2, math.nan), (3, 4.0)]),
        charts.Series("good", [(1, 3.0), (3, 2.5)], "b"),
    ]
    chart = charts.line_chart("Loss", lines, charts.Axis("nats"))
    assert "nan" not in chart and "inf" not in chart.replace("info", "")
    assert chart.count("<path") == 2 and re.findall(r'class="end">([^<]*)<', chart) == ["2", "2.5", "3", "3.5", "4"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 9.02), (0.6931, 0.7), (-3, 40_000), (5, 5), (0, 1e-4)])
def test_ticks_are_few_round_and_enclose_the_values(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(found) <= 8
    steps = {f"{b - a:.6g}" for a, b in pairwise(found)}
    assert len(steps) == 1 and steps.pop().strip("0.").split("e")[0][0] in "125"


def test_thinned_curves_keep_their_mean_and_their_end() -> None:
    points = [(step, math.sin(step / 50)) for step in range(9000)]
    thinned = charts.thin(points, 300)
    assert len(thinned) == 300 and thinned[-1][0] == 8999
    assert sum(y for _, y in thinned) / 300 == pytest.approx(sum(y for _, y in points) / 9000)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1234567, "1,234,567"), (0.0000213, "2.13e-5"), (6.5231, "6.523"), (1e-4, "1e-4"), (0.5, "0.5")],
)
def test_numbers_read_at_a_glance(value: float, said: str) -> None:
    assert charts.number(value) == said
