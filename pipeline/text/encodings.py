"""A text file's bytes -> text. Its encoding is set, marked, UTF-8, declared, or certain by its letters; else refused.

Nothing is guessed where a guess could be wrong: Western European text in Windows-1252 (or Latin-1) is told from other
encodings by what stands inside its words, and anything else wants its encoding named.
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
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_DECLARED = re.compile(rb"Cha[rt]acter set encoding:[ \t]*([^\r\n]{2,60})", re.IGNORECASE)
_NAMES = [
    (re.compile(r"8859[-_ ]?1(?!\d)|latin[- ]?1(?!\d)|1252", re.IGNORECASE), "cp1252"),  # Latin-1 and what it lacks
    (re.compile(r"8859[-_ ]?(\d+)", re.IGNORECASE), "iso-8859-{}"),
    (re.compile(r"(?:windows|code ?page|cp)\D{0,12}(\d{3,4})", re.IGNORECASE), "cp{}"),
]
_UNUSABLE = ("punycode", "idna", "iso2022_kr")  # two of host names; one whose lines mean nothing without the first
_HEAD = 8192

_WESTERN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüœßÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ"
#: In Windows-1252 a sign that stands inside no word, or a letter of languages that its rivals write otherwise.
_FOREIGN = re.compile(r"(?<=[^\W\d_])[^\x00-\x7f" + _WESTERN + r"’‘–—…­](?=[^\W\d_])|[þðýÞÐÝšžŠŽƒ]")
_LETTERS = re.compile(f"[{_WESTERN}]")
_RUN = re.compile(f"[{_WESTERN}]{{4}}")
_ENOUGH = 5  # letters beyond ASCII


def _known(name: str) -> str:
    try:
        "a".encode(name or "utf-8")  # refuses what encodes no text, as "hex"
    except (LookupError, UnicodeError):
        usable = False
    else:
        usable = codecs.lookup(name or "utf-8").name not in _UNUSABLE
    if not usable:
        raise ValueError(f"{name!r} is no encoding that is read here; write utf-8, cp1252, utf-16 or shift_jis, say")
    return name


#: The setting: empty for what this file finds out.
Encoding = Annotated[str, AfterValidator(_known)]


def is_gzip(location: Location) -> bool:
    """By its name, as what is read so is known by its suffixes."""
    return location.name.lower().endswith(".gz")


@contextmanager
def decompressed(location: Location) -> Iterator[io.BufferedReader]:
    """A file that can be read by lines; what ends in .gz is decompressed. Raises UserError where that is damaged."""
    with location.open() as file:
        try:
            yield io.BufferedReader(gzip.GzipFile(fileobj=file) if is_gzip(location) else file, 1 << 20)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{location}: is damaged gzip ({error}); write it again") from error


def marked(head: bytes) -> str:
    """The encoding that a byte order mark names; empty without one."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")


def decode(data: bytes, name: str, encoding: str = "") -> str:
    """Text with plain newlines. `encoding` overrules what is found. Raises UserError: the file, the byte, the mend."""
    return _read(data, name, encoding)[0]


def decode_lines(data: bytes, name: str, encoding: str = "") -> tuple[str, list[int]]:
    """What `decode` gives, and of its lines the byte at which each begins, with the end of the last: [lines + 1]."""
    text, codec = _read(data, name, encoding)
    start, codec = unmarked(data[:4], codec)
    starts = [start]
    for line in byte_lines(io.BytesIO(data[start:]), codec):
        starts.append(starts[-1] + len(line))
    return text, starts


