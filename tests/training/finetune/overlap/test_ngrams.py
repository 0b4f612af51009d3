"""The index of 13-grams, compared with a naive search, and on texts that are easy to confuse."""

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.text.words import code_points, word_bounds
from cloze.training.finetune.overlap import ngrams
from cloze.training.finetune.overlap.ngrams import NGRAM, Match, NgramIndex, Words

SENTENCE = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


def naive_words(text: str) -> list[str]:
    """The words of a text, a character at a time."""
    found = list[str]()
    codes = code_points(folded := unicodedata.normalize("NFKC", text).casefold())
    for character, inside, begins in zip(folded, *word_bounds(codes), strict=True):
        if begins:
            found.append("")
        if inside:
            found[-1] += character
    return found


def naive_ngrams(text: str) -> list[str]:
    words = naive_words(text)
    return [" ".join(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]


def naive_matches(texts: list[str], documents: list[str]) -> dict[int, Match]:
    pairs = [(number, ngram) for number, document in enumerate(documents) for ngram in naive_ngrams(document)]
    matches = dict[int, Match]()
    for text, own in enumerate(map(naive_ngrams, texts)):
        if first := next((pair for pair in pairs if pair[1] in own), None):
            matches[text] = Match(*first)
    return matches


words = st.sampled_from(
    ["a", "b", "ab", "ba", "A", "ß", "ss", "é", "e\u0301", "½", "東京", "don't", "👍", "𐐀", "x" * 40]
)
texts = st.lists(st.lists(words, max_size=40).map(" ".join), max_size=6)


@given(texts, texts, st.sampled_from([1, 40, 1 << 17]))
def test_the_matches_are_those_of_a_naive_search(own: list[str], documents: list[str], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "_BATCH", batch)
        # With few distinct words most texts share nothing: the last document contains the first text.
        documents = [*documents, *(f"b {text}. A" for text in own[:1])]
        index = NgramIndex(own)
        assert index.first_matches(documents) == naive_matches(own, documents)
        assert index.too_short == [not naive_ngrams(text) for text in own]


def test_case_punctuation_and_white_space_make_no_difference() -> None:
    document = (
        "Chapter 1\n\nIT IS A TRUTH  universally acknowledged that a single man (in possession) of a good FORTUNE"
    )
    match = NgramIndex([SENTENCE]).first_matches(["Nothing.", document])
    assert match == {0: Match(1, "it is a truth universally acknowledged that a single man in possession of")}


def test_twelve_words_are_not_enough() -> None:
    twelve = " ".join(SENTENCE.split()[:12])
    assert NgramIndex([SENTENCE]).first_matches([f"{twelve} nothing", f"nothing {twelve}"]) == {}
    assert NgramIndex([twelve, SENTENCE]).too_short == [True, False]


def test_a_13_gram_does_not_continue_into_the_next_document_or_text() -> None:
    first, second = " ".join(SENTENCE.split()[:8]), " ".join(SENTENCE.split()[8:])
    assert NgramIndex([SENTENCE]).first_matches([first, second]) == {}
    assert NgramIndex([first, second]).first_matches([SENTENCE]) == {}


def test_words_with_other_boundaries_are_other_words() -> None:
    joined = SENTENCE.replace("a single", "asingle") + " indeed"
    assert NgramIndex([SENTENCE]).first_matches([joined]) == {}


def test_equal_hashes_of_different_words_are_no_match_and_hide_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Words, "ngram_hashes", lambda self: np.zeros(max(0, len(self.texts) - NGRAM + 1), np.uint64))
    other = " ".join(map(str, range(20)))
    index = NgramIndex([other, SENTENCE])
    assert index.first_matches(["a b c d e f g h i j k l m n o"]) == {}
    assert index.first_matches([SENTENCE, other]).keys() == {0, 1}


def test_without_texts_nothing_matches() -> None:
    for own in ([], [""], ["short"]):
        assert NgramIndex(own).first_matches([SENTENCE, ""]) == {}


def test_hashes_differ_where_one_character_or_one_boundary_differs() -> None:
    letters = "abcdefghijklm"
    variants = [" ".join(letters)]
    variants += [" ".join(letters.replace(old, new)) for old, new in itertools.permutations("abc", 2)]
    variants += [" ".join(letters[:-2]) + " lm n", " ".join(reversed(letters))]
    hashes = {int(Words.of([variant]).ngram_hashes()[0]) for variant in variants}
    assert len(hashes) == len(variants)
