"""Bold and italics are marked by apostrophes, which must not take those of the text with them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.extract.wikipedia.wikitext import Rules, paragraphs


def one(markup: str) -> str:
    (found,) = paragraphs(markup)
    return found


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Nell'''Orlando furioso'' si narra.", "Nell'Orlando furioso si narra."),
        ("Parla dell'''Eneide'' e '''Virgilio''' ne è l'autore.", "Parla dell'Eneide e Virgilio ne è l'autore."),
        ("'''Omero''' scrisse dell'''Iliade''.", "Omero scrisse dell'Iliade."),
        (
            "L'''Iliade'', l'''Odissea'', l'''Eneide'' e l'''[[Orlando]]''.",
            "L'Iliade, l'Odissea, l'Eneide e l'Orlando.",
        ),
        ("Dans l'''Encyclopédie'' et qu'''Emma'' soit.", "Dans l'Encyclopédie et qu'Emma soit."),
        (
            "A ''Time'''s cover, ''Life'''s and ''[[Nature (journal)|Nature]]'''s.",
            "A Time's cover, Life's and Nature's.",
        ),
        ("''Eagle'''s crew and '''all''' of ''Apollo'''s.", "Eagle's crew and all of Apollo's."),
        ("Il ''Times'' e l'''Herald'', ''Time'''s e dell'''Iliade''.", "Il Times e l'Herald, Time's e dell'Iliade."),
        ("L'''A'' dell'''B'' '''''c.", "L'A dell'B c."),
        ("''x y'''b'''z'' and a'''b'''c ''d'' w'''or'''d.", "x ybz and abc d word."),
        ("The ''Beatles''' first ''hit'' song.", "The Beatles' first hit song."),
        ("D''''Artagnan''' i l''''''altre'''''.", "D'Artagnan i l'altre."),
        ("'''S'''ocietà '''I'''taliana e l'''Aero Club''.", "Società Italiana e l'Aero Club."),
        ("''Atom'''z'''ahl'' is a word and ''so'' '''is''' i'''t'''.", "Atomzahl is a word and so is it."),
        ("La [[Lista d''e paise d''o munno]] e ''[[x|d''oje'']]''.", "La Lista d''e paise d''o munno e doje."),
        ("Where <nowiki>l'''x''</nowiki> stays, l'''y'' too.", "Where l'''x'' stays, l'y too."),
        ("A ''{{lang|fr|''mot''}}'' and a '''<small>'''b'''</small>'''.", "A mot and a b."),
        ("L'<nowiki/>''Iliade'' e ''Time''<nowiki />'s '''''c'''''.", "L'Iliade e Time's c."),
        ("''[[Asteroids']]'' and '''[[a|Boys']]''' x.", "Asteroids' and Boys' x."),
        ("Put '''''''twice''''''''.", "Put twice."),
        ("Odd ''''''six and '''''five.", "Odd 'six and five."),
        ("'''#1 Crush''' is a song.", "#1 Crush is a song."),
        ("One ''line\nl'''altra'' riga.", "One line l'altra riga."),
    ],
)
def test_an_apostrophe_next_to_italics_stays(markup: str, text: str):
    assert one(markup) == text


def test_apostrophes_stay_in_headings_and_lists_that_are_kept():
    text = "== L'''Iliade'' ==\n* Nell'''Odissea''\n:L'''Eneide''"
    assert paragraphs(text, Rules(keep_headings=True, keep_lists=True)) == ["L'Iliade", "Nell'Odissea", "L'Eneide"]


def test_a_heading_in_italics_hides_its_section_all_the_same():
    assert paragraphs("A.\n== '''''References''''' ==\nB.") == ["A."]


def test_a_line_of_marks_alone_ends_no_paragraph():
    assert paragraphs("One\n''''''\ntwo\n''\nthree.") == ["One ' two three."]


def do_quotes(line: str) -> str:
    """What MediaWiki displays of a line (Parser::doQuotes): an independent, slower implementation."""
    text, runs = re.split("''+", line), re.findall("''+", line)
    for i, run in enumerate(runs):
        size = {2: 2, 3: 3, 4: 3}.get(len(run), 5)
        text[i] += run[size:]
        runs[i] = run[:size]
    bold, italic = sum(len(run) in (3, 5) for run in runs), sum(len(run) in (2, 5) for run in runs)
    if bold % 2 == italic % 2 == 1:
        threes = [i for i, run in enumerate(runs) if len(run) == 3]
        after_space = [i for i in threes if text[i].endswith(" ")]
        after_letter = [i for i in threes if i not in after_space and text[i][-2:-1] == " "]
        after_word = [i for i in threes if i not in after_space and i not in after_letter]
        for i in (after_letter or after_word or after_space)[:1]:
            text[i] += "'"
    return "".join(text)


MARKS = ["''", "'''", "''''", "'''''", "''''''"]


@given(st.lists(st.sampled_from([*MARKS, "a ", " b", "cd", " ", "e", "(", ". "]), max_size=14))
def test_a_line_reads_as_mediawiki_shows_it_but_for_threes_inside_words(tokens: list[str]):
    line = "x " + "".join(tokens)
    shown, found = " ".join(do_quotes(line).split()), one(line)
    assert re.sub(r"[\s']", "", found) == re.sub(r"[\s']", "", shown)
    if "'''''''" not in line and not re.search(r"[^\W_]'''(?=[^\W_(])", line):
        assert found == shown


@given(st.lists(st.sampled_from(["l", "dell", "Eagle", "Ran"]), min_size=1, max_size=9), st.booleans(), st.booleans())
def test_any_number_of_elisions_or_possessives_keeps_every_apostrophe(names: list[str], elision: bool, lead: bool):
    made = [f"{name}'''Opus''" if elision else f"''{name}'''s" for name in names]
    kept = [f"{name}'Opus" if elision else f"{name}'s" for name in names]
    assert one("'''Bold''' and " * lead + " with ".join(made)) == "Bold and " * lead + " with ".join(kept)
