"""Text -> token ids: the tokenizer, defined by its tokenizer.json, and a cache that makes it fast for many texts.

The pieces are those of BERT's own code. The stock BertNormalizer and BertPreTokenizer of the tokenizers library differ
from it on some 7,200 code points (private use, one CJK extension, final sigma, newer marks). So its rules are spelt out
here as regular expressions, which the library runs: tokenizer.json has the same effect wherever it is loaded.
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
from cloze.pipeline.core.schema import id_dtype
from cloze.pipeline.core.storage import Location

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UNUSED = [f"[unused{number}]" for number in range(994)]
#: The pieces before those of text. "google": as in the published models, where [CLS] is 101 and text begins after 998.
LAYOUTS = {"compact": SPECIAL_TOKENS, "google": (PAD, *_UNUSED[:99], UNK, CLS, SEP, MASK, *_UNUSED[99:])}
RESERVED = frozenset(LAYOUTS["google"])

_REMOVED = r"[\x{0}\x{FFFD}]|[\p{Cc}\p{Cf}&&[^\t\n\r]]"
# A capital sigma that ends a word becomes a final one; Unicode's rule skips case-ignorable characters.
_CASED = r"[\p{Cased}&&\P{Case_Ignorable}]"
_FINAL_SIGMA = rf"{_CASED}\p{{Case_Ignorable}}*\KΣ(?!\p{{Case_Ignorable}}*{_CASED})"
_ACCENTS = r"[\p{Mn}\x{1171E}]"  # U+1171E was Mn up to Unicode 14, Mc since then
# Each of these characters is a word: ideographs, punctuation, and ASCII other than letters, digits and spaces.
_SINGLE_CHARACTER_WORDS = (
    r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{2F800}-\x{2FA1F}\p{P}$+<=>^`|~]"
)
MAX_CHARS_PER_WORD = 200  # longer words are [UNK]
_MODEL_MAX_LENGTH = 512  # BERT's number of positions
_MAX_CACHED_CHUNKS = 1 << 20


def build_tokenizer(pieces: Sequence[str], lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    """Returns the tokenizer for a vocabulary in file order. `strip_accents` None: as `lowercase`, as in BERT.

    Raises UserError when a special token is missing or a piece occurs twice.
    """
    vocab = ids_by_piece(pieces)
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=MAX_CHARS_PER_WORD))
    tokenizer.normalizer = normalizers.Sequence(_normalizers(lowercase, strip_accents))  # type: ignore[assignment]
    single = pre_tokenizers.Split(Regex(_SINGLE_CHARACTER_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), single])  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, vocab[CLS]), (SEP, vocab[SEP])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")  # type: ignore[assignment]
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
    return tokenizer


def ids_by_piece(pieces: Sequence[str]) -> dict[str, int]:
    """A vocabulary in file order -> the id of each piece.

    Raises UserError when a special token is missing or a piece occurs twice.
    """
    vocab = {piece: index for index, piece in enumerate(pieces)}
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise UserError(f"the vocabulary has no {missing[0]}; add a line with it")
    if len(vocab) != len(pieces):
        twice = next(piece for index, piece in enumerate(pieces) if vocab[piece] != index)
        raise UserError(f"the vocabulary has the piece {twice!r} twice; remove one of the lines")
    return vocab


def strips_accents(lowercase: bool, strip_accents: bool | None) -> bool:
    """Returns whether accents are removed: as set, or by default together with capitals."""
    return lowercase if strip_accents is None else strip_accents


def tokenizer_config_json() -> str:
    """Returns the tokenizer_config.json with which transformers' AutoTokenizer returns the ids of tokenizer.json.

    Its class uses tokenizer.json as it is; BertTokenizer would replace its normalizer. "[MASK]" in a text is split as
    ordinary text, as in training; an exported model's file differs in this.
    """
    config = {
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
    return json.dumps(config, indent=2) + "\n"


def _normalizers(lowercase: bool, strip_accents: bool | None) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Replace(Regex(_REMOVED), "")]
    if lowercase:
        steps += [normalizers.Replace(Regex(_FINAL_SIGMA), "ς"), normalizers.Lowercase()]
    if strips_accents(lowercase, strip_accents):
        # The library's NFD lacks this decomposition of Unicode 13.
        steps.append(normalizers.Replace("\U00011938", "\U00011935\U00011930"))
        steps += [normalizers.NFD(), normalizers.Replace(Regex(_ACCENTS), "")]
    return steps


def load_tokenizer(location: Location) -> Tokenizer:
    """A tokenizer.json -> the tokenizer, which treats special tokens such as [MASK] in a text as ordinary text.

    Raises UserError when the file is missing or is not a tokenizer.json.
    """
    if not location.exists():
        raise UserError(f"{location}: no such file; give the tokenizer.json of a vocab artifact")
    try:
        return parse_tokenizer(location.read_bytes())
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{location}: is not a tokenizer.json ({error}); give the one of a vocab artifact") from error


def parse_tokenizer(content: bytes) -> Tokenizer:
    """The content of a tokenizer.json -> the tokenizer, as `load_tokenizer` returns it."""
    tokenizer = Tokenizer.from_buffer(content)
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """Returns the vocabulary in the order of its ids."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return sorted(vocab, key=vocab.__getitem__)


