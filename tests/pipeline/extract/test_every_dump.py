"""Every dump at hand: the pages in it are its documents and its drops by reason.

The dumps of ../shared/data/wiki are read where they are, beside the small ones of tests/data/extract. The pages are
counted by other means than the project's: whole files decompressed, each page through an XML parser.
"""

import bz2
import gzip
import hashlib
import lzma
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract.stage import ExtractConfig
from tests.paths import DATA, SHARED

OWN = DATA / "extract"
WIKI = SHARED / "data/wiki"
DUMPS = sorted(path for folder in (OWN, SHARED, WIKI / "formats") for path in folder.glob("*.xml*"))
DUMPS += sorted(WIKI.glob("*.bz2"))
OTHER = {"utf16": "UTF-16", ".7z": "7z", "bgwiki": "UTF-16"}  # in a dump's name: what it is refused as


def refused_as(path: Path) -> str:
    return next((what for mark, what in OTHER.items() if mark in path.name), "")


READ = sorted({path for path in DUMPS if not refused_as(path)})
REFUSED = sorted({path for path in DUMPS if refused_as(path)})


def extracted(path: Path, folder: Path) -> Manifest:
    source = {"name": "wiki", "kind": "wikipedia", "files": [str(path)]}
    config = ExtractConfig.model_validate({"sources": [source], "min_words": 20})
    given = SourceFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    out = Output(Location(str(folder)), "extract", extract.VERSION, "0" * 16)
    return extract.run(config, {"wiki": [given]}, out)


def content(path: Path) -> bytes:
    """What a file holds, up to where it is cut."""
    data = path.read_bytes()
    if data.startswith(b"BZh"):
        return bz2.BZ2Decompressor().decompress(data)
    if data.startswith((b"\xfd7z", b"]\0\0")):
        return lzma.LZMADecompressor().decompress(data)
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def kinds(path: Path) -> Counter[str]:
    """How many whole pages there are of each kind."""
    found: Counter[str] = Counter()
    for raw in re.findall(rb"<page>.*?</page>", content(path), re.DOTALL):
        page = ElementTree.fromstring(re.sub(rb"xml:space=.preserve.", b"", raw))
        text = page.findtext("revision/text") or ""
        namespace = page.findtext("ns")
        other = namespace != "0" if namespace else page.findtext("title", "").startswith(("Template:", "Category:"))
        redirect = page.find("redirect") is not None or text.lstrip().upper().startswith("#REDIRECT")
        found["namespace" if other else "redirect" if redirect else "article"] += 1
    return found


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_pages_are_documents_and_drops(path: Path, tmp_path: Path):
    found = kinds(path)
    if not found["article"]:
        with pytest.raises(UserError, match="hold no document"):
            extracted(path, tmp_path)
        return
    manifest = extracted(path, tmp_path)
    assert manifest.counts["records"] == found.total() == manifest.counts["documents"] + sum(manifest.drops.values())
    assert {reason: manifest.drops.get(reason, 0) for reason in ("namespace", "redirect")} == {
        "namespace": found["namespace"],
        "redirect": found["redirect"],
    }
    assert set(manifest.drops) <= {"namespace", "redirect", "disambiguation", "no prose", "too short", "not wikitext"}
    assert all(0 < len(manifest.facts["samples"][reason]) <= manifest.drops[reason] for reason in manifest.drops)
    assert bool(manifest.facts["truncated"]) == (b"</mediawiki>" not in content(path)[-100:])
    (sources,) = manifest.facts["sources"].values()
    assert sources["documents"] == manifest.counts["documents"]


@pytest.mark.parametrize("path", REFUSED, ids=lambda path: path.name)
def test_an_unreadable_dump_is_named(path: Path, tmp_path: Path):
    with pytest.raises(UserError, match=refused_as(path)) as error:
        extracted(path, tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
