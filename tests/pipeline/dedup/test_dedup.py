import itertools
import random
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import DOCUMENT, RecordPosition, parquet_bytes
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import steps as dedup_steps
from cloze.pipeline.dedup.duplicate_rules import describe_documents, keep_distinct_contents, keep_newest_revisions
from cloze.pipeline.dedup.stage import VERSION, DedupConfig, run
from cloze.pipeline.dedup.steps import Item, Steps
from cloze.pipeline.extract.document import document, document_table


def doc(doc_id: str, text: str, revision: int = 0):
    return document(
        [text], doc_id=doc_id, source="s", heldout_fraction=0.5, revision=revision, title=f"Title of {doc_id}"
    )


def artifact(folder: Path | Location, *shards: list) -> Artifact:
    out = Output(Location(str(folder)), "extract", 1, "f" * 16)
    parts = [
        out.commit(f"{number:05}", {f"documents/{number:05}-00.parquet": parquet_bytes(document_table(documents))})
        for number, documents in enumerate(shards)
    ]
    out.finish(parts, {}, {}, {"documents": sum(map(len, shards))})
    return Artifact(out.location, "extract", "f" * 16)


def dedup(tmp_path: Path, *shards: list, name: str = "out", **settings: Any) -> tuple[Manifest, list]:
    documents = artifact(tmp_path / f"{name}-in", *shards)
    config = DedupConfig(**settings)
    manifest = run(config, {"documents": documents}, Output(Location(str(tmp_path / name)), "dedup", VERSION, "e" * 16))
    found = [row for file in manifest.files for row in pq.read_table(tmp_path / name / file).to_pylist()]
    return manifest, found


def prose(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=4)) for _ in range(words))


def test_one_document_of_each_content_stays_and_the_rest_are_counted(tmp_path: Path):
    manifest, found = dedup(
        tmp_path,
        [doc("b", "The same text."), doc("c", "Another text.")],
        [doc("a", "the  SAME\ntext."), doc("d", "A third."), doc("e", "The same text.")],
    )
    assert [row["doc_id"] for row in found] == ["c", "a", "d"]  # the longest of the three, by a space
    assert manifest.drops == {"duplicate": 2}
    assert (manifest.counts["records"], manifest.counts["documents"]) == (5, 3)
    shown = manifest.facts["samples"]["duplicate"]
    assert {(sample["doc_id"], sample["kept"]["doc_id"]) for sample in shown} == {("b", "a"), ("e", "a")}


def test_the_newest_revision_of_a_document_stays(tmp_path: Path):
    manifest, found = dedup(
        tmp_path,
        [doc("wiki:1", "Old words, and more of them.", 5), doc("wiki:2", "Kept words.", 9)],
        [doc("wiki:1", "New words.", 7), doc("wiki:2", "Stale words.", 8)],
    )
    assert {row["text"] for row in found} == {"New words.", "Kept words."}
    assert manifest.drops == {"older revision": 2}
    shown = manifest.facts["samples"]["older revision"]
    assert [(sample["text"], sample["kept"]["text"]) for sample in shown] == [
        ("Old words, and more of them.", "New words."),
        ("Stale words.", "Kept words."),
    ]


def test_of_documents_that_differ_only_in_where_they_are_from_the_same_one_stays():
    places = [
        ("ab", RecordPosition(0, 1, 9)),
        ("ab", RecordPosition(0, 7, 9)),
        ("ab", RecordPosition(4, 1, 9)),
        ("cd", RecordPosition(0, 1, 9)),
    ]
    found = set()
    for order in itertools.permutations(places):
        given = [replace(doc("a", "Same."), file_sha256=name, **at(record)) for name, record in order]
        for rule in (keep_newest_revisions, keep_distinct_contents):
            ((kept,), removed) = (found["address"] for found in rule(describe_documents(document_table(given), 0)))
            found.add(order[kept])
            assert len(removed) == 3
    assert len(found) == 1


def at(record: RecordPosition) -> dict[str, int]:
    return {f"record_{name}": value for name, value in record._asdict().items()}


