"""numbers -> pictures: small functions that return inline SVG. Colours and type come from the page's style sheet."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup, escape

Point = tuple[float, float]
Format = Callable[[float], str]

_WIDTH, _HEIGHT = 460, 230  # of a chart, in its own units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 26  # room for the tick labels and the axis titles


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element, everything escaped: class_ becomes class, stroke_width stroke-width; numbers keep two decimals."""
    written = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def _plain(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def svg(width: float, height: float, label: str, *children: object, **attributes: object) -> Markup:
    """A picture with a spoken name."""
    box = f"0 0 {_plain(width)} {_plain(height)}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=label, **attributes)


def ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """About `count` round numbers that enclose low to high, in steps of 1, 2 or 5 times a power of ten, or `least`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / count <= factor * power * 1.0000001)
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """1234567 -> 1,234,567; 0.0000213 -> 2.13e-5; 6.5231 -> 6.523: what a reader takes in at once."""
    if value == 0 or (value == round(value) and abs(value) < 1e9):
        return f"{value:,.0f}"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short(value: float) -> str:
    """A tick's label: 20000 -> 20k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return number(round(value, 12))


def percent(value: float) -> str:
    """0.6 -> 60.0 %, never broken over two lines."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


class Series(NamedTuple):
    """A line of a chart; `kind` "a" or "b" is its colour; `dots` mark its points where these are few."""

    label: str
    points: Sequence[Point]
    kind: str = "a"
    dots: bool = False


class Axis(NamedTuple):
    """A vertical axis: its title, how its ticks and its hovered values read, and numbers that it has to show."""

    title: str
    tick: Format = short
    value: Format = number
    include: Sequence[float] = ()


class Reference(NamedTuple):
    """A level to compare with, as a dashed line under its name: (x, level up to there), x rising, one at least."""

    label: str
    levels: Sequence[Point]


def thin(points: Sequence[Point], limit: int = 300) -> list[Point]:
    """At most `limit` points: means over equal stretches, so that a long run's page stays small and its line true."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(
    title: str,
    series: Sequence[Series],
    axis: Axis,
    reference: Reference | None = None,
    across: str = "step",
) -> Markup:
    """Lines over steps (or epochs), with the values under the pointer for the page's script in data-series."""
    series = [line._replace(points=thin(line.points)) for line in series if line.points]
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points if math.isfinite(y)]
    ys += [*axis.include, *(level for _, level in (reference.levels if reference else ()))]
    end = max(xs, default=1)
    x_ticks = [tick for tick in ticks(0, end, least=1) if tick <= end]
    y_ticks = ticks(min(ys, default=0), max(ys, default=1))

    def at(x: float, y: float) -> Point:
        right, bottom = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        across = x / end
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * right, _TOP + (1 - up) * bottom

    drawing: list[object] = _axes(x_ticks, y_ticks, axis, across, at)
    for line in series:
        drawn = [at(x, y) for x, y in line.points if math.isfinite(y)]
        drawing.append(tag("path", d=_path(drawn), class_=f"line {line.kind}"))
        if line.dots or len(drawn) == 1:
            drawing += [tag("circle", cx=x, cy=y, r=2.8, class_=f"dot {line.kind}") for x, y in drawn]
    if reference:  # over the lines, so that it can be read
        levels = [at(x, level) for x, level in reference.levels]
        drawing.append(tag("path", d=_stairs(levels), class_="reference"))
        place = {"x": _WIDTH - _RIGHT, "y": levels[-1][1] - 5, "class_": "end quiet over-lines"}
        drawing.append(tag("text", reference.label, **place))
    drawing.append(tag("line", x1=0, x2=0, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="cursor"))
    hover = [
        {"label": line.label, "points": [[x, axis.value(y), *map(round, at(x, y))] for x, y in line.points]}
        for line in series
        if all(math.isfinite(y) for _, y in line.points)
    ]
    values = json.dumps({"across": across, "lines": hover}, ensure_ascii=False)
    picture = svg(_WIDTH, _HEIGHT, title, *drawing, data_series=values)
    keys = map(_key, series) if len(series) > 1 else []
    return tag("figure", tag("figcaption", tag("b", title), *keys, tag("output")), picture, class_="chart")


def _key(line: Series) -> Markup:
    look = f"key {line.kind} dotted" if line.dots else f"key {line.kind}"
    return tag("span", tag("i", class_=look), line.label, class_="label")


