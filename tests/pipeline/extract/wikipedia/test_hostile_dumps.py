"""Dumps that are not plain: indexed, joined, hostile, or another format."""

import bz2
import codecs
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.wikipedia import multistream
from cloze.pipeline.extract.wikipedia.dump import Page, ReadStatus, byte_ranges, compression, pages, read_site

HEAD = '<mediawiki xml:lang="en"><siteinfo><dbname>{}</dbname></siteinfo>\n'


def page(number: int, text: str = "Text.", title: str = "") -> str:
    name = title or f"Page {number}"
    revision = f"<revision><id>1</id><text>{text}</text></revision>"
    return f"<page><title>{name}</title><ns>0</ns><id>{number}</id>{revision}</page>\n"


def dump(*inside: str, wiki: str = "enwiki") -> str:
    return HEAD.format(wiki) + "".join(inside) + "</mediawiki>\n"


def written(folder: Path, data: str | bytes, name: str = "x.xml") -> Location:
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return Location(str(folder / name))


def read(location: Location, size: int = 10**9) -> list[Page | None]:
    site = read_site(location)
    return [one for span in byte_ranges(location, size, size) for one in pages(location, span, site, ReadStatus())]


def titles(location: Location, size: int = 10**9) -> list[str | None]:
    return [one and one.title for one in read(location, size)]


# Multistream dumps and their indexes


def multistream_dump(folder: Path, name: str = "enwiki-pages-articles-multistream") -> tuple[Location, list[int]]:
    """A dump of a header's stream, twelve of ten pages and one that ends it; where they start."""
    streams = [
        HEAD.format("enwiki"),
        *("".join(page(10 * n + k) for k in range(10)) for n in range(12)),
        "</mediawiki>",
    ]
    data, starts = b"", []
    for stream in streams:
        starts.append(len(data))
        data += bz2.compress(stream.encode())
    return written(folder, data, f"{name}.xml.bz2"), starts


def index_of(starts: list[int]) -> str:
    """As Wikimedia writes it: a line a page, with the start of its stream; the last stream has none."""
    return "".join(f"{start}:{10 * n + k}:Page: {k}\n" for n, start in enumerate(starts[1:-1]) for k in range(10))


@pytest.mark.parametrize("packed", [True, False])
def test_an_index_has_the_ranges_that_a_scan_for_streams_finds(tmp_path: Path, packed: bool, monkeypatch):
    location, starts = multistream_dump(tmp_path)
    size = 2 * (starts[2] - starts[1])
    scanned = byte_ranges(location, size, size)
    assert len(scanned) > 3
    data = index_of(starts).encode()
    written(tmp_path, bz2.compress(data) if packed else data, f"{location.name[:-8]}-index.txt" + ".bz2" * packed)
    seen = []
    monkeypatch.setattr(multistream, "_scan", lambda _location, _size, last: seen.append(last) or [])
    indexed = byte_ranges(location, size, size)
    assert seen == [indexed[-1].start] and indexed[:-1] == scanned[: len(indexed) - 1]
    monkeypatch.undo()
    assert byte_ranges(location, size, size) == scanned
    assert len(read(location, size)) == 120


@pytest.mark.parametrize("index", ["7:1:Of another dump\n999999:2:x\n", "99999999:1:x\n", "no index at all", "", "1:2"])
def test_a_wrong_index_is_not_used(tmp_path: Path, index: str):
    location, starts = multistream_dump(tmp_path)
    size = 2 * (starts[2] - starts[1])
    scanned = byte_ranges(location, size, size)
    written(tmp_path, index, f"{location.name[:-8]}-index.txt")
    assert byte_ranges(location, size, size) == scanned


def test_an_index_among_the_files_is_left_out_with_its_dump_and_refused_alone(tmp_path: Path):
    location, starts = multistream_dump(tmp_path)
    index = written(tmp_path, bz2.compress(index_of(starts).encode()), f"{location.name[:-8]}-index.txt.bz2")
    assert multistream.without_indexes([index, location]) == [location]
    with pytest.raises(UserError, match=r"index\.txt\.bz2: is the index of a multistream dump; give the dump as well"):
        multistream.without_indexes([index])


# Joined, padded and marked


def test_two_dumps_of_one_wiki_in_a_file_are_both_read(tmp_path: Path):
    assert titles(written(tmp_path, dump(page(1)) + dump(page(2)))) == ["Page 1", "Page 2"]
    packed = bz2.compress(dump(page(1)).encode()) + bz2.compress(dump(page(2)).encode())
    assert titles(written(tmp_path, packed, "x.bz2")) == ["Page 1", "Page 2"]


def test_two_wikis_in_a_file_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"x\.xml: holds dumps of two wikis, enwiki and dewiki"):
        read(written(tmp_path, dump(page(1)) + dump(page(2), wiki="dewiki")))


