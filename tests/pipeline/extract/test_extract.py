import gzip
import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cloze.pipeline.core.artifacts import Manifest, Part
from cloze.pipeline.core.config import identity
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import DOCUMENT
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.extract.document import split_of
from cloze.pipeline.extract.stage import VERSION, ExtractConfig, run
from cloze.pipeline.extract.wikipedia.dump import ReadStatus, byte_ranges, pages, read_site
from cloze.pipeline.extract.wikipedia.wikitext import has_residue
from cloze.pipeline.extract.work_units import plan_units
from cloze.pipeline.text import words
from tests.paths import DATA

EXTRACT = DATA / "extract"
DUMPS = ["enwiki.xml.bz2", "nlwiki.xml", "viwiki-cut.xml.xz", "pear-0.3.xml"]
#: Of the documents below: raise VERSION when the bytes are meant to change, then update this.
DIGEST = "c9ca82b5dc00c8a0"

PROSE = "It was a long day at sea, and nobody on board the ship had anything at all to say about it."
BOOK = f"A TALE\n\nBy JANE DOE\n\n\n\nCHAPTER I\n\n{PROSE}\n\n{PROSE}\n\n\n\nCHAPTER II\n\n{PROSE} Then it ended.\n"


def config(**sources: dict) -> ExtractConfig:
    listed = [{"name": name, "files": ["given by the test"], **source} for name, source in sources.items()]
    return ExtractConfig.model_validate({"sources": listed, "heldout_fraction": 0.3})


WIKI = {"kind": "wikipedia"}
BOOKS = {"kind": "books", "language": "en", "licence": "public domain"}
DOCUMENTS = {"kind": "documents", "columns": {"text": "body", "doc_id": "key"}}


def files(*paths: Path) -> list[SourceFile]:
    return [SourceFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size) for path in paths]


def output(folder: Path) -> Output:
    return Output(Location(str(folder)), "extract", VERSION, "0123456789abcdef")


def rows(folder: Path, manifest: Manifest) -> list[dict]:
    return [row for name in manifest.files for row in pq.read_table(folder / name, schema=DOCUMENT).to_pylist()]


