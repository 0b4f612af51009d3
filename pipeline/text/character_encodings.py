"""A text file's bytes -> text.

The encoding is the one that the user sets, else that of the byte order mark (BOM), else UTF-8, else the one that a
Project Gutenberg header declares, else Windows-1252 (or Latin-1) if the characters inside words leave no doubt that the
text is Western European. In all other cases an error asks for the encoding: Cloze does not guess.
"""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import AfterValidator

from cloze.pipeline.core import file_types
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.storage import Location

_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_DECLARED = re.compile(rb"Cha[rt]acter set encoding:[ \t]*([^\r\n]{2,60})", re.IGNORECASE)
_NAMES = [
    (re.compile(r"8859[-_ ]?1(?!\d)|latin[- ]?1(?!\d)|1252", re.IGNORECASE), "cp1252"),  # a superset of Latin-1
    (re.compile(r"8859[-_ ]?(\d+)", re.IGNORECASE), "iso-8859-{}"),
    (re.compile(r"(?:windows|code ?page|cp)\D{0,12}(\d{3,4})", re.IGNORECASE), "cp{}"),
]
_UNUSABLE = ("punycode", "idna", "iso2022_kr")  # two are for host names; one cannot decode lines without the first
_HEAD = 8192

_WESTERN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüœßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ"
#: A character that is not inside words in Windows-1252, or a letter of languages that have other encodings, too.
_NOT_WESTERN = re.compile(r"(?<=[^\W\d_])[^\x00-\x7f" + _WESTERN + r"’‘–—…­](?=[^\W\d_])|[þðýÞÐÝšžŠŽƒ]")
_LETTERS = re.compile(f"[{_WESTERN}]")
_RUN = re.compile(f"[{_WESTERN}]{{4}}")
_MIN_LETTERS = 5  # beyond ASCII


def _valid_encoding(name: str) -> str:
    try:
        "a".encode(name or "utf-8")  # fails for codecs of bytes, such as "hex"
    except (LookupError, UnicodeError):
        usable = False
    else:
        usable = codecs.lookup(name or "utf-8").name not in _UNUSABLE
    if not usable:
        raise ValueError(
            f"{name!r} is not an encoding that Cloze reads; write for example utf-8, cp1252, utf-16 or shift_jis"
        )
    return name


#: The type of a configuration's field: an encoding, or empty to detect it.
Encoding = Annotated[str, AfterValidator(_valid_encoding)]


def is_gzip(location: Location) -> bool:
    """Returns whether the name ends in .gz: formats are known by their suffixes."""
    return location.name.lower().endswith(".gz")


@contextmanager
def decompressed(location: Location) -> Iterator[io.BufferedReader]:
    """Open a file for reading by lines; .gz is decompressed. Raises UserError if it is damaged."""
    with location.open() as file:
        try:
            yield io.BufferedReader(gzip.GzipFile(fileobj=file) if is_gzip(location) else file, 1 << 20)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DamagedFile(f"{location}: is damaged gzip ({error}); create it again") from error


def bom_encoding(head: bytes) -> str:
    """Returns the encoding of the byte order mark; empty without one."""
    return next((name for bom, name in _BOMS.items() if head.startswith(bom)), "")


def decode(data: bytes, name: str, encoding: str = "") -> str:
    """Bytes -> text with \\n line ends. `encoding` overrides detection. Raises UserError with the file and the byte."""
    return _decode(data, name, encoding)[0]


def decode_with_line_starts(data: bytes, name: str, encoding: str = "") -> tuple[str, list[int]]:
    """As `decode`, and the byte offset at which each line begins, with the end of the last: [lines + 1]."""
    text, codec = _decode(data, name, encoding)
    start, codec = bom_length_and_codec(data[:4], codec)
    starts = [start]
    for line in byte_lines(io.BytesIO(data[start:]), codec):
        starts.append(starts[-1] + len(line))
    return text, starts


