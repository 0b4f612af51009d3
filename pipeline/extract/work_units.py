"""A source's files -> units of work: ranges of large files, or a few small files at a time.

The units depend on the input files alone, so that the next run has the same units and skips the finished ones.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.threads import prefetch
from cloze.pipeline.extract import sentence_lines
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.sources import DocumentsSource, SentencesSource, Source, WikipediaSource
from cloze.pipeline.extract.wikipedia import dump, multistream, repartition

XML_UNIT_BYTES = 16 << 20  # of uncompressed XML in a unit, and in a partition of a compressed stream
MULTISTREAM_UNIT_BYTES = 4 << 20  # compressed, in a unit of a multistream dump
MAX_STREAM_BYTES = 6 << 20  # compressed; longer ranges are repartitioned. Those of a multistream dump are shorter
FILES_UNIT_BYTES = 16 << 20  # of books, documents or sentences in a unit
_FILES_AT_ONCE = 8  # that are divided into ranges, each with up to 32 MB in memory while its streams are looked for


class FileRange(NamedTuple):
    """A file or a range of it. A `long_stream` is a compressed stream that is repartitioned before it is read; each of
    its partitions then becomes a FileRange with a `partition`.
    """

    file: SourceFile
    byte_range: ByteRange
    site: dump.Site
    long_stream: bool = False
    partition: repartition.Partition | None = None


class WorkUnit(NamedTuple):
    """The unit of work that a worker processes at a time. `name` numbers the unit and names its shards."""

    name: str
    source: Source
    file_ranges: list[FileRange]

    def __str__(self) -> str:
        first, rest = self.file_ranges[0], len(self.file_ranges) - 1
        more = f" and {rest} more" if rest else ""
        return f"range {self.name} (bytes {first.byte_range.start}-{first.byte_range.end} of {first.file.uri}{more})"


def plan_units(config: ExtractConfig, inputs: Mapping[str, Sequence[SourceFile]]) -> list[WorkUnit]:
    """All units, in the order of the sources and of the files' digests; a file that is given twice is read once."""
    planned: list[tuple[Source, list[FileRange]]] = []
    for source in config.sources:
        by_key = {_identity(source, file): file for file in sorted(inputs[source.name], key=lambda file: file.uri)}
        files = [by_key[key] for key in sorted(by_key)]
        if isinstance(source, WikipediaSource):
            locations = set(multistream.without_indexes([file.location for file in files]))
            dumps = [file for file in files if file.location in locations]
            ranges = prefetch(_dump_ranges, dumps, _FILES_AT_ONCE)
            planned += [(source, [file_range]) for of_dump in ranges for file_range in of_dump]
        else:
            planned += [(source, group) for group in _file_groups(source, files)]
    return [WorkUnit(f"{number:05}", source, ranges) for number, (source, ranges) in enumerate(planned)]


def _identity(source: Source, file: SourceFile) -> str:
    """Equal for files that are read alike. The suffix matters only for sources whose format it determines."""
    return file.identity if isinstance(source, DocumentsSource | SentencesSource) else file.sha256


def _dump_ranges(file: SourceFile) -> list[FileRange]:
    site = dump.read_site(file.location)
    compressed = dump.compression(file.location) != "xml"
    ranges = dump.byte_ranges(file.location, XML_UNIT_BYTES, MULTISTREAM_UNIT_BYTES)
    return [FileRange(file, one, site, compressed and one.size > MAX_STREAM_BYTES) for one in ranges]


def _file_groups(source: Source, files: Sequence[SourceFile]) -> Iterator[list[FileRange]]:
    """Whole files, a few at a time; large files with one sentence per line in ranges."""
    ranges: Iterable[list[ByteRange]] = ([ByteRange(0, file.bytes)] for file in files)
    if isinstance(source, SentencesSource):
        ranges = prefetch(partial(_sentence_ranges, source), files, _FILES_AT_ONCE)
    group: list[FileRange] = []
    size = 0
    for file, of_file in zip(files, ranges, strict=True):
        for byte_range in of_file:
            group.append(FileRange(file, byte_range, dump.Site()))
            size += byte_range.size
            if size >= FILES_UNIT_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _sentence_ranges(source: SentencesSource, file: SourceFile) -> list[ByteRange]:
    return list(sentence_lines.byte_ranges(file.location, source.boundary, FILES_UNIT_BYTES))
