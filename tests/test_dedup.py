import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import Artifact, Manifest, Output
from pipeline.config import UserError
from pipeline.dedup import VERSION, DedupConfig, kept, run
from pipeline.schema import DOCUMENT, document, document_table, parquet_bytes
from pipeline.storage import Location


def doc(doc_id: str, text: str, revision: int = 0):
    return document(
        [text], doc_id=doc_id, source="s", heldout_fraction=0.5, revision=revision, title=f"Title of {doc_id}"
    )


def artifact(folder: Path, *shards: list) -> Artifact:
    out = Output(Location(str(folder)), "extract", 1, "f" * 16)
    for number, documents in enumerate(shards):
        out.commit(f"{number:05}", {f"documents/{number:05}-00.parquet": parquet_bytes(document_table(documents))})
    out.finish({}, {})
    return Artifact(out.location, "extract", "f" * 16)


def dedup(tmp_path: Path, *shards: list, name: str = "out", beam: list[str] | None = None) -> tuple[Manifest, list]:
    documents = artifact(tmp_path / f"{name}-in", *shards)
    config = DedupConfig(beam=beam) if beam else DedupConfig()
    manifest = run(config, {"documents": documents}, Output(Location(str(tmp_path / name)), "dedup", VERSION, "e" * 16))
    found = [row for file in manifest.files for row in pq.read_table(tmp_path / name / file).to_pylist()]
    return manifest, found


def test_one_document_of_each_content_stays_and_the_rest_are_counted(tmp_path: Path):
    manifest, found = dedup(
        tmp_path,
        [doc("b", "The same text."), doc("c", "Another text.")],
        [doc("a", "the  SAME\ntext."), doc("d", "A third."), doc("e", "The same text. ")],
    )
    assert [row["doc_id"] for row in found] == ["c", "a", "d"]
    assert manifest.drops == {"duplicate": 2}
    assert (manifest.counts["records"], manifest.counts["documents"]) == (5, 3)
    assert {shown["doc_id"] for shown in manifest.facts["samples"]["duplicate"]} == {"b", "e"}


def test_the_newest_revision_of_a_document_stays(tmp_path: Path):
    manifest, found = dedup(
        tmp_path,
        [doc("wiki:1", "Old words.", 5), doc("wiki:2", "Kept words.", 9)],
        [doc("wiki:1", "New words.", 7), doc("wiki:2", "Stale words.", 8)],
    )
    assert {row["text"] for row in found} == {"New words.", "Kept words."}
    assert manifest.drops == {"same doc_id": 2}
    assert {shown["doc_id"] for shown in manifest.facts["samples"]["same doc_id"]} == {"wiki:1", "wiki:2"}


def test_what_goes_for_its_id_and_for_its_content_is_counted_apart(tmp_path: Path):
    shards = [doc("a", "Same.", 1), doc("a", "Other.", 2)], [doc("b", "other.", 1), doc("b", "Same.", 0)]
    manifest, found = dedup(tmp_path, *shards)
    assert [row["text"] for row in found] == ["Other."]
    assert manifest.drops == {"same doc_id": 2, "duplicate": 1}


def test_a_damaged_shard_is_named_with_the_mend(tmp_path: Path):
    artifact(tmp_path / "out-in", [doc("a", "Some words.")])
    shard = tmp_path / "out-in/documents/00000-00.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    documents = Artifact(Location(str(tmp_path / "out-in")), "extract", "f" * 16)
    with pytest.raises(UserError, match=r"00000-00\.parquet: is damaged; run its stage again with --force$"):
        run(DedupConfig(), {"documents": documents}, Output(Location(str(tmp_path / "out")), "dedup", 1, "e" * 16))


def test_what_an_old_revision_says_does_not_drop_another_document(tmp_path: Path):
    _, found = dedup(tmp_path, [doc("a", "Same.", 1), doc("a", "Other.", 2), doc("b", "Same.", 0)])
    assert {row["text"] for row in found} == {"Other.", "Same."}


def test_the_winner_does_not_depend_on_the_order(tmp_path: Path):
    documents = [doc(f"d{n}", f"Text {n % 7}.", n % 3) for n in range(40)] + [
        doc("d3", f"Text {n}.", n) for n in range(9)
    ]
    answers = set()
    for seed in range(4):
        random.Random(seed).shuffle(documents)
        cut = 10 + seed
        _, found = dedup(tmp_path, documents[:cut], documents[cut:], name=f"run{seed}")
        answers.add(tuple(sorted((row["doc_id"], row["revision"], row["text"]) for row in found)))
    assert len(answers) == 1
    assert len({text for _, _, text in next(iter(answers))}) == len(next(iter(answers)))


def test_nothing_is_changed_but_what_goes(tmp_path: Path):
    documents = [doc(f"d{n}", f"Words number {n}.") for n in range(20)]
    _, found = dedup(tmp_path, documents)
    assert pa.Table.from_pylist(found, schema=DOCUMENT).equals(document_table(documents))


def test_a_shard_of_which_nothing_stays_leaves_no_file_but_its_count(tmp_path: Path):
    manifest, found = dedup(tmp_path, [doc("a", "Same.", 2)], [doc("b", "Same.", 1)])
    assert [row["doc_id"] for row in found] == ["a"]
    assert list(manifest.files) == ["documents/00000.parquet"] and manifest.drops == {"duplicate": 1}


def test_a_run_goes_on_from_finished_shards(tmp_path: Path):
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


def test_kept_is_the_first_of_each_value():
    table = pa.table(
        {
            "doc_id": ["b", "a", "c", "a"],
            "content": pa.array([b"1" * 16, b"1" * 16, b"2" * 16, b"1" * 16], pa.binary(16)),
            "revision": [3, 3, 0, 2],
            "shard": [0, 1, 1, 0],
            "row": [0, 0, 1, 1],
        }
    )
    assert kept(table, "content").select(["doc_id", "revision"]).to_pylist() == [
        {"doc_id": "a", "revision": 3},
        {"doc_id": "c", "revision": 0},
    ]
    assert kept(table.slice(0, 0), "content").num_rows == 0


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path):
    shards = [[doc(f"{s}-{n}", f"Text {n * s % 50}.", n) for n in range(100)] for s in range(5)]
    options = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    alone, _ = dedup(tmp_path, *shards, name="one")
    shared, _ = dedup(tmp_path, *shards, name="two", beam=options)
    assert {n: f.sha256 for n, f in alone.files.items()} == {n: f.sha256 for n, f in shared.files.items()}
