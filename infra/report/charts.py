"""Numbers -> charts as inline SVG and as formatted text. Colours and fonts come from the page's style sheet."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from markupsafe import Markup, escape

Point = tuple[float, float]
NumberFormat = Callable[[float], str]
Color = Literal["blue", "orange", "grey"]  # CSS class
SegmentKind = Literal["kept", "heldout", "dropped"]  # CSS class

PERCENT = "\N{NO-BREAK SPACE}%"

_WIDTH, _HEIGHT = 460, 230  # of a chart, in SVG units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 30, 26  # margins for tick labels and axis titles


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Returns an XML element, everything escaped. class_ becomes class, stroke_width becomes stroke-width."""
    rendered = "".join(
        f' {key.strip("_").replace("_", "-")}="{escape(_attribute_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    content = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{rendered}>{content}</{name}>")


def _attribute_value(value: object) -> object:
    """Rounds floats to two decimals, to keep the page small."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def svg(width: float, height: float, label: str, *children: object, **attributes: object) -> Markup:
    """Returns an <svg> element. Screen readers read `label`."""
    view_box = f"0 0 {_attribute_value(width)} {_attribute_value(height)}"
    return element("svg", *children, viewBox=view_box, role="img", aria_label=label, **attributes)


def ticks(low: float, high: float, count: int = 5, min_step: float = 0.0) -> list[float]:
    """Returns about `count` round numbers that enclose low to high, 1, 2 or 5 times a power of ten apart."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = power * next(factor for factor in (1, 2, 5, 10) if span / count <= factor * power * 1.0000001)
    step = max(step, min_step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def format_number(value: float) -> str:
    """1234567 -> 1,234,567; 0.0000213 -> 2.13e-5; 6.5231 -> 6.523."""
    if value == 0 or (value == round(value) and abs(value) < 1e9):
        return f"{value:,.0f}"
    if abs(value) >= 1e9 or abs(value) < 1e-3:
        return format_scientific(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_scientific(value: float) -> str:
    """0.0000213 -> 2.13e-5; 0 -> 0."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if value else "0"


def format_short(value: float) -> str:
    """20000 -> 20k, for tick labels and headline figures."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return format_number(round(value, 12))


def format_percent(value: float) -> str:
    """0.6 -> 60.0 %, with a no-break space."""
    return f"{100 * value:.1f}{PERCENT}"


class Series(NamedTuple):
    """A line of a chart. `markers` draws a dot at each point, for series of few points."""

    label: str
    points: Sequence[Point]
    color: Color = "blue"
    markers: bool = False


class Axis(NamedTuple):
    """A vertical axis. `include` has values that the axis covers in addition to the data."""

    title: str
    format_tick: NumberFormat = format_short
    format_value: NumberFormat = format_number  # for the values under the pointer
    include: Sequence[float] = ()


class ReferenceLine(NamedTuple):
    """A dashed step function to compare the series with: (x, level up to x), x ascending, at least one point."""

    label: str
    levels: Sequence[Point]


def downsample(points: Sequence[Point], limit: int = 300) -> list[Point]:
    """Returns at most `limit` points, each the mean of equally many, so that the page of a long run stays small."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(
    title: str,
    series: Sequence[Series],
    axis: Axis,
    reference: ReferenceLine | None = None,
    x_title: str = "step",
) -> Markup:
    """Returns a line chart over steps or epochs. Its data-series attribute holds the values that page.js shows."""
    series = [one._replace(points=downsample(one.points)) for one in series if one.points]
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points if math.isfinite(y)]
    ys += [*axis.include, *(level for _, level in (reference.levels if reference else ()))]
    x_max = max(xs, default=1)
    x_ticks = [tick for tick in ticks(0, x_max, min_step=1) if tick <= x_max]
    y_ticks = ticks(min(ys, default=0), max(ys, default=1))

    def position(x: float, y: float) -> Point:
        """Data -> SVG coordinates."""
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        fraction = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + x / x_max * width, _TOP + (1 - fraction) * height

    shapes: list[object] = _axes(x_ticks, y_ticks, axis, x_title, position)
    if reference:
        levels = [position(x, level) for x, level in reference.levels]
        shapes.append(element("path", d=_step_path(levels), class_="reference"))
    for one in series:
        positions = [position(x, y) for x, y in one.points if math.isfinite(y)]
        shapes.append(element("path", d=_path(positions), class_=f"line {one.color}"))
        if one.markers or len(positions) == 1:
            shapes += [element("circle", cx=x, cy=y, r=2.8, class_=f"dot {one.color}") for x, y in positions]
    shapes.append(element("line", x1=0, x2=0, y1=_TOP, y2=_HEIGHT - _BOTTOM, class_="cursor"))
    hover = [
        {"label": one.label, "points": [[x, axis.format_value(y), *map(round, position(x, y))] for x, y in one.points]}
        for one in series
        if all(math.isfinite(y) for _, y in one.points)
    ]
    data = json.dumps({"x_title": x_title, "series": hover}, ensure_ascii=False)
    chart = svg(_WIDTH, _HEIGHT, title, *shapes, data_series=data)
    caption = element("figcaption", element("b", title), *_legend(series, reference), element("output"))
    return element("figure", caption, chart, class_="chart")


def _legend(series: Sequence[Series], reference: ReferenceLine | None) -> list[Markup]:
    """Returns an entry for each line; empty for a single line, which the chart's title names."""
    entries = [(one.label, f"key {one.color}{' dotted' if one.markers else ''}") for one in series]
    if reference:
        entries.append((reference.label, "key dashed"))
    if len(entries) == 1:
        return []
    return [element("span", element("i", class_=style), label, class_="label") for label, style in entries]


def _axes(
    x_ticks: list[float], y_ticks: list[float], axis: Axis, x_title: str, position: Callable[[float, float], Point]
) -> list[object]:
    shapes: list[object] = []
    bottom = _HEIGHT - _BOTTOM
    for value in y_ticks:
        y = position(0, value)[1]
        shapes.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(element("text", axis.format_tick(round(value, 12)), x=_LEFT - 7, y=y + 4, class_="end"))
    for value in x_ticks:
        x = position(value, 0)[0]
        shapes.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="grid"))
        label = format_short(value) if value else f"{x_title} 0"
        shapes.append(element("text", label, x=x, y=bottom + 18, class_="middle"))
    shapes.append(element("text", axis.title, x=0, y=14, class_="quiet"))
    return shapes


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _step_path(points: Sequence[Point]) -> str:
    """Returns a step function over the chart's whole width: the height of each point holds from the previous x."""
    steps = "".join(f"V{y:.1f}H{x:.1f}" for x, y in points)
    return f"M{_LEFT} {points[0][1]:.1f}{steps}H{_WIDTH - _RIGHT}"


class BarSegment(NamedTuple):
    """A segment of a bar in the data-flow figure."""

    label: str
    value: float
    kind: SegmentKind


def bar(segments: Sequence[BarSegment], total: float) -> Markup:
    """Returns a bar of stacked segments; `total` fills its width. It has no text, as the page stretches it."""
    shapes: list[object] = []
    x = 0.0
    for segment in segments:
        width = 1000 * segment.value / (total or 1)
        tooltip = element("title", f"{segment.label}: {segment.value:,.0f}")
        shapes.append(element("rect", tooltip, x=x, y=0, width=width, height=24, class_=segment.kind))
        x += width
    label = ", ".join(f"{segment.label} {segment.value:,.0f}" for segment in segments)
    return svg(1000, 24, label, *shapes, preserveAspectRatio="none", class_="bar")


class ScoreEstimate(NamedTuple):
    """A score with its 95 % confidence interval, all from -1 to 1."""

    label: str
    value: float
    low: float
    high: float
    color: Color = "grey"


def interval_chart(title: str, estimates: Sequence[ScoreEstimate], axis: Axis) -> Markup:
    """Returns scores as dots with error bars, on one axis from 0 to 1, or from -1 where a score may be negative."""
    start = -1.0 if any(estimate.low < 0 for estimate in estimates) else 0.0
    left = 146 + 6.6 * max(0, *(len(estimate.label) - 21 for estimate in estimates))  # more for long labels
    right, row_height = _WIDTH - 62, 34
    bottom = 10 + row_height * len(estimates)

    def position(value: float) -> float:
        return left + (value - start) / (1 - start) * (right - left)

    shapes: list[object] = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = start + fraction * (1 - start)
        x = position(value)
        shapes.append(element("line", x1=x, x2=x, y1=6, y2=bottom, class_="grid"))
        shapes.append(element("text", axis.format_tick(value), x=x, y=bottom + 16, class_="middle"))
    for index, estimate in enumerate(estimates):
        y = 10 + row_height * (index + 0.5)
        low, middle, high = map(position, (estimate.low, estimate.value, estimate.high))
        interval = f"{axis.format_value(estimate.low)} to {axis.format_value(estimate.high)}"
        tooltip = f"{estimate.label}: {axis.format_value(estimate.value)} (95 % interval {interval})"
        whiskers = f"M{low:.1f} {y - 6}v12M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 6}v12"
        shapes += [
            element("text", estimate.label, x=left - 12, y=y + 4.5, class_="end"),
            element(
                "g",
                element("title", tooltip),
                element("path", d=whiskers),
                element("circle", cx=middle, cy=y, r=5),
                class_=f"estimate {estimate.color}",
            ),
            element("text", axis.format_value(estimate.value), x=_WIDTH, y=y + 4.5, class_="end strong"),
        ]
    return svg(_WIDTH, bottom + 24, title, *shapes, class_="scores")


def histogram(title: str, bins: Sequence[tuple[str, float]], y_title: str) -> Markup:
    """Returns a histogram of (label, count) bins. Every few bins have their label below the axis."""
    max_count = max((count for _, count in bins), default=1) or 1
    y_ticks = ticks(0, max_count, 4)
    floor, width = _HEIGHT - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / max(1, len(bins))
    shapes: list[object] = []
    for value in y_ticks:
        y = floor - (floor - _TOP) * value / y_ticks[-1]
        shapes.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        shapes.append(element("text", format_short(value), x=_LEFT - 7, y=y + 4, class_="end"))
    label_every = -(-len(bins) // 6)
    for index, (label, count) in enumerate(bins):
        x, height = _LEFT + index * width, (floor - _TOP) * count / y_ticks[-1]
        tooltip = element("title", f"{label}: {count:,.0f}")
        shapes.append(
            element("rect", tooltip, x=x + 1, y=floor - height, width=width - 2, height=height, class_="kept")
        )
        if index % label_every == 0:
            shapes.append(element("text", label, x=x + width / 2, y=floor + 18, class_="middle"))
    shapes.append(element("text", y_title, x=0, y=14, class_="quiet"))
    caption = element("figcaption", element("b", title))
    return element("figure", caption, svg(_WIDTH, _HEIGHT, title, *shapes), class_="chart")
