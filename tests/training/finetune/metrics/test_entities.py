"""Entity scores against seqeval's default mode, whose results on random tags are committed, and worked examples."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloze.training.finetune.metrics.entities import Entity, EntityReport, entities, entity_f1
from cloze.training.finetune.metrics.estimates import Estimate
from tests.paths import DATA, SHARED

CONLL = SHARED / "data/finetune/conll2003"
GOLDEN = json.loads((DATA / "finetune/entities.json").read_text())


def values(report: EntityReport) -> dict[str, list[float]]:
    """Precision, recall, F1 and support, as seqeval returns them."""
    return {
        name: [scores.precision.value, scores.recall.value, scores.f1.value, scores.support]
        for name, scores in {"overall": report.overall, **report.by_type}.items()
    }


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["scheme"] for golden in GOLDEN])
def test_scores_equal_seqevals_default_mode(golden):
    labels, predictions = ([tags.split() for tags in golden[name]] for name in ("labels", "predictions"))
    found = values(entity_f1(labels, predictions))
    assert found.keys() == golden["scores"].keys()
    for name, expected in golden["scores"].items():
        assert found[name] == pytest.approx(expected)


#: Precision, recall, F1 and support by seqeval 1.2.2 for CoNLL-2003 with `with_errors`.
CONLL_GOLDEN = {
    "valid": (0.695054945054945, 0.9367216425445978, 0.7979928315412186, 5942),
    "test": (0.7069792221630261, 0.9398016997167139, 0.806932198236546, 5648),
}


def with_errors(sentences: list[list[str]]) -> list[list[str]]:
    """The tags, 5 % of them drawn at random."""
    draw = random.Random(0)
    names = sorted({tag for tags in sentences for tag in tags})
    return [
        [names[int(draw.random() * len(names))] if draw.random() < 0.05 else tag for tag in tags] for tags in sentences
    ]


@pytest.mark.skipif(not CONLL.exists(), reason="requires CoNLL-2003 next to the checkout")
@pytest.mark.parametrize("split", CONLL_GOLDEN)
def test_scores_on_conll_2003_equal_seqevals(split: str):
    blocks = (CONLL / f"{split}.txt").read_text().split("\n\n")
    labels = [[line.split(" ")[3] for line in block.splitlines()] for block in blocks if block.strip()]
    report = entity_f1(labels, with_errors(labels))
    assert values(report)["overall"] == pytest.approx(CONLL_GOLDEN[split])
    assert list(report.by_type) == ["LOC", "MISC", "ORG", "PER"]
    assert report.overall.f1.high - report.overall.f1.low < 0.03


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),  # IOB1
        ("B-PER E-PER S-LOC B-X I-X E-X", [("PER", 0, 2), ("LOC", 2, 3), ("X", 3, 6)]),  # IOBES
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("E-PER E-PER S-PER I-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("PER", 3, 4)]),
        ("B-WORK-OF-ART I-WORK-OF-ART", [("WORK-OF-ART", 0, 2)]),
        ("B I O B", [("", 0, 2), ("", 3, 4)]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_of_tags(tags: str, expected: list[tuple[str, int, int]]):
    assert list(entities(tags.split())) == expected


@pytest.mark.parametrize("tag", ["X-PER", "PER", "O-PER", "", "b-PER"])
def test_a_tag_of_no_scheme_is_refused(tag: str):
    with pytest.raises(ValueError, match=repr(tag)):
        entity_f1([["O", tag]], [["O", "O"]])


def test_numbers_of_sentences_and_of_tags_must_match():
    with pytest.raises(ValueError, match="1 predictions for 2 sentences"):
        entity_f1([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="0 predictions for 0 sentences"):
        entity_f1([], [])
    with pytest.raises(ValueError, match="sentence 1: 2 predicted tags for 1 tags"):
        entity_f1([["O"], ["O"]], [["O"], ["O", "O"]])


def test_undefined_scores_are_zero_within_the_whole_range():
    undefined = Estimate(0, 0, 1)
    report = entity_f1([["O", "O"], []], [["O", "O"], []])
    assert report.overall == (undefined, undefined, undefined, 0) and report.by_type == {}
    report = entity_f1([["B-A", "O"]], [["O", "O"]])
    assert report.overall == (undefined, (0, 0, 0), (0, 0, 0), 1)


def spans(tags: str, scheme: str) -> list[str]:
    """The tags of the spans given by letters in capitals (begins) and small (continues), O for none, in a scheme."""
    found = []
    for position, letter in enumerate(tags):
        before, after = tags[position - 1 : position], tags[position + 1 : position + 2]
        first, last = letter.isupper(), after != letter.lower()
        prefix = {
            "BIO": "B" if first else "I",
            "IOB1": "B" if first and before.upper() == letter else "I",
            "IOBES": ("S" if last else "B") if first else ("E" if last else "I"),
        }[scheme]
        found.append("O" if letter == "O" else f"{prefix}-{letter.upper()}")
    return found


SENTENCES = st.lists(
    st.lists(st.sampled_from(["O", "P", "Pp", "Ppp", "L", "Ll"]), min_size=1, max_size=6).map("".join), min_size=1
)


@settings(max_examples=50, deadline=None)
@given(SENTENCES)
def test_all_schemes_encode_the_same_entities(sentences: list[str]):
    for sentence in sentences:
        bio, iob1, iobes = (list(entities(spans(sentence, scheme))) for scheme in ("BIO", "IOB1", "IOBES"))
        assert bio == iob1 == iobes
        assert all(isinstance(entity, Entity) for entity in bio) and len(bio) == sum(map(sentence.count, "PL"))


TAGS = st.sampled_from([f"{prefix}-{name}" for prefix in "BIES" for name in "PL"] + ["O"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=6), min_size=1, max_size=20), st.randoms())
def test_scores_are_bounded_within_their_intervals_and_ignore_the_order(sentences, draw):
    def scores(rows) -> EntityReport:
        return entity_f1([[tag for tag, _ in row] for row in rows], [[tag for _, tag in row] for row in rows])

    report, shuffled = scores(sentences), scores(draw.sample(sentences, len(sentences)))
    assert report == shuffled
    for found in (report.overall, *report.by_type.values()):
        for score in (found.precision, found.recall, found.f1):
            assert 0 <= score.low <= score.value <= score.high <= 1
    assert report.overall.support == sum(found.support for found in report.by_type.values())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(TAGS, max_size=6), min_size=1, max_size=20))
def test_perfect_predictions_score_one(labels: list[list[str]]):
    report = entity_f1([*labels, ["B-P"]], [*labels, ["B-P"]])
    for found in (report.overall, *report.by_type.values()):
        assert [score.value for score in found[:3]] == [1, 1, 1]
