"""The first bytes of a file -> its type, independent of its name."""

from typing import NamedTuple

HEAD_BYTES = 512  # bytes that are needed: tar has its magic number at 257

#: Compressions that Cloze reads.
_COMPRESSIONS = {b"BZh": "bz2", b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "xz"}


class FileType(NamedTuple):
    """A type of file that is not plain text, and what to do with it, if known."""

    description: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.description}; {self.fix}" if self.fix else self.description


_TYPES = {
    b"7z\xbc\xaf\x27\x1c": FileType("a 7z archive", "unpack it first (7z x)"),
    b"PK\x03\x04": FileType("a zip archive or an EPUB", "unpack it first (unzip)"),
    b"PK\x05\x06": FileType("an empty zip archive"),
    b"Rar!\x1a\x07": FileType("a rar archive", "unpack it first (unrar x)"),
    b"\x1f\x8b": FileType("compressed with gzip", "unpack it first (gunzip)"),
    b"BZh": FileType("compressed with bzip2", "unpack it first (bunzip2)"),
    b"\xfd7zXZ": FileType("compressed with xz", "unpack it first (xz -d)"),
    b"]\x00\x00": FileType("compressed with lzma", "unpack it first (xz -d)"),
    b"\x28\xb5\x2f\xfd": FileType("compressed with zstd", "unpack it first (zstd -d)"),
    b"\x04\x22\x4d\x18": FileType("compressed with lz4", "unpack it first (lz4 -d)"),
    b"\x02\x21\x4c\x18": FileType("compressed with lz4", "unpack it first (lz4 -d)"),
    b"\x1f\x9d": FileType("compressed with compress (.Z)", "unpack it first (uncompress)"),
    b"LZIP\x01": FileType("compressed with lzip", "unpack it first (lzip -d)"),
    b"\x89LZO\x00": FileType("compressed with lzop", "unpack it first (lzop -d)"),
    b"\xff\x06\x00\x00sNaPpY": FileType("compressed with snappy", "unpack it first"),
    b"PAR1": FileType("a Parquet file", "give it as a source of kind documents"),
    b"SQLite format 3\x00": FileType("an SQLite database"),
    b"%PDF": FileType("a PDF"),
    b"{\\rtf": FileType("RTF"),
    b"\xd0\xcf\x11\xe0": FileType("a Word file"),
}
_TAR = FileType("a tar archive", "unpack it first (tar -xf)")


def compression_of(head: bytes) -> str:
    """Returns "bz2", "gz" or "xz" for a file that begins with `head`; empty for all else."""
    return next((kind for magic, kind in _COMPRESSIONS.items() if head.startswith(magic)), "")


def file_type_of(head: bytes) -> FileType | None:
    """Returns the type of a file that begins with `head`, or None if it may be plain text."""
    if head[257:262] == b"ustar" and 0 in head[:257]:
        return _TAR
    return next((found for magic, found in _TYPES.items() if head.startswith(magic)), None)
