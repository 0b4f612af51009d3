"""The report page, from artifacts that are written by the real Output, checked as text."""

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
from cloze.infra.report.finetuning import compare_scores
from cloze.infra.report.mask_predictions import select_heldout_sentences
from cloze.infra.report.page import render
from cloze.infra.report.pretraining import percent_axis
from cloze.infra.report.read_run import KnownStage, heldout_documents, read_stages
from cloze.infra.report.view_models import ExtractView, PretrainView
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core import json_lines
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.config import load as load_config
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import document, document_table
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, load_tokenizer
from tests.paths import QUICKSTART as CONFIG

Artifacts = dict[str, Artifact]

TEXT = "The captain looked at his old ship once more. The sea was calm and the town was quiet before the night fell."
PIECES = [*SPECIAL_TOKENS, *sorted(set(re.findall(r"\w+", TEXT.lower()))), "##s", "##ing", ".", ",", "<", ">"]
DIGEST = "ab" * 32


def output(root: Path, stage: str, fingerprint: str) -> Output:
    return Output(Location(str(root / stage / fingerprint)), stage, 1, fingerprint)


def finished(out: Output) -> Artifact:
    return Artifact(out.location, out.stage, out.fingerprint)


def documents(count: int) -> bytes:
    rows = [
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
    return parquet_bytes(document_table(rows))


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
    """sea is masked, was is unchanged, fell is replaced by night."""
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
            base |= {"nsp_accuracy": 0.58, "choice_accuracy": 0.5}
            base = {f"{key}_baseline": value for key, value in base.items()} | {"choice_accuracy": 0.5 + step / 1000}
            counts = {"masked": 600, "choices": 500, "pairs": 100, "pairs_1": 58, "answers_1": 90}
            rows.append({"split": "heldout", "step": step, **means, **base, **counts, "examples": 100})
    return rows


def pretrain(root: Path, complete: bool = True, rows: list[dict[str, Any]] | None = None, **settings: Any) -> Artifact:
    from cloze.training.checkpoints.checkpoint import CheckpointPayload, SavedConfig, save_checkpoint
    from cloze.training.model.bert import BertConfig, BertForPreTraining

    out = output(root, "pretrain", "f" * 16)
    lines = json_lines.encode(rows or metric_rows())
    if not complete:
        (out.location / "metrics.jsonl").write_bytes(lines)
        return finished(out)
    shape = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForPreTraining(shape, len(PIECES))
    standing = CheckpointPayload(SavedConfig(model=shape, vocab_size=len(PIECES)), {})
    ref = save_checkpoint(out.location, 100, {"model": model.state_dict()}, standing)
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


def finetune(
    root: Path, checkpoint: str, pretrained: tuple[int, int], random: tuple[int, int], **changed: Any
) -> Artifact:
    """`changed` replaces facts."""
    from cloze.training.finetune.metrics.estimates import wilson

    def scored(right: int, total: int) -> dict[str, Any]:
        return {"accuracy": right / total, "interval": wilson(right, total), "macro_f1": 0.5, "matthews": 0.4}

    curve = {"loss": [(1, 1.1), (2, 0.9)], "dev_accuracy": [0.5, 0.6], "dev_loss": [1.0, 0.9], "best_epoch": 2}
    trial = {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2}
    predictions = [("Austen", "Austen"), ("Austen", "Melville"), ("Melville", "Melville")]
    rows = [{"row": i, "label": label, "predicted": predicted} for i, (label, predicted) in enumerate(predictions)]
    out = output(root, "finetune-authors", "9" * 16)
    part = out.commit("pretrained", {"predictions/pretrained.jsonl": json_lines.encode(rows)})
    facts = {
        "labels": {"train": {"Austen": 5, "Melville": 4}},
        "scores": {"pretrained": scored(*pretrained), "random": scored(*random), "majority": scored(30, 100)},
        "variants": {"pretrained": {"trial": trial, **curve}, "random": {"trial": trial, **curve}},
        "examples": [{"text": "It is a truth <b>", "label": "Austen", "predicted": "Melville"}],
    }
    inputs = {"checkpoint": checkpoint, "vocab": "a" * 16, "data": DIGEST + ".jsonl"}
    counts = {"train": 9, "dev": 3, "test": 100}
    out.finish([part], {"name": "authors"}, inputs, counts=counts, facts=facts | changed)
    return finished(out)


def whole_run(root: Path, pretrained: tuple[int, int] = (60, 100), random: tuple[int, int] = (55, 100)) -> Artifacts:
    artifacts = [extract(root), dedup(root), vocab(root), tokens(root), examples(root), pretrain(root)]
    digest = artifacts[-1].manifest.facts["checkpoint"]["digest"]
    artifacts.append(finetune(root, digest, pretrained, random))
    return {artifact.stage: artifact for artifact in artifacts}


def page_of(root: Path, artifacts: Artifacts, name: str = "voyage") -> str:
    out = output(root, "report", "7" * 16)
    report.run(report.ReportConfig(name=name), artifacts, out)
    return (out.location / "report.html").read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def artifacts(root: Path) -> Artifacts:
    return whole_run(root)


@pytest.fixture(scope="module")
def page(root: Path, artifacts: Artifacts) -> str:
    return page_of(root, artifacts)


class Reader(HTMLParser):
    """The page as a browser parses it: its text, its attributes, and whether every element is closed."""

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


def test_the_page_shows_every_count_and_drop_reason(page: str, artifacts: Artifacts) -> None:
    text = Reader(page).text
    for artifact in artifacts.values():
        manifest = artifact.manifest
        for key, value in {**manifest.counts, **manifest.drops}.items():
            words = key.replace("_", " ").replace("heldout", "held-out")
            assert f"{words} {value:,}" in text, (artifact.stage, key)


def test_dropped_records_are_shown_under_their_reason(page: str) -> None:
    assert re.search(r"redirect <script>alert\(1\)</script> #REDIRECT \[\[Sea\]\]", Reader(page).text)
    assert "duplicate Sea & ship" in Reader(page).text


def test_a_truncated_file_is_named_with_the_reason(page: str) -> None:
    expected = "<b>enwiki.xml.bz2 is truncated</b>: it ends in the middle of a page."
    assert page.count(expected) == 1


def test_the_vocabulary_is_compared_with_another_one_on_held_out_text(page: str) -> None:
    assert (
        "On held-out documents (2,140 words) it produces 1.28 tokens per word and 1.2 % unknown words; vocab.txt "
        "(30,522 tokens) produces 1.42 tokens per word and 0 % unknown words."
    ) in Reader(page).text


def test_characters_without_a_token_are_counted_and_shown(page: str) -> None:
    text = Reader(page).text
    assert "unknown words. The vocabulary leaves out 2 of the training text's 40 different characters." in text
    assert "Most frequent characters without a token ☃ ##<♜>" in text


def test_warnings_are_at_the_top_of_the_page(page: str) -> None:
    expected = "Warning: vocab.size: 99 cannot be reached, the text gives 40 pieces; lower it."
    assert page.count(expected) == 1
    assert page.index("<h1>") < page.index(expected) < page.index("<nav")


def test_text_of_users_is_escaped(page: str) -> None:
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


def test_masked_tokens_are_shown_with_the_original_token(page: str) -> None:
    spans = re.findall(r'<span class="masked([^"]*)" title="([^"]*)">([^<]*)<small>([^<]*)</small>', page)
    assert spans[:3] == [
        ("", "sea: masked", "[MASK]", "sea"),
        ("", "was: unchanged", "was", "was"),
        (" second", "fell: replaced by a random token", "night", "fell"),
    ]
    assert [
        Reader(page).text.count(title) for title in ("IsNext: segment B follows", "NotNext: segment B is from")
    ] == [1, 1]


@pytest.mark.parametrize(
    ("pretrained", "random", "little"),
    [((60, 100), (55, 100), True), ((75, 100), (60, 100), True), ((80, 100), (60, 100), False)],
)
def test_no_clear_gain_is_reported_exactly_when_the_intervals_overlap(
    tmp_path: Path, pretrained: tuple[int, int], random: tuple[int, int], little: bool
) -> None:
    artifact = finetune(tmp_path, DIGEST, pretrained, random)
    text = Reader(page_of(tmp_path, {artifact.stage: artifact})).text
    assert ("shows no clear gain" in text) == little
    assert ("helps:" in text) == (not little)
    assert f"{pretrained[0]}.0 % (" in text and f"versus {random[0]}.0 % (" in text


def test_notes_about_the_checkpoint_are_shown_with_the_task(tmp_path: Path) -> None:
    artifact = finetune(tmp_path, DIGEST, (60, 100), (55, 100))
    artifact.manifest.facts["notes"] = ["The checkpoint has no pooler"]
    (artifact.location / "manifest.json").write_text(artifact.manifest.model_dump_json())
    assert (
        "correlation 0.400. The checkpoint has no pooler." in Reader(page_of(tmp_path, {artifact.stage: artifact})).text
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([(128, 100, None)], "100 steps with a global batch of 32 sequences; sequence length 128; 2 workers"),
        (
            [(128, 90, None), (512, 10, None)],
            "sequences; 90 steps at sequence length 128, then 10 steps at sequence length 512; 2 workers",
        ),
        ([(128, None, None)], "32 sequences; sequence length 128; time budget 20m; 2 workers"),
        (
            [(128, None, 0.9), (512, None, 0.1)],
            "90.0 % of the time at sequence length 128, then 10.0 % of the time at sequence length 512",
        ),
    ],
)
def test_the_page_describes_pretraining_by_steps_or_by_time(
    tmp_path: Path, settings: list[tuple[int, int | None, float | None]], expected: str
) -> None:
    phases = [{"max_seq_length": length, "steps": steps, "share": share} for length, steps, share in settings]
    artifact = pretrain(tmp_path, phases=phases, budget=None if phases[0]["steps"] else "20m")
    assert expected in Reader(page_of(tmp_path, {artifact.stage: artifact})).text