def test_every_removed_document_is_counted_under_its_reason(tmp_path: Path):
    shards = [doc("a", "Same.", 1), doc("a", "Other.", 2)], [doc("b", "other.", 1), doc("b", "Same.", 0)]
    manifest, found = dedup(tmp_path, *shards)
    assert [row["text"] for row in found] == ["Other."]
    assert manifest.drops == {"older revision": 2, "duplicate": 1}
    one_id = [doc("a", "One."), doc("a", "Another."), doc("a", "one.")]
    manifest, found = dedup(tmp_path, one_id, name="one-id")
    assert [row["text"] for row in found] == ["Another."]
    assert manifest.drops == {"same doc_id": 2}
    manifest, _ = dedup(tmp_path, [doc("a", "One.")], [doc("a", "one.")], name="twice")
    assert manifest.drops == {"duplicate": 1}


def test_of_near_duplicates_the_longest_stays_and_is_shown(tmp_path: Path):
    book = prose(1, 400)
    manifest, found = dedup(
        tmp_path,
        [doc("copy", f"Printed for the second author. {book}"), doc("other", prose(2, 400))],
        [doc("shortened", book.rsplit(" ", 20)[0]), doc("chapter", book)],
    )
    assert [row["doc_id"] for row in found] == ["copy", "other"]
    assert manifest.drops == {"near duplicate": 2}
    shown = manifest.facts["samples"]["near duplicate"]
    assert [(sample["doc_id"], sample["kept"]["doc_id"]) for sample in shown] == [
        ("shortened", "copy"),
        ("chapter", "copy"),
    ]
    assert shown[0]["kept"]["text"].startswith("Printed for")


def test_a_sample_shows_the_document_that_is_finally_kept(tmp_path: Path):
    longer = prose(1, 100)
    old, new = doc("a", prose(3), 1), doc("a", longer, 2)
    manifest, found = dedup(tmp_path, [old, new], [doc("b", longer, 3)], [doc("c", f"{longer} at last", 1)])
    assert [row["doc_id"] for row in found] == ["c"]
    kept = {reason: shown[0]["kept"]["doc_id"] for reason, shown in manifest.facts["samples"].items()}
    assert kept == {"older revision": "c", "duplicate": "c", "near duplicate": "c"}


def test_near_duplicates_stay_if_asked_for(tmp_path: Path):
    documents = [doc("a", prose(1)), doc("b", prose(1) + " more")]
    manifest, found = dedup(tmp_path, documents, near_threshold=0.0)
    assert len(found) == 2 and manifest.drops == {}


def test_near_duplicates_never_straddle_train_and_heldout(tmp_path: Path):
    documents = [doc(f"{n}-{copy}", f"{prose(n, 100)} copy {copy}") for n in range(20) for copy in range(4)]
    assert {split for *_, split in ((d.doc_id, d.split) for d in documents)} == {"train", "heldout"}
    _, found = dedup(tmp_path, documents[::2], documents[1::2])
    assert sorted(row["doc_id"].partition("-")[0] for row in found) == sorted(map(str, range(20)))


def test_a_threshold_that_the_bands_cannot_reach_is_refused():
    with pytest.raises(ValidationError, match=r"give 0\.7 to 1, or 0 to keep near duplicates"):
        DedupConfig(near_threshold=0.5)


def test_a_damaged_shard_is_named_with_the_fix(tmp_path: Path):
    artifact(tmp_path / "out-in", [doc("a", "Some words.")])
    shard = tmp_path / "out-in/documents/00000-00.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    documents = Artifact(Location(str(tmp_path / "out-in")), "extract", "f" * 16)
    line = r"00000-00\.parquet: is damaged: its SHA-256 differs from .*; delete it and run again: other files are kept$"
    with pytest.raises(UserError, match=line):
        run(DedupConfig(), {"documents": documents}, Output(Location(str(tmp_path / "out")), "dedup", 1, "e" * 16))


