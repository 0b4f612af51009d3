"""Paragraph -> sentences."""

import time
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.sentences import load_splitter, split_sentences
from tests.paths import DATA


@pytest.mark.parametrize(
    "sentences",
    [
        ["He came.", "She went!", "Did they?", "Yes."],
        ["Mr. Smith met Dr. Jones and Mrs. Hall of St. Albans.", "They spoke."],
        ["J. R. R. Tolkien knew C. S. Lewis.", "He wrote it."],
        ["Then A. A. Milne and E. M. Forster met."],
        ["It is I.", "The door opened."],
        ["Pi is 3.14159 and e is 2.71828.", "Both are irrational."],
        ["See example.org or Fig. 3 of vol. IV of No. 12.", "No.", "Never."],
        ["The U.S. Army left the U.S.", "The war ended."],
        ["He came at 5 p.m. and left at 6 p.m.", "It rained."],
        ["Wait... what is this?", "I thought...", "Never mind."],
        ["“I am happy,” said Emma.", "“So am I!” cried he.", "(They smiled.)", "‘Indeed.’", "[Exit.]"],
        ['"Why?" he asked.', '"Because."', "He left."],
        ["Fruit, e.g. Apples, i.e. Pomes, vs. Pears.", "Others too."],
        ["He lived c. 1850 in Washington, D.C. and in Apple Inc. Headquarters.", "She did not."],
        ["1. Introduction and scope.", "2. Methods."],
        ["He sat.", "Sun rose.", "They went in.", "Nobody saw."],
        ["What?!", "No!!", "Well."],
        ["Er kam nach St. Gallen.", "Élan vital.", "Ägypten ist weit."],
    ],
)
def test_stops_end_sentences_and_abbreviations_do_not(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["他来了。", "她走了！", "他说：“是的。”", "你呢？"],
        ["「行こう。」", "彼は言った。", "本当？"],
        ["यह एक वाक्य है।", "यह दूसरा है।", "अंत॥"],
    ],
)
def test_wide_and_indic_stops_need_no_space_after_them(sentences):
    assert split_sentences("".join(sentences)) == sentences
    assert split_sentences(" ".join(sentences)) == sentences


def gold_paragraphs() -> list[list[str]]:
    blocks = (DATA / "sentences/gold.txt").read_text().strip().split("\n\n")
    return [block.split("\n")[1:] for block in blocks]


def boundaries(sentences: list[str]) -> set[int]:
    """Where sentences end, counted in characters that are no white space, but for the last one's end."""
    return set(accumulate(len("".join(sentence.split())) for sentence in sentences[:-1]))


def test_boundaries_set_by_hand_are_found() -> None:
    """F1 0.9946 on 372 boundaries when the splitter first saw them (tests/data/sentences/README.md)."""
    found = [(boundaries(gold), boundaries(split_sentences(" ".join(gold)))) for gold in gold_paragraphs()]
    right = sum(len(gold & ours) for gold, ours in found)
    wanted, given = sum(len(gold) for gold, _ in found), sum(len(ours) for _, ours in found)
    assert wanted == 372
    assert 2 * right / (wanted + given) >= 0.99


def test_an_empty_paragraph_has_no_sentences():
    assert split_sentences("") == split_sentences(" \n ") == []


def test_text_without_a_stop_is_one_sentence():
    assert split_sentences("  no stop at the end ") == ["no stop at the end"]


@given(st.text(alphabet="aB1.!?…\"'”)( \n。।ÉU.S"))
def test_nothing_but_white_space_is_lost_and_nothing_is_added(paragraph):
    sentences = split_sentences(paragraph)
    assert "".join("".join(sentences).split()) == "".join(paragraph.split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)


@pytest.mark.parametrize("pattern", [". ", ".", "(.)", "Mr. ", "a/b.", '" ', "?) ", "A. B", "a.\n", "((", "。"])
def test_the_time_is_linear_in_the_text(pattern):
    start = time.process_time()
    split_sentences(pattern * (200_000 // len(pattern)))
    assert time.process_time() - start < 2  # a quadratic scan takes minutes


def test_a_file_of_ones_own_takes_the_place_of_the_rules():
    split = load_splitter(b"def split_sentences(paragraph):\n    return paragraph.split(';')\n", "rules.py")
    with pytest.raises(UserError, match=r"^rules\.py: split_sentences\('a; b'\.\.\.\) loses or adds text; it may drop"):
        split("a; b")
    split = load_splitter(b"import re\ndef split_sentences(p):\n    return re.split('(?<=;) ', p)\n", "rules.py")
    assert split("a. B; c.") == ["a. B;", "c."]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def split_sentences(p) return", r"rules\.py: cannot be run \(SyntaxError: .*\); fix it"),
        ("import nothing_of_this_name", r"rules\.py: cannot be run \(ModuleNotFoundError: .*\); fix it"),
        ("split = 1", r"rules\.py: defines no split_sentences\(paragraph\); add it"),
        ("def split_sentences(p): return 1 / 0", r"rules\.py: split_sentences\('a'\.\.\.\) fails \(ZeroDivisionError"),
        ("def split_sentences(p): exit()", r"rules\.py: split_sentences\('a'\.\.\.\) fails \(SystemExit"),
        ("raise ValueError('two\\nlines')", r"rules\.py: cannot be run \(ValueError: two lines\); fix it"),
        ("raise SystemExit", r"rules\.py: cannot be run \(SystemExit:\); fix it"),
        ("a = 'é'", r"rules\.py: cannot be run \(SyntaxError: .*utf-8"),
        *(
            (
                f"def split_sentences(p): return {wrong}",
                r"rules\.py: split_sentences\('a'\.\.\.\) does not return a list",
            )
            for wrong in ("[1]", "None", "p")
        ),
    ],
)
def test_a_file_that_cannot_split_is_an_error_of_one_line(code, message):
    with pytest.raises(UserError, match=message):
        load_splitter(code.encode("latin-1"), "rules.py")("a")
