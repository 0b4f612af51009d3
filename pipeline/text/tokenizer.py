"""Text -> ids of pieces: the one definition, as a tokenizer.json, and a cache that makes it fast in bulk.

The pieces are those of BERT's own code. The stock BertNormalizer and BertPreTokenizer of the tokenizers library differ
from it on some 7,200 code points (private use, one CJK extension, final sigma, newer marks), so its rules are spelt
out here with the regular expressions which the library runs itself: tokenizer.json means the same wherever it is read.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Model, WordPiece

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ragged import ragged_ranges
from cloze.pipeline.core.schema import id_type
from cloze.pipeline.core.storage import Location

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UNUSED = [f"[unused{number}]" for number in range(994)]
#: What stands before the pieces of text. "google": as published, where [CLS] is 101 and the pieces of text follow 998.
LAYOUTS = {"compact": SPECIAL_TOKENS, "google": (PAD, *_UNUSED[:99], UNK, CLS, SEP, MASK, *_UNUSED[99:])}
RESERVED = frozenset(LAYOUTS["google"])

_REMOVED = r"[\x{0}\x{FFFD}]|[\p{Cc}\p{Cf}&&[^\t\n\r]]"
# A capital sigma that ends a word becomes a final one; Unicode's rule looks through case-ignorable characters.
_CASED = r"[\p{Cased}&&\P{Case_Ignorable}]"
_FINAL_SIGMA = rf"{_CASED}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_CASED})"
_ACCENTS = r"[\p{Mn}\x{1171E}]"  # U+1171E was Mn up to Unicode 14 and is Mc since
# Each of these is a word: ideographs, punctuation, and all of ASCII that is neither letter, digit nor space.
_WORDS_ALONE = (
    r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{2F800}-\x{2FA1F}\p{P}$+<=>^`|~]"
)
MAX_CHARS_PER_WORD = 200  # longer words are [UNK]
_MODEL_MAX_LENGTH = 512  # BERT's positions
_CACHE_WORDS = 1 << 20


def build(pieces: Sequence[str], lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    """The tokenizer of a vocabulary in file order. `strip_accents` follows `lowercase` unless it is said, as in BERT.

    Raises UserError when a special token is missing or a piece stands twice.
    """
    vocab = ids_of(pieces)
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=MAX_CHARS_PER_WORD))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(lowercase, strip_accents))  # type: ignore[assignment]
    alone = pre_tokenizers.Split(Regex(_WORDS_ALONE), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), alone])  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocab[CLS]), (SEP, vocab[SEP])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")  # type: ignore[assignment]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    return tokenizer


def ids_of(pieces: Sequence[str]) -> dict[str, int]:
    """A vocabulary in file order -> the id of each piece.

    Raises UserError when a special token is missing or a piece stands twice.
    """
    vocab = {piece: index for index, piece in enumerate(pieces)}
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(f"the vocabulary has no {missing[0]}; add a line with it")
    if len(vocab) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if vocab[piece] != index)
        raise UserError(f"the vocabulary has the piece {twice!r} twice; remove one of the lines")
    return vocab


def strips_accents(lowercase: bool, strip_accents: bool | None) -> bool:
    """Whether accents go: as it is said, and where it is not, with the capitals."""
    return lowercase if strip_accents is None else strip_accents


def transformers_config() -> str:
    """The text of the tokenizer_config.json with which transformers' AutoTokenizer gives the ids of tokenizer.json.

    Its class takes tokenizer.json as it is, where BertTokenizer would put its own normalizer in the place of ours.
    As with the text that a model is trained on, a marker in a text is text; an exported model says otherwise.
    """
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": _MODEL_MAX_LENGTH,
        "split_special_tokens": True,  # "[MASK]" in a text is text
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }
    return json.dumps(said, indent=2) + "\n"


def _normalizers(lowercase: bool, strip_accents: bool | None) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(_REMOVED), "")]
    if lowercase:
        steps += [normalizers.Replace(Regex(_FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    if strips_accents(lowercase, strip_accents):
        # The library's NFD lacks this one of Unicode 13's decompositions.
        steps.append(normalizers.Replace("\U00011938", "\U00011935\U00011930"))
        steps += [normalizers.NFD(), normalizers.Replace(Regex(_ACCENTS), "")]
    return steps


def load(location: Location) -> Tokenizer:
    """A tokenizer.json -> the tokenizer, with markers such as [MASK] in a text read as text.

    Raises UserError when the file is missing or is no tokenizer.json.
    """
    if not location.exists():
        raise UserError(f"{location}: no such file; give the tokenizer.json of a vocab artifact")
    try:
        tokenizer = Tokenizer.from_str(location.read_text())
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{location}: is no tokenizer.json ({error}); give that of a vocab artifact") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary in the order of its ids."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(vocab, key=vocab.__getitem__)


class WordSplitter:
    """Chunks, as chunks_of gives them -> the normalised words of each, which are what is cut into pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.normalizer and tokenizer.pre_tokenizer
        self._normalizer, self._spaced = tokenizer.normalizer, _Spaced(tokenizer.pre_tokenizer)

    def __call__(self, chunks: Iterable[str]) -> Iterator[list[str]]:
        normalized = self._normalizer.normalize_str("\n".join(chunks))  # all in one call
        return map(str.split, normalized.translate(self._spaced).split("\n"))


