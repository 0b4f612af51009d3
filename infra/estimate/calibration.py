"""Pieces of the data stages, run on the quickstart's texts -> this machine's speed relative to that of rates.yaml."""

import bz2
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cloze.infra.estimate.rates import rates
from cloze.infra.user_folder import user_folder
from cloze.pipeline.core.config import Config
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.schema import text_key
from cloze.pipeline.core.software_versions import git_commit
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup.minhash import compute_signatures
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.examples.example_assembly import example_batches
from cloze.pipeline.examples.example_planning import plan_shard
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.records_to_documents import UnitNotes, read_records
from cloze.pipeline.extract.sources import WikipediaSource
from cloze.pipeline.extract.wikipedia import dump
from cloze.pipeline.extract.work_units import FileRange, WorkUnit
from cloze.pipeline.text.token_shards import TOKENIZED_DOCUMENT, TokenizedDocuments
from cloze.pipeline.text.tokenizer import SPECIAL_TOKENS, BulkTokenizer, build_tokenizer, pieces_of
from cloze.pipeline.text.vocab_file import read_file
from cloze.pipeline.tokens.tokenization import tokenize
from cloze.pipeline.vocab.stage import count_words

VERSION = 1  # rises when a piece changes, so that an earlier calibration is not used
_SECONDS, _MAX_ROUNDS = 2.0, 12  # of each piece; the fastest round counts
_CHARACTERS = 20_000  # of a document

#: A piece -> the beginnings of the names of the rates that it stands for.
_PIECES = {
    "decompress": ("decompress.",),
    "extract": ("extract.",),
    "dedup": ("dedup",),
    "vocab": ("vocab.",),
    "tokens": ("tokens",),
    "examples": ("examples.", "encode"),
    "training": ("training.",),
}


class Calibration(Config):
    """The CPU seconds of each piece on a machine."""

    version: int
    """VERSION of this module."""
    date: str
    """When it was measured, in UTC."""
    machine: str
    """The processor."""
    commit: str
    """Cloze's commit."""
    seconds: dict[str, float]
    """Piece -> CPU seconds of its fastest round."""

    def factor(self, rate: str) -> float:
        """By how much longer the work of a rate takes here than on the machine of rates.yaml."""
        for piece, names in _PIECES.items():
            if rate.startswith(names) and piece in self.seconds:
                return self.seconds[piece] / rates().value(f"calibration.{piece}")
        return 1.0


def file() -> Path:
    """Where the calibration of this machine is kept: $CLOZE_HOME/calibration.json, by default in ~/.cloze."""
    return user_folder() / "calibration.json"


def stored() -> Calibration | None:
    """The calibration of this machine; None if there is none, or one of another processor or version."""
    try:
        found = Calibration.model_validate_json(file().read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.version == VERSION and found.machine == _processor() else None


def calibrate(progress: Callable[[str], object]) -> Calibration:
    """Time every piece, and store the result. Takes about 20 seconds."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, piece in _pieces(Path(folder)):
            progress(name)
            seconds[name] = _fastest(piece)
    progress("training")
    seconds["training"] = _layer_seconds()
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    found = Calibration(version=VERSION, date=now, machine=_processor(), commit=git_commit(), seconds=seconds)
    target = file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; set CLOZE_HOME to a folder that can be written") from error
    return found


def _fastest(piece: Callable[[], object]) -> float:
    rounds: list[float] = []
    while len(rounds) < 3 or (len(rounds) < _MAX_ROUNDS and sum(rounds) < _SECONDS):
        start = time.process_time()
        piece()
        rounds.append(time.process_time() - start)
    return min(rounds)


def _pieces(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each piece of the data stages, on real text."""
    source = _quickstart()
    compressed = (source / "enwiki-excerpt.xml.bz2").read_bytes()
    yield "decompress", lambda: bz2.decompress(compressed)
    (folder / "pages.xml").write_bytes(bz2.decompress(compressed))
    yield "extract", lambda: _extract(folder / "pages.xml")
    book = "".join(path.read_text(encoding="utf-8") for path in sorted((source / "books").glob("*.txt")))
    texts = [book[start : start + _CHARACTERS] for start in range(0, len(book), _CHARACTERS)]
    yield "dedup", lambda: compute_signatures(texts)
    words = build_tokenizer(SPECIAL_TOKENS)
    yield "vocab", lambda: count_words(texts, words)
    tokenizer = build_tokenizer(read_file(Location(str(source.parent / "vocab/bert-base-uncased.txt"))).pieces)
    yield "tokens", lambda: tokenize(texts, BulkTokenizer(tokenizer))
    ids, sentences, counts = tokenize(texts, BulkTokenizer(tokenizer))
    documents = np.zeros(len(texts), TOKENIZED_DOCUMENT)
    documents["key"], documents["sentences"] = [text_key(str(number)) for number in range(len(texts))], counts
    shard, pieces = TokenizedDocuments(ids, sentences, documents), pieces_of(tokenizer)
    yield "examples", lambda: _examples(shard, pieces)


def _extract(pages: Path) -> None:
    source = WikipediaSource(name="excerpt", files=[str(pages)], kind="wikipedia", language="en")
    size = pages.stat().st_size
    part = FileRange(SourceFile(str(pages), "", size), ByteRange(0, size), dump.read_site(Location(str(pages))))
    for _ in read_records(WorkUnit("excerpt", source, [part]), ExtractConfig(sources=[source]), UnitNotes()):
        pass


def _examples(shard: TokenizedDocuments, pieces: list[str]) -> None:
    config = LengthConfig(max_seq_length=128, max_predictions_per_seq=20)
    plan = plan_shard(shard, np.ones(len(shard.documents), np.int64), config)
    for _ in example_batches(plan, shard.ids, pieces, config, masked=False):
        pass


def _layer_seconds() -> float:
    """Of one encoder layer of 256, forward and backward, in the fastest precision."""
    import torch

    from cloze.training.model.bert import BertConfig
    from cloze.training.model.hardware import has_bf16, layer_seconds

    config = BertConfig(hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=1024)
    device = torch.device("cpu")
    return min(layer_seconds(config, device, ["fp32", "bf16"] if has_bf16(device) else ["fp32"]))


def _quickstart() -> Path:
    folder = Path(__file__).resolve().parents[2] / "configs/quickstart"
    if not folder.is_dir():
        raise UserError(f"{folder}: is missing: a calibration reads the quickstart's texts; run it in a clone of Cloze")
    return folder


def _processor() -> str:
    from cloze.training.model.cpuinfo import cpuinfo

    return cpuinfo("model name") or "CPU"


def describe(calibration: Calibration) -> str:
    """The calibration in one line."""
    factors: Mapping[str, float] = {name: calibration.factor(names[0]) for name, names in _PIECES.items()}
    parts = ", ".join(f"{name} {factor:.2f}" for name, factor in factors.items())
    return f"calibrated {calibration.date} UTC on {calibration.machine}; time relative to the rates: {parts}"
