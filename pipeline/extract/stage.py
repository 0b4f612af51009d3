"""sources -> document shards (Beam).

The files are cut into units: ranges of a dump, or a handful of smaller files. Units follow from the input alone. Beam
hands them out; a worker reads its unit, writes its own shards and commits them, so that no text travels through Beam
and a unit that is done is never done again.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from cloze.pipeline.core.artifacts import Manifest, Output, Part
from cloze.pipeline.core.beam import for_each
from cloze.pipeline.core.config import Compute, Config, InputPath
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.facts import DroppedRecord, ExtractFacts, TruncatedFile
from cloze.pipeline.core.schema import RecordPosition, parquet_bytes
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import document_files, filters, gutenberg, sentence_lines
from cloze.pipeline.extract.document import Document, document, document_table
from cloze.pipeline.extract.wikipedia import dump, multistream, repartition, wikitext
from cloze.pipeline.text.encodings import Encoding, decode_with_line_starts
from cloze.pipeline.text.sentences import presplit_paragraphs

VERSION = 3

_RANGE = 16 << 20  # bytes of plain XML in a unit
_RANGE_BZ2 = 4 << 20  # compressed bytes in a unit of a multistream dump
_LONG = 6 << 20  # compressed bytes that one reader cuts into pieces; ranges of a multistream dump have less
_FILES = 16 << 20  # bytes of books or documents in a unit
_BOOK = 32 << 20  # bytes: ten times the longest novels
_SHARD = 32 << 20  # characters of text in a shard
_SAMPLES = 3  # dropped documents of each reason that a unit, and the manifest, shows

_LANGUAGES = {
    "Chinese": "zh", "Danish": "da", "Dutch": "nl", "English": "en", "Esperanto": "eo", "Finnish": "fi", "French": "fr",
    "German": "de", "Greek": "el", "Hungarian": "hu", "Italian": "it", "Japanese": "ja", "Latin": "la", "Polish": "pl",
    "Portuguese": "pt", "Russian": "ru", "Spanish": "es", "Swedish": "sv",
}  # fmt: skip


class _Source(Config):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    files: Annotated[list[str], InputPath("")] = Field(min_length=1)
    language: str = ""
    only_languages: list[str] = Field(default=[])  # what is certainly in another one is dropped


class WikipediaSource(_Source):
    """A MediaWiki XML dump: its articles. `language` overrules the dump's own."""

    kind: Literal["wikipedia"]
    licence: str = "CC BY-SA 4.0"
    templates: dict[str, str] = Field(default={})  # more templates that carry prose: name -> pattern: nobr: "{1}"
    disambiguation: list[str] = Field(default=[])  # more templates whose pages only tell names apart
    keep_headings: bool = False
    keep_lists: bool = False


class BooksSource(_Source):
    """Plain-text books. A document is a chapter, a book, or so many sentences of one: "sentences:200"."""

    kind: Literal["books"]
    licence: str = ""
    encoding: Encoding = ""
    unit: str = Field(default="chapter", pattern=r"^(chapter|book|sentences:[1-9]\d{0,6})$")

    @property
    def every(self) -> int:
        """Sentences in a document; 0 where they are not counted."""
        return int(self.unit.partition(":")[2] or 0)


class DocumentsSource(_Source):
    """A team's own Parquet, JSON lines, CSV, TSV or text files. `licence` and `language` hold where no column does."""

    kind: Literal["documents"]
    licence: str = ""
    encoding: Encoding = ""
    columns: document_files.Columns = document_files.Columns()


class SentencesSource(_Source):
    """Text with a sentence a line, which stays as it is, and a blank line between documents: BERT's original input.

    Where blank lines are missing, `marker` is what the line between two documents begins with, or `every` says how
    many sentences make one.
    """

    kind: Literal["sentences"]
    licence: str = ""
    encoding: Encoding = ""
    marker: str = ""
    every: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_rule(self) -> "SentencesSource":
        if self.marker and self.every:
            raise ValueError("marker and every are two rules for where a document ends; keep one")
        if self.encoding and "\n".encode(self.encoding) != b"\n":
            raise ValueError(f"encoding {self.encoding} cannot be read line by line; convert the files to UTF-8")
        return self

    @property
    def rule(self) -> sentence_lines.Rule:
        return sentence_lines.Rule(self.marker, self.every)


Source = Annotated[WikipediaSource | BooksSource | DocumentsSource | SentencesSource, Field(discriminator="kind")]


