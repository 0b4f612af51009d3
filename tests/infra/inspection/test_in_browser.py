"""The page of `cloze inspect` in a real browser, at the width of a desktop and of a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze.infra.cli import main
from tests.infra.inspection.browser import CHROMIUM, Browser, browser
from tests.infra.inspection.small_encoder import HEADS, LAYERS, SENTENCES, A, B, write_folder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About a pair of 32 tokens, whose heads are maps."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "sentences.txt").write_text("\n".join(SENTENCES))
    write_folder(folder / "little")
    options = ["--sentences", str(folder / "sentences.txt"), "--to", str(folder / "inspect.html")]
    assert main(["inspect", str(folder / "little"), A, B, *options]) == 0
    return folder / "inspect.html"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_and_every_head_is_drawn(opened: Browser, page: Path, width: int) -> None:
    opened.open(page, width)
    assert opened.value("document.documentElement.scrollWidth") <= width
    drawn = opened.value(
        "[...document.querySelectorAll('#heads canvas')].filter((one) => "
        "one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(Boolean)).length"
    )
    assert drawn == LAYERS * HEADS
    small = "[...document.querySelectorAll('button')].filter((one) => one.getBoundingClientRect().height < 24).length"
    assert opened.value(small) == 0
    unnamed = "[...document.querySelectorAll('button')].filter((one) => !(one.ariaLabel || one.textContent)).length"
    assert opened.value(unnamed) == 0
    assert opened.problems == []


def test_heads_and_tokens_are_chosen_by_pointer_and_by_keys(opened: Browser, page: Path) -> None:
    opened.open(page, 1280)
    title, readout = (
        "document.getElementById('head-title').textContent",
        "document.getElementById('readout').textContent",
    )
    lines = "document.querySelectorAll('#lines line').length"
    every_line = opened.value(lines)
    opened.value("document.querySelectorAll('#heads button')[1].click()")
    assert opened.value(title) == "Layer 1, head 2"
    opened.value("document.querySelectorAll('#heads button')[1].focus()")
    opened.press("ArrowDown")
    opened.press("ArrowLeft")
    assert opened.value(title) == "Layer 2, head 1"
    assert opened.value("document.activeElement.ariaLabel") == "Layer 2, head 1"
    opened.value("document.querySelector('#from button').focus()")
    opened.press("ArrowDown")
    assert opened.value(readout).startswith("“she” attends to “")
    shown = opened.value("[...document.querySelectorAll('#to small')].map((one) => parseFloat(one.textContent) || 0)")
    assert sum(shown) == pytest.approx(100, abs=5) and opened.value(lines) < every_line
    opened.press("Escape")
    assert opened.value(readout) == "" and opened.value(lines) > len(shown)
    opened.value("document.querySelectorAll('#from button')[1].click()")
    opened.value("document.querySelectorAll('#heads button')[1].focus()")  # a pinned token is left from anywhere
    assert opened.value(readout) != ""
    opened.press("Escape")
    assert opened.value(readout) == ""
    assert opened.problems == []


def test_filters_leave_the_tokens_that_they_name(opened: Browser, page: Path) -> None:
    opened.open(page, 1280)
    visible = "[...document.querySelectorAll('#{} button:not([hidden]) span')].map((one) => one.textContent)"
    opened.value("document.querySelector('input[value=AB]').click()")
    start = opened.value("JSON.parse(document.getElementById('attention-data').textContent).secondStart")
    left, right = opened.value(visible.format("from")), opened.value(visible.format("to"))
    assert left[0] == "[CLS]" and left[-1] == "[SEP]" and len(left) == start
    assert right[:2] == ["the", "bank"] and right[-1] == "[SEP]"
    opened.value("document.getElementById('hide-special').click()")
    assert opened.value(visible.format("from")) == left[1:-1]
    assert opened.problems == []
