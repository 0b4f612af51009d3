import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cloze.infra import highlights
from cloze.pipeline.core.artifacts import Artifact, Facts
from cloze.pipeline.core.manifest_facts import DroppedRecord, ExtractFacts, VocabFacts, VocabQuality
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import DOCUMENT, example_schema, parquet_bytes
from cloze.pipeline.core.storage import Location
from cloze.training.finetune.manifest_facts import FinetuneFacts, ScoreFact, ShownExample
from cloze.training.finetune.overlap.manifest_facts import OverlapFacts, SplitOverlapFact
from cloze.training.pretrain.manifest_facts import CheckpointFact, MetricsFact, PretrainFacts

_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "whale", "##s"]


@pytest.fixture
def root(folder: str) -> Location:
    return Location(folder)


def finished(
    root: Location,
    stage: str,
    files: Mapping[str, bytes] = {},
    *,
    inputs: Mapping[str, str] = {},
    facts: Facts | None = None,
    counts: Mapping[str, int] = {},
    drops: Mapping[str, int] = {},
) -> Artifact:
    """A finished output with these files and facts."""
    digest = hashlib.sha256(stage.encode()).hexdigest()[:16]
    out = Output(root / stage / digest, stage, 1, digest)
    out.finish([out.commit("part", files)], {}, inputs, counts, drops, facts)
    return Artifact(out.location, stage, digest)


def document(**columns: Any) -> dict[str, Any]:
    empty = {field.name: "" if pa.types.is_string(field.type) else 0 for field in DOCUMENT}
    return {**empty, **columns}


def vocabulary(root: Location, facts: Facts | None = None) -> Artifact:
    return finished(root, "vocab", {"vocab.txt": "".join(f"{piece}\n" for piece in _PIECES).encode()}, facts=facts)


def test_documents_are_shown_with_what_was_dropped_as_text_that_is_not_markup(root: Location) -> None:
    text = "A *tall* <b>story</b> | of\n\nwhales " + "and more " * 99
    documents = pa.Table.from_pylist([document(source="enwiki", title="Whale", text=text)], DOCUMENT)
    shown = highlights.of_extract(
        finished(
            root,
            "extract",
            {"documents/a.parquet": parquet_bytes(documents)},
            facts=ExtractFacts(samples={"redirect": [DroppedRecord(record="Orca", text="#REDIRECT [[Whale]]")]}),
            counts={"records": 4, "documents": 1},
            drops={"redirect": 3, "list": 0},
        )
    )
    assert shown.numbers == {"dropped, %": 75.0}
    sample = shown.sample()
    assert r"| enwiki | Whale | A \*tall\* \<b\>story\</b\> \| of whales and more" in sample and sample.count("…") == 1
    assert "| redirect | 3 | 75 % |" in sample and "| list |" not in sample
    assert r"| redirect | Orca | \#REDIRECT \[\[Whale\]\] |" in sample


def test_a_vocabulary_is_shown_by_its_pieces_and_what_it_does_not_know(root: Location) -> None:
    facts = VocabFacts(size=8, heldout=VocabQuality(words=200, unknown_share=0.015, pieces_per_word=1.25))
    shown = highlights.of_vocab(vocabulary(root, facts))
    assert shown.numbers == {"pieces": 8, "unknown words, %": 1.5, "tokens per word": 1.25}
    assert "`whale` `##s`" in shown.sample()


def test_examples_are_shown_as_tokens(root: Location) -> None:
    rows = [{"input_ids": [2, 5, 4, 7, 3], "segment_b": 5, "next_sentence_label": 0}]
    schema = example_schema(len(_PIECES), masked=False)
    table = pa.Table.from_pylist(rows, schema)
    shown = highlights.of_examples(
        finished(
            root,
            "examples-8",
            {"heldout/a.parquet": parquet_bytes(table)},
            inputs={"vocab": vocabulary(root).fingerprint},
            counts={"train": 4, "train_tokens": 18},
        )
    )
    assert shown.numbers == {"tokens per example": 4.5}
    assert shown.sample() == "- `[CLS] the [MASK] ##s [SEP]`"


def test_a_training_is_shown_by_its_held_out_loss_and_its_checkpoint(root: Location) -> None:
    rows = [
        {"split": "heldout", "step": step, "mlm_loss": loss, "mlm_accuracy": 0.1, "mlm_loss_baseline": 7.0}
        for step, loss in ((100, 6.5), (200, 6.0))
    ]
    facts = PretrainFacts(
        checkpoint=CheckpointFact(path="checkpoints/200", digest="abc", step=200),
        precision="bf16",
        metrics=MetricsFact(heldout=rows[-1], sequences_per_second=12.5),
    )
    shown = highlights.of_pretrain(
        finished(
            root, "pretrain", {"metrics.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows).encode()}, facts=facts
        )
    )
    assert (shown.numbers["held-out loss"], shown.numbers["step"], shown.numbers["held-out accuracy, %"]) == (
        6.0,
        200,
        10,
    )
    assert shown.numbers["held-out perplexity"] == pytest.approx(403.43, abs=0.01)
    assert shown.texts == {"precision": "bf16", "checkpoint": "abc"}
    assert shown.sample().splitlines()[2:] == ["| 100 | 6.500 | 10.0 % |", "| 200 | 6.000 | 10.0 % |"]


def test_a_task_is_shown_by_its_scores_with_intervals_and_some_predictions(root: Location) -> None:
    facts = FinetuneFacts(
        scores={
            "pretrained": ScoreFact(accuracy=0.9, interval=(0.8, 0.95)),
            "majority": ScoreFact(accuracy=0.5, interval=(0.4, 0.6)),
        },
        examples=[ShownExample(text="Call me Ishmael.", label="melville", predicted="austen")],
    )
    shown = highlights.of_task(finished(root, "finetune-authors", facts=facts))
    assert [shown.numbers[name] for name in ("accuracy", "accuracy: low", "accuracy: high")] == [0.9, 0.8, 0.95]
    assert shown.numbers["accuracy of the majority class"] == 0.5
    assert "| Call me Ishmael. | melville | austen |" in shown.sample()


def test_an_overlap_is_shown_by_its_share_and_the_score_without_it(root: Location) -> None:
    split = SplitOverlapFact(examples=200, too_short=0, overlapping=30, overlapping_texts={"text": 30})
    facts = OverlapFacts(splits={"test": split}, scores={"without_overlap": ScoreFact(accuracy=0.85)})
    shown = highlights.of_overlap(finished(root, "overlap-authors", facts=facts))
    assert shown.numbers == {"test examples that overlap, %": 15.0, "accuracy without them": 0.85}


def test_an_output_without_rows_or_scores_is_shown_empty(root: Location, tmp_path: Path) -> None:
    assert highlights.of_dedup(finished(root, "dedup")).sample() == ""
    assert highlights.of_task(finished(root, "finetune-a")).numbers == {}
    assert highlights.of_vocab(vocabulary(root)).numbers == {"pieces": 0}
