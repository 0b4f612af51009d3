"""Stages, their input files and scores -> a graph of boxes and arrows, from the files at the top to the scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from cloze.infra.display import duration, size
from cloze.infra.report.charts import element, svg
from cloze.infra.report.finetuning import TaskSection
from cloze.infra.report.view_models import ExtractView, PretrainView, Stages, StageView, UserFile

_MAX_FILES = 3  # named in a box
_DIGEST_CHARS = 10
_MAX_NAME_CHARS = 26
_ROW_GAP, _BOX_GAP, _LANE = 30.0, 14.0, 14.0
#: Titles of user files by stage type and input; the file's input name where there is none.
_FILE_TITLES = {
    ("vocab", "compare"): "comparison vocabulary",
    ("encode", "data"): "labelled data",
    ("finetune", "data"): "labelled data",
    ("finetune", "init"): "initial weights",
}


@dataclass(frozen=True)
class LineageNode:
    """A box of the graph; `parents` are the keys of its inputs."""

    key: str
    title: str
    lines: tuple[str, ...] = ()  # below the title
    kind: str = "stage"  # CSS class: file, stage, unfinished or score
    parents: tuple[str, ...] = ()
    href: str | None = None


def lineage_graph(stages: Stages, tasks: Sequence[TaskSection]) -> Markup:
    """Returns the lineage of a run, with the scores of its tasks."""
    nodes: list[LineageNode] = []
    keys_of_files: dict[tuple[UserFile, ...], str] = {}  # files that several stages read are one box
    for stage in stages:
        for name, files in stage.user_files.items():
            if tuple(files) not in keys_of_files:
                keys_of_files[tuple(files)] = _file_key(stage, name)
                nodes.append(_file_node(stage, name, files))
        file_keys = (keys_of_files[tuple(files)] for files in stage.user_files.values())
        keys = {node.key for node in nodes}
        upstream = [name for name in stage.upstream if name in keys]
        nodes.append(_stage_node(stage, (*upstream, *file_keys)))
    return _draw([*nodes, *map(_score_node, tasks)])


def _file_key(stage: StageView, input_name: str) -> str:
    return f"{stage.name}/{input_name}"


def _file_node(stage: StageView, input_name: str, files: Sequence[UserFile]) -> LineageNode:
    lines = [
        " · ".join(filter(None, (_shorten(file.name), file.sha256[:_DIGEST_CHARS], _size(file))))
        for file in files[:_MAX_FILES]
    ]
    if len(files) > _MAX_FILES:
        lines.append(f"and {len(files) - _MAX_FILES:,} more files")
    return LineageNode(_file_key(stage, input_name), _file_title(stage, input_name), tuple(lines), "file")


def _file_title(stage: StageView, input_name: str) -> str:
    """Returns the source's name for extract, else what the file is to the stage."""
    if isinstance(stage, ExtractView):
        return input_name
    title = _FILE_TITLES.get((stage.type_name, input_name), input_name)
    of_task = stage.type_name in ("encode", "finetune")
    return f"{stage.name.partition('-')[2] if of_task else stage.name}: {title}"


def _stage_node(stage: StageView, parents: tuple[str, ...]) -> LineageNode:
    href = f"#stage-{stage.name}"
    if stage.manifest is None:
        return LineageNode(stage.name, stage.name, (stage.state,), "unfinished", parents, href)
    lines = [f"{stage.manifest.fingerprint} · {duration(stage.manifest.seconds)}"]
    if isinstance(stage, PretrainView) and (checkpoint := stage.facts.checkpoint):
        lines.append(f"checkpoint {checkpoint.digest[:_DIGEST_CHARS]} at step {checkpoint.step:,}")
    return LineageNode(stage.name, stage.name, tuple(lines), "stage", parents, href)


def _score_node(task: TaskSection) -> LineageNode:
    pretrained, number = task.estimates["pretrained"], task.axis.format_value
    baselines = " · ".join(f"{other.label} {other.score}" for other in task.compared)
    interval = f"95 % interval: {number(pretrained.low)} to {number(pretrained.high)}"
    title = f"{task.name}: {task.metric} {task.score}"
    lines = (interval, baselines) if baselines else (interval,)
    return LineageNode(f"score/{task.name}", title, lines, "score", (task.stage,), "#fine-tuning")


def _size(file: UserFile) -> str:
    """Returns the file's size; empty where it is unknown."""
    return "" if file.bytes is None else size(file.bytes)


def _shorten(name: str) -> str:
    """Cuts a long file name in the middle, as both ends identify it."""
    return name if len(name) <= _MAX_NAME_CHARS else f"{name[: _MAX_NAME_CHARS - 9]}…{name[-8:]}"


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    is_rightmost: bool  # in its row