def test_the_page_has_the_batch_size_of_each_phase_where_they_differ(tmp_path: Path) -> None:
    phases = [
        {"max_seq_length": length, "steps": steps, "share": None, "global_batch_size": size}
        for length, steps, size in ((128, 90, None), (512, 10, 16))
    ]
    artifact = pretrain(tmp_path, phases=phases, budget=None)
    expected = (
        "100 steps; 90 steps at sequence length 128 with a global batch of 32 sequences, "
        "then 10 steps at sequence length 512 with a global batch of 16 sequences; 2 workers"
    )
    assert expected in Reader(page_of(tmp_path, {artifact.stage: artifact})).text


def test_a_pretraining_that_hurts_is_reported() -> None:
    values = {"pretrained": 0.4, "random": 0.6, "majority": 0.5}
    scores = {
        name: charts.ScoreEstimate(f"{name} class", value, value - 0.05, value + 0.05) for name, value in values.items()
    }
    text = " ".join(compare_scores(scores, percent_axis(""), "Pretraining").split())
    assert text.startswith("Pretraining hurts: 40.0 % (35.0 to 45.0) versus 60.0 % (55.0 to 65.0)")
    assert text.endswith("The pretrained model's interval is not above the majority class, 50.0 % (45.0 to 55.0).")


