"""Extraction beside wikiextractor, on one dump: speed, what is left of the markup, what is kept of the text.

Cost is marginal: the CPU seconds of many copies less those of few, so that start-up counts for neither side; medians of
several repeats, in which the two take turns. `ratio` is ours over theirs in MB of XML per CPU second. `recall` is the
share of the word 8-grams of wikiextractor's text (headings and lists left out, and those that cross a template) that
stand in ours. `doubling` is the CPU time of two megabytes of unbalanced marks over that of one, the worst mark.
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

from cloze.pipeline.core.artifacts import Manifest, Output
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.source_files import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.stage import ExtractConfig, run
from cloze.pipeline.extract.wikipedia import dump, wikitext
from tests.benchmarks._show import show

DEFAULT = "configs/quickstart/enwiki-excerpt.xml.bz2"
FEW, MANY = 12 << 20, 48 << 20  # bytes of XML
FEW_STREAMS, MANY_STREAMS = 16 << 20, 176 << 20  # where the work is shared: a range is 4 MB of bz2
RESIDUE = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|'''|<ref|&nbsp;|&amp;|\( ?\)|\( ?;")
LITERAL = re.compile(r"<(nowiki|code|tt|kbd|samp|syntaxhighlight|source)\b[^<>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
MARKS = [
    *("{{", "}}", "[[", "]]", "{|", "\n{|", "\n|}", "{{x|", "[[File:"),
    *("<ref>", "</ref>", "'''", "<!--", "<nowiki>", "<div>"),
]
TEMPLATE = "XTEMPLATEX"  # stands before each template, so that 8-grams which cross one are known
PAGE = re.compile(rb"<page>.*?</page>", re.DOTALL)
PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing"]
WIKIEXTRACTOR = ["-m", "wikiextractor.WikiExtractor", "--no-templates", "--processes", "1", "--json", "-q", "-o", "-"]


class Cost(NamedTuple):
    """Of a process with all its children."""

    cpu: float
    wall: float


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="make bench ONLY=extract", description=__doc__)
    parser.add_argument("--input", default=DEFAULT, help="a MediaWiki XML dump; its pages are repeated as needed")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(options.input), Path(folder), options.repeats)
    show(
        f"extraction of {options.input}",
        figures,
        {"benchmark": "extract", "input": options.input, "cores": os.cpu_count()},
    )


def measure(given: Path, folder: Path, repeats: int) -> dict[str, float]:
    header, pages = read(given)
    size = sum(map(len, pages))
    few, many = (max(1, round(wanted / size)) for wanted in (FEW, MANY))
    many = max(many, few + 1)
    extra = (many - few) * size / 1e6  # MB of XML

    def written(name: str, copies: int, pack: Callable[[bytes], bytes] = bytes) -> Path:
        (folder / name).write_bytes(pack(header + b"".join(pages * copies) + b"</mediawiki>\n"))
        return folder / name

    figures: dict[str, float] = {}
    for kind, pack in (("", bytes), ("_bz2", bz2.compress)):
        paths = written(f"few{kind}.xml", few, pack), written(f"many{kind}.xml", many, pack)
        if kind:
            paths = tuple(path.rename(path.with_suffix(".xml.bz2")) for path in paths)
        costs = [(ours(paths[0]), ours(paths[1]), theirs(paths[0]), theirs(paths[1])) for _ in range(repeats)]
        our_speed = median(extra / (b.cpu - a.cpu) for a, b, _, _ in costs)
        their_speed = median(extra / (d.cpu - c.cpu) for _, _, c, d in costs)
        figures |= {f"mb_per_cpu_second{kind}": our_speed, f"wikiextractor{kind}": their_speed}
        figures[f"ratio{kind}"] = our_speed / their_speed
        figures[f"start_up_seconds{kind}"] = median(a.cpu - few * size / 1e6 / our_speed for a, _, _, _ in costs)
        figures[f"wikiextractor_start_up_seconds{kind}"] = median(
            c.cpu - few * size / 1e6 / their_speed for _, _, c, _ in costs
        )
    copies = tuple(max(1, round(wanted / size)) for wanted in (FEW_STREAMS, MANY_STREAMS))
    figures["scaling"] = scaling(folder, header, pages, copies, repeats)
    figures |= faithfulness(folder, header, pages)
    figures["gold_f1"] = gold()
    figures |= {"doubling": doubling(), "slowest_page_ms": slowest_page(written("one.xml", 1))}
    return figures


def read(path: Path) -> tuple[bytes, list[bytes]]:
    """A dump's header and the bytes of its whole pages."""
    data = path.read_bytes()
    kind = dump.compression(Location(str(path)))
    if kind == "bz2":
        data = b"".join(_streams(data))
    elif kind != "xml":
        data = {"gz": gzip.decompress, "xz": lambda packed: lzma.LZMADecompressor().decompress(packed)}[kind](data)
    return data[: data.index(b"<page>")], PAGE.findall(data)


def _streams(data: bytes) -> Iterator[bytes]:
    """A cut stream gives what it holds."""
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


def ours(path: Path, *options: str) -> Cost:
    return cost(["-m", "tests.benchmarks._extract", str(path), *(options or ["--runner=FnApiRunner"])])


