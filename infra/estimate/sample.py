"""Places of a Wikipedia dump -> how much text it contains.

A dump's first pages are long old articles, and a whole dump is mostly redirects, stubs and pages that are no articles.
So the places are spread over the file; of a dump that is one compressed stream only its beginning can be read.
"""

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.document import Document
from cloze.pipeline.extract.records_to_documents import UnitNotes, read_records
from cloze.pipeline.extract.sources import WikipediaSource
from cloze.pipeline.extract.wikipedia import dump
from cloze.pipeline.extract.wikipedia.decompress import ReadStatus, compression, read_blocks
from cloze.pipeline.extract.work_units import FileRange, WorkUnit

_PLACES = 4
_PLACE_BYTES = 1 << 20  # of the file as it is stored
_STREAM_HEADER = re.compile(rb"BZh[1-9]1AY&SY")


class DumpSample(NamedTuple):
    """What a sample of a dump contains."""

    expansion: float  # bytes of XML per byte of the file
    words: float  # in documents that are kept, per 10^6 bytes of XML
    documents: float  # per 10^6 bytes of XML


def dump_sample(uri: str, source: WikipediaSource, config: ExtractConfig) -> DumpSample:
    """Decompress and extract some places of a dump."""
    return _sample(uri, source.model_dump_json(), config.model_copy(update={"sources": [source]}).model_dump_json())


@cache
def _sample(uri: str, source_json: str, config_json: str) -> DumpSample:
    location = Location(uri)
    source, config = WikipediaSource.model_validate_json(source_json), ExtractConfig.model_validate_json(config_json)
    read = xml = complete = words = documents = 0
    for start in _places(location):
        data, stored = _read_place(location, start)
        read, xml = read + stored, xml + len(data)
        first, last = data.find(b"<page>"), data.rfind(b"</page>") + len(b"</page>")
        if 0 <= first < last:
            complete += last - first
            for document in _documents(data[first:last], location, source, config):
                words, documents = words + document.num_words, documents + 1
    megabytes = max(1, complete) / 1e6
    return DumpSample(xml / max(1, read), words / megabytes, documents / megabytes)


def _places(location: Location) -> list[int]:
    """Where to begin to read: offsets that are spread evenly, in bz2 those of the streams that begin next."""
    size, kind = location.size(), compression(location)
    even = [size * number // _PLACES for number in range(_PLACES)] if size > _PLACES * _PLACE_BYTES else [0]
    if kind == "xml":
        return even
    if kind != "bz2" or len(even) == 1:
        return [0]
    found = [0]
    with location.open() as file:
        for offset in even[1:]:
            file.seek(offset)
            if header := _STREAM_HEADER.search(file.read(_PLACE_BYTES)):
                found.append(offset + header.start())
    return found


def _read_place(location: Location, start: int) -> tuple[bytes, int]:
    """The XML of about a mebibyte of the file from `start`, and the bytes of the file that it was read from."""
    size, status, data = location.size(), ReadStatus(), bytearray()
    end = min(size, start + _PLACE_BYTES)
    for block in read_blocks(location, ByteRange(start, size), status):
        if status.bytes_read > end:  # the block may be from after the place
            break
        data += block.data
    return bytes(data), end - start


def _documents(pages: bytes, location: Location, source: WikipediaSource, config: ExtractConfig) -> Iterator[Document]:
    """The documents of whole pages of a dump."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pages.xml")
        file.write_bytes(b"<mediawiki>\n" + pages + b"\n</mediawiki>\n")
        size = file.stat().st_size
        part = FileRange(SourceFile(str(file), "", size), ByteRange(0, size), dump.read_site(location))
        for record in read_records(WorkUnit("sample", source, [part]), config, UnitNotes()):
            if isinstance(record, Document):
                yield record