def page_of_task(root: Path, **facts: Any) -> str:
    """The page of a run of one task that has only its pretrained variant, with these facts."""
    curve = {"loss": [(1, 1.1), (2, 0.9)], "dev_matthews": [-0.1, 0.3], "dev_loss": [1.0, 0.9], "best_epoch": 2}
    trial = {"learning_rate": 1e-4, "batch_size": 32, "epochs": 2}
    only = {"variants": {"pretrained": {"trial": trial, **curve}}, **facts}
    artifact = finetune(root, DIGEST, (60, 100), (55, 100), **only)
    page = page_of(root, {artifact.stage: artifact})
    assert not Reader(page).open
    return page


def test_the_trials_of_a_search_are_a_table_with_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    def trial(rate: float, seed: int, accuracy: list[float], **ended: int) -> tuple[str, dict[str, Any]]:
        hyperparameters = {"learning_rate": rate, "batch_size": 32, "epochs": 3, "seed": seed}
        curves = {"trial": hyperparameters, "loss": [(1, 0.9)], "dev_accuracy": accuracy, **ended}
        return f"pretrained-{rate:g}-batch-32-epochs-3-seed-{seed}", curves

    trials = dict(
        [
            trial(1e-4, 1, [0.5, 0.6, 0.4], best_epoch=2),
            trial(1e-4, 2, [0.8, 0.7], best_epoch=1, stopped_epoch=2),
            trial(1e-3, 1, [0.3, 0.2, 0.1], best_epoch=1),
            trial(1e-3, 2, [0.9], diverged_step=7),
        ]
    )
    best = trials["pretrained-0.0001-batch-32-epochs-3-seed-2"]
    page = page_of_task(tmp_path, trials=trials, variants={"pretrained": best})
    text = " ".join(Reader(page).text.split())
    assert "Dev accuracy, each trial at its best epoch: mean ± standard deviation over 2 seeds." in text
    assert "1e-4 32 3 70.0 ± 14.1 % seed 2 stopped after epoch 2 0.001 32 3 30.0 % seed 2 diverged at step 7" in text
    assert re.findall(r'<td class="n strong">(.*?)</td>', page) == ["70.0 ± 14.1\xa0%"]
    assert "3 epochs, stopped after epoch 2; the best epoch" in text
    assert "Trials" not in Reader(page_of_task(tmp_path / "single")).text


