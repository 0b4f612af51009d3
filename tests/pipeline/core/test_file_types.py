import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.file_types import HEAD_BYTES, compression_of, file_type_of


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (bz2.compress(b"x"), "bz2", "compressed with bzip2; unpack it first (bunzip2)"),
        (gzip.compress(b"x", mtime=0), "gz", "compressed with gzip; unpack it first (gunzip)"),
        (lzma.compress(b"x"), "xz", "compressed with xz; unpack it first (xz -d)"),
        (lzma.compress(b"x", lzma.FORMAT_ALONE), "xz", "compressed with lzma; unpack it first (xz -d)"),
        (zipped(), "", "a zip archive or an EPUB; unpack it first (unzip)"),
        (tarred(), "", "a tar archive; unpack it first (tar -xf)"),
        (parquet(), "", "a Parquet file; give it as a source of kind documents"),
        (b"%PDF-1.7", "", "a PDF"),
    ],
)
def test_a_file_type_is_detected_by_the_first_bytes(data: bytes, kind: str, said: str) -> None:
    assert compression_of(data[:HEAD_BYTES]) == kind
    assert str(file_type_of(data[:HEAD_BYTES])) == said


@pytest.mark.parametrize("text", ["", "Plain.", "LZIP is a compressor.", " " * 257 + "ustar", "\ufeff<mediawiki>"])
def test_text_is_no_other_type(text: str) -> None:
    assert compression_of(text.encode()) == "" and file_type_of(text.encode()) is None