class ExtractConfig(Config):
    sources: list[Source] = Field(min_length=1)
    heldout_fraction: float = Field(default=0.01, ge=0, lt=1)
    #: Shorter documents are dropped. A character of a script without spaces, as Japanese, is a word (words.py).
    min_words: int = Field(default=10, ge=0)
    min_letters: float = Field(default=0.6, ge=0, le=1)  # of all but white space; below it are tables and numbers
    beam: Annotated[list[str], Compute] = Field(default=["--runner=FnApiRunner"])  # any options of Beam's


class Piece(NamedTuple):
    """A file, or a range of it; a `long` one has but one reader and is spooled, and then `stored` in pieces."""

    file: SourceFile
    span: dump.Range
    site: dump.Site
    long: bool = False
    stored: repartition.Stored | None = None


class Unit(NamedTuple):
    """What one worker does at once; `name` is its shards' number."""

    name: str
    source: Source
    pieces: list[Piece]

    def __str__(self) -> str:
        first, rest = self.pieces[0], len(self.pieces) - 1
        more = f" and {rest} more" if rest else ""
        return f"range {self.name} (bytes {first.span.start}-{first.span.end} of {first.file.uri}{more})"


class Dropped(NamedTuple):
    """A record that became no document."""

    reason: str
    record: str
    sample: str = ""


@dataclass
class Notes:
    """What a unit has to say beside its documents."""

    truncated: list[dict[str, str]] = field(default_factory=list)
    templates: Counter[str] = field(default_factory=Counter)


def units(config: ExtractConfig, inputs: Mapping[str, Sequence[SourceFile]]) -> list[Unit]:
    """The work, in the order of the sources and of the files' digests; a file that is given twice is read once."""
    found: list[tuple[Source, list[Piece]]] = []
    for source in config.sources:
        by_key = {_key(source, file): file for file in sorted(inputs[source.name], key=lambda file: file.uri)}
        files = [by_key[key] for key in sorted(by_key)]
        if isinstance(source, WikipediaSource):
            dumps = multistream.dumps([file.location for file in files])
            found += [(source, [piece]) for file in files if file.location in dumps for piece in _ranges(file)]
        else:
            found += [(source, group) for group in _groups(source, files)]
    return [Unit(f"{number:05}", source, pieces) for number, (source, pieces) in enumerate(found)]


def _key(source: Source, file: SourceFile) -> str:
    """What makes two files one; a dump and a book are read alike whatever their suffix."""
    return file.identity if isinstance(source, DocumentsSource | SentencesSource) else file.sha256


def _ranges(file: SourceFile) -> list[Piece]:
    site = dump.read_site(file.location)
    packed = dump.compression(file.location) != "xml"
    spans = dump.ranges(file.location, _RANGE, _RANGE_BZ2)
    return [Piece(file, span, site, packed and span.end - span.start > _LONG) for span in spans]


def _spooled(work: Sequence[Unit], config: ExtractConfig, folder: Location, out: Output) -> list[Unit]:
    """The units with the pieces of every long stream in its place, cut now where they are not there."""
    streams = {
        unit.name: repartition.Stream(unit.name, piece.file.location, piece.span, piece.site.dbname)
        for unit in work
        for piece in unit.pieces
        if piece.long
    }
    if missing := repartition.missing(list(streams.values()), folder, out):
        with repartition.progress(missing, folder, out):
            for_each(missing, partial(repartition.spool, scratch=folder, out=out, size=_RANGE), config.beam)
    found: list[Unit] = []
    for unit in work:
        if stream := streams.get(unit.name):
            (piece,) = unit.pieces
            stored = repartition.stored(stream, folder, out)
            found += [Unit(one.name, unit.source, [piece._replace(span=one.span, stored=one)]) for one in stored]
        else:
            found.append(unit)
    return found


def _groups(source: Source, files: Sequence[SourceFile]) -> Iterator[list[Piece]]:
    """Whole files, a few at a time; those of a sentence a line in ranges where they are large."""
    group: list[Piece] = []
    for file in files:
        spans: Iterable[dump.Range] = [dump.Range(0, file.bytes)]
        if isinstance(source, SentencesSource):
            spans = sentence_lines.ranges(file.location, source.rule, _FILES)
        for span in spans:
            group.append(Piece(file, span, dump.Site()))
            if sum(piece.span.end - piece.span.start for piece in group) >= _FILES:
                yield group
                group = []
    if group:
        yield group


def records(unit: Unit, config: ExtractConfig, notes: Notes) -> Iterator[Document | Dropped]:
    """Every record of a unit, as a document or as the reason why it is none."""
    for piece in unit.pieces:
        if isinstance(unit.source, WikipediaSource):
            found = _articles(unit.source, piece, config, notes)
        elif isinstance(unit.source, BooksSource):
            found = _chapters(unit.source, piece, config)
        elif isinstance(unit.source, SentencesSource):
            found = _given(unit.source, piece, config)
        else:
            found = _rows(unit.source, piece, config)
        for record in found:
            if isinstance(record, Document) and (reason := _unwanted(record, unit.source, config)):
                yield Dropped(reason, record.title or record.doc_id, record.text)
            else:
                yield record


