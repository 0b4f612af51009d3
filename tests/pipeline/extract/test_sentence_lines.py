import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.document import document
from cloze.pipeline.extract.records_to_documents import UnitNotes, read_records
from cloze.pipeline.extract.sentence_lines import (
    DocumentBoundary,
    byte_ranges,
    check_prose,
    line_layout,
    read_documents,
)
from cloze.pipeline.extract.sources import SentencesSource
from cloze.pipeline.extract.stage import ExtractConfig
from cloze.pipeline.extract.work_units import plan_units
from cloze.pipeline.text.sentences import STOPS, document_sentences, presplit_paragraphs
from cloze.pipeline.text.tokenizer import BulkTokenizer, load_tokenizer
from cloze.pipeline.tokens.tokenization import tokenize
from tests.golden import unpack, vocab_artifact

TEXT = "First one.\nSecond? Yes. \n\n\n  Third one.\r\nmarker 2\nFourth.\n\nfifth"
LINES = st.lists(st.sampled_from(["", "One.", "Zwei, drei.", "## x", "é"]), max_size=40)
BOUNDARIES = st.sampled_from(
    [DocumentBoundary(), DocumentBoundary(marker="##"), DocumentBoundary(every=1), DocumentBoundary(every=4)]
)
FLAT = "usually , he would be tearing around the living room .\n`` but just one look , '' he said .\n" * 150


def write(folder: Path, data: bytes, name: str = "x.txt") -> Location:
    (folder / name).write_bytes(data)
    return Location(str(folder / name))


def read(location: Location, boundary: DocumentBoundary, size: int = 10**9, encoding: str = "") -> list[list[str]]:
    return [
        found.sentences
        for span in byte_ranges(location, boundary, size)
        for found in read_documents(location, span, boundary, encoding)
    ]


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize(
    ("boundary", "expected"),
    [
        (DocumentBoundary(), [["First one.", "Second? Yes."], ["Third one.", "marker 2", "Fourth."], ["fifth"]]),
        (DocumentBoundary(marker="marker"), [["First one.", "Second? Yes.", "Third one."], ["Fourth.", "fifth"]]),
        (DocumentBoundary(every=3), [["First one.", "Second? Yes."], ["Third one.", "marker 2"], ["Fourth.", "fifth"]]),
    ],
)
def test_a_boundary_determines_where_documents_end(
    tmp_path: Path, name: str, boundary: DocumentBoundary, expected: list[list[str]]
):
    data = b"\xef\xbb\xbf" + TEXT.encode()
    location = write(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name)
    assert read(location, boundary) == expected


@settings(max_examples=60, deadline=None)
@given(
    LINES,
    st.integers(1, 60),
    BOUNDARIES,
    st.booleans(),
)
@example(["a", "", "", "b"], 2, DocumentBoundary(), True)
def test_ranges_of_any_size_give_the_documents_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, boundary: DocumentBoundary, ended: bool
):
    data = ("\n".join(lines) + "\n" * ended).encode()
    location = write(tmp_path_factory.mktemp("lines"), data)
    spans = list(byte_ranges(location, boundary, size))
    cuts = [0, *(span.end for span in spans)]
    assert spans == [ByteRange(*pair) for pair in pairwise(cuts)] and cuts[-1] == len(data)
    whole = list(read_documents(location, ByteRange(0, len(data)), boundary))
    assert [found for span in spans for found in read_documents(location, span, boundary)] == whole
    kept = [line for line in lines if line and not (boundary.marker and line.startswith(boundary.marker))]
    assert [sentence for found in whole for sentence in found.sentences] == kept