def _read(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    """Text with plain newlines, and the codec that it was in."""
    head = data[:_HEAD]
    if found := file_types.known(head):
        raise UserError(f"{name}: is {found.what}; give plain text in UTF-8")
    text, codec = _decoded(data, name, encoding)
    if "\x00" in text[: 1 << 16]:
        if half := _utf16(head):
            raise UserError(f"{name}: seems to be UTF-16 without a mark; set encoding: {half}, or convert it to UTF-8")
        raise UserError(f"{name}: is no text (it holds zero bytes); give plain text in UTF-8")
    return text.rstrip("\x1a").replace("\r\n", "\n").replace("\r", "\n"), codec


def of_stream(head: bytes, encoding: str = "") -> str:
    """The encoding in which a stream that begins with `head` is read: as set, as marked, else UTF-8."""
    found = marked(head) or "utf-8-sig"
    return found if not encoding or codecs.lookup(encoding).name == found.removesuffix("-sig") else encoding


def unmarked(head: bytes, codec: str) -> tuple[int, str]:
    """The bytes of the mark that a stream begins with, and the codec of what follows it, which writes no mark."""
    name = codecs.lookup(codec).name
    if name not in _MARKS.values():
        return 0, codec
    mark = next((mark for mark, marks in _MARKS.items() if marks == name and head.startswith(mark)), b"")
    if name == "utf-8-sig":
        return len(mark), "utf-8"
    return len(mark), f"{name}-be" if mark in (codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE) else f"{name}-le"


def byte_lines(file: io.BufferedReader | io.BytesIO, codec: str) -> Iterator[bytes]:
    """The lines of a stream without a mark, as bytes, with their ends (LF, CR LF or CR).

    Raises UnicodeDecodeError: UTF-16 or UTF-32 that ends in mid-character.
    """
    if "\r\n".encode(codec) == b"\r\n":  # and in no such codec is either a part of another character
        for line in file:
            if b"\r" in line:
                yield from line.splitlines(keepends=True)
            else:
                yield line
    else:
        for line in io.TextIOWrapper(file, codec, "surrogatepass", newline=""):
            yield line.encode(codec, "surrogatepass")


def wrong_byte(error: UnicodeDecodeError, offset: int = 0) -> str:
    """What an error points at. UTF-16 that ends in mid-character has no byte to show."""
    shown = error.object[error.start : error.start + 1]
    return f"byte 0x{shown.hex()} at {offset + error.start}" if shown else f"its end at {offset + error.start}"


def _decoded(data: bytes, name: str, encoding: str) -> tuple[str, str]:
    stated, codec = encoding or marked(data[:4]), of_stream(data[:4], encoding)
    try:
        return data.decode(codec), codec
    except UnicodeDecodeError as error:
        where = wrong_byte(error)
    mend = "set the source's encoding, for example cp1252, or convert it (iconv -f WINDOWS-1252 -t UTF-8)"
    if stated:
        raise UserError(f"{name}: is not {stated} ({where}); correct encoding, or leave it out to have it found")
    declared = _declared(data[:_HEAD])
    if declared not in ("", "utf-8", "ascii"):
        try:
            return data.decode(declared), declared
        except UnicodeDecodeError as error:
            where = wrong_byte(error)
        raise UserError(f"{name}: declares {declared} and is not ({where}); {mend}")
    if _is_western(data):
        return data.decode("cp1252"), "cp1252"
    raise UserError(f"{name}: is not UTF-8 ({where}), and what else it is in is not certain; {mend}")


def _declared(head: bytes) -> str:
    """The encoding that a Project Gutenberg header states, as Python calls it; empty where it is none of Python's."""
    found = _DECLARED.search(head)
    if not found:
        return ""
    said = found[1].decode("ascii", "replace").strip()
    for pattern, name in _NAMES:
        if match := pattern.search(said):
            said = name.format(*match.groups())
            break
    try:
        return codecs.lookup(_known(said)).name
    except (LookupError, ValueError):
        return ""


def _is_western(data: bytes) -> bool:
    """Whether Windows-1252 reads well, and no other encoding would read these bytes as another language's letters."""
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    letters = _LETTERS.findall(text)
    ascii_letters = len(re.findall("[A-Za-z]", text))
    return (
        len(letters) >= _ENOUGH
        and len(letters) < 0.4 * ascii_letters
        and not _FOREIGN.search(text)
        and not _RUN.search(text)
        and ("õ" not in letters or "ã" in letters)  # else Hungarian in ISO 8859-2
    )


def _utf16(head: bytes) -> str:
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 32 or max(even, odd) < len(head) / 5 or min(even, odd) > max(even, odd) / 4:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"