class _Spaced(dict[int, str]):
    """A character -> itself, with spaces around it when it is a word alone. The library says so, once a character.

    Its pre-tokenizer splits at white space and at single characters, so that this is all there is to ask; to have it
    split texts costs ten times as much, for it keeps account of every offset.
    """

    def __init__(self, pre_tokenizer: pre_tokenizers.PreTokenizer) -> None:
        super().__init__()
        self._pre_tokenizer = pre_tokenizer

    def __missing__(self, ordinal: int) -> str:
        character = chr(ordinal)
        alone = len(self._pre_tokenizer.pre_tokenize_str(f"a{character}a")) == len("aca")
        spaced = self[ordinal] = f" {character} " if alone else character
        return spaced


class BulkTokenizer:
    """Many texts -> ids, without special tokens, through a cache of what stands between white space.

    A tokenizer cuts at white space first, so the ids of a text are those of its chunks, and by Zipf's law nearly all
    chunks have been seen before. The library itself fills the cache.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._split = WordSplitter(tokenizer)
        self._dtype = id_type(tokenizer.get_vocab_size())
        self._clear()

    def id_of(self, piece: str) -> int:
        index = self._tokenizer.token_to_id(piece)
        assert index is not None, piece
        return index

    def _clear(self) -> None:
        self._words = _Words(self._tokenizer.model)
        self._chunks = _Chunks({_BORDER: 0})
        self._ids = np.empty(0, self._dtype)  # the pieces of all chunks, one chunk behind the other
        self._offsets = np.zeros(2, np.int64)  # chunk i holds ids[offsets[i]:offsets[i + 1]]; the border holds none

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
        """Texts -> (the ids of all of them, one behind the other; offsets [texts + 1])."""
        if len(self._chunks) > _CACHE_WORDS:
            self._clear()
        text = f" {_BORDER} ".join(map(_without_controls, texts)).strip()
        # Arrow splits and finds what is distinct five times as fast as str.split and a dictionary. At other white space
        # than ASCII's a chunk is split when it is met for the first time.
        parts = pc.call_function("ascii_split_whitespace", [pa.array([text])])
        found = parts.flatten().dictionary_encode()
        numbers = [self._chunks[chunk] for chunk in found.dictionary.to_pylist()]
        index = np.array(numbers, np.int64)[found.indices.to_numpy()] if text else np.empty(0, np.int64)
        self._fill()
        starts, lengths = self._offsets[index], np.diff(self._offsets)[index]
        ids = self._ids[ragged_ranges(starts, lengths)]
        borders = np.cumsum(lengths)[index == 0]
        return ids, np.concatenate([[0], borders, [len(ids)]])[: len(texts) + 1]

    def _fill(self) -> None:
        """Let the library cut the chunks that were met for the first time: each word once."""
        if not self._chunks.new:
            return
        ids, ends = list[int](), list[int]()
        for words in self._split(self._chunks.new):
            for word in words:
                ids += self._words[word]
            ends.append(len(ids))
        self._offsets = np.concatenate([self._offsets, np.asarray(ends, np.int64) + self._offsets[-1]])
        self._ids = np.concatenate([self._ids, np.asarray(ids, self._dtype)])
        self._chunks.new.clear()


class _Words(dict[str, list[int]]):
    """Normalised words and their ids, each cut when it is met for the first time."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> list[int]:
        ids = self[word] = [piece.id for piece in self._model.tokenize(word)]
        return ids


class _Chunks(dict[str, int]):
    """Numbers chunks in the order in which they are met; `new` holds those met since it was cleared."""

    def __init__(self, known: dict[str, int]) -> None:
        super().__init__(known)
        self.new: list[str] = []

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self)
        self.new.append(chunk)
        return number


# White space to str.split, but to BERT control characters, which it removes, joining what they stood between.
_BORDER = "\0"
_CONTROLS = dict.fromkeys(map(ord, f"{_BORDER}\x0b\x0c\x1c\x1d\x1e\x1f\x85"))


def chunks_of(text: str) -> list[str]:
    """Text -> what stands between white space in it. Words and pieces of a text are those of its chunks, one by one."""
    return _without_controls(text).split()


def _without_controls(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROLS)