def _unwanted(record: Document, source: Source, config: ExtractConfig) -> str:
    """Why a document is dropped, empty where it stays."""
    if record.num_words < config.min_words:
        return "too short"
    if filters.letters(record.text) < config.min_letters:
        return "not enough letters"
    found = filters.language(record.text) if source.only_languages else ""
    return "wrong language" if found and found not in source.only_languages else ""


def _articles(
    source: WikipediaSource, piece: Piece, config: ExtractConfig, notes: Notes
) -> Iterator[Document | Dropped]:
    site = piece.site
    language = source.language or site.language
    wiki = site.dbname or (f"{language}wiki" if language else source.name)
    rules = wikitext.Rules(
        hidden=frozenset(site.named(6) | site.named(14)),
        templates={name.lower().replace("_", " "): pattern for name, pattern in source.templates.items()},
        keep_headings=source.keep_headings,
        keep_lists=source.keep_lists,
    )
    disambiguation = frozenset(name.lower().replace("_", " ") for name in source.disambiguation)
    truncation = dump.Truncation()
    if piece.stored:
        pages = dump.parsed(piece.file.location, repartition.stored_bytes(piece.stored, truncation), site)
    else:
        pages = dump.pages(piece.file.location, piece.span, site, truncation)
    for page in pages:
        if reason := _no_article(page):
            yield Dropped(reason, page.title if page else "")
            continue
        assert page
        dropped: Counter[str] = Counter()
        text = wikitext.paragraphs(page.text, rules, dropped)
        notes.templates.update(dropped)
        if filters.is_disambiguation(page.title, page.text, dropped, disambiguation):
            yield Dropped("disambiguation", page.title, page.text)
            continue
        if not text:
            yield Dropped("no prose", page.title, page.text)
            continue
        yield document(
            text,
            doc_id=f"{wiki}:{page.page_id}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=language,
            title=page.title,
            url=site.url(page.title),
            revision=page.revision,
            timestamp=page.timestamp,
            licence=source.licence,
            file_sha256=piece.file.sha256,
            record=page.record,
        )
    if truncation.reason:
        notes.truncated.append({"file": piece.file.uri, "reason": truncation.reason})


def _no_article(page: dump.Page | None) -> str:
    """Why a page is no article, empty where it is one."""
    if page is None:
        return "malformed"
    if page.namespace != 0:
        return "namespace"
    if page.redirect:
        return "redirect"
    if page.model != "wikitext":
        return "not wikitext"
    return "" if page.text.strip() else "empty"


def _chapters(source: BooksSource, piece: Piece, config: ExtractConfig) -> Iterator[Document | Dropped]:
    file = piece.file
    with file.location.open() as opened:
        sentence_lines.refuse(file.location, opened.read(1 << 20).decode("utf-8", "replace"))
    if file.bytes > _BOOK:
        raise UserError(
            f"{file.uri}: has {file.bytes:,} bytes, more than a book of at most {_BOOK:,}; give a file for each book"
        )
    text, starts = decode_with_line_starts(file.location.read_bytes(), file.uri, source.encoding)
    book = gutenberg.read_book(text)
    if not book.chapters:
        yield Dropped("no prose", file.location.name)
        return
    chapters = book.chapters
    if source.unit == "book":
        chapters = [gutenberg.whole(chapters)]
    elif source.every:
        chapters = gutenberg.cut(chapters, source.every)
    for number, chapter in enumerate(chapters):
        first = starts[chapter.spans[0].first]
        yield document(
            chapter.paragraphs,
            doc_id=f"{source.name}:{file.sha256[:16]}:{number}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=source.language or _LANGUAGES.get(book.language, ""),
            title=": ".join(filter(None, (book.title, chapter.title))),
            licence=source.licence,
            file_sha256=file.sha256,
            record=RecordPosition(0, first, starts[chapter.spans[-1].end] - first),
        )


def _rows(source: DocumentsSource, piece: Piece, config: ExtractConfig) -> Iterator[Document | Dropped]:
    file = piece.file
    for number, (record, row) in enumerate(document_files.rows(file.location, source.columns, source.encoding)):
        text = document_files.paragraphs(row.text)
        if not text:
            yield Dropped("empty", row.title or f"row {number + 1}")
            continue
        yield document(
            text,
            doc_id=f"{source.name}:{row.doc_id or f'{file.sha256[:16]}:{number}'}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=row.language or source.language,
            title=row.title,
            url=row.url,
            timestamp=row.timestamp,
            licence=row.licence or source.licence,
            file_sha256=file.sha256,
            record=record,
        )


