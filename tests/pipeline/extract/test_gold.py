"""The text extracted from twelve articles, compared with what a person kept (tests/data/gold)."""

import re
from collections import Counter

import pytest

from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia import dump, wikitext
from tests.paths import DATA

GOLD = DATA / "gold"
LEAST = 0.98  # word-level F1, issue 4


def extracted() -> dict[str, list[str]]:
    """By the name of the text it should equal: language-page id."""
    found: dict[str, list[str]] = {}
    for file in sorted(GOLD.glob("*.xml")):
        location = Location(str(file))
        site = dump.read_site(location)
        rules = wikitext.Rules(hidden_namespaces=frozenset(site.namespace_names(6) | site.namespace_names(14)))
        for page in dump.pages(location, ByteRange(0, location.size()), site, dump.ReadStatus()):
            assert page
            found[f"{site.language}-{page.page_id}"] = wikitext.paragraphs(page.text, rules, Counter())
    return found


def f1(extracted_text: str, gold: str) -> float:
    """Of the two texts' words, punctuation apart, as multisets."""
    found, wanted = Counter(re.findall(r"\w+|[^\w\s]", extracted_text)), Counter(re.findall(r"\w+|[^\w\s]", gold))
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


ARTICLES = extracted()


def test_every_article_has_its_text():
    assert {file.stem for file in GOLD.glob("*.txt")} == ARTICLES.keys() and len(ARTICLES) == 12


@pytest.mark.parametrize("name", ARTICLES)
def test_the_extracted_text_matches_the_gold_standard(name: str):
    assert f1("\n".join(ARTICLES[name]), (GOLD / f"{name}.txt").read_text()) >= LEAST


@pytest.mark.parametrize("name", ARTICLES)
def test_the_paragraphs_are_the_same_in_number(name: str):
    assert len(ARTICLES[name]) == len((GOLD / f"{name}.txt").read_text().splitlines())
