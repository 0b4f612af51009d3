import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.dedup.minhash import SHINGLE_WORDS, shingles
from cloze.pipeline.text import words

MIXED = st.text(st.sampled_from("aB1 é½´ßﬁ－ー\u3000漢字ｶﾞがไทยकि\U00020000\U0001d400\n\t'-—."), max_size=60)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The clocks were striking thirteen.", 5),
        ("don't", 2),
        ("word—word", 2),
        ("... !? — \n", 0),
        ("12,5 °C", 3),
        ("我们在海上", 5),
        ("東京2020年", 4),
        ("東京 2020 年", 4),
        ("ไทย", 3),
        ("한국어 위키백과", 2),
        ("हिन्दी विकिपीडिया", 2),
        ("ガラス", 3),
        ("ｶﾞﾗｽ", 3),
        ("＃ＡＢＣ＃", 1),
        ("\U00020000\U00020001", 2),
        ("\u2764\ufe0f \u2600\ufe0e \U0001f600", 0),
        ("葛\U000e0100城", 2),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", 0),
        ("", 0),
    ],
)
def test_a_word_is_a_run_of_letters_or_a_character_of_a_script_without_spaces(text: str, number: int):
    assert words.count_words(text) == number


@given(st.text(st.characters(max_codepoint=127)))
def test_words_of_ascii_are_its_runs_of_letters_and_digits(text: str):
    assert words.count_words(text) == len(re.findall("[A-Za-z0-9]+", text))


@given(MIXED)
def test_the_words_that_are_counted_are_those_of_shingles(text: str):
    assert max(words.count_words(text) - SHINGLE_WORDS + 1, 0) == shingles([text])[1][-1]


@given(MIXED)
def test_the_form_and_case_of_a_text_make_no_other_number_of_words(text: str):
    assert words.count_words(text) == words.count_words(unicodedata.normalize("NFKC", text).casefold())


@pytest.mark.parametrize("beside", ["", "\U00020000"])
def test_a_word_across_two_parts_of_a_long_text_counts_once(monkeypatch: pytest.MonkeyPatch, beside: str):
    text = "été 漢字 naïve" + beside
    number = words.count_words(text)
    for size in range(1, len(text) + 1):
        monkeypatch.setattr(words, "_BATCH", size)
        assert words.count_words(text) == number


def test_bounds_say_which_characters_are_of_words_and_which_begin_one():
    inside, begins = words.word_bounds(np.frombuffer("ab, 漢c".encode("utf-16-le"), "<u2"))
    assert inside.astype(int).tolist() == [1, 1, 0, 0, 1, 1]
    assert begins.astype(int).tolist() == [1, 0, 0, 0, 1, 1]
