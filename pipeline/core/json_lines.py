"""Rows <-> JSON Lines: one object per line."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cloze.pipeline.core.errors import DamagedFile
from cloze.pipeline.core.storage import Location


def encode(rows: Iterable[Mapping[str, Any]], *, escaped: bool = True) -> bytes:
    """`escaped`: write characters beyond ASCII as \\u escapes; otherwise as they are, for people to read."""
    return "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows).encode()


def read(file: Location) -> list[dict[str, Any]]:
    """Returns the rows of a file that Cloze wrote; none if it does not exist yet. Raises DamagedFile."""
    # bytes.splitlines splits at line feeds; str.splitlines would also split at U+2028, which a value may contain.
    lines = file.read_bytes().splitlines() if file.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DamagedFile(f"{file}:{number}: is damaged; delete the file: its stage writes it again") from error
    return rows