def test_sentences_stay_as_given_up_to_their_pieces(tmp_path: Path):
    """Lines that the splitter would cut or that end without a stop; one document has a single line."""
    bulk = BulkTokenizer(load_tokenizer(vocab_artifact(tmp_path).location / "tokenizer.json"))
    sentences = ["One. Two. Three.", "no stop", "Mr. Smith? Yes!"]
    texts = [
        document(presplit_paragraphs(some), doc_id="a", source="s", heldout_fraction=0).text
        for some in (sentences, ["A. B."])
    ]
    assert [document_sentences(text) for text in texts] == [sentences, ["A. B."]]
    assert tokenize(texts, bulk)[2].tolist() == [3, 1]
    divided = [document(["A boy. A girl."], doc_id="a", source="s", heldout_fraction=0).text]
    assert tokenize(divided, bulk)[2].tolist() == [2]


def test_a_source_of_sentences_has_documents_with_ids_that_do_not_depend_on_ranges(tmp_path: Path, monkeypatch):
    location = write(tmp_path, unpack("sentences.txt").encode())
    file = SourceFile(str(location), "ab" * 32, location.size())
    source = {"name": "s", "kind": "sentences", "files": ["x"]}
    config = ExtractConfig.model_validate({"sources": [source], "min_words": 0})
    found = []
    for size in (10**9, 5000):
        monkeypatch.setattr("cloze.pipeline.extract.work_units.FILES_UNIT_BYTES", size)
        work = plan_units(config, {"s": [file]})
        found.append([record for unit in work for record in read_records(unit, config, UnitNotes())])
    assert found[0] == found[1] and len(found[0]) == 45
    assert found[0][0].doc_id == f"s:{'ab' * 8}:0"


def test_a_flat_stream_without_a_boundary_is_refused(tmp_path: Path):
    location = write(tmp_path, FLAT.encode())
    with pytest.raises(UserError, match=r"x\.txt: .*without boundaries.*next-sentence pairs.*every: N.*marker:"):
        list(byte_ranges(location, DocumentBoundary(), 100))
    assert [len(found) for found in read(location, DocumentBoundary(every=120), 1000)] == [120, 120, 60]


def test_prose_is_no_stream_of_sentences():
    wrapped = "it was a day like any other, and nobody had\nseen the sea from there. but then he said\n" * 200
    paragraphs = "One sentence here. Another one there.\n" * 3000
    dialogue = "He said so.\n\n“No.”\n\nShe laughed.\n\n" * 300
    assert [line_layout(text) for text in (wrapped, paragraphs, dialogue, "", "one.\n" * 20)] == ["prose"] * 5


def test_sentences_given_as_prose_are_refused_with_their_kind():
    assert line_layout(unpack("sentences.txt")) == "blank lines"
    with pytest.raises(UserError, match="kind sentences"):
        check_prose(Location("x.txt"), unpack("sentences.txt"))
    with pytest.raises(UserError, match="without boundaries"):
        check_prose(Location("x.txt"), FLAT)
    assert [line_layout(f"a line of one sentence{stop}\n" * 300) for stop in STOPS] == ["no boundaries"] * len(STOPS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\ncaf\xe9\n", "is not utf-8 (byte 0xe9 at 7)"),
        ("one\n\ntwo".encode("utf-16"), "is utf-16; convert it to UTF-8"),
        (b"a" * (2 << 20), "has a line of more than"),
        (b"one\n" * 100_002, "without boundaries"),
    ],
)
def test_an_error_names_file_and_fix(tmp_path: Path, data: bytes, message: str):
    with pytest.raises(UserError, match=r"x\.txt: ") as error:
        read(write(tmp_path, data), DocumentBoundary())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_encoding_can_be_set(tmp_path: Path):
    assert read(write(tmp_path, b"caf\xe9\n"), DocumentBoundary(), encoding="cp1252") == [["café"]]


@pytest.mark.parametrize("wrong", [{"every": 5, "marker": "x"}, {"every": -1}, {"encoding": "utf-16"}])
def test_impossible_boundaries_are_refused(wrong: dict):
    with pytest.raises(ValueError):
        SentencesSource.model_validate({"name": "s", "kind": "sentences", "files": ["x"], **wrong})
