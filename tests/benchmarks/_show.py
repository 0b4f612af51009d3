"""Figures -> a table to be read, and a line of JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(
    title: str, figures: Mapping[str, float], about: Mapping[str, Any], say: Callable[[float], str] = "{:,.4g}".format
) -> None:
    """`about` says what was measured, and stands in the JSON alone."""
    table = Table("figure", "value", title=title)
    for figure, value in figures.items():
        table.add_row(figure, say(value))
    Console().print(table)
    print(json.dumps({**about, **figures}))
