"""Extraction with two processes, killed on the way: what was finished stays, and the bytes are the same in the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from tests.pipeline.extract.test_extract import EXTRACT, WIKI, config, digests, files, output

RANGE = 20_000  # bytes
CHILD = f"""
import sys
from pathlib import Path
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.core.beam_workers import LostWorkerError
from tests.pipeline.extract.test_extract import WIKI, config, files, output
work_units.XML_UNIT_BYTES = {RANGE}
options = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
settings = config(w=WIKI).model_copy(update={{"beam": options}})
try:
    extract.run(settings, {{"w": files(Path(sys.argv[1]))}}, output(Path(sys.argv[2])))
except LostWorkerError as error:
    sys.exit(f"lost: {{error}}")
"""


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred times the articles of a small one: enough ranges for seconds of work."""
    header, start, rest = (EXTRACT / "nlwiki.xml").read_text().partition("<page>")
    pages = (start + rest).removesuffix("\n").removesuffix("</mediawiki>")
    file = tmp_path_factory.mktemp("dump") / "dump.xml"
    file.write_text(f"{header}{pages * 600}</mediawiki>\n")
    return file


@pytest.fixture(scope="module")
def full(dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return whole(dump, tmp_path_factory.mktemp("full"))


def whole(dump: Path, folder: Path) -> Manifest:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_units, "XML_UNIT_BYTES", RANGE)
        return extract.run(config(w=WIKI), {"w": files(dump)}, output(folder))


def until_parts(child: subprocess.Popen, folder: Path, number: int) -> None:
    while len(list((folder / "parts").glob("[0-9]*.json"))) < number:
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)


@pytest.mark.parametrize(
    "number", [pytest.param(1, marks=pytest.mark.campaign), pytest.param(20, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("victim", ["the run", "a worker"])
def test_a_kill_loses_nothing_that_was_finished(dump: Path, full: Manifest, tmp_path: Path, victim: str, number: int):
    command = [sys.executable, "-c", CHILD, str(dump), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        until_parts(child, tmp_path, number)
        workers = [
            p
            for p in psutil.Process(child.pid).children(recursive=True)
            if "cloze.pipeline.core.beam_workers" in p.cmdline()
        ]
        assert len(workers) == 2
        killed = time.monotonic()
        os.kill(child.pid if victim == "the run" else workers[0].pid, signal.SIGKILL)
        _, message = child.communicate(timeout=60)
    if victim == "a worker":
        assert child.returncode == 1 and message.startswith("lost: ") and "was it killed" in message
    _, alive = psutil.wait_procs(workers, timeout=60 - (time.monotonic() - killed))
    assert not alive
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").glob("[0-9]*.json")}
    assert number <= len(stamps) < len(full.files)
    resumed = whole(dump, tmp_path)
    assert digests(resumed) == digests(full) and resumed.counts == full.counts
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())
