"""Rows of tables with where they stand: what the readers of documents and of labelled files share."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.pipeline.text.table_files import read_rows


def write(path: Path, data: bytes) -> Location:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return Location(str(path))


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.jsonl", "x.json.gz", "X.NDJSON"])
def test_a_row_has_its_last_line_number_and_its_bytes(tmp_path: Path, name: str) -> None:
    if ".csv" in name:
        data = b'\xef\xbb\xbftext,more\r\n"a\nb",1\r\n\r\nc,2'
        lines = [(3, b'"a\nb",1\r\n'), (5, b"c,2")]
    else:
        data = b'\xef\xbb\xbf{"text": "a\\nb", "more": 1}\n\n{"text": "c"}'
        lines = [(1, b'{"text": "a\\nb", "more": 1}\n'), (3, b'{"text": "c"}')]
    found = list(read_rows(write(tmp_path / name, data), ["text"], tsv_quotes=True))
    assert [row.values["text"] for row in found] == ["a\nb", "c"]
    assert [(row.number, data[row.offset : row.offset + row.bytes]) for row in found] == lines
    assert [row.where for row in found] == [f"{tmp_path}/{name}:{number}" for number, _ in lines]


@pytest.mark.parametrize("name", ["x.parquet", "x.parquet.gz"])
def test_a_row_of_parquet_has_its_number(tmp_path: Path, name: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a", "b"], "more": [1, 2]}), sink)
    found = list(read_rows(write(tmp_path / name, sink.getvalue().to_pybytes()), ["text"], tsv_quotes=True))
    assert [tuple(row) for row in found] == [
        (number, f"{tmp_path}/{name}: row {number}", {"text": text}, number - 1, 0)
        for number, text in ((1, "a"), (2, "b"))
    ]


@pytest.mark.parametrize(("quotes", "text"), [(True, "a\tb"), (False, '"a')])
def test_quotes_in_a_tsv_are_characters_if_the_caller_says_so(tmp_path: Path, quotes: bool, text: str) -> None:
    data = b'text\tmore\n"a\tb"\t1\n' if quotes else b'text\tmore\n"a\t1\n'
    (row,) = read_rows(write(tmp_path / "x.tsv", data), ["text", "more"], tsv_quotes=quotes)
    assert row.values == {"text": text, "more": "1"}


def test_a_mark_names_the_encoding(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "x.csv", "text\né".encode("utf-16")), ["text"], tsv_quotes=True)
    assert row.values == {"text": "é"}


def test_a_file_that_is_no_table_is_an_error_that_lists_the_formats(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.xlsx: is not a table; give one of \.parquet, .* correct its suffix"):
        list(read_rows(write(tmp_path / "x.xlsx", b"PK"), ["text"], tsv_quotes=True))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text\n[]\n{"more": 1}\n{"text": "b"}\n'),
        ("x.csv", "text,more\na,1\nb\nb,c,d\n,,,\nb,2\n"),
    ],
)
def test_rows_that_cannot_be_read_are_left_out_on_request(tmp_path, name, text):
    errors: list[UserError] = []
    found = list(read_rows(write(tmp_path / name, text.encode()), ["text"], tsv_quotes=True, on_invalid=errors.append))
    assert [row.values["text"] for row in found] == ["a", "b"]
    assert [str(error).split(": ")[0].rpartition(":")[2] for error in errors] == (
        ["2", "3", "4"] if name == "x.jsonl" else ["3", "4", "5"]
    )
