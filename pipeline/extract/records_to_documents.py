"""The records of a unit of work (pages, books, rows, lines) -> documents, or the reasons why they are dropped."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import RecordPosition
from cloze.pipeline.extract import document_files, filters, gutenberg, sentence_lines
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.document import Document, document
from cloze.pipeline.extract.sources import BooksSource, DocumentsSource, SentencesSource, Source, WikipediaSource
from cloze.pipeline.extract.wikipedia import dump, repartition, wikitext
from cloze.pipeline.extract.work_units import FileRange, WorkUnit
from cloze.pipeline.text.character_encodings import decode_with_line_starts
from cloze.pipeline.text.sentences import presplit_paragraphs

_MAX_BOOK_BYTES = 32 << 20  # ten times the longest novels
_LAYOUT_SAMPLE_BYTES = 1 << 20

_LANGUAGE_CODES = {
    "Chinese": "zh", "Danish": "da", "Dutch": "nl", "English": "en", "Esperanto": "eo", "Finnish": "fi", "French": "fr",
    "German": "de", "Greek": "el", "Hungarian": "hu", "Italian": "it", "Japanese": "ja", "Latin": "la", "Polish": "pl",
    "Portuguese": "pt", "Russian": "ru", "Spanish": "es", "Swedish": "sv",
}  # fmt: skip


class Drop(NamedTuple):
    """A record that became no document: the reason, the record's name, and its text."""

    reason: str
    record: str
    text: str = ""


@dataclass
class UnitNotes:
    """Records about a unit in addition to its documents: truncated files, and the templates that were dropped."""

    truncated: list[dict[str, str]] = field(default_factory=list)
    templates: Counter[str] = field(default_factory=Counter)


def read_records(unit: WorkUnit, config: ExtractConfig, notes: UnitNotes) -> Iterator[Document | Drop]:
    """Every record of a unit, as a document or as a drop with its reason. Adds to `notes`. Raises UserError."""
    for file_range in unit.file_ranges:
        if isinstance(unit.source, WikipediaSource):
            found = _articles(unit.source, file_range, config, notes)
        elif isinstance(unit.source, BooksSource):
            found = _chapters(unit.source, file_range, config)
        elif isinstance(unit.source, SentencesSource):
            found = _sentence_documents(unit.source, file_range, config)
        else:
            found = _rows(unit.source, file_range, config)
        for record in found:
            if isinstance(record, Document) and (reason := _drop_reason(record, unit.source, config)):
                yield Drop(reason, record.title or record.doc_id, record.text)
            else:
                yield record


def _drop_reason(candidate: Document, source: Source, config: ExtractConfig) -> str:
    """Why a document is dropped; empty if it is kept."""
    if candidate.num_words < config.min_words:
        return "too short"
    if filters.letter_fraction(candidate.text) < config.min_letters:
        return "not enough letters"
    language = filters.detect_language(candidate.text) if source.only_languages else ""
    return "wrong language" if language and language not in source.only_languages else ""


def _articles(
    source: WikipediaSource, file_range: FileRange, config: ExtractConfig, notes: UnitNotes
) -> Iterator[Document | Drop]:
    site = file_range.site
    language = source.language or site.language
    wiki = site.dbname or (f"{language}wiki" if language else source.name)
    rules = wikitext.Rules(
        hidden_namespaces=frozenset(site.namespace_names(6) | site.namespace_names(14)),
        linked_namespaces=frozenset(site.namespace_names(-2) | site.namespace_names(2)),
        templates={name.lower().replace("_", " "): pattern for name, pattern in source.templates.items()},
        keep_headings=source.keep_headings,
        keep_lists=source.keep_lists,
    )
    disambiguation = frozenset(name.lower().replace("_", " ") for name in source.disambiguation)
    status = dump.ReadStatus()
    if file_range.partition:
        pages = dump.parse_pages(
            file_range.file.location, repartition.partition_pages(file_range.partition, status), site
        )
    else:
        pages = dump.pages(file_range.file.location, file_range.byte_range, site, status)
    for page in pages:
        if reason := _non_article_reason(page):
            yield Drop(reason, page.title if page else "")
            continue
        assert page
        dropped_templates: Counter[str] = Counter()
        paragraphs = wikitext.paragraphs(page.text, rules, dropped_templates)
        notes.templates.update(dropped_templates)
        if filters.is_disambiguation(page.title, page.text, dropped_templates, disambiguation):
            yield Drop("disambiguation", page.title, page.text)
            continue
        if not paragraphs:
            yield Drop("no prose", page.title, page.text)
            continue
        yield document(
            paragraphs,
            doc_id=f"{wiki}:{page.page_id}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=language,
            title=page.title,
            url=site.url(page.title),
            revision=page.revision,
            timestamp=page.timestamp,
            licence=source.licence,
            file_sha256=file_range.file.sha256,
            record=page.record,
        )
    if status.truncation:
        notes.truncated.append({"file": file_range.file.uri, "reason": status.truncation})


def _non_article_reason(page: dump.Page | None) -> str:
    """Why a page is not an article; empty if it is one."""
    if page is None:
        return "malformed"
    if page.namespace != 0:
        return "namespace"
    if page.redirect:
        return "redirect"
    if page.model != "wikitext":
        return "not wikitext"
    return "" if page.text.strip() else "empty"


def _chapters(source: BooksSource, file_range: FileRange, config: ExtractConfig) -> Iterator[Document | Drop]:
    file = file_range.file
    with file.location.open() as opened:
        sentence_lines.check_prose(file.location, opened.read(_LAYOUT_SAMPLE_BYTES).decode("utf-8", "replace"))
    if file.bytes > _MAX_BOOK_BYTES:
        raise UserError(
            f"{file.uri}: has {file.bytes:,} bytes, more than a book's limit of {_MAX_BOOK_BYTES:,}; "
            f"split it into one file per book"
        )
    text, line_starts = decode_with_line_starts(file.location.read_bytes(), file.uri, source.encoding)
    book = gutenberg.read_book(text)
    if not book.chapters:
        yield Drop("no prose", file.location.name)
        return
    chapters = book.chapters
    if source.unit == "book":
        chapters = [gutenberg.merge_chapters(chapters)]
    elif source.sentences_per_document:
        chapters = gutenberg.split_by_sentences(chapters, source.sentences_per_document)
    for number, chapter in enumerate(chapters):
        start = line_starts[chapter.spans[0].first]
        yield document(
            chapter.paragraphs,
            doc_id=f"{source.name}:{file.sha256[:16]}:{number}",
            source=source.name,
            heldout_fraction=config.heldout_fraction,
            language=source.language or _LANGUAGE_CODES.get(book.language, ""),
            title=": ".join(filter(None, (book.title, chapter.title))),
            licence=source.licence,
            file_sha256=file.sha256,
            record=RecordPosition(0, start, line_starts[chapter.spans[-1].end] - start),
        )


def _rows(source: DocumentsSource, file_range: FileRange, config: ExtractConfig) -> Iterator[Document | Drop]:
    file = file_range.file
    for number, (record, row) in enumerate(document_files.read_rows(file.location, source.columns, source.encoding)):
        paragraphs = document_files.paragraphs(row.text)
        if not paragraphs:
            yield Drop("empty", row.title or f"row {number + 1}")
            continue
        yield document(
            paragraphs,
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


def _sentence_documents(
    source: SentencesSource, file_range: FileRange, config: ExtractConfig
) -> Iterator[Document | Drop]:
    file = file_range.file
    found = sentence_lines.read_documents(file.location, file_range.byte_range, source.boundary, source.encoding)
    for offset, sentences, size in found:
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
