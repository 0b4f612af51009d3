import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.extract import sentence_lines
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.extract.wikipedia import dump
from cloze.pipeline.extract.work_units import plan_units


def config(kind: str) -> ExtractConfig:
    return ExtractConfig.model_validate({"sources": [{"name": "own", "kind": kind, "files": ["given by the test"]}]})


def test_small_files_are_planned_in_linear_time():
    files = [SourceFile(f"/{number}.txt", f"{number:064}", 1000) for number in range(20_000)]
    start = time.process_time()
    units = plan_units(config("documents"), {"own": files})
    assert time.process_time() - start < 5
    sizes = [sum(file_range.byte_range.size for file_range in unit.file_ranges) for unit in units]
    assert sizes == [16_778_000, 3_222_000]


@pytest.mark.parametrize("kind", ["wikipedia", "sentences"])
def test_several_files_are_divided_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    text = "<mediawiki>\n</mediawiki>\n" if kind == "wikipedia" else "A sentence.\n\nAnother.\n"
    for name in "ab":
        (tmp_path / name).write_text(text)
    files = [SourceFile(str(tmp_path / name), name * 64, len(text)) for name in "ab"]
    module: Any = dump if kind == "wikipedia" else sentence_lines
    both, divide = threading.Barrier(2, timeout=10), module.byte_ranges

    def wait_for_the_other(*arguments: Any) -> Any:
        both.wait()
        return divide(*arguments)

    monkeypatch.setattr(module, "byte_ranges", wait_for_the_other)
    units = plan_units(config(kind), {"own": files})
    assert [file_range.file for unit in units for file_range in unit.file_ranges] == files
