"""The definition of a word, for word counts, filters, books and near duplicates.

Case and compatibility forms are folded first (NFKC: half-width katakana become katakana, "½" becomes "1⁄2"). A word is
then a run of letters, marks and numbers (Unicode's categories L, M and N, except variation selectors). In scripts
without spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer, Tibetan) each such character is a word. So
"don't" has two words, "word—word" two, "東京2020年" four, "..." and "❤️" none.
"""

import unicodedata
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_BATCH = 1 << 18  # characters
_LAST = 0x33480  # Unicode 17 has no letters from here on
# Scripts without spaces between words: each character is a word.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007),
    (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA980, 0xA9FF), (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF), (0x20000, 0x3347F),
)  # fmt: skip
_VARIATIONS = slice(0xFE00, 0xFE10)  # variation selectors: after a heart, that it is red
_IS_WORD = bytes(code < 128 and chr(code).isalnum() for code in range(256))


def case_folded(text: str) -> str:
    """Returns the text with case and compatibility forms folded; ASCII needs only lower case."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def count_words(text: str) -> int:
    """Returns the number of words in a text."""
    return count_ascii(text) if text.isascii() else count_folded(case_folded(text))


def count_ascii(text: str) -> int:
    """Returns the number of words in an ASCII text."""
    inside = np.frombuffer(f" {text}".encode().translate(_IS_WORD), bool)
    return int(np.count_nonzero(inside[1:] > inside[:-1]))


def count_folded(text: str) -> int:
    """Returns the number of words in a case-folded text, in batches that take a few megabytes of memory."""
    total = 0
    for start in range(0, len(text), _BATCH):
        before = min(start, 1)  # the previous character decides whether the first one continues a word
        batch = text[start - before : start + _BATCH]
        total += int(np.count_nonzero(word_bounds(code_points(batch))[1][before:]))
    return total


def code_points(text: str) -> npt.NDArray[Any]:
    """Returns the text's code points [n]: of 16 bits if all fit, otherwise of 32."""
    codes = np.frombuffer(text.encode("utf-16-le", "surrogatepass"), "<u2")
    if len(codes) > len(text):
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return codes


@cache
def categories() -> npt.NDArray[np.uint8]:
    """Returns the first letter of each code point's Unicode category, as ASCII: [_LAST + 1], the last for all above."""
    return np.frombuffer("".join(unicodedata.category(chr(code))[0] for code in range(_LAST)).encode() + b"C", np.uint8)


def lookup(table: npt.NDArray[np.uint8], codes: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Returns the entry of each code point [n] in a table of the size of `categories`."""
    return table[codes if codes.itemsize < 4 else np.minimum(codes, _LAST)]


def word_bounds(codes: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Code points [n] of a folded text -> whether each is part of a word, and whether it begins one, [n] each."""
    kinds = lookup(_kinds(), codes)
    inside = kinds > 0
    begins = inside.copy()
    begins[1:] &= (kinds[1:] != 1) | (kinds[:-1] != 1)
    return inside, begins


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """By code point: 0 separates words, 1 is part of a word, 2 is a word by itself."""
    kinds = np.isin(categories(), tuple(b"LMN")).astype(np.uint8)
    for start, end in _UNSPACED:
        kinds[start : end + 1] *= 2
    kinds[_VARIATIONS] = 0
    return kinds
