"""stages, their inputs and scores -> a picture of boxes and arrows, from the files at the top to the scores below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from cloze.infra.display import duration, size
from cloze.infra.report.charts import Estimate, percent, svg, tag
from cloze.infra.report.views import ExtractView, FinetuneView, PretrainView, Source, Stages, StageView

_FILES_NAMED = 3
_DIGITS = 10  # of a digest in a box
_ROW_GAP, _BOX_GAP, _LANE = 30.0, 14.0, 14.0


@dataclass(frozen=True)
class Node:
    """A box of the lineage: what it is, two lines below it, and the keys of the boxes it is made from."""

    key: str
    title: str
    lines: tuple[str, ...] = ()
    kind: str = "stage"
    sources: tuple[str, ...] = ()
    link: str | None = None


def picture(stages: Stages, scores: Mapping[str, Mapping[str, Estimate]]) -> Markup:
    """The lineage of a run; `scores` are those of the fine-tuning stages by name."""
    nodes: list[Node] = []
    for stage in stages:
        nodes += [_file_node(stage, name, found) for name, found in stage.sources.items()]
        known = {node.key for node in nodes}
        made_from = [name for name in stage.after if name in known]
        nodes.append(_stage_node(stage, (*made_from, *(f"{stage.name}/{name}" for name in stage.sources))))
    for stage in stages.of(FinetuneView):
        if stage.name in scores:
            nodes.append(_score_node(stage, scores[stage.name]))
    return _drawn(nodes)


def _file_node(stage: StageView, name: str, files: Sequence[Source]) -> Node:
    lines = [
        " · ".join(filter(None, (_cut(file.name, 26), file.sha256[:_DIGITS], _size(file))))
        for file in files[:_FILES_NAMED]
    ]
    if len(files) > _FILES_NAMED:
        lines.append(f"and {len(files) - _FILES_NAMED:,} more files")
    return Node(f"{stage.name}/{name}", _file_title(stage, name), tuple(lines), "file")


def _file_title(stage: StageView, name: str) -> str:
    if isinstance(stage, ExtractView):
        return name
    return f"{stage.task if isinstance(stage, FinetuneView) else stage.name}: labelled file"


def _stage_node(stage: StageView, made_from: tuple[str, ...]) -> Node:
    link = f"#stage-{stage.name}"
    if stage.manifest is None:
        return Node(stage.name, stage.name, (stage.state,), "open", made_from, link)
    lines = [f"{stage.manifest.fingerprint} · {duration(stage.manifest.seconds)}"]
    if isinstance(stage, PretrainView) and (checkpoint := stage.facts.checkpoint):
        lines.append(f"checkpoint {checkpoint.digest[:_DIGITS]} at step {checkpoint.step:,}")
    return Node(stage.name, stage.name, tuple(lines), "stage", made_from, link)


def _score_node(stage: FinetuneView, estimates: Mapping[str, Estimate]) -> Node:
    best = estimates["pretrained"]
    others = " · ".join(
        f"{value.label} {percent(value.value)}" for key, value in estimates.items() if key != "pretrained"
    )
    lines = (f"95 %: {percent(best.low)} to {percent(best.high)}", others)
    return Node(f"score/{stage.task}", f"{stage.task} {percent(best.value)}", lines, "score", (stage.name,), "#scores")


def _size(file: Source) -> str:
    """Empty where it is not known any more."""
    return "" if file.bytes is None else size(file.bytes)


def _cut(text: str, length: int) -> str:
    """A file's name, shortened in the middle: both ends tell something."""
    return text if len(text) <= length else f"{text[: length - 9]}…{text[-8:]}"


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    is_last: bool  # nothing stands to its right