def test_the_choices_of_layers_of_a_probe_are_a_table(tmp_path: Path) -> None:
    common = {"dimension": 8, "C": 0.1, "score": 0.55, "interval": [0.45, 0.65]}
    layers = [{"layers": 0, "dev": 0.5, **common}, {"layers": "last", "dev": 0.6, "is_chosen": True, **common}]
    page = page_of_task(tmp_path, variants={"pretrained": {"layers": layers}})
    text = " ".join(Reader(page).text.split())
    assert (
        "Layers Dimension C dev accuracy test accuracy Note embeddings 8 0.1 50.0 % 55.0 % (45.0 to 65.0) last 8"
        in text
    )
    assert re.findall(r'<td class="strong">(.*?)</td>', page) == ["last"]
    assert "Probed on the task authors, the pretrained model reaches" in text


def test_a_task_without_baselines_on_dev_has_its_metric_everywhere(tmp_path: Path) -> None:
    scores = {"pretrained": {"matthews": 0.3214, "interval": [-0.1, 0.6], "accuracy": 0.61}}
    page = page_of_task(tmp_path, scores=scores, metric="matthews", scored_split="dev")
    text = Reader(page).text
    assert "Fine-tuned on the task authors, the pretrained model reaches 0.321 dev Matthews correlation." in text
    assert "authors: dev Matthews correlation 0.321" in text  # the key figure, and the lineage
    assert "95 % interval: -0.100 to 0.600" in text
    assert "Dev Matthews correlation with 95 % confidence intervals" in page
    assert "the scores are those of the best epoch on the dev split, as there is no test split with labels." in text
    assert "Accuracy 0.610." in text
    assert not re.search(r"test accuracy|random initialization|majority|No stage is finished", text)
    assert 'class="note"' not in page  # nothing to compare with
    curve = chart_of(page, "Dev Matthews correlation by epoch")
    assert "-0.1" in curve and "%" not in curve
    picture = page[page.index('class="scores"') :]
    assert re.findall(r'class="middle">([^<]*)<', picture)[:5] == ["-1", "-0.5", "0", "0.5", "1"]
    assert float(re.findall(r'cx="([\d.]+)"', picture)[0]) == pytest.approx(146 + 1.3214 / 2 * (398 - 146), abs=0.01)


