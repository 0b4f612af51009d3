"""The first bytes of a file -> what it is, whatever it is called."""

from typing import NamedTuple

HEAD = 512  # bytes that tell: tar has its mark at 257

#: Compressions that are read here.
_PACKED = {b"BZh": "bz2", b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"]\x00\x00": "xz"}


class FileType(NamedTuple):
    """What a file is that is no plain text, and what to do with it, where that is known."""

    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}" if self.mend else self.what


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


def packed(head: bytes) -> str:
    """ "bz2", "gz" or "xz" for what begins like this; empty where it has no compression that is read here."""
    return next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), "")


def known(head: bytes) -> FileType | None:
    """The type of a file that begins like this, where it is known to be no plain text."""
    if head[257:262] == b"ustar" and 0 in head[:257]:
        return _TAR
    return next((found for magic, found in _TYPES.items() if head.startswith(magic)), None)
