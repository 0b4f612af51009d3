import bz2
import gzip
import lzma
import random
from itertools import pairwise
from pathlib import Path

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia.dump import Page, ReadStatus, Site, byte_ranges, compression, pages, read_site
from tests.paths import DATA

EXTRACT = DATA / "extract"

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="xx"><siteinfo>
<dbname>xxwiki</dbname><base>https://xx.example.org/wiki/Main</base><namespaces>
<namespace key="0" /><namespace key="1">Tokk</namespace><namespace key="6">Tập tin</namespace>
</namespaces></siteinfo>
"""


def page(number: int, text: str = "Text.", title: str = "", more: str = "<ns>0</ns>") -> str:
    return (
        f"  <page>\n    <title>{title or f'Page {number}'}</title>\n    {more}<id>{number}</id>\n    <revision>"
        f"<id>{number + 1000}</id><timestamp>2020-01-02T03:04:05Z</timestamp><contributor><id>7</id></contributor>"
        f'<text xml:space="preserve">{text}</text></revision>\n  </page>\n'
    )


def xml(*bodies: str, header: str = HEADER, end: str = "</mediawiki>\n") -> bytes:
    return (header + "".join(bodies) + end).encode()


def write(folder: Path, data: bytes, name: str = "dump") -> Location:
    path = folder / name
    path.write_bytes(data)
    return Location(str(path))


def read(location: Location, span: ByteRange | None = None) -> tuple[list[Page | None], str]:
    status = ReadStatus()
    span = span or ByteRange(0, location.size())
    return list(pages(location, span, read_site(location), status)), status.truncation


def test_every_compression_has_the_same_pages_under_any_name(tmp_path: Path):
    data = xml(page(1), page(2))
    packed = {"xml": data, "bz2": bz2.compress(data), "gz": gzip.compress(data), "xz": lzma.compress(data)}
    packed["lzma"] = lzma.compress(data, lzma.FORMAT_ALONE)
    for kind, content in packed.items():
        location = write(tmp_path, content, f"{kind}.of-any-name")
        assert compression(location) == {"lzma": "xz"}.get(kind, kind)
        found, reason = read(location)
        assert [(p.page_id, p.title, p.revision, p.text) for p in found if p] == [
            (1, "Page 1", 1001, "Text."),
            (2, "Page 2", 1002, "Text."),
        ]
        assert reason == ""


def test_concatenated_streams_are_read_to_the_last(tmp_path: Path):
    data = xml(*map(page, range(30)))
    pieces = [data[i : i + 700] for i in range(0, len(data), 700)]  # pages straddle the streams
    for packer in (bz2.compress, gzip.compress, lzma.compress):
        found, reason = read(write(tmp_path, b"".join(map(packer, pieces))))
        assert [p.page_id for p in found if p] == list(range(30))
        assert reason == ""


@pytest.mark.parametrize(
    "packer", [bytes, lambda data: b"".join(bz2.compress(data[i : i + 90]) for i in range(0, len(data), 90))]
)
def test_ranges_share_the_pages_out_without_loss_or_double(tmp_path: Path, packer):
    location = write(tmp_path, packer(xml(*(page(i, "x" * (i * 13 % 200)) for i in range(40)))))
    for size in (50, 333, 1000, 10**6):
        spans = byte_ranges(location, size, size)
        assert spans[0].start == 0 and spans[-1].end == location.size()
        assert all(a.end == b.start for a, b in pairwise(spans))
        found = [p.page_id for span in spans for p in read(location, span)[0] if p]
        assert found == list(range(40)), size
    assert len(byte_ranges(location, 333, 333)) > 5


def test_a_compressed_single_stream_is_one_range(tmp_path: Path):
    location = write(tmp_path, bz2.compress(xml(page(1))))
    assert byte_ranges(location, 10, 10) == [ByteRange(0, location.size())]


def test_a_dump_truncated_in_a_page_keeps_complete_pages_and_reports_it(tmp_path: Path):
    whole = xml(page(1), page(2), page(3))
    found, reason = read(write(tmp_path, whole[: whole.rindex(b"</text>")]))
    assert [p.page_id for p in found if p] == [1, 2]
    assert "middle of a page" in reason
    found, reason = read(write(tmp_path, xml(page(1), end="")))
    assert len(found) == 1 and "</mediawiki>" in reason


@pytest.mark.parametrize(
    "packer", [lambda data: bz2.compress(data, 1), gzip.compress, lambda data: lzma.compress(data, preset=0)]
)
def test_a_truncated_compressed_stream_keeps_complete_pages_and_reports_it(tmp_path: Path, packer):
    noise = random.Random(1)
    data = xml(*(page(i, noise.randbytes(3000).hex()) for i in range(200)))
    packed = packer(data)
    found, reason = read(write(tmp_path, packed[: len(packed) * 3 // 4]))
    assert 50 < len(found) < 200 and found[-1] and found[-1].page_id == len(found) - 1
    assert "cut off" in reason


@pytest.mark.parametrize("packer", [bz2.compress, gzip.compress, lzma.compress])
def test_a_stream_truncated_before_its_first_page_is_reported_as_cut_off(tmp_path: Path, packer):
    packed = packer(xml(page(1)))
    for size in (20, len(packed) // 4):
        with pytest.raises(UserError, match=r"dump: is cut off: .*fetch it again"):
            read(write(tmp_path, packed[:size]))


def test_bytes_after_the_end_are_no_truncation(tmp_path: Path):
    whole = xml(page(1), end="</mediawiki>" + "\n" * 40)
    assert read(write(tmp_path, whole))[1] == ""
    assert read(write(tmp_path, bz2.compress(whole)))[1] == ""
    location = write(tmp_path, whole)
    for size in range(len(whole) - 60, len(whole)):
        assert {read(location, span)[1] for span in byte_ranges(location, size, size)} == {""}


def test_an_id_that_no_64_bits_hold_is_none(tmp_path: Path):
    revision = page(2).replace("<id>1002</id>", f"<id>{'9' * 20}</id>")
    found, _ = read(write(tmp_path, xml(page(10**19), revision)))
    assert found[0] is None and found[1] and (found[1].page_id, found[1].revision) == (2, 0)


def test_a_damaged_stream_is_an_error_that_names_the_file(tmp_path: Path):
    packed = bytearray(bz2.compress(xml(*map(page, range(2000)))))
    packed[len(packed) // 2] ^= 255
    with pytest.raises(UserError, match=r"dump: is damaged bz2 .*checksum"):
        read(write(tmp_path, bytes(packed)))


def test_pages_of_the_real_excerpts():
    found, reason = read(Location(str(EXTRACT / "enwiki.xml.bz2")))
    assert reason == "" and len(found) == 6
    ampere = next(p for p in found if p and p.title == "Ampere")
    assert (ampere.page_id, ampere.namespace, ampere.redirect, ampere.model) == (772, 0, False, "wikitext")
    assert (ampere.revision, ampere.timestamp) == (628133102, "2014-10-03T21:21:36Z")
    assert "<ref" in ampere.text and "&nbsp;" in ampere.text and "&lt;" not in ampere.text
    assert [p.title for p in found if p and p.redirect] == [
        "AccessibleComputing",
        "AfghanistanHistory",
        "Wikipedia:Adding Wikipedia articles to Nupedia",
    ]
    found, reason = read(Location(str(EXTRACT / "viwiki-cut.xml.xz")))
    assert len(found) == 10 and "middle of a page" in reason


def test_the_last_of_several_revisions_is_the_page():
    found, _ = read(Location(str(EXTRACT / "pear-0.3.xml")))
    data = (EXTRACT / "pear-0.3.xml").read_text()
    assert found[0] and found[0].title == "Pear" and found[0].page_id == 24278
    assert found[0].revision == int(data.rpartition("<revision>\n      <id>")[2].partition("<")[0])


def test_without_ns_the_title_and_the_dumps_own_names_decide(tmp_path: Path):
    titles = {"A: B": 0, "Tokk:X": 1, "tập_tin:X.jpg": 6, "File:X.jpg": 6, "Star Wars: Y": 0, "Plain": 0}
    bodies = [page(n, title=title, more="") for n, title in enumerate(titles)]
    found, _ = read(write(tmp_path, xml(*bodies)))
    assert {p.title: p.namespace for p in found if p} == titles


def test_text_that_is_empty_deleted_or_closed_at_once(tmp_path: Path):
    closed = page(1).replace('<text xml:space="preserve">Text.</text>', '<text bytes="0" />')
    deleted = page(2).replace('<text xml:space="preserve">Text.</text>', '<text deleted="deleted" />')
    found, _ = read(write(tmp_path, xml(closed, deleted, page(3, ""), page(4))))
    assert [p.text for p in found if p] == ["", "", "", "Text."]


def test_entities_are_unescaped_exactly_once(tmp_path: Path):
    text = "&amp;lt;ref&amp;gt; &amp;amp;nbsp; &lt;b&gt; &quot;q&quot; &#233;&#x41; &#38;lt; &apos; &unknown;"
    found, _ = read(write(tmp_path, xml(page(1, text, title="A &amp;amp; B"))))
    assert found[0] and found[0].text == '&lt;ref&gt; &amp;nbsp; <b> "q" éA &lt; \' &unknown;'
    assert found[0].title == "A &amp; B"


def test_redirects_are_seen_without_their_tag(tmp_path: Path):
    texts = ["#REDIRECT [[X]]", " #redirect: [[X]]", "#WEITERLEITUNG [[X]]", "#перенаправление [[X]]", "#重定向[[X]]"]
    found, _ = read(
        write(tmp_path, xml(*(page(n, text) for n, text in enumerate(texts)), page(9, "# a list of [[X]]")))
    )
    assert [p.redirect for p in found if p] == [True] * 5 + [False]


def test_a_page_without_title_is_none_not_lost(tmp_path: Path):
    found, _ = read(write(tmp_path, xml("<page><id>3</id></page>", page(4))))
    assert found[0] is None and found[1]


def test_the_site_is_read_from_the_header():
    site = read_site(Location(str(EXTRACT / "nlwiki.xml")))  # it begins with a comment
    assert (site.dbname, site.language) == ("nlwiki", "nl")
    assert site.namespace_names(6) == {"bestand", "file", "image"}
    assert site.url("Anthony Fokker?") == "http://nl.wikipedia.org/wiki/Anthony_Fokker%3F"
    assert Site(language="de").url("A b") == "https://de.wikipedia.org/wiki/A_b"
    assert Site().url("A") == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "HTML"),
        (b"<html><body>Not found</body></html>", "begins with '<html>"),
        (b"just text", "begins with 'just text'"),
        (b"7z\xbc\xaf\x27\x1c\x00\x03\x97k", "7z"),
        (b"PK\x03\x04aaaaaaaaaa", "zip"),
        (b"\x28\xb5\x2f\xfdaaaaaaaa", "zstd"),
        (xml(page(1)).decode().encode("utf-16"), "UTF-16"),
        (xml(page(1)).decode().encode("utf-16-be"), "UTF-16"),
        (bz2.compress(xml(page(1)).decode().encode("utf-16-le")), "UTF-16"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?>' + xml(page(1)), "ISO-8859-1"),
        (b'<!DOCTYPE m [<!ENTITY a "b">]>' + xml(page(1)), "document type"),
    ],
)
def test_a_file_that_is_no_dump_is_rejected_by_its_format(tmp_path: Path, content: bytes, message: str):
    location = write(tmp_path, content, "wrong")
    with pytest.raises(UserError, match="wrong: ") as error:
        read(location)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_text_in_another_encoding_names_the_page(tmp_path: Path):
    data = xml(page(1), page(2, "caf\u00e9", title="Caf")).replace("\u00e9".encode(), b"\xe9")
    with pytest.raises(UserError, match="is not UTF-8 in the page Caf"):
        read(write(tmp_path, data))
