"""Extraction compared with wikiextractor on one dump: speed, residual markup, recall of the text.

Speeds exclude start-up: they are computed from the difference between many copies of the dump and few. They are medians
of several repeats, in which both programs alternate. `ratio` is Cloze's MB of XML per CPU second over wikiextractor's.
`recall` is the fraction of word 8-grams of wikiextractor's text that Cloze's text contains, without headings, lists and
8-grams that cross a template. `doubling` is the CPU time for two megabytes of unbalanced markup over that for one, for
the worst kind of markup.
"""

import argparse
import bz2
import gzip
import hashlib
import html
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.stage import ExtractConfig, run
from cloze.pipeline.extract.wikipedia import dump, wikitext
from tests.benchmarks._show import show

DEFAULT = "configs/quickstart/enwiki-excerpt.xml.bz2"
SMALL, LARGE = 12 << 20, 48 << 20  # bytes of XML
SMALL_MULTISTREAM, LARGE_MULTISTREAM = 16 << 20, 176 << 20  # for two workers: a file range is 4 MB of bz2
RESIDUE = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|'''|<ref|&nbsp;|&amp;|\( ?\)|\( ?;")
LITERAL = re.compile(r"<(nowiki|code|tt|kbd|samp|syntaxhighlight|source)\b[^<>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
UNBALANCED = [
    *("{{", "}}", "[[", "]]", "{|", "\n{|", "\n|}", "{{x|", "[[File:"),
    *("<ref>", "</ref>", "'''", "<!--", "<nowiki>", "<div>"),
]
TEMPLATE = "XTEMPLATEX"  # inserted before each template, to recognize 8-grams that cross one
PAGE = re.compile(rb"<page>.*?</page>", re.DOTALL)
PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing"]
WIKIEXTRACTOR = ["-m", "wikiextractor.WikiExtractor", "--no-templates", "--processes", "1", "--json", "-q", "-o", "-"]


class Cost(NamedTuple):
    """Seconds of a process and all its children."""

    cpu: float
    wall: float


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=extract", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="MediaWiki XML dump; its pages are repeated as needed")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(options.input), Path(folder), options.repeats)
    show(
        f"extraction of {options.input}",
        figures,
        {"benchmark": "extract", "input": options.input, "cores": os.cpu_count()},
    )


def measure(source: Path, folder: Path, repeats: int) -> dict[str, float]:
    header, pages = read_pages(source)
    size = sum(map(len, pages))
    few, many = (max(1, round(target / size)) for target in (SMALL, LARGE))
    many = max(many, few + 1)
    extra = (many - few) * size / 1e6  # MB of XML

    def write_dump(name: str, copies: int, pack: Callable[[bytes], bytes] = bytes) -> Path:
        (folder / name).write_bytes(pack(header + b"".join(pages * copies) + b"</mediawiki>\n"))
        return folder / name

    figures: dict[str, float] = {}
    for kind, pack in (("", bytes), ("_bz2", bz2.compress)):
        paths = write_dump(f"few{kind}.xml", few, pack), write_dump(f"many{kind}.xml", many, pack)
        if kind:
            paths = tuple(path.rename(path.with_suffix(".xml.bz2")) for path in paths)
        costs = [
            (cloze(paths[0]), cloze(paths[1]), wikiextractor(paths[0]), wikiextractor(paths[1])) for _ in range(repeats)
        ]
        cloze_speed = median(extra / (b.cpu - a.cpu) for a, b, _, _ in costs)
        wikiextractor_speed = median(extra / (d.cpu - c.cpu) for _, _, c, d in costs)
        figures |= {f"mb_per_cpu_second{kind}": cloze_speed, f"wikiextractor{kind}": wikiextractor_speed}
        figures[f"ratio{kind}"] = cloze_speed / wikiextractor_speed
        figures[f"start_up_seconds{kind}"] = median(a.cpu - few * size / 1e6 / cloze_speed for a, _, _, _ in costs)
        figures[f"wikiextractor_start_up_seconds{kind}"] = median(
            c.cpu - few * size / 1e6 / wikiextractor_speed for _, _, c, _ in costs
        )
    copies = tuple(max(1, round(target / size)) for target in (SMALL_MULTISTREAM, LARGE_MULTISTREAM))
    figures["scaling"] = scaling(folder, header, pages, copies, repeats)
    figures |= faithfulness(folder, header, pages)
    figures["gold_f1"] = gold()
    figures |= {"doubling": doubling(), "slowest_page_ms": slowest_page(write_dump("one.xml", 1))}
    return figures


def read_pages(path: Path) -> tuple[bytes, list[bytes]]:
    """Returns a dump's header and its complete pages."""
    data = path.read_bytes()
    kind = dump.compression(Location(str(path)))
    if kind == "bz2":
        data = b"".join(_streams(data))
    elif kind != "xml":
        data = {"gz": gzip.decompress, "xz": lambda packed: lzma.LZMADecompressor().decompress(packed)}[kind](data)
    return data[: data.index(b"<page>")], PAGE.findall(data)


def _streams(data: bytes) -> Iterator[bytes]:
    """Yields the content of each bz2 stream, also of a truncated one."""
    while data:
        stream = bz2.BZ2Decompressor()
        yield stream.decompress(data)
        data = stream.unused_data