def test_each_baseline_is_compared_by_its_name(tmp_path: Path) -> None:
    scores = {
        "pretrained": {"f1": 0.6, "interval": [0.5, 0.7]},
        "bag_of_words_and_ridge_regression": {"f1": 0.65, "interval": [0.55, 0.75]},
        "majority": {"f1": 0.2, "interval": [0.1, 0.3]},
    }
    page = page_of_task(tmp_path, scores=scores, metric="f1")
    text = Reader(page).text
    assert (
        "The pretrained model's interval (50.0 to 70.0) is not above the bag of words and ridge regression baseline, "
        "65.0 % (55.0 to 75.0). The pretrained model's interval is above the majority class, 20.0 % (10.0 to 30.0)."
    ) in text
    assert "reaches 60.0 % test F1; the bag of words and ridge regression baseline reaches 65.0 %, the majority" in text
    assert "helps" not in text


@pytest.mark.parametrize(
    ("label", "predicted", "expected"),
    [
        (2.5, 3.125, "Sample predictions It is label: 2.5; predicted: 3.125"),
        (["B-PER", "O"], ["O", "O"], "Wrong predictions It is label: B-PER, O; predicted: O, O"),
        (["a"], ["a"], "Correct predictions It is a"),
        ([], ["a"], "label: (none); predicted: a"),
        (1, 2, "Wrong predictions It is label: 1; predicted: 2"),
        ("", "x" * 500, "label: (none); predicted: "),
    ],
)
def test_labels_may_be_numbers_or_lists(tmp_path: Path, label: object, predicted: object, expected: str) -> None:
    text = Reader(page_of_task(tmp_path, examples=[{"text": "It is", "label": label, "predicted": predicted}])).text
    assert expected in text


def test_a_task_that_trains_nothing_is_not_called_fine_tuned(tmp_path: Path) -> None:
    scores = {"pretrained": {"accuracy": 0.7, "interval": [0.6, 0.8], "groups": {"agreement": 0.7}}}
    page = page_of_task(tmp_path, scores=scores, variants={"pretrained": {}}, labels={})
    text = Reader(page).text
    assert "On the task authors, the pretrained model reaches 70.0 % test accuracy." in text
    assert "Learning rate" not in text and "Dev accuracy" not in text and "Fine-tuned" not in text


def test_a_task_without_single_labels_has_no_confusion_matrix(tmp_path: Path) -> None:
    assert "Confusion matrix" in page_of_task(tmp_path / "with")
    assert "Confusion matrix" not in page_of_task(tmp_path / "answers", labels={})  # texts as in question answering
    artifact = finetune(tmp_path, DIGEST, (60, 100), (55, 100))
    rows = [{"row": 1, "label": ["a"], "predicted": ["a", "b"]}]
    (artifact.location / "predictions/pretrained.jsonl").write_bytes(json_lines.encode(rows))
    assert "Confusion matrix" not in page_of(tmp_path, {artifact.stage: artifact})


def test_a_task_has_its_overlap_and_the_score_without_it(tmp_path: Path) -> None:
    artifacts = whole_run(tmp_path)
    out = output(tmp_path, "overlap-authors", "8" * 16)
    split = {"examples": 100, "too_short": 4, "overlapping": 10, "overlapping_texts": {"text": 10}}
    score = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    facts = {"splits": {"test": split}, "scores": {"all": {"accuracy": 0.6}, "without_overlap": score}}
    out.finish([], {"name": "authors"}, {"finetuned": artifacts["finetune-authors"].fingerprint}, facts=facts)
    page = page_of(tmp_path, {**artifacts, "overlap-authors": finished(out)})
    text = Reader(page).text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "it reaches 60.0 % test accuracy (50.0 % without the 10 of 100 examples that share 13 words with the "
        "pretraining text); "
    ) in text
    assert (
        "10 of 100 test examples share 13 words in a row with a pretraining document (4 too short to check). The "
        "accuracy without them is 50.0 % (40.0 % to 60.0 %)."
    ) in text
    assert 'id="stage-overlap-authors"' in page