def _decode(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    """Returns the text with \\n line ends, and the codec that decoded it."""
    head = data[:_HEAD]
    if file_type := file_types.file_type_of(head):
        raise UserError(f"{name}: is {file_type.description}; give plain text in UTF-8")
    text, codec = _detect_and_decode(data, name, encoding)
    if "\x00" in text[: 1 << 16]:
        if utf16 := _utf16_without_bom(head):
            raise UserError(
                f"{name}: seems to be UTF-16 without a byte order mark; set encoding: {utf16}, or convert it to UTF-8"
            )
        raise UserError(f"{name}: is not text (it has zero bytes); give plain text in UTF-8")
    return text.rstrip("\x1a").replace("\r\n", "\n").replace("\r", "\n"), codec


def stream_encoding(head: bytes, encoding: str = "") -> str:
    """Returns the encoding for a stream that begins with `head`: the one set, that of its BOM, or UTF-8."""
    found = bom_encoding(head) or "utf-8-sig"
    return found if not encoding or codecs.lookup(encoding).name == found.removesuffix("-sig") else encoding


def bom_length_and_codec(head: bytes, codec: str) -> tuple[int, str]:
    """Returns the length of the BOM at the beginning of a stream, and the codec, without BOM, of the text after it."""
    name = codecs.lookup(codec).name
    if name not in _BOMS.values():
        return 0, codec
    bom = next((bom for bom, encoding in _BOMS.items() if encoding == name and head.startswith(bom)), b"")
    if name == "utf-8-sig":
        return len(bom), "utf-8"
    return len(bom), f"{name}-be" if bom in (codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE) else f"{name}-le"


def byte_lines(file: io.BufferedReader | io.BytesIO, codec: str) -> Iterator[bytes]:
    """Yields the lines of a stream without a BOM as bytes, with their line ends (LF, CR LF or CR).

    Raises UnicodeDecodeError for UTF-16 or UTF-32 that ends within a character.
    """
    if "\r\n".encode(codec) == b"\r\n":  # such a codec uses neither byte within another character
        for line in file:
            if b"\r" in line:
                yield from line.splitlines(keepends=True)
            else:
                yield line
    else:
        for line in io.TextIOWrapper(file, codec, "surrogatepass", newline=""):
            yield line.encode(codec, "surrogatepass")


def describe_invalid_byte(error: UnicodeDecodeError, offset: int = 0) -> str:
    """Returns the byte that an error is about. UTF-16 that ends within a character has none."""
    shown = error.object[error.start : error.start + 1]
    return f"byte 0x{shown.hex()} at {offset + error.start}" if shown else f"its end at {offset + error.start}"


def _detect_and_decode(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    stated, codec = encoding or bom_encoding(data[:4]), stream_encoding(data[:4], encoding)
    try:
        return data.decode(codec), codec
    except UnicodeDecodeError as error:
        where = describe_invalid_byte(error)
    fix = "set the source's encoding, for example cp1252, or convert it (iconv -f WINDOWS-1252 -t UTF-8)"
    if stated:
        raise UserError(f"{name}: is not {stated} ({where}); correct encoding, or remove it so that Cloze detects it")
    declared = _declared(data[:_HEAD])
    if declared not in ("", "utf-8", "ascii"):
        try:
            return data.decode(declared), declared
        except UnicodeDecodeError as error:
            where = describe_invalid_byte(error)
        raise UserError(f"{name}: declares {declared} and is not ({where}); {fix}")
    if _is_western(data):
        return data.decode("cp1252"), "cp1252"
    raise UserError(f"{name}: is not UTF-8 ({where}), and its encoding cannot be detected; {fix}")


def _declared(head: bytes) -> str:
    """Returns the encoding in a Project Gutenberg header by Python's name; empty if Python has none."""
    header = _DECLARED.search(head)
    if not header:
        return ""
    declared = header[1].decode("ascii", "replace").strip()
    for pattern, name in _NAMES:
        if match := pattern.search(declared):
            declared = name.format(*match.groups())
            break
    try:
        return codecs.lookup(_valid_encoding(declared)).name
    except (LookupError, ValueError):
        return ""


def _is_western(data: bytes) -> bool:
    """Returns whether the bytes are plausible Windows-1252, and not another language's letters in another encoding."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = _LETTERS.findall(text)
    ascii_letters = len(re.findall("[A-Za-z]", text))
    return (
        len(letters) >= _MIN_LETTERS
        and len(letters) < 0.4 * ascii_letters
        and not _NOT_WESTERN.search(text)
        and not _RUN.search(text)
        and ("õ" not in letters or "ã" in letters)  # otherwise it is Hungarian in ISO 8859-2
    )


def _utf16_without_bom(head: bytes) -> str:
    """Returns "utf-16-le" or "utf-16-be" if every other byte is mostly zero, else an empty string."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 32 or max(even, odd) < len(head) / 5 or min(even, odd) > max(even, odd) / 4:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"
