import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.extract.filters import check_languages, detect_language, is_disambiguation, letter_fraction
from cloze.pipeline.extract.wikipedia.wikitext import paragraphs

ENGLISH = "The pear is a fruit that grows on trees and is eaten fresh, dried or cooked in many parts of the world."
FRENCH = "La poire est un fruit qui pousse sur des arbres et que l'on mange fraîche, séchée ou cuite un peu partout."
GERMAN = "Die Birne ist eine Frucht, die auf Bäumen wächst und in vielen Ländern frisch oder gekocht gegessen wird."
JAPANESE = "梨はバラ科の落葉高木で、その果実は世界の多くの地域で生のまま、または乾燥させて食べられている。"


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_letters_are_counted_by_their_unicode_category(text: str):
    text = re.sub("[\U000e0100-\U000e01ef]", "", text)  # variation selectors, which are not in the table
    solid = [character for character in text if not character.isspace()]
    wanted = sum(unicodedata.category(character)[0] in "LM" for character in solid)
    assert letter_fraction(text) == wanted / max(1, len(solid))


@pytest.mark.parametrize("text", [ENGLISH, FRENCH, JAPANESE, "नमस्ते दुनिया, यह एक वाक्य है।", "مرحبا بالعالم، هذه جملة."])
def test_prose_of_any_script_is_mostly_letters(text: str):
    assert letter_fraction(text) > 0.9


def test_a_table_of_numbers_is_not():
    assert letter_fraction("1990 12.5 (3) 7 | 1991 13.0 (4) 8 | 1992 14.1 a") < 0.1


@pytest.mark.parametrize(
    ("title", "markup"),
    [
        ("Pear (disambiguation)", "Pear may be:"),
        ("Birne (Begriffsklärung)", "x"),
        ("Груша (значения)", "x"),
        ("Pear", "'''Pear''' may refer to:\n* [[a]]\n{{disambiguation}}"),
        ("Pear", "x\n{{Disambiguation|geo|surname}}"),
        ("Pear", "x\n{{hndis|Pear, Ann}}"),
        ("Birne", "x {{Begriffsklärung}}"),
        ("Poire", "x {{Homonymie}}"),
        ("Peer", "x {{dp}}"),
        ("Lê", "x {{Trang_định_hướng}}"),
        ("梨", "x {{aimai}}"),
        ("Pear", "x __DISAMBIG__"),
        ("Pear", "x {{our own mark}}"),
    ],
)
def test_disambiguation_pages_are_recognized(title: str, markup: str):
    dropped: Counter[str] = Counter()
    paragraphs(markup, dropped=dropped)
    assert is_disambiguation(title, markup, dropped, frozenset({"our own mark"}))


@pytest.mark.parametrize(
    ("title", "markup"),
    [
        ("Disambiguation", "In writing, '''disambiguation''' tells senses apart. {{reflist}}"),
        ("Word-sense disambiguation", "{{for|the page|Pear (disambiguation)}} It is a task."),
        ("Pear", "{{about|the fruit|others|Pear (disambiguation)}} A pear is a fruit.{{our own mark 2}}"),
        ("Wien", "'''Wien''' ({{deS|Wien}}, {{EnS|Vienna}}) ist eine Stadt."),
        ("Pear (fruit)", "See [[Pear (disambiguation)]].<ref>{{disambiguation}}</ref>"),
    ],
)
def test_articles_that_only_speak_of_it_stay(title: str, markup: str):
    dropped: Counter[str] = Counter()
    paragraphs(markup, dropped=dropped)
    assert not is_disambiguation(title, markup, dropped, frozenset({"our own mark"}))


@pytest.mark.parametrize(("code", "text"), [("en", ENGLISH), ("fr", FRENCH), ("de", GERMAN), ("ja", JAPANESE)])
def test_a_language_is_detected_if_it_is_certain(code: str, text: str):
    assert detect_language(text) == code
    assert detect_language(text[:12]) in ("", code)


def test_short_text_and_text_in_no_language_has_no_language():
    assert [detect_language(text) for text in ("", "Hola", "1 2 3 " * 20, "Smith, J. (2003) pp. 1-9 " * 2)] == [""] * 4


def test_a_language_that_cannot_be_detected_is_refused():
    check_languages(["en", "vi"])
    with pytest.raises(UserError, match=r"only_languages: qq: cannot be detected.*\ben\b"):
        check_languages(["en", "qq"])