def test_the_lineage_names_every_fingerprint_the_files_and_the_checkpoint(page: str, artifacts: Artifacts) -> None:
    picture = page[page.index('class="lineage"') : page.index("</svg>", page.index('class="lineage"'))]
    for artifact in artifacts.values():
        assert artifact.fingerprint in picture
    assert f"enwiki.xml.bz2 · {DIGEST[:10]} · 905.6 kB" in picture
    assert artifacts["pretrain"].manifest.facts["checkpoint"]["digest"][:10] in picture
    assert "authors: test accuracy 60.0\N{NO-BREAK SPACE}%" in picture


def test_an_output_of_a_stage_is_not_a_users_file_also_with_a_digest_of_64_digits(
    root: Path, artifacts: Artifacts
) -> None:
    known = [KnownStage(name, "done", artifact.location, artifact.fingerprint) for name, artifact in artifacts.items()]
    stages = {stage.name: stage for stage in read_stages(known, Location(str(root)))}
    assert {name: list(stage.user_files) for name, stage in stages.items() if stage.user_files} == {
        "extract": ["wiki"],
        "finetune-authors": ["data"],
    }
    assert len(artifacts["finetune-authors"].manifest.inputs["checkpoint"]) >= 64
    assert stages["finetune-authors"].upstream == ("pretrain", "vocab")


@pytest.mark.parametrize("by_digest", [True, False])
def test_a_users_file_is_found_by_its_digest_or_in_a_record_of_an_earlier_version(
    tmp_path: Path, by_digest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = extract(tmp_path)
    records = tmp_path / "sources"
    if by_digest:
        (records / "1.json").rename(records / f"{DIGEST}.json")
        monkeypatch.setattr(Location, "files", lambda _: [])  # a listing that lags
    known = [KnownStage("extract", "done", artifact.location, artifact.fingerprint)]
    [file] = read_stages(known, Location(str(tmp_path))).single(ExtractView).user_files["wiki"]
    assert (file.name, file.bytes, file.sha256) == ("enwiki.xml.bz2", 905631, DIGEST)


def test_each_stage_shows_its_configuration_versions_and_files(page: str, artifacts: Artifacts) -> None:
    text = Reader(page).text
    for artifact in artifacts.values():
        assert artifact.location.uri in text
        for path, file in artifact.manifest.files.items():
            assert path in text and file.sha256 in text
    assert "heldout_fraction: 0.25" in text and f"python {platform.python_version()}" in text


def test_charts_contain_every_value_for_the_pointer(page: str) -> None:
    charts = [json.loads(value) for value in Reader(page).values("data-series")]
    loss = next(chart for chart in charts if chart["series"][0]["points"][0][1] == "3.9")
    assert loss["x_title"] == "step"
    assert [line["label"] for line in loss["series"]] == ["training", "held-out"]
    assert [point[:2] for point in loss["series"][1]["points"]] == [[50, "3.5"], [100, "3"]]


def chart_of(page: str, title: str) -> str:
    start = page.index(f"<figcaption><b>{title}</b>")
    return page[start : page.index("</figure>", start)]


def test_held_out_metrics_are_shown_with_their_baselines(page: str) -> None:
    text = Reader(page).text
    assert "masked-token accuracy is 10.0 % of 600 tokens (loss 2.300); a unigram model" in text
    assert "reaches 4.0 % (loss 3.500). The model's loss is 34.3 % lower." in text
    assert 'always answering "NotNext" reaches 58.0 % (loss 0.680). The model is no better' in text
    assert "a unigram model predicts 4.0 % (loss 3.50)" in text  # under the title
    assert 'always answering "NotNext": 58.0 %' in text
    assert "coin" not in text
    assert "picks the true token over one of the same frequency in 60.0 % of 500 masks" in text
    assert "(95 % interval 55.6 to 64.2; chance 50)" in text
    assert "it picks the true one at 60.0 % of 500 masks (chance: 50.0 %)" in text  # under the title


def test_metrics_of_an_earlier_version_are_shown_without_the_cloze_choice(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if not key.startswith("choice")} for row in metric_rows()]
    artifact = pretrain(tmp_path, rows=rows)
    page = page_of(tmp_path, {artifact.stage: artifact})
    assert "same frequency" not in page and "loss is 34.3" in page