def test_an_old_revision_does_not_remove_another_document(tmp_path: Path):
    _, found = dedup(tmp_path, [doc("a", "Same.", 1), doc("a", "Other.", 2), doc("b", "Same.", 0)])
    assert {row["text"] for row in found} == {"Other.", "Same."}


def grouped(rows: Iterable, key: Callable) -> list[list]:
    groups: dict = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def plainly(documents: list) -> set[str]:
    """The texts that stay, found by comparing each with each."""
    newest = [max(group, key=lambda d: (d.revision, d.num_chars)) for group in grouped(documents, lambda d: d.doc_id)]
    rows = [group[0] for group in grouped(newest, lambda d: d.content_hash)]
    shingles = [set(zip(*(row.text.split()[k:] for k in range(5)), strict=False)) for row in rows]
    root = list(range(len(rows)))
    for a, b in itertools.combinations(root, 2):
        if len(shingles[a] & shingles[b]) >= 0.8 * len(shingles[a] | shingles[b]):
            root = [root[a] if number == root[b] else number for number in root]
    alike = grouped(zip(root, rows, strict=True), lambda numbered: numbered[0])
    return {max((row for _, row in group), key=lambda d: d.num_chars).text for group in alike}


def stepwise(folder: Path, shards: list[list], order: random.Random) -> set[tuple]:
    """What stays, by steps whose items are run in some order, some of them twice, in three buckets of descriptors and
    ten of bands, and blocks of three documents."""
    documents = artifact(folder / "in", *shards)
    out = Output(Location(str(folder / "out")), "dedup", VERSION, "e" * 16)
    files, scratch = documents.files("documents/"), Location(str(folder / "scratch"))
    steps = Steps(files, out, scratch, 0.8, sum(map(len, shards)), 3, 10, block_documents=3)

    def run_all(step: str, count: int) -> None:
        for number in order.choices(range(count), k=2) + order.sample(range(count), count):
            steps.run_item(Item(step, number))

    for step, count in steps.item_counts().items():
        run_all(step, count)
    parts = out.require_parts([f"{number:05}" for number in range(len(steps.shards))])
    names = [name for part in parts for name in part.files]
    return {tuple(row.values()) for name in names for row in pq.read_table(folder / "out" / name).to_pylist()}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*(st.integers(0, most) for most in (9, 3, 5, 3))), min_size=1, max_size=40),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_the_same_is_kept_as_by_comparing_all_pairs_in_any_order(
    drawn: list[tuple[int, int, int, int]], cuts: int, order: random.Random
):
    documents = [
        doc(f"d{number}", prose(base, 100 + base) + " and on" * more, revision)
        for number, revision, base, more in drawn
    ]
    answers = []
    for _ in range(2):
        order.shuffle(documents)
        with tempfile.TemporaryDirectory() as folder:
            answers.append(stepwise(Path(folder), [documents[cut::cuts] for cut in range(cuts)], order))
    assert answers[0] == answers[1]
    assert {row[DOCUMENT.get_field_index("text")] for row in answers[0]} == plainly(documents)


def test_only_removed_documents_change_the_table(tmp_path: Path):
    documents = [doc(f"d{n}", f"Words number {n}.") for n in range(20)]
    _, found = dedup(tmp_path, documents)
    assert pa.Table.from_pylist(found, schema=DOCUMENT).equals(document_table(documents))


def test_a_shard_of_which_nothing_is_kept_has_no_file_but_a_count(tmp_path: Path):
    manifest, found = dedup(tmp_path, [doc("a", "Same.", 2)], [doc("b", "Same.", 1)])
    assert [row["doc_id"] for row in found] == ["a"]
    assert list(manifest.files) == ["documents/00000.parquet"] and manifest.drops == {"duplicate": 1}


