"""What manifests tell: what a stage writes is read back as it was, also as earlier versions wrote it."""

from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.artifacts import Artifact, Facts, read_manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.manifest_facts import DedupFacts, ExamplesFacts, ExtractFacts, VocabFacts, WarningFacts
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts
from cloze.training.pretrain.data_loader import ExampleDataset
from cloze.training.pretrain.manifest_facts import PretrainFacts

CHECKPOINT = {"path": "checkpoints/step-000640-df323405", "digest": "68a7", "step": 640, "heldout_loss": 7.02}
CURVES = {"loss": [[1, 1.5], [2, 1.25]], "dev_accuracy": [0.5], "dev_loss": [None], "best_epoch": 1}
TRIAL = {"trial": {"learning_rate": 0.0005, "batch_size": 32, "epochs": 1}}
DROPPED = {"doc_id": "a:1", "title": "T", "source": "s", "text": "the"}
SCORE = {"accuracy": 0.5, "interval": [0.25, 0.75], "macro_f1": 0.5, "matthews": 0.0}
FARES = {"words": 51450, "unknown_share": 0.0, "pieces_per_word": 1.25}

#: Each as a manifest has it, the keys in their order.
WRITTEN: list[tuple[type[Facts], dict[str, Any]]] = [
    (
        ExtractFacts,
        {
            "sources": {"wiki": {"documents": 51, "dropped: redirect": 82}},
            "samples": {"redirect": [{"record": "Old name", "text": ""}]},
            "truncated": [{"file": "wiki.xml", "reason": "it ends in the middle of a page"}],
            "templates": {"cite book": 332},
        },
    ),
    (DedupFacts, {"samples": {"duplicate": [{**DROPPED, "kept": DROPPED}]}}),
    (
        VocabFacts,
        {
            "size": 300,
            "longest": ["##ing"],
            "sample": ["!"],
            "heldout": FARES,
            "asked": 300,
            "left_out": {"distinct_characters": 2, "of_words": 9, "most_frequent": ["x"]},
            "note": "The vocabulary leaves out 2.",
            "warnings": ["vocab: mend it"],
            "compared": {"name": "vocab.txt", "size": 30522, **FARES},
        },
    ),
    (VocabFacts, {"size": 9, "longest": [], "sample": [], "heldout": {}, "note": "The pieces are.", "warnings": []}),
    (ExamplesFacts, {"rows": {"train/00000.parquet": 15598}, "row_group_size": 1024}),
    (
        PretrainFacts,
        {
            "checkpoint": CHECKPOINT,
            "best": None,
            "precision": "fp32",
            "processor": "a test's",
            "workers": 2,
            "peak": {"flops": 371411812068.74915, "origin": "measured"},
            "skipped": 0,
            "init": {"sha256": "f00d", "notes": ["theirs has no pooler"]},
            "metrics": {
                "train": {"split": "train", "step": 640, "loss": 7.5},
                "heldout": {"split": "heldout", "step": 640, "pairs": 256, "loss": None},
                "seconds": 49.5,
                "sequences_per_second": 413.5,
            },
        },
    ),
    (
        FinetuneFacts,
        {
            "labels": {"train": {"Austen": 5}},
            "scores": dict.fromkeys(("pretrained", "random", "majority"), SCORE),
            "variants": {"pretrained": {**TRIAL, "precision": "bf16", **CURVES, "merit": [0.5, -1.5]}},
            "trials": {"pretrained-0.0005-batch-32-epochs-1": {**TRIAL, **CURVES}},
            "examples": [{"text": "It is", "label": "Austen", "predicted": "Austen"}],
            "notes": [],
        },
    ),
    (
        OverlapFacts,
        {
            "splits": {"dev": {"examples": 9, "too_short": 1, "overlapping": 2, "overlapping_texts": {"text": 2}}},
            "documents": ["dedup/d00d"],
            "unknown": ["bert"],
            "metric": "accuracy",
            "scored_split": "dev",
            "scores": {"all": SCORE, "without_overlap": SCORE},
        },
    ),
]

#: By the stages' first versions.
EARLIER: list[tuple[type[Facts], dict[str, Any]]] = [
    (DedupFacts, {"samples": {"duplicate": [{"doc_id": "a:1", "title": "T", "source": "s"}]}}),
    (VocabFacts, {"size": 9, "asked": 30522, "longest": [], "sample": [], "heldout": {}, "note": "The text gives 9."}),
    (ExamplesFacts, {}),
    (
        PretrainFacts,
        {
            "checkpoint": {key: value for key, value in CHECKPOINT.items() if key != "heldout_loss"},
            "precision": "bf16",
            "processor": "a test's",
            "workers": 1,
            "metrics": {"train": {}, "heldout": {}, "seconds": 1.5, "sequences_per_second": 2.5},
        },
    ),
    (FinetuneFacts, {"labels": {}, "scores": {}, "variants": {}, "trials": {}, "examples": []}),
]