def _draw(nodes: Sequence[LineageNode]) -> Markup:
    """Draws rows of boxes, each below its parents. An arrow that skips a row runs in a separate lane on the right."""
    depth = _depths(nodes)
    rows = [
        sorted((node for node in nodes if depth[node.key] == level), key=lambda node: node.kind != "file")
        for level in range(max(depth.values()) + 1)
    ]
    skipping = [parent for node in nodes for parent in node.parents if depth[node.key] - depth[parent] > 1]
    lanes = {parent: number for number, parent in enumerate(dict.fromkeys(skipping))}
    rows_width = max(map(_row_width, rows))
    width = rows_width + _LANE * (len(lanes) + 1)
    boxes = _layout(rows, rows_width)
    shapes: list[object] = [_arrowhead()]
    for node in nodes:
        for parent in node.parents:
            start, end = boxes[parent], boxes[node.key]
            adjacent = depth[node.key] - depth[parent] == 1
            path = _arrow(start, end) if adjacent else _lane_arrow(start, end, width - 6 - _LANE * lanes[parent])
            shapes.append(element("path", d=path, class_="arrow", marker_end="url(#head)"))
    shapes += [_draw_box(node, boxes[node.key]) for node in nodes]
    height = max(box.y + box.height for box in boxes.values()) + 6
    style = f"width:{1.15 * width:.0f}px;min-width:{0.75 * width:.0f}px"  # narrower screens scroll
    return svg(width, height, "Lineage from the input files to the scores", *shapes, class_="lineage", style=style)


def _depths(nodes: Sequence[LineageNode]) -> dict[str, int]:
    """Returns each node's row: a stage is below all its parents, a file directly above the first stage that reads it.

    Parents come before their children in `nodes`.
    """
    depth: dict[str, int] = {}
    for node in nodes:
        depth[node.key] = 1 + max((depth[parent] for parent in node.parents), default=-1)
    for node in nodes:
        children = [depth[child.key] for child in nodes if node.key in child.parents]
        if not node.parents and children:
            depth[node.key] = min(children) - 1
    return depth


def _box_width(node: LineageNode) -> float:
    """Estimates the width from the mean width of a character."""
    return max(190.0, 24 + 7.2 * len(node.title), *(24 + 5.7 * len(line) for line in node.lines))


def _row_width(row: Sequence[LineageNode]) -> float:
    return sum(map(_box_width, row)) + _BOX_GAP * (len(row) - 1)


def _layout(rows: Sequence[Sequence[LineageNode]], width: float) -> dict[str, _Box]:
    """Places the rows one below the other, each centred between 0 and `width`."""
    boxes: dict[str, _Box] = {}
    y = 4.0
    for row in rows:
        height = 26.0 + 17 * max(len(node.lines) for node in row)
        x = (width - _row_width(row)) / 2
        for node in row:
            boxes[node.key] = _Box(x, y, _box_width(node), height, node is row[-1])
            x += _box_width(node) + _BOX_GAP
        y += height + _ROW_GAP
    return boxes


def _arrow(start: _Box, end: _Box) -> str:
    """Returns the path from a box to one in the next row."""
    x1, y1 = start.x + start.width / 2, start.y + start.height
    x2, y2 = end.x + end.width / 2, end.y - 6
    return f"M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + 16:.1f} {x2:.1f} {y2 - 16:.1f} {x2:.1f} {y2:.1f}"


def _lane_arrow(start: _Box, end: _Box, lane_x: float) -> str:
    """Returns a path along the lane at `lane_x`, into the side of a row's rightmost box or the top of any other."""
    path = f"M{start.x + start.width:.1f} {start.y + start.height / 2:.1f}H{lane_x - 8:.1f}q8 0 8 8"
    if end.is_rightmost:
        return f"{path}V{end.y + end.height / 2 - 8:.1f}q0 8 -8 8H{end.x + end.width + 6:.1f}"
    x = end.x + 0.8 * end.width
    return f"{path}V{end.y - 24:.1f}q0 8 -8 8H{x + 8:.1f}q-8 0 -8 8V{end.y - 6:.1f}"


def _arrowhead() -> Markup:
    triangle = element("path", d="M0 0L7 3.5L0 7Z", class_="head")
    size = {"markerWidth": 7, "markerHeight": 7, "refX": 1, "refY": 3.5, "markerUnits": "userSpaceOnUse"}
    return element("defs", element("marker", triangle, id="head", orient="auto", **size))


def _draw_box(node: LineageNode, box: _Box) -> Markup:
    texts = [
        element(
            "text",
            line,
            x=box.x + box.width / 2,
            y=box.y + 19 + 17 * index,
            class_=f"middle {'quiet' if index else 'strong'}",
        )
        for index, line in enumerate((node.title, *node.lines))
    ]
    rect = element("rect", rx=5, x=box.x, y=box.y, width=box.width, height=box.height)
    group = element("g", rect, *texts, class_=f"node {node.kind}")
    return element("a", group, href=node.href) if node.href else group