def _axes(
    x_ticks: list[float], y_ticks: list[float], axis: Axis, across: str, at: Callable[[float, float], Point]
) -> list[object]:
    drawing: list[object] = []
    bottom = _HEIGHT - _BOTTOM
    for value in y_ticks:
        y = at(0, value)[1]
        drawing.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        drawing.append(tag("text", axis.tick(round(value, 12)), x=_LEFT - 7, y=y + 4, class_="end"))
    for value in x_ticks:
        x = at(value, 0)[0]
        drawing.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="grid"))
        label = short(value) if value else f"{across} 0"
        drawing.append(tag("text", label, x=x, y=bottom + 18, class_="middle"))
    drawing.append(tag("text", axis.title, x=0, y=14, class_="quiet"))
    return drawing


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stairs(points: Sequence[Point]) -> str:
    """A line to the end of a chart whose height at each point is that of the stretch before it."""
    steps = "".join(f"V{y:.1f}H{x:.1f}" for x, y in points)
    return f"M{_LEFT} {points[0][1]:.1f}{steps}H{_WIDTH - _RIGHT}"


class Piece(NamedTuple):
    """A stretch of a bar in the flow picture; `kind` is kept, heldout or drop."""

    label: str
    value: float
    kind: str


def bar(pieces: Sequence[Piece], whole: float) -> Markup:
    """`pieces` side by side on the scale of `whole`. The page stretches it to its own width, so it holds no text."""
    drawing: list[object] = []
    x = 0.0
    for piece in pieces:
        width = 1000 * piece.value / (whole or 1)
        name = tag("title", f"{piece.label}: {piece.value:,.0f}")
        drawing.append(tag("rect", name, x=x, y=0, width=width, height=24, class_=piece.kind))
        x += width
    label = ", ".join(f"{piece.label} {piece.value:,.0f}" for piece in pieces)
    return svg(1000, 24, label, *drawing, preserveAspectRatio="none", class_="bar")


class Estimate(NamedTuple):
    """A score between the ends of its 95 % interval, shares of one."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "quiet"


def intervals(title: str, estimates: Sequence[Estimate]) -> Markup:
    """Scores as dots on one axis from 0 to 100 %, their intervals as bars with ends."""
    left, right, row = 118, _WIDTH - 62, 34
    bottom = 10 + row * len(estimates)
    drawing: list[object] = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + value * (right - left)
        drawing.append(tag("line", x1=x, x2=x, y1=6, y2=bottom, class_="grid"))
        drawing.append(tag("text", f"{100 * value:.0f} %", x=x, y=bottom + 16, class_="middle"))
    for place, estimate in enumerate(estimates):
        y = 10 + row * (place + 0.5)
        low, middle, high = (left + value * (right - left) for value in (estimate.low, estimate.value, estimate.high))
        words = f"{estimate.label}: {percent(estimate.value)} ({percent(estimate.low)} to {percent(estimate.high)})"
        whiskers = f"M{low:.1f} {y - 6}v12M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 6}v12"
        drawing += [
            tag("text", estimate.label, x=left - 12, y=y + 4.5, class_="end"),
            tag(
                "g",
                tag("title", words),
                tag("path", d=whiskers),
                tag("circle", cx=middle, cy=y, r=5),
                class_=f"estimate {estimate.kind}",
            ),
            tag("text", percent(estimate.value), x=_WIDTH, y=y + 4.5, class_="end strong"),
        ]
    return svg(_WIDTH, bottom + 24, title, *drawing, class_="scores")


def histogram(title: str, bins: Sequence[tuple[str, float]], x_title: str) -> Markup:
    """Columns, one for each (label, count); the labels of some of them below."""
    most = max((count for _, count in bins), default=1) or 1
    y_ticks = ticks(0, most, 4)
    floor, width = _HEIGHT - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / max(1, len(bins))
    drawing: list[object] = []
    for value in y_ticks:
        y = floor - (floor - _TOP) * value / y_ticks[-1]
        drawing.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        drawing.append(tag("text", short(value), x=_LEFT - 7, y=y + 4, class_="end"))
    every = -(-len(bins) // 6)
    for place, (label, count) in enumerate(bins):
        x, height = _LEFT + place * width, (floor - _TOP) * count / y_ticks[-1]
        words = tag("title", f"{label}: {count:,.0f}")
        drawing.append(tag("rect", words, x=x + 1, y=floor - height, width=width - 2, height=height, class_="kept"))
        if place % every == 0:
            drawing.append(tag("text", label, x=x + width / 2, y=floor + 18, class_="middle"))
    drawing.append(tag("text", x_title, x=0, y=14, class_="quiet"))
    caption = tag("figcaption", tag("b", title))
    return tag("figure", caption, svg(_WIDTH, _HEIGHT, title, *drawing), class_="chart")
