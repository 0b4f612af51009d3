"""Figures -> a table, then a line of JSON."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(
    title: str,
    figures: Mapping[str, float],
    about: Mapping[str, Any],
    format_value: Callable[[float], str] = "{:,.4g}".format,
) -> None:
    """Prints the figures. `about` describes the measurement and is only part of the JSON."""
    table = Table("figure", "value", title=title)
    for figure, value in figures.items():
        table.add_row(figure, format_value(value))
    Console().print(table)
    print(json.dumps({**about, **figures}))
