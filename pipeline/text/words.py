"""What a word is: the one definition that counts, filters, reading of books and near duplicates share.

A text is taken without case and compatibility forms (NFKC: half-width katakana are katakana, "½" is "1⁄2"). A word is
then a run of letters, marks and numbers (Unicode's categories L, M and N, save variation selectors); but of a script
that puts no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan) each such character is a word
by itself. So "don't" has two words, "word—word" two, "東京2020年" four, "..." and "❤️" none.
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_AT_ONCE = 1 << 18  # characters
_LAST = 0x33480  # no letter of Unicode 17 from here on
# Scripts that put no spaces between words: each character is a word.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007),
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA980, 0xA9FF), (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF), (0x20000, 0x3347F),
)  # fmt: skip
_VARIATIONS = slice(0xFE00, 0xFE10)  # variation selectors: behind a heart, that it is to be red
_IS_WORD = bytes(code < 128 and chr(code).isalnum() for code in range(256))


def case_folded(text: str) -> str:
    """Text without case and compatibility forms; lower case is all that ASCII needs."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def count(text: str) -> int:
    """The number of words."""
    return count_ascii(text) if text.isascii() else count_folded(case_folded(text))


def count_ascii(text: str) -> int:
    """The number of words of a text that is ASCII."""
    inside = np.frombuffer(f" {text}".encode().translate(_IS_WORD), bool)
    return int(np.count_nonzero(inside[1:] > inside[:-1]))


def count_folded(text: str) -> int:
    """The number of words of a text whose case is folded. Takes a few megabytes, however long the text is."""
    found = 0
    for start in range(0, len(text), _AT_ONCE):
        before = min(start, 1)  # what decides whether the first character goes on with a word
        some = text[start - before : start + _AT_ONCE]
        found += int(np.count_nonzero(bounds(code_points(some))[1][before:]))
    return found


def code_points(text: str) -> npt.NDArray[Any]:
    """Those of the text's characters, [n]: as 16 bits where all have no more, else as 32."""
    codes = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
    if len(codes) > len(text):
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return codes


@cache
def categories() -> npt.NDArray[np.uint8]:
    """By code point the first letter of Unicode's category, as ASCII; [_LAST + 1], the last for all that follow."""
    return np.frombuffer("".join(unicodedata.category(chr(code))[0] for code in range(_LAST)).encode() + b"C", np.uint8)


def of_each(kinds: npt.NDArray[np.uint8], codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """What a table of as many entries as `categories` has says of each code point, [n]."""
    return kinds[codes if codes.itemsize < 4 else np.minimum(codes, _LAST)]


def bounds(codes: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Code points of a folded text, [n] -> which of them belong to a word, and which begin one, [n] each."""
    kinds = of_each(_kinds(), codes)
    inside = kinds > 0
    begins = inside.copy()
    begins[1:] &= (kinds[1:] != 1) | (kinds[:-1] != 1)
    return inside, begins


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """By code point: 0 separates words, 1 is part of a word, 2 is a word."""
    kinds = np.isin(categories(), tuple(b"LMN")).astype(np.uint8)
    for start, end in _UNSPACED:
        kinds[start : end + 1] *= 2
    kinds[_VARIATIONS] = 0
    return kinds