def _drawn(nodes: Sequence[Node]) -> Markup:
    """Boxes in rows, each below all that it is made from; arrows between neighbours, lanes at the right for others."""
    depth = _depths(nodes)
    rows = [
        sorted((node for node in nodes if depth[node.key] == level), key=lambda node: node.kind != "file")
        for level in range(max(depth.values()) + 1)
    ]
    far = [source for node in nodes for source in node.sources if depth[node.key] - depth[source] > 1]
    lanes = {source: place for place, source in enumerate(dict.fromkeys(far))}
    right = max(map(_row_width, rows))
    width = right + _LANE * (len(lanes) + 1)
    boxes = _places(rows, right)
    drawing: list[object] = [_arrowhead()]
    for node in nodes:
        for source in node.sources:
            start, end = boxes[source], boxes[node.key]
            near = depth[node.key] - depth[source] == 1
            way = _arrow(start, end) if near else _detour(start, end, width - 6 - _LANE * lanes[source])
            drawing.append(tag("path", d=way, class_="arrow", marker_end="url(#head)"))
    drawing += [_box(node, boxes[node.key]) for node in nodes]
    height = max(box.y + box.height for box in boxes.values()) + 6
    style = f"width:{1.15 * width:.0f}px;min-width:{0.75 * width:.0f}px"  # narrower screens scroll
    return svg(width, height, "From the input files to the scores", *drawing, class_="lineage", style=style)


def _depths(nodes: Sequence[Node]) -> dict[str, int]:
    """The row of each node, given after its sources: below all of them; a file just above the stage that reads it."""
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.key] = 1 + max((depth[source] for source in node.sources), default=-1)
    for node in nodes:
        users = [depth[user.key] for user in nodes if node.key in user.sources]
        if not node.sources and users:
            depth[node.key] = min(users) - 1
    return depth


def _box_width(node: Node) -> float:
    """Wide enough for its words, by the mean width of their letters."""
    return max(190.0, 24 + 7.2 * len(node.title), *(24 + 5.7 * len(line) for line in node.lines))


def _row_width(row: Sequence[Node]) -> float:
    return sum(map(_box_width, row)) + _BOX_GAP * (len(row) - 1)


def _places(rows: Sequence[Sequence[Node]], right: float) -> dict[str, _Box]:
    """Each row in the middle between 0 and `right`, one below the other."""
    places: dict[str, _Box] = {}
    y = 4.0
    for row in rows:
        height = 26.0 + 17 * max(len(node.lines) for node in row)
        x = (right - _row_width(row)) / 2
        for node in row:
            places[node.key] = _Box(x, y, _box_width(node), height, node is row[-1])
            x += _box_width(node) + _BOX_GAP
        y += height + _ROW_GAP
    return places


def _arrow(start: _Box, end: _Box) -> str:
    """From one row down to the next."""
    x1, y1 = start.x + start.width / 2, start.y + start.height
    x2, y2 = end.x + end.width / 2, end.y - 6
    return f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + 16:.1f} {x2:.1f} {y2 - 16:.1f} {x2:.1f} {y2:.1f}"


def _detour(start: _Box, end: _Box, lane: float) -> str:
    """Past the rows between, along `lane`; into the side of the last box of a row, into the top of any other."""
    way = f"M{start.x + start.width:.1f} {start.y + start.height / 2:.1f}H{lane - 8:.1f}q8 0 8 8"
    if end.is_last:
        return f"{way}V{end.y + end.height / 2 - 8:.1f}q0 8 -8 8H{end.x + end.width + 6:.1f}"
    x = end.x + 0.8 * end.width
    return f"{way}V{end.y - 24:.1f}q0 8 -8 8H{x + 8:.1f}q-8 0 -8 8V{end.y - 6:.1f}"


def _arrowhead() -> Markup:
    head = tag("path", d="M0 0L7 3.5L0 7Z", class_="head")
    size = {"markerWidth": 7, "markerHeight": 7, "refX": 1, "refY": 3.5, "markerUnits": "userSpaceOnUse"}
    return tag("defs", tag("marker", head, id="head", orient="auto", **size))


def _box(node: Node, box: _Box) -> Markup:
    middle, frame = box.x + box.width / 2, box._asdict()
    frame.pop("is_last")
    texts = [
        tag("text", line, x=middle, y=box.y + 19 + 17 * place, class_=f"middle {'quiet' if place else 'strong'}")
        for place, line in enumerate((node.title, *node.lines))
    ]
    drawn = tag("g", tag("rect", rx=5, **frame), *texts, class_=f"node {node.kind}")
    return tag("a", drawn, href=node.link) if node.link else drawn