class WordSplitter:
    """Chunks, as from split_chunks -> the normalized words of each, which WordPiece splits into pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.normalizer and tokenizer.pre_tokenizer
        self._normalizer, self._spacing = tokenizer.normalizer, _Spacing(tokenizer.pre_tokenizer)

    def __call__(self, chunks: Iterable[str]) -> Iterator[list[str]]:
        normalized = self._normalizer.normalize_str("\n".join(chunks))  # all in one call
        return map(str.split, normalized.translate(self._spacing).split("\n"))


class _Spacing(dict[int, str]):
    """A character -> the character, with spaces around it if it is a word by itself.

    The library's pre-tokenizer decides that, once per character. It splits at white space and around single characters
    only, so this table does the same. The pre-tokenizer itself takes ten times as long, as it tracks every offset.
    """

    def __init__(self, pre_tokenizer: pre_tokenizers.PreTokenizer) -> None:
        super().__init__()
        self._pre_tokenizer = pre_tokenizer

    def __missing__(self, ordinal: int) -> str:
        character = chr(ordinal)
        is_word = len(self._pre_tokenizer.pre_tokenize_str(f"a{character}a")) == len("aca")
        spaced = self[ordinal] = f" {character} " if is_word else character
        return spaced


class BulkTokenizer:
    """Many texts -> ids, without special tokens, through a cache of chunks: the strings between white space.

    A tokenizer splits at white space first, so the ids of a text are those of its chunks. By Zipf's law nearly all
    chunks have been seen before. The library tokenizes each new chunk.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._split = WordSplitter(tokenizer)
        self._dtype = id_dtype(tokenizer.get_vocab_size())
        self._clear()

    def id_of(self, piece: str) -> int:
        index = self._tokenizer.token_to_id(piece)
        assert index is not None, piece
        return index

    def _clear(self) -> None:
        self._words = _WordIds(self._tokenizer.model)
        self._chunks = _ChunkNumbers({_SEPARATOR: 0})
        self._ids = np.empty(0, self._dtype)  # the ids of all chunks, concatenated
        self._offsets = np.zeros(2, np.int64)  # chunk i has ids[offsets[i]:offsets[i + 1]]; the separator has none

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
        """Texts -> (their concatenated ids, offsets [texts + 1])."""
        if len(self._chunks) > _MAX_CACHED_CHUNKS:
            self._clear()
        text = f" {_SEPARATOR} ".join(map(_without_controls, texts)).strip()
        # Arrow splits and finds distinct chunks five times as fast as str.split and a dictionary. It splits at ASCII
        # white space; a chunk with other white space is split when it first occurs.
        parts = pc.call_function("ascii_split_whitespace", [pa.array([text])])
        distinct = parts.flatten().dictionary_encode()
        numbers = [self._chunks[chunk] for chunk in distinct.dictionary.to_pylist()]
        index = np.array(numbers, np.int64)[distinct.indices.to_numpy()] if text else np.empty(0, np.int64)
        self._tokenize_new_chunks()
        starts, lengths = self._offsets[index], np.diff(self._offsets)[index]
        ids = self._ids[ragged_ranges(starts, lengths)]
        ends = np.cumsum(lengths)[index == 0]
        return ids, np.concatenate([[0], ends, [len(ids)]])[: len(texts) + 1]

    def _tokenize_new_chunks(self) -> None:
        """Add the ids of new chunks to the cache; the library tokenizes each distinct word once."""
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


class _WordIds(dict[str, list[int]]):
    """Normalized words -> ids. A word is tokenized at its first occurrence."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, word: str) -> list[int]:
        ids = self[word] = [piece.id for piece in self._model.tokenize(word)]
        return ids


class _ChunkNumbers(dict[str, int]):
    """Numbers chunks in the order of their first occurrence; `new` has those since it was last cleared."""

    def __init__(self, known: dict[str, int]) -> None:
        super().__init__(known)
        self.new: list[str] = []

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self)
        self.new.append(chunk)
        return number


# str.split treats these as white space. BERT treats them as control characters and removes them, joining the text.
_SEPARATOR = "\0"
_CONTROLS = dict.fromkeys(map(ord, f"{_SEPARATOR}\x0b\x0c\x1c\x1d\x1e\x1f\x85"))


def split_chunks(text: str) -> list[str]:
    """Text -> its chunks, the strings between white space. The words and pieces of a text are those of its chunks."""
    return _without_controls(text).split()


def _without_controls(text: str) -> str:
    return text if text.isprintable() else text.translate(_CONTROLS)
