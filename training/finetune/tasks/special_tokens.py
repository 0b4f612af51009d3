"""A tokenizer -> the special tokens that its model expects around the texts of an input."""

import itertools
from typing import NamedTuple

from tokenizers import Tokenizer

from cloze.pipeline.core.errors import UserError

_MASKS = ("[MASK]", "<mask>")


class SpecialTokens(NamedTuple):
    """The token ids around one text, `before` a `after`, or two: `before` a `between` b `after`.

    BERT's are [CLS] a [SEP] b [SEP], RoBERTa's <s> a </s></s> b </s>. The first token stands for the whole input.
    """

    before: list[int]
    between: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialTokens":
        """Those that the tokenizer adds. Raises UserError when there are none before, between or after the texts."""
        pair = tokenizer.encode("a", "a")
        is_special = zip(pair.ids, pair.special_tokens_mask, strict=True)
        runs = [
            (special, [index for index, _ in run]) for special, run in itertools.groupby(is_special, lambda t: t[1])
        ]
        if [special for special, _ in runs] != [1, 0, 1, 0, 1]:
            raise UserError("the tokenizer puts no special tokens before, between and after two texts, as BERT's does")
        found = cls(*(ids for special, ids in runs if special))
        single = tokenizer.encode("a")
        if list(itertools.compress(single.ids, single.special_tokens_mask)) != [*found.before, *found.after]:
            raise UserError("the tokenizer puts other special tokens around one text than around two, unlike BERT's")
        return found

    @property
    def ids(self) -> frozenset[int]:
        return frozenset((*self.before, *self.between, *self.after))

    def count(self, texts: int) -> int:
        """The number of special tokens of an input with one or two texts."""
        return len(self.before) + len(self.after) + (len(self.between) if texts == 2 else 0)


def mask_id(tokenizer: Tokenizer) -> int:
    """The id of the mask token. Raises UserError when there is none."""
    found = (index for name in _MASKS if (index := tokenizer.token_to_id(name)) is not None)
    if (index := next(found, None)) is None:
        raise UserError(f"the tokenizer has none of the mask tokens {', '.join(_MASKS)}; give a masked language model")
    return index
