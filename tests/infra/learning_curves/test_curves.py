"""Learning curves: means and spreads, the labels that others need, the page."""

import json
import re

import pytest

from cloze.infra.learning_curves.curves import Curve, LabelsNeeded, LearningCurves
from cloze.infra.learning_curves.page import render
from tests.infra.report.test_report import Reader

LABELS = (50, 200, 800)


def curve(name: str, *means: float, spread: float = 0.01) -> Curve:
    """Three seeds for each number of labels, with these means and standard deviations."""
    return Curve(name, {n: (mean - spread, mean, mean + spread) for n, mean in zip(LABELS, means, strict=False)})


CURVES = LearningCurves(
    run="quickstart",
    task="authors",
    metric="accuracy",
    split="test",
    train_rows=1393,
    labels=LABELS,
    seeds=3,
    curves=[
        curve("this checkpoint", 0.6, 0.8, 0.9),
        curve("random weights", 0.4, 0.6, 0.7),
        curve("a bag of words", 0.7, 0.9, 0.995),
    ],
    majority=0.45,
)


@pytest.mark.parametrize(
    ("score", "needed"),
    [
        (0.4, LabelsNeeded("at most", 50)),
        (0.2, LabelsNeeded("at most", 50)),
        (0.5, LabelsNeeded("about", 100)),  # half way between 50 and 200, as factors
        (0.6, LabelsNeeded("about", 200)),
        (0.65, LabelsNeeded("about", 400)),
        (0.71, LabelsNeeded("more than", 800)),
    ],
)
def test_the_labels_needed_are_read_off_a_line_over_their_logarithm(score: float, needed: LabelsNeeded) -> None:
    assert curve("random weights", 0.4, 0.6, 0.7).labels_needed(score) == needed


def test_a_curve_that_falls_is_crossed_where_it_first_reaches_the_score() -> None:
    found = curve("a", 0.4, 0.7, 0.6)
    assert found.labels_needed(0.6).relation == "about" and found.labels_needed(0.6).labels < 200
    assert found.labels_needed(0.71) == LabelsNeeded("more than", 800)
    assert curve("a", 0.4, 0.3, 0.5).labels_needed(0.4) == LabelsNeeded("at most", 50)


def test_the_spread_is_that_of_a_sample_and_one_seed_has_none() -> None:
    assert curve("a", 0.5, spread=0.02).spread(50) == pytest.approx(0.02)
    alone = Curve("a", {50: [0.5]})
    assert alone.spread(50) is None and CURVES.cell(alone, 50) == "50.0 %"
    assert CURVES.cell(CURVES.curves[0], 50) == "60.0 % ± 1.0"


def test_a_sentence_for_each_number_of_labels_says_what_pretraining_saved() -> None:
    assert CURVES.sentences() == [
        "With 50 labels this checkpoint reaches 60.0 %; labels needed for as much: random weights about 200, "
        "a bag of words at most 50.",
        "With 200 labels this checkpoint reaches 80.0 %; labels needed for as much: random weights more than 800, "
        "a bag of words about 100.",
        "With 800 labels this checkpoint reaches 90.0 %; labels needed for as much: random weights more than 800, "
        "a bag of words about 200.",
    ]


def test_json_has_every_score() -> None:
    plain = json.loads(json.dumps(CURVES.plain()))
    first = plain["curves"]["this checkpoint"][0]
    assert first == {
        "labels": 50,
        "scores": pytest.approx([0.59, 0.6, 0.61]),
        "mean": pytest.approx(0.6),
        "standard_deviation": pytest.approx(0.01),
    }
    assert plain["saved"][1]["needed"]["random weights"] == {"relation": "more than", "labels": 800}
    assert (plain["labels"], plain["seeds"], plain["majority"]) == ([50, 200, 800], [0, 1, 2], 0.45)


def test_the_page_is_self_contained_and_shows_every_curve_and_number() -> None:
    page = render(CURVES)
    assert not re.findall(r'(?:src|href)="|url\(|@import', page)
    text = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert all(sentence in text for sentence in CURVES.sentences())
    assert "60.0 % ± 1.0" in text and "99.5 % ± 1.0" in text and "from the 1,393 rows of train" in text
    legend, chart = page[page.index("<figcaption") :].split("</figcaption>", 1)
    assert len(re.findall(r'<circle [^>]*class="dot', chart)) == 9
    assert len(re.findall(r'class="line (?:blue|orange|green)"', chart)) == 3 + 9  # the curves and their error bars
    dashes = re.findall(r'stroke-dasharray="([^"]*)" class="line', chart)
    assert len(set(dashes)) == 2 and re.findall(r'stroke-dasharray="([^"]*)"', legend) == dashes  # the first is solid
    headers = Reader(page).attributes
    assert [value for tag, key, value in headers if (tag, key) == ("th", "scope")] == ["col"] * 4 + ["row"] * 3
    assert page.count('class="reference"') == 1 and "the majority class" in text
    numbers = json.loads(re.findall(r'data-series="([^"]*)"', page)[0].replace("&#34;", '"'))
    assert "120.0 %" not in text and "initial weights. The labels" in " ".join(text.split())
    xs = [x for _, _, x, _ in numbers["series"][0]["points"]]
    assert xs[1] - xs[0] == xs[2] - xs[1]  # each four times as many labels


def test_one_number_of_labels_and_one_seed_are_shown_without_error_bars() -> None:
    alone = [Curve(one.name, {50: [one.mean(50)]}) for one in CURVES.curves]
    page = render(LearningCurves("r", "t", "matthews", "dev", 99, [50], 1, alone, None))
    assert "There is one seed" in page and 'class="reference"' not in page
    assert "Dev Matthews correlation by number of labels" in page and "0.600" in page