def digests(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Every kind of source, run once."""
    given, out = tmp_path_factory.mktemp("given"), tmp_path_factory.mktemp("out")
    (given / "tale.txt").write_text(BOOK)
    lines = [{"key": "mine-1", "body": PROSE}, {"key": "mine-2", "body": " "}, {"key": "mine-3", "body": "Too short."}]
    (given / "own.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode(), mtime=0))
    inputs = {
        "wiki": files(*(EXTRACT / name for name in DUMPS)),
        "shelf": files(given / "tale.txt"),
        "own": files(given / "own.jsonl.gz"),
    }
    return out, run(config(wiki=WIKI, shelf=BOOKS, own=DOCUMENTS), inputs, output(out))


def test_pages_in_are_documents_out_and_drops(whole: tuple[Path, Manifest]):
    folder, manifest = whole
    pages_in = 0
    for name in DUMPS:
        location = Location(str(EXTRACT / name))
        for span in byte_ranges(location, 10**9, 10**9):
            pages_in += sum(1 for _ in pages(location, span, read_site(location), ReadStatus()))
    wiki = manifest.facts["sources"]["wiki"]
    dropped = sum(count for name, count in wiki.items() if name.startswith("dropped: "))
    assert wiki["records"] == pages_in == wiki["documents"] + dropped == 26
    assert manifest.counts["records"] == pages_in + 2 + 3
    assert manifest.counts["records"] == manifest.counts["documents"] + sum(manifest.drops.values())
    assert manifest.counts["documents"] == len(rows(folder, manifest))
    assert {"namespace", "redirect", "too short", "empty"} <= set(manifest.drops)


def test_an_article_carries_its_pages_identity(whole: tuple[Path, Manifest]):
    row = next(row for row in rows(*whole) if row["title"] == "Ampere")
    text = row.pop("text")
    assert text.startswith("The ampere (SI unit symbol") and "\n\n" in text and "[[" not in text
    assert row == {
        "doc_id": "enwiki:772",
        "source": "wiki",
        "language": "en",
        "title": "Ampere",
        "url": "http://en.wikipedia.org/wiki/Ampere",
        "revision": 628133102,
        "timestamp": "2014-10-03T21:21:36Z",
        "split": split_of("enwiki:772", 0.3),
        "num_chars": len(text),
        "num_words": words.count_words(text),
        "content_hash": row["content_hash"],
        "licence": "CC BY-SA 4.0",
        "file_sha256": hashlib.sha256((EXTRACT / "enwiki.xml.bz2").read_bytes()).hexdigest(),
        "record_stream": 0,
        "record_offset": 7446,
        "record_bytes": 12758,
    }


def test_every_document_is_found_again_by_its_digest_and_record(whole: tuple[Path, Manifest]):
    given = {name.split("/")[1]: digest for name, digest in whole[1].inputs.items()}
    for row in rows(*whole):
        assert given[row["file_sha256"][:12]] == row["file_sha256"]
        place = row["record_stream"], row["record_offset"], row["record_bytes"]
        if row["source"] == "own":
            line = json.dumps({"key": "mine-1", "body": PROSE}) + "\n"
            assert (row["doc_id"], place) == ("own:mine-1", (0, 0, len(line)))
        elif row["source"] == "shelf":
            record = BOOK.encode()[place[1] : place[1] + place[2]].decode()
            assert record.startswith("CHAPTER") and record.rstrip("\n").endswith(row["text"])
        else:
            assert row["record_stream"] == 0 < row["record_offset"] and row["record_bytes"] > 100


def test_chapters_and_rows_have_their_own_metadata(whole: tuple[Path, Manifest]):
    found = [row for row in rows(*whole) if row["source"] in ("shelf", "own")]
    sha = hashlib.sha256(BOOK.encode()).hexdigest()[:16]
    assert [(row["doc_id"], row["title"], row["language"], row["licence"]) for row in found] == [
        (f"shelf:{sha}:0", "A TALE: CHAPTER I", "en", "public domain"),
        (f"shelf:{sha}:1", "A TALE: CHAPTER II", "en", "public domain"),
        ("own:mine-1", "", "", ""),
    ]
    assert found[0]["text"] == f"{PROSE}\n\n{PROSE}"


def test_two_sources_with_the_same_ids_share_no_document(tmp_path: Path):
    for name, text in (("a", PROSE), ("b", PROSE.upper())):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"key": "1", "body": text}))
    inputs = {name: files(tmp_path / f"{name}.jsonl") for name in "ab"}
    manifest = run(config(a=DOCUMENTS, b=DOCUMENTS), inputs, output(tmp_path / "out"))
    assert [row["doc_id"] for row in rows(tmp_path / "out", manifest)] == ["a:1", "b:1"]


def test_files_of_one_name_are_both_inputs_and_a_suffix_before_gz_counts(tmp_path: Path):
    same = gzip.compress(json.dumps({"key": "1", "body": PROSE}).encode(), mtime=0)
    other = gzip.compress(json.dumps({"key": "2", "body": PROSE}).encode(), mtime=0)
    for name, data in (("one/x.jsonl.gz", same), ("two/x.jsonl.gz", other), ("three/x.txt.gz", same)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    given = files(*(tmp_path / f"{name}" for name in ("one/x.jsonl.gz", "two/x.jsonl.gz", "three/x.txt.gz")))
    manifest = run(config(own={**DOCUMENTS, "name": "own"}), {"own": given}, output(tmp_path / "out"))
    assert manifest.counts["documents"] == 3
    assert manifest.inputs == {f"own/{file.sha256[:12]}/{file.location.name}": file.sha256 for file in given}


def test_an_empty_file_is_named(tmp_path: Path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "tale.txt").write_text(BOOK)
    with pytest.raises(UserError, match=r"empty\.txt: is empty"):
        run(config(b=BOOKS), {"b": files(tmp_path / "tale.txt", tmp_path / "empty.txt")}, output(tmp_path / "out"))


def test_both_splits_are_there_and_counted(whole: tuple[Path, Manifest]):
    folder, manifest = whole
    held = [row["split"] for row in rows(folder, manifest)].count("heldout")
    assert 0 < held == manifest.counts["heldout"] < manifest.counts["documents"]


def test_the_manifest_names_cut_files_and_shows_what_was_dropped(whole: tuple[Path, Manifest]):
    facts = whole[1].facts
    assert whole[1].counts["truncated_files"] == 1
    assert [(Path(cut["file"]).name, cut["reason"]) for cut in facts["truncated"]] == [
        ("viwiki-cut.xml.xz", "it ends in the middle of a page")
    ]
    assert {"record": "Too short.", "text": "Too short."} in [
        {**shown, "record": shown["text"]} for shown in facts["samples"]["too short"]
    ]
    assert "Alexandre De Rhodes" in [shown["record"] for shown in facts["samples"]["redirect"]]
    assert facts["templates"]["reflist"] > 0
    assert facts["residue"] == {"wiki": 0}


def test_the_facts_of_thousands_of_ranges_are_not_kept_in_memory(tmp_path: Path):
    out, names = output(tmp_path), [f"{number:05}" for number in range(200)]
    templates = {f"template {number}": 1000 - number for number in range(1000)}
    for name in names:
        facts = {"source": "wiki", "samples": {"empty": [{"record": name, "text": ""}]}, "truncated": [], "residue": 1}
        out.commit(name, {}, {"documents": 1}, facts={**facts, "templates": templates})
    parts: list[Part] = []
    tracemalloc.start()
    merged = extract.merge_facts(extract._without_facts(out.read_parts(names), parts))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 3e6  # of some 20 MB
    assert [part.name for part in parts] == names and parts[0].counts == {"documents": 1}
    assert list(merged.templates.items())[-1] == ("template 49", 951 * 200) and merged.residue == {"wiki": 200}
    assert [sample.record for sample in merged.samples["empty"]] == names[:3]


def test_left_over_markup_is_counted_of_wikitext_alone(tmp_path: Path):
    text = "A page with {{{{ left over]] from its source, long enough to be kept as a document of the corpus. " * 3
    (tmp_path / "book.txt").write_text(text)
    found = run(config(b=BOOKS), {"b": files(tmp_path / "book.txt")}, output(tmp_path / "out")).facts["residue"]
    assert found == {}
    assert has_residue(text) and not has_residue("A [sic] page {with} 'ordinary' marks | and pipes.")


def test_the_bytes_are_those_of_this_version(whole: tuple[Path, Manifest]):
    found = hashlib.sha256("".join(digests(whole[1]).values()).encode()).hexdigest()[:16]
    assert (VERSION, found) == (4, DIGEST), (
        "the same input gives other bytes: raise VERSION in pipeline/extract/stage.py"
    )


def test_neither_paths_nor_their_order_nor_repeats_change_the_bytes(tmp_path: Path):
    first = [EXTRACT / "nlwiki.xml", EXTRACT / "pear-0.3.xml"]
    moved = [tmp_path / "b.anything", tmp_path / "a"]
    for old, new in zip(first, moved, strict=True):
        new.write_bytes(old.read_bytes())
    here = run(config(w=WIKI), {"w": files(*first)}, output(tmp_path / "1"))
    there = run(config(w=WIKI), {"w": files(*reversed(moved), *first)}, output(tmp_path / "2"))
    assert digests(here) == digests(there)


def test_a_run_resumes_from_finished_units_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 8000)
    settings, inputs = config(w=WIKI), {"w": files(EXTRACT / "nlwiki.xml")}
    work = plan_units(settings, inputs)
    assert len(work) == 6
    full = run(settings, inputs, output(tmp_path / "full"))
    half = output(tmp_path / "half")
    for unit in work[::2]:
        extract.extract_unit(unit, settings, half)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "half").rglob("*.parquet")}
    (tmp_path / "half/documents/.00001-00.parquet.x.tmp").write_bytes(b"half")
    resumed = run(settings, inputs, half)
    assert digests(resumed) == digests(full) and resumed.counts == full.counts and resumed.drops == full.drops
    assert stamps and all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_ranges_have_the_documents_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings, inputs = config(w=WIKI), {"w": files(EXTRACT / "nlwiki.xml")}
    one = run(settings, inputs, output(tmp_path / "one"))
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 5000)
    monkeypatch.setattr(extract, "_SHARD_CHARACTERS", 4000)
    many = run(settings, inputs, output(tmp_path / "many"))
    assert rows(tmp_path / "one", one) == rows(tmp_path / "many", many)
    assert len(many.files) > len(one.files) == 1


def test_the_shards_of_a_large_file_are_written_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extract, "_SHARD_CHARACTERS", 4 * len(PROSE))
    lines = [json.dumps({"key": f"{number}", "body": PROSE}) for number in range(10)]
    (tmp_path / "cut.jsonl").write_text("\n".join([*lines, '{"key"']))
    with pytest.raises(UserError, match=r"cut\.jsonl:11: is not JSON"):
        run(config(own=DOCUMENTS), {"own": files(tmp_path / "cut.jsonl")}, output(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.parquet")) == [
        "00000-00.parquet",
        "00000-01.parquet",
    ]
    (tmp_path / "whole.jsonl").write_text("\n".join(lines))
    manifest = run(config(own=DOCUMENTS), {"own": files(tmp_path / "whole.jsonl")}, output(tmp_path / "out"))
    assert [len(pq.read_table(tmp_path / "out" / name)) for name in manifest.files] == [4, 4, 2]


def test_a_book_can_be_one_document(tmp_path: Path):
    (tmp_path / "tale.txt").write_text(BOOK)
    manifest = run(config(b={**BOOKS, "unit": "book"}), {"b": files(tmp_path / "tale.txt")}, output(tmp_path / "out"))
    (row,) = rows(tmp_path / "out", manifest)
    assert row["title"] == "A TALE" and row["text"].count(PROSE) == 3


@pytest.mark.parametrize(
    ("source", "name", "data", "message"),
    [
        (WIKI, "a.xml", b"<html>", "a.xml: begins with '<html>'"),
        (
            WIKI,
            "a.xml",
            b"<mediawiki xml:lang='x'>\n<page><title>\xff</title></page></mediawiki>",
            "a.xml: is not UTF-8",
        ),
        (BOOKS, "a.txt", b"caf\xe9", "a.txt: is not UTF-8"),
        (DOCUMENTS, "a.jsonl", b'{"body": "x", "key": "1"}\n{"body', "a.jsonl:2: is not JSON"),
        (DOCUMENTS, "a.csv", b"x,y\n", "a.csv: has no column body; it has x, y"),
        (BOOKS, "a.txt", b"Hm.", "hold no document"),
    ],
)
def test_a_workers_error_arrives_as_one_line(tmp_path: Path, source: dict, name: str, data: bytes, message: str, capfd):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as error:
        run(config(s=source), {"s": files(tmp_path / name)}, output(tmp_path / "out"))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.skipif(os.geteuid() != 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stays_an_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(self: Location, data: bytes, *confirm: object) -> None:
        with Path("/dev/full").open("wb") as file:
            file.write(data)

    monkeypatch.setattr(Location, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as error:
        run(config(w=WIKI), {"w": files(EXTRACT / "nlwiki.xml")}, output(tmp_path / "out"))
    assert error.value.errno == 28


def test_identity_excludes_file_paths_and_how_the_stage_runs():
    one, two = config(w=WIKI), config(w=WIKI)
    two = ExtractConfig.model_validate(
        {"sources": [{"name": "w", "files": ["elsewhere"], **WIKI}], "heldout_fraction": 0.3, "beam": ["--runner=X"]}
    )
    assert identity(one) == identity(two)
    assert identity(config(w={**WIKI, "keep_lists": True})) != identity(one)


@pytest.mark.parametrize(
    "wrong", [{"kind": "wiki"}, {**BOOKS, "unit": "page"}, {**WIKI, "unit": "book"}, {**BOOKS, "files": []}]
)
def test_impossible_sources_are_refused(wrong: dict):
    with pytest.raises(ValidationError):
        config(x=wrong)


@pytest.mark.parametrize(
    "workers", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.campaign)]
)
def test_many_processes_write_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int):
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 8000)
    settings, inputs = config(w=WIKI), {"w": files(*(EXTRACT / name for name in DUMPS))}
    alone = run(settings, inputs, output(tmp_path / "alone"))
    options = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    shared = run(settings.model_copy(update={"beam": options}), inputs, output(tmp_path / "shared"))
    assert digests(alone) == digests(shared) and alone.counts == shared.counts and len(alone.files) >= 8


def test_unwanted_documents_are_dropped_with_their_reason(tmp_path: Path):
    lines = [
        {"key": "numbers", "body": "1990 12.5 (3) 7 | 1991 13.0 (4) 8 | 1992 14.1"},
        {
            "key": "french",
            "body": "La poire est un fruit qui pousse sur des arbres et que l'on mange fraîche ou cuite.",
        },
        {"key": "prose", "body": PROSE},
        {"key": "short", "body": "Too short."},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {**DOCUMENTS, "only_languages": ["en", "de"]}
    manifest = run(config(own=source), {"own": files(tmp_path / "own.jsonl")}, output(tmp_path / "out"))
    assert [row["doc_id"] for row in rows(tmp_path / "out", manifest)] == ["own:prose"]
    assert manifest.drops == {"not enough letters": 1, "too short": 1, "wrong language": 1}
    assert manifest.facts["samples"]["wrong language"][0]["text"].startswith("La poire")


@pytest.mark.parametrize(
    "text", ["梨はバラ科の落葉高木で、果実を食べる。", "梨是蔷薇科的一种落叶乔木。", "ลูกแพร์เป็นผลไม้"]
)
def test_articles_of_a_script_without_spaces_are_not_too_short(tmp_path: Path, text: str):
    lines = [{"key": "pear", "body": text}, {"key": "short", "body": text[:3]}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    manifest = run(config(own=DOCUMENTS), {"own": files(tmp_path / "own.jsonl")}, output(tmp_path / "out"))
    assert [row["doc_id"] for row in rows(tmp_path / "out", manifest)] == ["own:pear"]
    assert manifest.drops == {"too short": 1}


def test_disambiguation_pages_are_dropped(tmp_path: Path):
    page = "<page><title>{}</title><ns>0</ns><id>{}</id><revision><id>1</id><text>{}</text></revision></page>\n"
    pages = [page.format("A", 1, PROSE + " {{Own mark}}"), page.format("B", 2, PROSE + "{{disambig}}")]
    (tmp_path / "a.xml").write_text(f"<mediawiki>\n{''.join(pages)}{page.format('C', 3, PROSE)}</mediawiki>")
    for more, left in (([], ["A", "C"]), (["Own_mark"], ["C"])):
        out = tmp_path / f"out-{len(more)}"
        manifest = run(config(w={**WIKI, "disambiguation": more}), {"w": files(tmp_path / "a.xml")}, output(out))
        assert [row["title"] for row in rows(out, manifest)] == left
        assert manifest.drops == {"disambiguation": 3 - len(left)}


def test_a_language_that_cannot_be_detected_is_refused_before_any_work(tmp_path: Path):
    (tmp_path / "tale.txt").write_text(BOOK)
    with pytest.raises(UserError, match="only_languages: klingon: cannot be detected"):
        run(
            config(b={**BOOKS, "only_languages": ["klingon"]}),
            {"b": files(tmp_path / "tale.txt")},
            output(tmp_path / "o"),
        )
