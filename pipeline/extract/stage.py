"""sources -> document shards (Beam).

The files are divided into units of work (work_units.py), which Beam distributes. A worker reads the records of a unit
(records_to_documents.py), writes its own shards and commits them: no text travels through Beam, and a committed unit is
never processed again.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from cloze.pipeline.core.artifacts import FileRecord, Manifest, Part
from cloze.pipeline.core.beam import for_each
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.listings import list_once
from cloze.pipeline.core.manifest_facts import DroppedRecord, ExtractFacts, TruncatedFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import parquet_bytes
from cloze.pipeline.core.scratch import scratch_folder
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract import filters, work_units
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.document import Document, document_table
from cloze.pipeline.extract.records_to_documents import Drop, UnitNotes, read_records
from cloze.pipeline.extract.sources import WikipediaSource
from cloze.pipeline.extract.wikipedia import repartition
from cloze.pipeline.extract.wikipedia.wikitext import has_residue
from cloze.pipeline.extract.work_units import WorkUnit, plan_units

VERSION = 4

_SHARD_CHARACTERS = 32 << 20
_TEXT_SPEED, _COMPRESSED_SPEED = 20e6, 4e6  # bytes per CPU second: XML; bz2, which is a fifth of the XML
_COMPRESSED = (".bz2", ".gz", ".xz")
_SAMPLES = 3  # dropped documents of each reason that a unit, and the manifest, shows


def _repartition(units: Sequence[WorkUnit], config: ExtractConfig, folder: Location, out: Output) -> list[WorkUnit]:
    """The units, each long compressed stream replaced by its partitions. Writes the partitions that are missing.

    Raises UserError when those of a stream cannot be found afterwards.
    """
    streams = {
        unit.name: repartition.Stream(
            unit.name, file_range.file.location, file_range.byte_range, file_range.site.dbname
        )
        for unit in units
        for file_range in unit.file_ranges
        if file_range.long_stream
    }
    if unfinished := repartition.unfinished(list(streams.values()), folder, out):
        size = work_units.XML_UNIT_BYTES
        with repartition.report_progress(list(streams.values()), folder, out, size):
            write = partial(repartition.write_partitions, scratch=folder, out=out, size=size)
            for_each(unfinished, write, config.beam, _cpu_seconds([unit for unit in units if unit.name in streams]))
    replaced: list[WorkUnit] = []
    for unit in units:
        if stream := streams.get(unit.name):
            (file_range,) = unit.file_ranges
            replaced += [
                WorkUnit(one.name, unit.source, [file_range._replace(byte_range=one.byte_range, partition=one)])
                for one in repartition.require_partitions(stream, folder, out)
            ]
        else:
            replaced.append(unit)
    return replaced


def extract_unit(unit: WorkUnit, config: ExtractConfig, out: Output) -> None:
    """Read a unit, write each of its shards as soon as it is full, and commit them. Raises UserError."""
    notes = UnitNotes()
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    is_wikitext, residue = isinstance(unit.source, WikipediaSource), 0
    samples: dict[str, list[dict[str, str]]] = {}
    shards: dict[str, FileRecord] = {}
    pending: list[Document] = []

    def flush() -> None:
        if pending:
            path = f"documents/{unit.name}-{len(shards):02}.parquet"
            shards[path] = out.write_file(path, parquet_bytes(document_table(pending)))
            pending.clear()

    size = 0
    for record in read_records(unit, config, notes):
        counts["records"] += 1
        if isinstance(record, Drop):
            drops[record.reason] += 1
            if len(shown := samples.setdefault(record.reason, [])) < _SAMPLES:
                shown.append({"record": record.record, "text": record.text[:300]})
            continue
        counts.update(documents=1, words=record.num_words, heldout=record.split == "heldout")
        residue += is_wikitext and has_residue(record.text)
        pending.append(record)
        size += record.num_chars
        if size >= _SHARD_CHARACTERS:
            flush()
            size = 0
    flush()
    facts = {
        "source": unit.source.name,
        "samples": samples,
        "truncated": notes.truncated,
        "templates": dict(notes.templates.most_common(1000)),
        **({"residue": residue} if is_wikitext else {}),
    }
    out.commit(unit.name, {}, counts, drops, facts, written=shards)


def run(config: ExtractConfig, inputs: Mapping[str, Sequence[SourceFile]], out: Output) -> Manifest:
    """`inputs` maps a source's name to its files. Raises UserError: a file that does not fit its source's kind."""
    given = [(name, file) for name, files in inputs.items() for file in files]
    for _, file in given:
        if not file.bytes:
            raise UserError(f"{file.uri}: is empty; fetch it again or leave it out")
    for source in config.sources:
        if source.only_languages:
            filters.check_languages(source.only_languages)
    with scratch_folder(out) as folder:
        units = _repartition(plan_units(config, inputs), config, folder, out)
        _extract_all(units, config, out)
        # While scratch exists: if a part is missing here, the next run extracts it from the partitions in scratch.
        parts = list[Part]()
        facts = merge_facts(_without_facts(out.read_parts([unit.name for unit in units]), parts))
    if not sum(part.counts.get("documents", 0) for part in parts):
        raise UserError(_no_documents(parts, inputs, config))
    digests = {f"{name}/{file.sha256[:12]}/{file.location.name}": file.sha256 for name, file in given}
    counts = {"truncated_files": len(facts.truncated)} if facts.truncated else {}
    return out.finish(parts, config.model_dump(mode="json"), digests, counts, facts=facts)


def _no_documents(parts: Sequence[Part], inputs: Mapping[str, Sequence[SourceFile]], config: ExtractConfig) -> str:
    """The message when no record has become a document: which files were read, and why their records were dropped."""
    files = [file.uri for found in inputs.values() for file in found]
    read = f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]
    drops = sum((Counter(part.drops) for part in parts), Counter[str]())
    reasons = ", ".join(f"{number} {reason}" for reason, number in drops.most_common()) or "no records"
    fix = f"give other files or lower min_words (now {config.min_words})" if drops["too short"] else "give other files"
    if any(file.startswith("s3://") for file in files):
        fix += "; if a file is missing here, the store's listing was out of date: run again"
    return f"{', '.join(inputs)}: hold no document ({read}: {reasons}); {fix}"


def _extract_all(units: Sequence[WorkUnit], config: ExtractConfig, out: Output) -> None:
    """Extract every unit that is not finished yet (Beam)."""
    finished = out.finished_names([unit.name for unit in units])
    if missing := [unit for unit in units if unit.name not in finished]:
        with out.reporting_parts(len(units), "ranges"):
            work = partial(_extract_missing, config=config, out=out, attempt=uuid.uuid4().hex)
            for_each(missing, work, config.beam, _cpu_seconds(missing))


def _extract_missing(unit: WorkUnit, config: ExtractConfig, out: Output, attempt: str) -> None:
    """Extract a unit, unless a worker that was lost has finished it."""
    listed = list_once(out.location, attempt)
    if f"parts/{unit.name}.json" not in listed or not out.finished_part(unit.name, listed):
        extract_unit(unit, config, out)


def _cpu_seconds(units: Sequence[WorkUnit]) -> float:
    """About how long one process takes for the units."""
    return sum(
        file_range.byte_range.size / (_COMPRESSED_SPEED if file_range.file.uri.endswith(_COMPRESSED) else _TEXT_SPEED)
        for unit in units
        for file_range in unit.file_ranges
    )


def _without_facts(parts: Iterable[Part], to: list[Part]) -> Iterator[Part]:
    """Yields the parts, and appends each without its facts to `to`: those of thousands would fill the memory."""
    for part in parts:
        yield part
        to.append(part.model_copy(update={"facts": {}}))


def merge_facts(parts: Iterable[Part]) -> ExtractFacts:
    """Counts and drops of each source, samples of dropped records, truncated files, most frequent dropped templates,
    and documents with left-over markup.
    """
    sources: dict[str, Counter[str]] = {}
    samples: dict[str, list[DroppedRecord]] = {}
    templates: Counter[str] = Counter()
    residue: Counter[str] = Counter()
    not_counted = set[str]()  # sources with a part that has no residue: no wikitext, or an earlier version's
    truncated: dict[str, TruncatedFile] = {}  # by file: several ranges may reach the end of one
    for part in parts:
        source = part.facts["source"]
        sources.setdefault(source, Counter()).update(part.counts)
        sources[source].update({f"dropped: {reason}": n for reason, n in part.drops.items()})
        for reason, shown in part.facts["samples"].items():
            samples[reason] = [*samples.get(reason, []), *(DroppedRecord(**one) for one in shown)][:_SAMPLES]
        templates.update(part.facts["templates"])
        residue[source] += part.facts.get("residue", 0)
        if "residue" not in part.facts:
            not_counted.add(source)
        for cut in part.facts["truncated"]:
            truncated.setdefault(cut["file"], TruncatedFile(**cut))
    return ExtractFacts(
        sources={name: dict(sorted(counts.items())) for name, counts in sources.items()},
        samples=samples,
        truncated=list(truncated.values()),
        templates=dict(templates.most_common(50)),
        residue={source: number for source, number in residue.items() if source not in not_counted},
    )