def cost(command: list[str], output: Path | None = None) -> Cost:
    with (output or Path(os.devnull)).open("wb") as file:
        start = time.monotonic()
        process = subprocess.Popen([sys.executable, *command], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with status {status}")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - start)


def cloze(path: Path, *options: str) -> Cost:
    return cost(["-m", "tests.benchmarks._extract", str(path), *(options or ["--runner=FnApiRunner"])])


def wikiextractor(path: Path, output: Path | None = None) -> Cost:
    return cost([*WIKIEXTRACTOR, str(path)], output)


def scaling(folder: Path, header: bytes, pages: list[bytes], copies: tuple[int, ...], repeats: int) -> float:
    """Returns the wall time of one worker process over that of two, without start-up, on a multistream dump."""
    paths = [folder / f"multistream-{number}.xml.bz2" for number in copies]
    block = b"".join(bz2.compress(b"".join(pages[start : start + 100])) for start in range(0, len(pages), 100))
    for path, number in zip(paths, copies, strict=True):
        path.write_bytes(bz2.compress(header) + block * number + bz2.compress(b"</mediawiki>\n"))
    found = []
    for _ in range(repeats):
        few1, few2, many1, many2 = (
            cloze(path, *PROCESSES, f"--direct_num_workers={workers}").wall for path in paths for workers in (1, 2)
        )
        found.append((many1 - few1) / (many2 - few2))
    return median(found)


def faithfulness(folder: Path, header: bytes, pages: list[bytes]) -> dict[str, float]:
    """Returns residual markup in Cloze's text and its recall of wikiextractor's text."""
    path = folder / "marked.xml"
    path.write_bytes(header + b"".join(pages).replace(b"{{", TEMPLATE.encode() + b"{{") + b"</mediawiki>\n")
    wikiextractor(path, folder / "wikiextractor.jsonl")
    path = folder / "plain.xml"
    path.write_bytes(header + b"".join(pages) + b"</mediawiki>\n")
    texts = dict(extracted_texts(path, folder / "cloze"))
    residue = 0
    for page in dump.pages(Location(str(path)), ByteRange(0, path.stat().st_size), dump.Site(), dump.ReadStatus()):
        if page is None or (text := texts.get(str(page.page_id))) is None:
            continue
        for _, literal in LITERAL.findall(page.text):
            text = text.replace(html.unescape(" ".join(literal.split())), "")
        if match := RESIDUE.search(text):
            residue += 1
            print(f"residue in {page.title}: {text[max(0, match.start() - 40) : match.end() + 40]!r}", file=sys.stderr)
    found = total = 0
    for line in (folder / "wikiextractor.jsonl").read_text().splitlines():
        article = json.loads(line)
        if (text := texts.get(article["id"])) is None:
            continue
        extracted = set(grams(text))
        expected = [gram for part in prose(article["text"]) for gram in grams(part)]
        found += sum(gram in extracted for gram in expected)
        total += len(expected)
    return {
        "articles": len(texts),
        "residue_per_1000": 1000 * residue / max(1, len(texts)),
        "recall": found / max(1, total),
    }


def extracted_texts(path: Path, out: Path) -> Iterator[tuple[str, str]]:
    """Yields (page id, text) of a dump's documents."""
    manifest = extract_into(path, out, ["--runner=FnApiRunner"])
    for name in manifest.files:
        table = read_table(Location(str(out / name)), ["doc_id", "text"])
        for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield doc_id.rpartition(":")[2], text


def extract_into(path: Path, out: Path, options: list[str]) -> Manifest:
    source = {"name": "wiki", "kind": "wikipedia", "files": [str(path)]}
    config = ExtractConfig.model_validate({"sources": [source], "beam": options})
    file = SourceFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    return run(config, {"wiki": [file]}, Output(Location(str(out)), "extract", 1, "0123456789abcdef"))


def prose(text: str) -> Iterator[str]:
    """Yields the text between templates, of lines that are neither headings nor list items."""
    for line in text.split("\n"):
        words = line.replace(TEMPLATE, "").strip()
        if words.startswith(("-", "*", "#", ":", ";")) or (words.endswith(".") and len(words.split()) < 8):
            continue
        yield from line.split(TEMPLATE)


def grams(text: str) -> Iterator[tuple[str, ...]]:
    """Yields word 8-grams."""
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(8)), strict=False)


def gold() -> float:
    """Returns the word-level F1 over all articles of tests/data/gold."""
    from tests.pipeline.extract import test_gold

    extracted = "\n".join("\n".join(test_gold.ARTICLES[name]) for name in sorted(test_gold.ARTICLES))
    return test_gold.f1(
        extracted, "\n".join((test_gold.GOLD / f"{name}.txt").read_text() for name in sorted(test_gold.ARTICLES))
    )


def doubling() -> float:
    """Returns the ratio for the worst markup, from the minimum of five measurements."""

    def seconds(text: str) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            wikitext.paragraphs(text, wikitext.Rules(), Counter())
            times.append(time.process_time() - start)
        return min(times)

    def ratio(markup: str) -> float:
        return seconds(markup * (2_000_000 // len(markup))) / max(1e-3, seconds(markup * (1_000_000 // len(markup))))

    return max(ratio(markup) for markup in [*UNBALANCED, " ".join(UNBALANCED)])


def slowest_page(path: Path) -> float:
    """Returns the CPU milliseconds of the slowest page."""
    location = Location(str(path))
    slowest = 0.0
    for page in dump.pages(location, ByteRange(0, location.size()), dump.read_site(location), dump.ReadStatus()):
        start = time.process_time()
        wikitext.paragraphs(page.text if page else "")
        slowest = max(slowest, time.process_time() - start)
    return 1e3 * slowest
