"""Learning curves -> one self-contained HTML page."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from cloze.infra.html_page import render_page
from cloze.infra.learning_curves.curves import Curve, LearningCurves
from cloze.infra.report.charts import element, svg, ticks
from cloze.infra.report.page import SCRIPT, STYLE

_FOLDER = Path(__file__).parent
_WIDTH, _HEIGHT = 640, 340  # of the chart, in SVG units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 30, 30  # margins for tick labels and axis titles
_COLORS = ("blue", "orange", "green", "purple")  # CSS classes, in the order of the curves
_DASHES = (None, "10 4", "2 4", "10 4 2 4")  # of their lines, so that colour is not needed


@dataclass(frozen=True)
class _Scale:
    """Data -> SVG coordinates: a logarithmic axis of labels, a linear one of scores."""

    labels: Sequence[int]  # ascending
    scores: Sequence[float]  # the ticks

    def x(self, labels: float) -> float:
        low, high = self.labels[0], self.labels[-1]
        across = math.log(labels / low) / math.log(high / low) if high > low else 0.5
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT)

    def y(self, score: float) -> float:
        low, high = self.scores[0], self.scores[-1]
        return _TOP + (high - score) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def render(curves: LearningCurves) -> str:
    """Returns the HTML page."""
    keys = {
        curve.name: _key(color, dashes) for curve, color, dashes in zip(curves.curves, _COLORS, _DASHES, strict=False)
    }
    return render_page(
        _FOLDER / "page.html", [STYLE], [SCRIPT], {}, curves=curves, chart=learning_chart(curves), keys=keys
    )


def learning_chart(curves: LearningCurves) -> Markup:
    """Returns the means over the number of labels, the spread as error bars, and the majority as a dashed line.

    Its data-series attribute holds the values that page.js shows.
    """
    ends = [end for curve in curves.curves for labels in curves.labels for end in _error_bar(curve, labels)]
    majority = [] if curves.majority is None else [curves.majority]
    scale = _Scale(curves.labels, ticks(min([*ends, *majority]), max(ends)))
    shapes: list[object] = [element("text", curves.metric_name, x=0, y=14, class_="quiet"), *_axes(curves, scale)]
    reference = (f"M{_LEFT} {scale.y(score):.1f}H{_WIDTH - _RIGHT}" for score in majority)
    shapes += [element("path", d=path, class_="reference") for path in reference]
    for curve, color, dashes in zip(curves.curves, _COLORS, _DASHES, strict=False):
        shapes += _line(curve, curves.labels, color, dashes, scale)
    shapes.append(element("line", x1=0, x2=0, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="cursor"))
    series = [
        {
            "label": curve.name,
            "points": [
                [labels, curves.cell(curve, labels), round(scale.x(labels)), round(scale.y(curve.mean(labels)))]
                for labels in curves.labels
            ],
        }
        for curve in curves.curves
    ]
    data = json.dumps({"x_title": "labels", "series": series}, ensure_ascii=False)
    return svg(_WIDTH, _HEIGHT, f"{curves.metric_name} by number of labels", *shapes, data_series=data)


def _axes(curves: LearningCurves, scale: _Scale) -> list[Markup]:
    shapes, bottom = list[Markup](), _HEIGHT - _BOTTOM
    for score in scale.scores:
        y = scale.y(score)
        shapes.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(element("text", curves.written(score), x=_LEFT - 7, y=y + 4, class_="end"))
    for labels in curves.labels:
        x = scale.x(labels)
        shapes.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="grid"))
        text = f"{labels:,} labels" if labels == curves.labels[0] else f"{labels:,}"
        shapes.append(element("text", text, x=x, y=bottom + 18, class_="middle"))
    return shapes


def _key(color: str, dashes: str | None) -> Markup:
    """The sign of a curve in the legend."""
    line = element("path", d="M0 4H42", stroke_dasharray=dashes, class_=f"line {color}")
    dot = element("circle", cx=21, cy=4, r=3.2, class_=f"dot {color}")
    return element("svg", line, dot, viewBox="0 0 42 8", aria_hidden="true")


def _line(curve: Curve, labels: Sequence[int], color: str, dashes: str | None, scale: _Scale) -> list[Markup]:
    """A curve with a dot and an error bar at each number of labels."""
    points = [(scale.x(number), scale.y(curve.mean(number))) for number in labels]
    bars = [(scale.x(number), *map(scale.y, _error_bar(curve, number))) for number in labels]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    line = element("path", d=path, stroke_dasharray=dashes, class_=f"line {color}")
    paths = [f"M{x:.1f} {low:.1f}V{high:.1f}" for x, low, high in bars if low != high]
    dots = [element("circle", cx=x, cy=y, r=3.2, class_=f"dot {color}") for x, y in points]
    return [line, *(element("path", d=path, class_=f"line {color}") for path in paths), *dots]


def _error_bar(curve: Curve, labels: int) -> tuple[float, float]:
    """The mean without and with the spread; no score is above 1."""
    mean, spread = curve.mean(labels), curve.spread(labels) or 0.0
    return mean - spread, min(mean + spread, 1.0)