def test_a_run_resumes_from_finished_shards(tmp_path: Path):
    shards = [[doc(f"{s}-{n}", f"Text {n % 5} of {s % 2}.") for n in range(8)] for s in range(4)]
    full, rows = dedup(tmp_path, *shards)
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/parts/00001.json").unlink()
    (tmp_path / "out/documents/00001.parquet").unlink(missing_ok=True)
    kept_stamp = (tmp_path / "out/documents/00000.parquet").stat().st_mtime_ns
    documents = Artifact(Location(str(tmp_path / "out-in")), "extract", "f" * 16)
    again = run(
        DedupConfig(), {"documents": documents}, Output(Location(str(tmp_path / "out")), "dedup", VERSION, "e" * 16)
    )
    assert {n: f.sha256 for n, f in again.files.items()} == {n: f.sha256 for n, f in full.files.items()}
    assert again.counts == full.counts and len(rows) == 10
    assert (tmp_path / "out/documents/00000.parquet").stat().st_mtime_ns == kept_stamp


def test_a_run_that_is_stopped_in_any_step_resumes_from_its_finished_items_and_leaves_no_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dedup_steps, "BLOCK_DOCUMENTS", 10)
    monkeypatch.setattr(dedup_steps, "BUCKET_RECORDS", 24)
    shards = [[doc(f"{s}-{n}", prose(n % 6 + s % 2, 50) + " end" * s, n) for n in range(8)] for s in range(3)]
    full, _ = dedup(tmp_path, *shards)
    documents = Artifact(Location(str(tmp_path / "out-in")), "extract", "f" * 16)
    nowhere = Location(str(tmp_path / "nowhere"))
    steps = Steps(documents.files("documents/"), Output(nowhere, "dedup", VERSION, ""), nowhere, 0.8, 24, 2, 17, 10)
    items = [Item(step, number) for step, count in steps.item_counts().items() for number in range(count)]
    for done in [number for number, item in enumerate(items, 1) if item.number == 0]:
        reported: list[tuple[float, str]] = []
        out = Output(Location(str(tmp_path / f"stopped-{done}")), "dedup", VERSION, "e" * 16)
        with pytest.raises(KeyboardInterrupt), scratch_folder(out) as folder:
            for item in items[:done]:
                replace(steps, out=out, scratch=folder).run_item(item)
            raise KeyboardInterrupt
        stamps = {file: file.info().mtime_ns for file in out.location.files()}
        out.reporter = lambda done, total, unit, note, reported=reported: reported.append((done, unit))
        again = run(DedupConfig(), {"documents": documents}, out)
        assert (reported[0], reported[-1]) == ((done, "items"), (len(items), "items"))
        assert {n: f.sha256 for n, f in again.files.items()} == {n: f.sha256 for n, f in full.files.items()}
        assert (again.counts, again.drops, again.facts) == (full.counts, full.drops, full.facts)
        left = out.location.files()
        assert not any("scratch" in file.uri for file in left)
        assert all(stamps[file] == file.info().mtime_ns for file in left if file in stamps)


def test_a_run_with_nothing_left_to_do_removes_the_scratch_of_a_run_killed_at_its_end(tmp_path: Path):
    full, _ = dedup(tmp_path, [doc("a-1", prose(1))], [doc("b-1", prose(2))])
    documents = Artifact(Location(str(tmp_path / "out-in")), "extract", "f" * 16)
    out = Output(Location(str(tmp_path / "out")), "dedup", VERSION, "e" * 16)
    with pytest.raises(KeyboardInterrupt), scratch_folder(out) as folder:
        (folder / "descriptors/00000").write_text("half removed")
        raise KeyboardInterrupt
    (out.location / "manifest.json").delete()
    assert run(DedupConfig(), {"documents": documents}, out).files == full.files
    assert not list((tmp_path / "out").glob("scratch"))


@pytest.mark.parametrize(
    "workers", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.campaign)]
)
def test_many_processes_write_the_same_bytes_as_one(tmp_path: Path, workers: int):
    shards = [[doc(f"{s}-{n}", prose(n * s % 50, 30 + s), n) for n in range(100)] for s in range(5)]
    options = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    alone, _ = dedup(tmp_path, *shards, name="alone")
    shared, _ = dedup(tmp_path, *shards, name="shared", beam=options)
    assert {n: f.sha256 for n, f in alone.files.items()} == {n: f.sha256 for n, f in shared.files.items()}