def finish(root: Path, facts: Facts | dict[str, Any], stage: str = "pretrain") -> tuple[Artifact, str]:
    """An artifact of nothing but facts, and its manifest's bytes but for the times."""
    location = Location(str(root / stage / "0"))
    manifest = Output(location, stage, 1, "0").finish([], {}, {}, facts=facts)
    said = manifest.model_copy(update={"seconds": 0.0, "finished": ""}).model_dump_json(indent=1)
    assert read_manifest(location) == manifest
    return Artifact(location, stage, "0"), said


@pytest.mark.parametrize(("model", "written"), WRITTEN)
def test_facts_read_from_a_manifest_are_written_as_the_same_bytes(
    model: type[Facts], written: dict[str, Any], tmp_path: Path
) -> None:
    artifact, before = finish(tmp_path / "before", written)
    assert finish(tmp_path / "after", model.of(artifact.manifest))[1] == before


@pytest.mark.parametrize(("model", "written"), EARLIER)
def test_facts_of_an_earlier_version_are_read_completely(
    model: type[Facts], written: dict[str, Any], tmp_path: Path
) -> None:
    assert model.of(finish(tmp_path, written)[0].manifest).plain == written


@pytest.mark.parametrize("model", [model for model, _ in WRITTEN])
def test_a_manifest_without_facts_has_the_defaults(model: type[Facts], tmp_path: Path) -> None:
    artifact, _ = finish(tmp_path, {})
    assert model.of(artifact.manifest) == model() and model().plain == {}


def test_unknown_facts_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    artifact, _ = finish(tmp_path, {"checkpoint": {**CHECKPOINT, "colour": "red"}, "weather": "fine"})
    assert PretrainFacts.of(artifact.manifest).plain == {"checkpoint": CHECKPOINT}


def test_warnings_are_read_of_any_stage(tmp_path: Path) -> None:
    artifact, _ = finish(tmp_path, {"warnings": ["mend it"], "rows": {}}, "toy")
    assert WarningFacts.of(artifact.manifest).warnings == ["mend it"]


@pytest.mark.parametrize(
    ("model", "facts", "where"),
    [
        (PretrainFacts, {"checkpoint": {"path": "a", "digest": "b"}}, r"facts\.checkpoint\.step: Field required"),
        (PretrainFacts, {"checkpoint": "last"}, r"facts\.checkpoint: Input should be"),
        (ExamplesFacts, {"rows": [1, 2]}, r"facts\.rows: Input should be"),
        (FinetuneFacts, {"scores": {"random": {"accuracy": "good"}}}, r"facts\.scores\.random\.accuracy: Input"),
        (WarningFacts, {"warnings": "mend it"}, r"facts\.warnings: Input"),
    ],
)
def test_facts_of_another_shape_are_one_line_with_the_file_and_the_place(
    model: type[Facts], facts: dict[str, Any], where: str, tmp_path: Path
) -> None:
    artifact, _ = finish(tmp_path, facts)
    with pytest.raises(UserError, match=rf"^pretrain/0/manifest\.json: {where}.*delete that folder and run again$"):
        model.of(artifact.manifest)


def test_a_pretraining_without_a_checkpoint_is_one_line(tmp_path: Path) -> None:
    artifact, _ = finish(tmp_path, {"best": None})
    with pytest.raises(UserError, match=r"^pretrain/0/manifest\.json: facts\.checkpoint is missing; .*run again$"):
        PretrainFacts.final(artifact.manifest)


@pytest.mark.parametrize("facts", [{}, {"rows": {"train/1.parquet": 3}, "row_group_size": 2}])
def test_examples_whose_rows_nobody_has_counted_are_one_line(facts: dict[str, Any], tmp_path: Path) -> None:
    out = Output(Location(str(tmp_path)), "examples-16", 1, "0")
    out.finish([out.commit("all", {"train/0.parquet": b""})], {}, {}, facts=facts)
    with pytest.raises(UserError, match=r"manifest\.json: the number of rows of train/0\.parquet is missing; delete"):
        ExampleDataset(Artifact(out.location, "examples-16", "0"), "train")


def test_a_file_s_row_groups_are_full_but_for_the_last() -> None:
    facts = ExamplesFacts(rows={"a": 5, "b": 4}, row_group_size=2)
    assert (facts.row_groups("a"), facts.row_groups("b")) == ([2, 2, 1], [2, 2])


def test_a_tasks_own_metrics_are_kept_and_have_no_interval(tmp_path: Path) -> None:
    written = {
        "scores": {name: {"pearson": 0.5} for name in ("pretrained", "random", "mean")},
        "variants": {"pretrained": {"loss": [[1, 1.5]], "best_epoch": 1, "dev_pearson": [0.25]}},
        "examples": [{"text": "It is", "label": 2.5, "predicted": 2.25, "second": "It was"}],
        "range": [0, 5],
    }
    facts = FinetuneFacts.of(finish(tmp_path, written)[0].manifest)
    assert facts.plain == written and facts.metric_scores == {}