def _given(source: SentencesSource, piece: Piece, config: ExtractConfig) -> Iterator[Document | Dropped]:
    file = piece.file
    for offset, sentences, size in sentence_lines.documents(file.location, piece.span, source.rule, source.encoding):
        yield document(
            presplit_paragraphs(sentences),
            doc_id=f"{source.name}:{file.sha256[:16]}:{offset}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=source.language,
            licence=source.licence,
            file_sha256=file.sha256,
            record=RecordPosition(0, offset, size),
        )


def extract(unit: Unit, config: ExtractConfig, out: Output) -> None:
    """Read a unit, write its shards and commit them. Raises UserError."""
    if out.finished_part(unit.name):
        return
    notes = Notes()
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    samples: dict[str, list[dict[str, str]]] = {}
    shards: dict[str, bytes] = {}
    held: list[Document] = []

    def flush() -> None:
        if held:
            shards[f"documents/{unit.name}-{len(shards):02}.parquet"] = parquet_bytes(document_table(held))
            held.clear()

    size = 0
    for record in records(unit, config, notes):
        counts["records"] += 1
        if isinstance(record, Dropped):
            drops[record.reason] += 1
            if len(shown := samples.setdefault(record.reason, [])) < _SAMPLES:
                shown.append({"record": record.record, "text": record.sample[:300]})
            continue
        counts.update(documents=1, words=record.num_words, heldout=record.split == "heldout")
        held.append(record)
        size += record.num_chars
        if size >= _SHARD:
            flush()
            size = 0
    flush()
    facts = {
        "source": unit.source.name,
        "samples": samples,
        "truncated": notes.truncated,
        "templates": dict(notes.templates.most_common(1000)),
    }
    out.commit(unit.name, shards, counts, drops, facts)


def run(config: ExtractConfig, inputs: Mapping[str, Sequence[SourceFile]], out: Output) -> Manifest:
    """`inputs` maps a source's name to its files. Raises UserError: a file that is not what its source says."""
    given = [(name, file) for name, files in inputs.items() for file in files]
    for _, file in given:
        if not file.bytes:
            raise UserError(f"{file.uri}: is empty; fetch it again or leave it out")
    for source in config.sources:
        if source.only_languages:
            filters.check_languages(source.only_languages)
    with scratch_folder(out.location) as folder:
        work = _spooled(units(config, inputs), config, folder, out)
        _extract_all(work, config, out)
        parts = out.require_parts(
            [unit.name for unit in work]
        )  # inside: what is missing is made again from what lies there
    if not sum(part.counts.get("documents", 0) for part in parts):
        raise UserError(
            f"{', '.join(inputs)}: hold no document; give other files or lower min_words (now {config.min_words})"
        )
    digests = {f"{name}/{file.sha256[:12]}/{file.location.name}": file.sha256 for name, file in given}
    facts = facts_of(parts)
    counts = {"truncated_files": len(facts.truncated)} if facts.truncated else {}
    return out.finish(parts, config.model_dump(mode="json"), digests, counts, facts=facts)


def _extract_all(work: Sequence[Unit], config: ExtractConfig, out: Output) -> None:
    """Every unit that is not done yet (Beam)."""
    finished = out.finished_parts([unit.name for unit in work])
    if missing := [unit for unit in work if unit.name not in finished]:
        with out.reporting_parts(len(work), "ranges"):
            for_each(missing, partial(extract, config=config, out=out), config.beam)


def facts_of(parts: Sequence[Part]) -> ExtractFacts:
    """What each source gave, samples of what was dropped, cut files, the templates dropped most."""
    sources: dict[str, Counter[str]] = {}
    samples: dict[str, list[DroppedRecord]] = {}
    templates: Counter[str] = Counter()
    truncated: dict[str, TruncatedFile] = {}  # by file: several ranges may meet the end of one
    for part in parts:
        sources.setdefault(part.facts["source"], Counter()).update(part.counts)
        sources[part.facts["source"]].update({f"dropped: {reason}": n for reason, n in part.drops.items()})
        for reason, shown in part.facts["samples"].items():
            samples[reason] = [*samples.get(reason, []), *(DroppedRecord(**one) for one in shown)][:_SAMPLES]
        templates.update(part.facts["templates"])
        for cut in part.facts["truncated"]:
            truncated.setdefault(cut["file"], TruncatedFile(**cut))
    return ExtractFacts(
        sources={name: dict(sorted(counts.items())) for name, counts in sources.items()},
        samples=samples,
        truncated=list(truncated.values()),
        templates=dict(templates.most_common(50)),
    )
