"""A document's record, cut out of its file by other means than the project's, is the document again."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import gutenberg
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.document_files import DocumentColumns, DocumentRow, read_rows
from cloze.pipeline.extract.gutenberg import read_book
from cloze.pipeline.extract.sentence_lines import DocumentBoundary, byte_ranges, read_documents
from cloze.pipeline.extract.wikipedia import decompress, dump, page_splitter, repartition
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus
from cloze.pipeline.text.character_encodings import decode, decode_with_line_starts
from tests.paths import DATA, REPOSITORY
from tests.pipeline.extract.test_sentence_lines import BOUNDARIES, LINES

EXTRACT = DATA / "extract"
BOOKS = sorted((REPOSITORY / "configs/quickstart/books").glob("*.txt"))
HEADER = b"<mediawiki><siteinfo><dbname>xxwiki</dbname></siteinfo>\n"


def cut_out(data: bytes, record: RecordPosition) -> bytes:
    """A record of a file, decompressed from the byte on that the record names."""
    data = data[record.stream :]
    if data.startswith(b"BZh"):
        data = bz2.decompress(data)
    elif data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    elif data.startswith(b"\xfd7z"):
        data = unpacked(data)
    return data[record.offset : record.offset + record.bytes]


def unpacked(data: bytes) -> bytes:
    """What streams of xz hold, with padding between them, up to where the last one is cut."""
    found = b""
    while data:
        stream = lzma.LZMADecompressor()
        found += stream.decompress(data)
        data = stream.unused_data.lstrip(b"\0") if stream.eof else b""
    return found


def in_streams(packer: Callable[[bytes], bytes], padding: bytes = b"") -> Callable[[bytes, int], bytes]:
    """The data in compressed streams of so many bytes each; pages straddle them."""
    return lambda data, size: b"".join(packer(data[i : i + size]) + padding for i in range(0, len(data), size))


PACKERS: dict[str, Callable[[bytes, int], bytes]] = {
    "plain": lambda data, _: data,
    "one bz2": lambda data, _: bz2.compress(data),
    "one gz": lambda data, _: gzip.compress(data),
    "one xz": lambda data, _: lzma.compress(data),
    "bz2": in_streams(bz2.compress),
    "gz": in_streams(gzip.compress),
    "xz": in_streams(lzma.compress, b"\0" * 8),
}


def page(number: int, text: str, revisions: int = 1) -> str:
    history = "".join(f"<revision><id>{n}</id><text>{text} {n}</text></revision>" for n in range(revisions))
    return f"<page><title>Page {number}</title><ns>0</ns><id>{number}</id>{history}</page>"


PAGE = st.one_of(
    st.builds("é{}".format, st.text("ab &lt;\n\r", max_size=300)),
    st.just("<![CDATA[<page> & ]]>beside<!-- </page> -->"),
)
PAGES = st.lists(
    st.one_of(
        st.tuples(PAGE, st.integers(1, 3)),
        st.tuples(st.just("long " * 60), st.just(20)),  # longer than a page may be, but for its last revision
        st.tuples(st.just("long " * 900), st.just(1)),  # too long
        st.just(("", 0)),  # no page
    ),
    max_size=8,
)


def dump_of(found: list[tuple[str, int]]) -> bytes:
    bodies = (page(n, *one) if one[1] else "<page><title>cut <!-- <page> -->" for n, one in enumerate(found))
    return HEADER + "\n".join(bodies).encode() + b"</mediawiki>\n"


def repartitioned(location: Location, folder: Path, span: ByteRange) -> Iterator[dump.Page | None]:
    out = Output(Location(str(folder)), "extract", 1, "f" * 16)
    stream = repartition.Stream(f"{span.start:05}", location, span, "xxwiki")
    repartition.write_partitions(stream, out.location, out, 700)
    for partition in repartition.finished_partitions(stream, out.location, out):
        yield from dump.parse_pages(location, repartition.partition_pages(partition, ReadStatus()), dump.Site())


@settings(max_examples=60, deadline=None)
@given(PAGES, st.sampled_from(sorted(PACKERS)), st.integers(300, 1500), st.integers(50, 2000), st.integers(200, 3000))
def test_a_page_is_where_its_record_says_for_every_reader(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[tuple[str, int]],
    kind: str,
    stream: int,
    block: int,
    size: int,
):
    folder = tmp_path_factory.mktemp("dump")
    data = PACKERS[kind](dump_of(found), stream)
    (folder / "dump").write_bytes(data)
    location, site = Location(str(folder / "dump")), dump.Site(dbname="xxwiki")
    everything = ByteRange(0, len(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_splitter, "MAX_PAGE", 3000)
        whole = list(dump.pages(location, everything, site, ReadStatus()))
        patch.setattr(decompress, "_READ_BYTES", block)
        patch.setattr(decompress, "_BLOCK_BYTES", block)
        spans = dump.byte_ranges(location, size, size)
        ways = [
            list(dump.pages(location, everything, site, ReadStatus())),
            [one for span in spans for one in dump.pages(location, span, site, ReadStatus())],
            [one for span in spans for one in repartitioned(location, folder / "out", span)],
        ]
        assert [[one for one in way if one] for way in ways] == [[one for one in whole if one]] * 3
    for one in filter(None, whole):
        record = cut_out(data, one.record)
        assert record.startswith(b"<page>") and record.endswith(b"</page>")
        if kind not in ("plain", "xz", "one xz"):  # the stream is the one that the record begins in
            unpack = decompress._GzipDecompressor() if kind.endswith("gz") else bz2.BZ2Decompressor()
            assert len(unpack.decompress(data[one.record.stream :], 1 << 30)) > one.record.offset
        (folder / "record").write_bytes(HEADER + record + b"</mediawiki>")
        (again,) = dump.pages(Location(str(folder / "record")), ByteRange(0, 1 << 20), site, ReadStatus())
        assert again and again._replace(record=one.record) == one


def test_the_pages_of_real_dumps_are_where_their_records_say():
    for path in sorted(EXTRACT.glob("*.xml*")):
        location, data = Location(str(path)), path.read_bytes()
        for one in dump.pages(location, ByteRange(0, len(data)), dump.read_site(location), ReadStatus()):
            if one:
                record = cut_out(data, one.record).decode()
                assert record.startswith("<page>") and record.endswith("</page>") and record.count("<page>") == 1
                assert f"<id>{one.page_id}</id>" in record and f"<id>{one.revision}</id>" in record


ROWS = [["one\ntwo", "a"], ['"quoted", é', "b"], ["", ""], ["漢字", "c"], ["last", "d"]]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "shift_jis", "iso2022_jp", "gb18030", "cp037"]


def table(kind: str, end: str) -> str:
    if "json" in kind:
        return (end * 2).join(json.dumps({"text": text, "id": key}, ensure_ascii=False) for text, key in ROWS)
    sink = io.StringIO()
    delimiter = "\t" if "tsv" in kind else ","
    writer = csv.writer(sink, quoting=csv.QUOTE_ALL, delimiter=delimiter, lineterminator=end * 2)
    writer.writerows([["text", "id"], *ROWS])
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["x.jsonl", "x.csv", "x.tsv", "x.jsonl.gz", "x.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_row_is_where_its_record_says(tmp_path: Path, kind: str, end: str, encoding: str):
    raw = table(kind, end).encode(encoding, "replace")
    data = gzip.compress(raw[:50]) + gzip.compress(raw[50:]) if kind.endswith("gz") else raw
    (tmp_path / kind).write_bytes(data)
    columns, given_encoding = DocumentColumns(doc_id="id"), encoding if not encoding.startswith("utf-8") else ""
    found = list(read_rows(Location(str(tmp_path / kind)), columns, given_encoding))
    assert [row.doc_id for _, row in found] == ["a", "b", "", "c", "d"]
    assert sum(record.bytes for record, _ in found) <= len(raw)
    follows = encoding.removesuffix("-sig") + ("-le" if encoding in ("utf-16", "utf-32") else "")
    for record, row in found:
        again = cut_out(data, record).decode(follows)
        assert again.strip(end) == again.strip() and (again.endswith(end) or row.doc_id == "d")
        header = "" if "json" in kind else "text\tid\n" if "tsv" in kind else "text,id\n"
        (tmp_path / f"again.{kind.split('.')[1]}").write_text(header + again, encoding="utf-8", newline="")
        ((_, same),) = read_rows(Location(str(tmp_path / f"again.{kind.split('.')[1]}")), columns)
        assert same == row


def test_a_row_of_parquet_has_its_number_and_a_text_file_is_a_record(tmp_path: Path):
    pq.write_table(pa.table({"text": [f"Row {n}." for n in range(1000)]}), tmp_path / "x.parquet")
    found = list(read_rows(Location(str(tmp_path / "x.parquet")), DocumentColumns()))
    assert found == [(RecordPosition(0, n, 0), DocumentRow(f"Row {n}.")) for n in range(1000)]
    (tmp_path / "x.txt.gz").write_bytes(gzip.compress(b"All\r\nof it."))
    assert list(read_rows(Location(str(tmp_path / "x.txt.gz")), DocumentColumns())) == [
        (RecordPosition(0, 0, 11), DocumentRow("All\nof it."))
    ]


@settings(max_examples=60, deadline=None)
@given(
    LINES,
    st.integers(1, 60),
    BOUNDARIES,
    st.sampled_from(["x.txt", "x.txt.gz"]),
)
def test_documents_of_sentence_lines_are_where_their_record_says(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, boundary: DocumentBoundary, name: str
):
    folder = tmp_path_factory.mktemp("lines")
    raw = "\n".join(lines).encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    location = Location(str(folder / name))
    for one in (
        one for span in byte_ranges(location, boundary, size) for one in read_documents(location, span, boundary)
    ):
        record = raw[one.offset : one.offset + one.bytes]
        (folder / "again.txt").write_bytes(record)
        (again,) = read_documents(Location(str(folder / "again.txt")), ByteRange(0, len(record)), boundary)
        assert again == (0, one.sentences, len(record))


PARAGRAPH = (
    "It was a bright cold day, and she — once, « né » — looked up, as one does, and said\nthat it would not do at all."
)
TALE = "\n\n".join(
    [
        "Title: A Tale",
        "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***\n",
        "CHAPTER I",
        "The Day",
        PARAGRAPH,
        "[Illustration: it]",
        f"{PARAGRAPH}\n",
        "CHAPTER II",
        PARAGRAPH,
        "* * *",
        f"{PARAGRAPH}\nEnd of the Project Gutenberg EBook of A Tale",
    ]
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-be", "cp1252", "cp037", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_chapter_is_where_its_line_spans_say(encoding: str, end: str):
    data = (TALE if encoding != "cp037" else TALE.replace("—", "-")).replace("\n", end).encode(encoding)
    text, starts = decode_with_line_starts(
        data, "tale.txt", encoding if encoding[:3] not in ("utf",) or "be" in encoding else ""
    )
    assert (
        text == decode(data, "tale.txt", encoding) and len(starts) == text.count("\n") + 2 and starts[-1] == len(data)
    )
    found = read_book(text).chapters
    assert [(chapter.title, len(chapter.paragraphs)) for chapter in found] == [
        ("CHAPTER I. The Day", 2),
        ("CHAPTER II", 2),
    ]
    for chapter in found:
        record = data[starts[chapter.spans[0].first] : starts[chapter.spans[-1].end]]
        assert read_book(decode(record, "x", f"{encoding}-le" if encoding == "utf-16" else encoding)).chapters == [
            chapter._replace(
                spans=[gutenberg.LineSpan(*(line - chapter.spans[0].first for line in span)) for span in chapter.spans]
            )
        ]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.name)
def test_the_paragraphs_of_a_real_book_are_in_their_line_spans(path: Path):
    text = decode(path.read_bytes(), path.name)
    chapters = read_book(text).chapters
    lines = text.split("\n")
    last = 0
    for chapter in [*chapters, gutenberg.merge_chapters(chapters)]:
        for number, (paragraph, span) in enumerate(zip(chapter.paragraphs, chapter.spans, strict=True)):
            stands = re.sub(r"\W+|_", "", "".join(lines[span.first : span.end]))
            words = re.sub(r"\W+|_", "", paragraph)
            assert stands.endswith(words) if number == 0 else len(stands) < len(words) + 60
    for chapter in chapters:
        assert last <= chapter.spans[0].first < chapter.spans[-1].end
        last = chapter.spans[-1].end
    for chapter in gutenberg.split_by_sentences(chapters, 7):
        for paragraph, span in zip(chapter.paragraphs, chapter.spans, strict=True):
            assert re.sub(r"\W+|_", "", paragraph)[:30] in re.sub(r"\W+|_", "", "".join(lines[span.first : span.end]))