def theirs(path: Path, output: Path | None = None) -> Cost:
    return cost([*WIKIEXTRACTOR, str(path)], output)


def scaling(folder: Path, header: bytes, pages: list[bytes], copies: tuple[int, ...], repeats: int) -> float:
    """Wall time of one worker process over that of two, each less its start-up, on a multistream dump."""
    paths = [folder / f"multistream-{number}.xml.bz2" for number in copies]
    block = b"".join(bz2.compress(b"".join(pages[start : start + 100])) for start in range(0, len(pages), 100))
    for path, number in zip(paths, copies, strict=True):
        path.write_bytes(bz2.compress(header) + block * number + bz2.compress(b"</mediawiki>\n"))
    found = []
    for _ in range(repeats):
        few1, few2, many1, many2 = (
            ours(path, *PROCESSES, f"--direct_num_workers={workers}").wall for path in paths for workers in (1, 2)
        )
        found.append((many1 - few1) / (many2 - few2))
    return median(found)


def faithfulness(folder: Path, header: bytes, pages: list[bytes]) -> dict[str, float]:
    """Residue in our text; recall of wikiextractor's."""
    path = folder / "marked.xml"
    path.write_bytes(header + b"".join(pages).replace(b"{{", TEMPLATE.encode() + b"{{") + b"</mediawiki>\n")
    theirs(path, folder / "theirs.jsonl")
    path = folder / "plain.xml"
    path.write_bytes(header + b"".join(pages) + b"</mediawiki>\n")
    texts = dict(extracted(path, folder / "ours"))
    residue = 0
    for page in dump.pages(Location(str(path)), dump.Range(0, path.stat().st_size), dump.Site(), dump.Truncation()):
        if page is None or (text := texts.get(str(page.page_id))) is None:
            continue
        for _, literal in LITERAL.findall(page.text):
            text = text.replace(html.unescape(" ".join(literal.split())), "")
        if match := RESIDUE.search(text):
            residue += 1
            print(f"residue in {page.title}: {text[max(0, match.start() - 40) : match.end() + 40]!r}", file=sys.stderr)
    found = wanted = 0
    for line in (folder / "theirs.jsonl").read_text().splitlines():
        article = json.loads(line)
        if (text := texts.get(article["id"])) is None:
            continue
        have = set(grams(text))
        want = [gram for part in prose(article["text"]) for gram in grams(part)]
        found += sum(gram in have for gram in want)
        wanted += len(want)
    return {
        "articles": len(texts),
        "residue_per_1000": 1000 * residue / max(1, len(texts)),
        "recall": found / max(1, wanted),
    }


def extracted(path: Path, out: Path) -> Iterator[tuple[str, str]]:
    """(page id, text) of what extraction makes of a dump."""
    manifest = extract_into(path, out, ["--runner=FnApiRunner"])
    for name in manifest.files:
        table = read_table(Location(str(out / name)), ["doc_id", "text"])
        for doc_id, text in zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True):
            yield doc_id.rpartition(":")[2], text


def extract_into(path: Path, out: Path, options: list[str]) -> Manifest:
    source = {"name": "wiki", "kind": "wikipedia", "files": [str(path)]}
    config = ExtractConfig.model_validate({"sources": [source], "beam": options})
    given = SourceFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    return run(config, {"wiki": [given]}, Output(Location(str(out)), "extract", 1, "0123456789abcdef"))


def prose(text: str) -> Iterator[str]:
    """The stretches between templates of the lines that are neither headings nor list items."""
    for line in text.split("\n"):
        words = line.replace(TEMPLATE, "").strip()
        if words.startswith(("-", "*", "#", ":", ";")) or (words.endswith(".") and len(words.split()) < 8):
            continue
        yield from line.split(TEMPLATE)


def grams(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(8)), strict=False)


def gold() -> float:
    """Word-level F1 over the articles of tests/data/gold together."""
    from tests import test_gold

    ours = "\n".join("\n".join(test_gold.ARTICLES[name]) for name in sorted(test_gold.ARTICLES))
    return test_gold.f1(
        ours, "\n".join((test_gold.GOLD / f"{name}.txt").read_text() for name in sorted(test_gold.ARTICLES))
    )


def doubling() -> float:
    """The least of five times each, of the worst mark."""

    def seconds(text: str) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            wikitext.paragraphs(text, wikitext.Rules(), Counter())
            times.append(time.process_time() - start)
        return min(times)

    def worst(mark: str) -> float:
        return seconds(mark * (2_000_000 // len(mark))) / max(1e-3, seconds(mark * (1_000_000 // len(mark))))

    return max(worst(mark) for mark in [*MARKS, " ".join(MARKS)])


def slowest_page(path: Path) -> float:
    """CPU milliseconds of the page that takes longest."""
    location = Location(str(path))
    slowest = 0.0
    for page in dump.pages(location, dump.Range(0, location.size()), dump.read_site(location), dump.Truncation()):
        start = time.process_time()
        wikitext.paragraphs(page.text if page else "")
        slowest = max(slowest, time.process_time() - start)
    return 1e3 * slowest
