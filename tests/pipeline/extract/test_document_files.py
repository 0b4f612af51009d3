import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document_files import DocumentColumns, DocumentRow, paragraphs, read_rows
from cloze.pipeline.text.sentences import STOPS

RECORDS = [
    {"body": 'One, "two"\n\nthree', "key": "a", "head": "First", "n": 1},
    {"body": "Vier", "key": "b", "head": "", "n": 2},
]
COLUMNS = DocumentColumns(text="body", doc_id="key", title="head")
EXPECTED = [DocumentRow('One, "two"\n\nthree', "a", "First"), DocumentRow("Vier", "b", "")]


def read(location: Location, columns: DocumentColumns) -> list[DocumentRow]:
    return [row for _, row in read_rows(location, columns)]


def write(path: Path, data: bytes) -> Location:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return Location(str(path))


def json_lines(records: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def csv_text(delimiter: str) -> bytes:
    quoted = [f'"One, ""two""\n\nthree"{delimiter}a{delimiter}First', f"Vier{delimiter}b{delimiter}"]
    return "\n".join([delimiter.join(("body", "key", "head")), *quoted]).encode()


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.ndjson.gz", "x.csv", "x.tsv", "x.csv.gz", "x.parquet", "X.JSONL"]
)
def test_every_format_has_the_same_rows(tmp_path: Path, name: str):
    path = tmp_path / name
    if "parquet" in name:
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif "sv" in name:
        write(path, csv_text("\t" if "tsv" in name else ","))
    else:
        write(path, b"\xef\xbb\xbf" + json_lines(RECORDS) + b"\n\n")
    assert read(Location(str(path)), COLUMNS) == EXPECTED


def test_a_text_file_is_one_row(tmp_path: Path):
    assert read(write(tmp_path / "x.txt.gz", b"All\r\nof it."), DocumentColumns()) == [DocumentRow("All\nof it.")]


def test_times_and_numbers_become_text(tmp_path: Path):
    import datetime

    table = pa.table({"text": ["a"], "id": [7], "when": [datetime.datetime(2020, 1, 2, 3, 4, 5)]})
    pq.write_table(table, tmp_path / "x.parquet")
    columns = DocumentColumns(doc_id="id", timestamp="when")
    assert read(Location(str(tmp_path / "x.parquet")), columns) == [
        DocumentRow("a", doc_id="7", timestamp="2020-01-02T03:04:05")
    ]


def test_null_is_empty(tmp_path: Path):
    assert read(write(tmp_path / "x.jsonl", b'{"text": null}'), DocumentColumns()) == [DocumentRow("")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": ', ":2: is not JSON"),
        ("x.jsonl", b'[{"text": "a"}]', ":1: is a list"),
        ("x.jsonl", b'{"text": "a"}\n{"other": 1, "more": 2}', ":2: has no column text; it has other, more"),
        ("x.jsonl", b'{"text": ' + b"[" * 100_000, ":1: is JSON that is nested too deeply"),
        ("x.jsonl", b'{"text": ' + b"1" * 5000 + b"}", ":1: is JSON that is nested too deeply or too long"),
        ("x.jsonl", b'{"text": 5}', ":1: text holds int 5, not text"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}', "is not UTF-8 (byte 0xe9 at 27)"),
        ("x.csv", b"a,b\n1,2", "has no column text; it has a, b"),
        ("x.csv", b"text,b\n1,2,3", ":2: has more or fewer fields"),
        ("x.csv", b'text\n"a', "is not CSV"),
        ("x.csv", b"", "has no column text; it has none"),
        ("x.parquet", b"no parquet", "is not a Parquet file"),
        ("x.docx", b"PK", "documents are .parquet, .jsonl"),
        ("x.txt", b"caf\xe9", "is not UTF-8"),
    ],
)
def test_an_error_names_its_place(tmp_path: Path, name: str, data: bytes, message: str):
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        read(write(tmp_path / name, data), DocumentColumns())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path: Path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has no column text; it has a, b"):
        read(Location(str(tmp_path / "x.parquet")), DocumentColumns())


def test_damaged_parquet_is_named(tmp_path: Path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [f"Words {n}." for n in range(1000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.parquet: is damaged Parquet .*; create it again") as error:
        read(Location(str(path)), DocumentColumns())
    assert "\n" not in str(error.value)


def test_half_a_character_is_replaced(tmp_path: Path):
    data = b'{"text": "half \\ud83d, whole \\ud83d\\ude00"}'
    assert read(write(tmp_path / "x.jsonl", data), DocumentColumns()) == [DocumentRow("half \ufffd, whole \U0001f600")]


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.txt.gz"])
def test_gzip_damaged_in_its_middle_is_named(tmp_path: Path, name: str):
    data = bytearray(gzip.compress(json_lines(RECORDS)))
    data[10] = 0xFF  # no kind of block
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="is damaged gzip"):
        read(Location(str(tmp_path / name)), COLUMNS)


def test_damaged_gzip_is_named(tmp_path: Path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(json_lines(RECORDS) * 50)[:-20])
    with pytest.raises(UserError, match="is damaged gzip"):
        read(Location(str(tmp_path / "x.jsonl.gz")), COLUMNS)


def test_paragraphs_end_at_blank_lines_or_without_any_at_ends_of_sentences():
    assert paragraphs("a\nb \r\n \r\n  c\n\n\n") == ["a b", "c"]
    assert paragraphs('A line that\ngoes on.\nAnother.\n"Third!"\nrest') == [
        "A line that goes on.",
        "Another.",
        '"Third!"',
        "rest",
    ]
    assert paragraphs(" \n ") == []


@pytest.mark.parametrize("stop", STOPS)
def test_lines_of_any_script_end_a_paragraph_at_its_stops(stop: str):
    assert paragraphs(f"One{stop}\nTwo\nthree{stop}»\nrest") == [f"One{stop}", f"Two three{stop}»", "rest"]


def test_lines_without_a_stop_are_read_in_linear_time():
    start = time.process_time()
    (found,) = paragraphs("a line that ends no sentence\n" * 300_000)
    assert time.process_time() - start < 8
    assert len(found) == 300_000 * 29 - 1


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.txt", "x.txt.gz"])
def test_files_are_read_alike_on_any_storage(folder: str, name: str):
    content = "".join(f'{{"text": "Line {n} of many."}}\n' for n in range(20_000))
    location = Location(folder) / name
    location.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = [row.text for row in read(location, DocumentColumns())]
    assert found == ([content] if ".txt" in name else [f"Line {n} of many." for n in range(20_000)])