def test_a_constant_answer_is_reported_also_for_a_run_in_progress(tmp_path: Path) -> None:
    rows = [row | {"answers_1": 100} if "answers_1" in row else row for row in metric_rows()]
    known = [
        KnownStage("examples-32", "done", examples(tmp_path).location),
        KnownStage("pretrain", "half-done", pretrain(tmp_path, complete=False, rows=rows).location),
    ]
    text = Reader(render("voyage", read_stages(known, Location(str(tmp_path))))).text
    assert 'It answers "NotNext" for all 100 pairs.' in text


def test_each_held_out_chart_has_a_baseline_that_steps_where_a_phase_ends(page: str) -> None:
    names = {
        "Total loss": "sum of baselines",
        "Masked-LM loss": "unigram model",
        "Masked-token accuracy": "unigram model",
        "Cloze choice accuracy": "chance",
        "Next-sentence loss": "best constant answer",
        "Next-sentence accuracy": 'always answering "NotNext"',
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


def test_without_pairs_no_chart_and_no_sentence_mentions_them(tmp_path: Path) -> None:
    of_pairs = ("nsp", "pairs", "answers")
    rows = [{key: value for key, value in row.items() if not key.startswith(of_pairs)} for row in metric_rows()]
    artifact = pretrain(tmp_path, rows=rows)
    page = page_of(tmp_path, {artifact.stage: artifact})
    assert "Next-sentence loss" not in page and "next-sentence" not in page and "always answering" not in page
    assert "unigram model" in Reader(chart_of(page, "Total loss")).text


def test_masked_words_are_from_held_out_documents_only(artifacts: Artifacts) -> None:
    tokenizer = load_tokenizer(artifacts["vocab"].location / "tokenizer.json")
    sentences, is_english = select_heldout_sentences(heldout_documents(artifacts["dedup"]), tokenizer)
    table = pq.read_table(io.BytesIO(artifacts["dedup"].files("documents/")[0].read_bytes())).to_pylist()
    heldout = [row["text"] for row in table if row["split"] == "heldout"]
    assert is_english and sentences
    for each in sentences:
        assert each.original.lower() in PIECES
        assert any(f"{each.before}{each.original}{each.after}" in text for text in heldout)


def test_the_model_predicts_five_tokens_for_each_masked_word(page: str) -> None:
    assert len(re.findall(r'class="blank"', page)) * 5 == len(re.findall(r'class="prediction[ "]', page)) > 0


def test_parameters_are_counted_without_loading_the_weights(artifacts: Artifacts, root: Path) -> None:
    from cloze.training.pretrain.stage import final_checkpoint

    tensors = final_checkpoint(artifacts["pretrain"]).weights().values()
    stages = read_stages([KnownStage("pretrain", "done", artifacts["pretrain"].location)], Location(str(root)))
    assert stages.single(PretrainView).parameters == sum(map(torch.numel, tensors))


def test_a_run_in_progress_has_curves_and_lists_unfinished_stages(tmp_path: Path) -> None:
    done = [extract(tmp_path), dedup(tmp_path)]
    known = [KnownStage(artifact.stage, "done", artifact.location, artifact.fingerprint) for artifact in done]
    known.append(KnownStage("vocab", "not started", upstream=("dedup",)))
    known.append(KnownStage("pretrain", "half-done", pretrain(tmp_path, complete=False).location, upstream=("vocab",)))
    known.append(KnownStage("finetune-authors", "waiting", upstream=("pretrain", "vocab")))
    page = render("voyage", read_stages(known, Location(str(tmp_path))))
    text = Reader(page).text
    assert "This run is not finished: vocab (not started), pretrain (half-done), finetune-authors (waiting)." in text
    assert "Masked-LM loss" in text and 'id="fine-tuning"' not in page and 'id="mask-predictions"' not in page


def test_a_run_without_finished_stages_has_a_page(tmp_path: Path) -> None:
    config = load_config(RunConfig, CONFIG, [f"root={tmp_path}"])
    uri = render_run(Run(config))
    assert uri == str(tmp_path / "quickstart.html")
    text = Reader((tmp_path / "quickstart.html").read_text()).text
    assert "No stage is finished yet." in text and "finetune-authors (waiting)" in text


def test_a_section_without_facts_is_left_out(tmp_path: Path) -> None:
    artifacts = {}
    for stage in ("extract", "dedup", "tokens", "examples-32", "pretrain", "finetune-authors"):
        out = output(tmp_path, stage, stage[0] * 16)
        out.finish([], {"max_seq_length": 32}, {})
        artifacts[stage] = finished(out)
    page = page_of(tmp_path, artifacts)
    assert not Reader(page).open
    assert 'id="pretraining"' not in page and 'id="fine-tuning"' not in page and 'id="lineage"' in page


def test_the_page_replaces_that_of_another_configuration(page: str, root: Path) -> None:
    target = Location(str(root)) / "voyage.html"
    target.write_text("the page of another configuration")
    report.publish(Location(str(root)) / "report" / ("7" * 16), target)
    assert target.read_text() == page
    assert "<title>voyage · Cloze</title>" in page


def test_a_nan_loss_leaves_a_gap_and_does_not_change_the_scale() -> None:
    lines = [
        charts.Series("bad", [(1, 2.0), (2, math.nan), (3, 4.0)]),
        charts.Series("good", [(1, 3.0), (3, 2.5)], "orange"),
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


def test_downsampled_curves_keep_their_mean_and_their_end() -> None:
    points = [(step, math.sin(step / 50)) for step in range(9000)]
    downsampled = charts.downsample(points, 300)
    assert len(downsampled) == 300 and downsampled[-1][0] == 8999
    assert sum(y for _, y in downsampled) / 300 == pytest.approx(sum(y for _, y in points) / 9000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1234567, "1,234,567"), (0.0000213, "2.13e-5"), (6.5231, "6.523"), (1e-4, "1e-4"), (0.5, "0.5")],
)
def test_numbers_are_formatted_for_people(value: float, expected: str) -> None:
    assert charts.format_number(value) == expected


def test_extra_files_and_published_scores_are_shown(tmp_path: Path) -> None:
    scores = {"accuracy": 0.834, "interval": [0.82, 0.85]}
    published = {
        "benchmark": "SWAG",
        "split": "dev",
        "metric": "accuracy",
        "base": 0.816,
        "large": 0.866,
        "source": "X",
    }
    test_only = {"benchmark": "SWAG", "split": "test", "metric": "accuracy", "large": 0.863, "source": "X"}
    facts = {"extra_scores": {"mismatched": {"pretrained": scores}}, "published": [published, test_only]}
    text = page_of(tmp_path, {"finetune-authors": finetune(tmp_path, "d" * 64, (60, 100), (55, 100), **facts)})
    assert "<b>Test accuracy</b>" in text and "<b>Mismatched accuracy</b>" in text and "83.4" in text
    line = (
        "SWAG dev accuracy 81.6 % with BERT-base and 86.6 % with BERT-large; SWAG test accuracy 86.3 % with BERT-large"
    )
    assert f"The BERT paper reports: {line} (X)." in text.replace("\u202f", " ").replace("\xa0", " ")
