"""Vectors of a word in its contexts -> charts: a plane of their main differences, and their cosine by layer."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from cloze.infra.report.charts import PERCENT, Axis, ReferenceLine, Series, element, line_chart, svg

_WIDTH, _HEIGHT, _MARGIN = 460, 340, 34  # in SVG units; the page scales it
_CLASSES = {"A": "first", "text": "first", "B": "second"}


def plane_chart(vectors: NDArray[np.float32], sources: Sequence[str]) -> Markup:
    """[contexts, hidden] -> a dot for each context, by the two main axes of variation (PCA). Both have one scale."""
    points, shares = principal_plane(vectors)
    span = float(np.abs(points).max()) or 1.0
    scale = min(_WIDTH, _HEIGHT) / 2 - _MARGIN
    shapes: list[object] = [
        element("line", x1=0, x2=_WIDTH, y1=_HEIGHT / 2, y2=_HEIGHT / 2, class_="grid"),
        element("line", x1=_WIDTH / 2, x2=_WIDTH / 2, y1=0, y2=_HEIGHT, class_="grid"),
    ]
    for number, ((x, y), source) in enumerate(zip(points, sources, strict=True), start=1):
        at_x, at_y = _WIDTH / 2 + float(x) / span * scale, _HEIGHT / 2 - float(y) / span * scale
        kind = _CLASSES.get(source, "")
        dot = (
            element("circle", cx=at_x, cy=at_y, r=5)
            if not kind
            else element("rect", x=at_x - 5, y=at_y - 5, width=10, height=10)
        )
        label = element("text", str(number), x=at_x + 9, y=at_y + 4.5)
        shapes.append(element("g", element("title", f"{number}: {source}"), dot, label, class_=f"point {kind}".strip()))
    first, second = (f"{100 * share:.0f}{PERCENT}" for share in shares)
    title = "Its vectors in a plane"
    note = f"PCA of the last layer; the axes have {first} and {second} of the variance"
    caption = element("figcaption", element("b", title), element("span", note, class_="label"))
    return element("figure", caption, svg(_WIDTH, _HEIGHT, f"{title}: the numbers are those of the contexts", *shapes))


def principal_plane(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """[n, hidden] -> coordinates [n, 2] on the two main axes of variation, and each axis' share of the variance."""
    centred = vectors.astype(np.float64) - vectors.mean(0)
    left, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    points[:, : min(2, len(singular))] = (left * singular)[:, :2]
    variances = np.append(singular**2, [0.0, 0.0])
    total = float(variances.sum()) or 1.0
    return points, (float(variances[0]) / total, float(variances[1]) / total)


def cosine_chart(cosines: Sequence[float]) -> Markup:
    """The mean cosine of two contexts in each layer, 0 being the embeddings -> a curve, beside a static embedding's."""
    points = [(float(layer), cosine) for layer, cosine in enumerate(cosines)]
    static = ReferenceLine("a static embedding", [(float(len(cosines) - 1), 1.0)])
    axis = Axis("mean cosine", format_value=lambda value: f"{value:.2f}", include=(0.0, 1.0))
    return line_chart("Cosine by layer", [Series("this model", points, markers=True)], axis, static, x_title="layer")