def test_byte_order_mark_line_ends_and_bytes_after_the_end_are_handled(tmp_path: Path):
    data = codecs.BOM_UTF8 + dump(page(1, "One.\nTwo.")).replace("\n", "\r\n").encode() + b"garbage" * 1000
    (found,) = read(written(tmp_path, data))
    assert found and found.text == "One.\nTwo."
    packed = bz2.compress(dump(page(1)).encode()) + b"garbage" * 1000
    assert titles(written(tmp_path, packed, "x.bz2")) == ["Page 1"]


# Hostile


@pytest.mark.parametrize("size", [10**9, 500])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_document_type_definition_is_refused_at_any_position(tmp_path: Path, where: int, size: int):
    bomb = '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>\n'
    parts = [page(1, "Word " * 200), page(2, "Word " * 200)]
    parts.insert(where, bomb)
    with pytest.raises(UserError, match=r"x\.xml: has a document type definition"):
        read(written(tmp_path, dump(*parts)), size)


def test_entities_that_nobody_defined_stay_as_they_are(tmp_path: Path):
    (found,) = read(written(tmp_path, dump(page(1, "&lol; &#0; &#xD800; &#x110000; &amp;lt; &#38;lt; &#x41;"))))
    assert found and found.text == "&lol; &#0; &#xD800; &#x110000; &lt; &lt; A"


def test_comments_and_sections_hide_no_page_and_bring_none(tmp_path: Path):
    inside = [page(1), f"<!-- {page(9)} -->", page(2, "<![CDATA[a <b> </page> & c]]>"), page(3, "x<!-- </page> -->y")]
    found = read(written(tmp_path, dump(*inside)))
    assert [(one.title, one.text) for one in found if one] == [
        ("Page 1", "Text."),
        ("Page 2", "a <b> </page> & c"),
        ("Page 3", "xy"),
    ]


def test_only_the_page_that_is_incomplete_or_has_zero_bytes_is_malformed(tmp_path: Path):
    cut = page(2).removesuffix("</page>\n")
    assert titles(written(tmp_path, dump(page(1), cut, page(3), page(4, "a\0b"), page(5)))) == [
        "Page 1",
        None,
        "Page 3",
        None,
        "Page 5",
    ]


@pytest.mark.parametrize("kind", ["a page without end", "a title", "a bomb"])
def test_overlong_elements_are_skipped_in_bounded_memory(tmp_path: Path, kind: str):
    long = "a" * (100 << 20)
    if kind == "a page without end":
        location = written(tmp_path, HEAD.format("w") + page(1) + "<page><title>x</title>" + long)
    elif kind == "a title":
        location = written(tmp_path, dump(page(1), page(2, title=long), page(3)))
    else:
        location = written(tmp_path, bz2.compress(dump(page(1), page(2, text=long), page(3)).encode()), "x.bz2")
    del long
    tracemalloc.start()
    try:
        found = titles(location)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == (["Page 1", None] if kind == "a page without end" else ["Page 1", None, "Page 3"])
    assert most < 100 << 20


# Something else


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c rest", "a 7z archive"),
        (b"PK\x03\x04 rest", "a zip archive"),
        (b"Rar!\x1a\x07\x00", "a rar archive"),
        (b"\x28\xb5\x2f\xfd rest", "compressed with zstd"),
        (b"\x04\x22\x4d\x18 rest", "compressed with lz4"),
        (b"\x1f\x9d rest", "compressed with compress"),
        (tar(), "a tar archive"),
        (dump(page(1)).encode("utf-16"), "UTF-16"),
        (dump(page(1)).encode("utf-16-be"), "UTF-16BE"),
        (dump(page(1)).encode("utf-32"), "UTF-32"),
        (dump(page(1)).encode("utf-32-le"), "UTF-32LE"),
        (b"-- MySQL dump 10.19\n", "an SQL dump"),
        (b'{"batchcomplete":"","query":{}}', "JSON of MediaWiki's API"),
        (b'{"name":"x","article_body":{}}', "JSON of Wikimedia Enterprise"),
        (b"<!doctype html><html>", "HTML"),
        (b"PAR1rest", "a Parquet file"),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><mediawiki><page>", "ISO-8859-1"),
        (bz2.compress(bz2.compress(b"<mediawiki>")), "compressed twice"),
    ],
)
def test_another_format_is_named_under_any_file_name(tmp_path: Path, data: bytes, message: str):
    location = written(tmp_path, data, "enwiki-latest-pages-articles.xml.bz2")
    with pytest.raises(UserError, match=r"pages-articles\.xml\.bz2: ") as error:
        compression(location)
        read_site(location)
    assert message in str(error.value) and "\n" not in str(error.value)
