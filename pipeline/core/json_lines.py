"""Rows <-> JSON lines, one object a line."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location


def encode(rows: Iterable[Mapping[str, Any]], *, escaped: bool = True) -> bytes:
    """`escaped`: characters beyond ASCII are; else they stand as they are, for people to read."""
    return "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows).encode()


def read(file: Location) -> list[dict[str, Any]]:
    """The rows of a file that we wrote; none where there is no file yet. Raises UserError where it is damaged."""
    # Lines of bytes end at line feeds; those of a str would also end at U+2028, which may stand in a value.
    lines = file.read_bytes().splitlines() if file.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{file}:{number}: is damaged; delete the file: the stage that wrote it makes it again"
            ) from error
    return rows
