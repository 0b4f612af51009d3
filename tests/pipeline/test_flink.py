"""Extraction and deduplication on a real Flink, through Beam's portable runner and a worker pool of its own.

CLOZE_FLINK names the endpoint of Beam's Flink job server, such as localhost:8099.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.beam import for_each
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import stage as dedup
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from tests.conftest import free_port, wait_for_port
from tests.paths import REPOSITORY
from tests.pipeline.extract.test_extract import BOOK, BOOKS, EXTRACT, WIKI, config, digests, files

JOB_SERVER = os.environ.get("CLOZE_FLINK", "")
CONFIGS = REPOSITORY / "configs"


def options(*more: str) -> tuple[list[str] | None, list[str] | None]:
    """Beam's options for extract and for dedup in the quickstart."""
    found = load(RunConfig, CONFIGS / "quickstart.yaml", [str(path) for path in more])
    return found.extract.beam, found.dedup.beam


def worker_pool(port: int, log: Path) -> "subprocess.Popen[bytes]":
    """Start a worker pool in a session of its own, with its workers."""
    command = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def pool_options(port: int) -> list[str]:
    """The options of configs/clusters/flink.yaml, with the job server at hand and a worker pool at this port."""
    given, _ = options(CONFIGS / "clusters/flink.yaml")
    places = {"localhost:8099": JOB_SERVER, "localhost:50000": f"localhost:{port}"}
    return [f"{name}={places.get(value, value)}" for name, _, value in (each.partition("=") for each in given)]


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The options of configs/clusters/flink.yaml, with the job server at hand and a worker pool at a free port."""
    if not JOB_SERVER:
        pytest.skip("CLOZE_FLINK names no job server of Beam's for Flink")
    port = free_port()
    with worker_pool(port, tmp_path_factory.mktemp("pool") / "log") as pool:
        try:
            wait_for_port(port)
            yield pool_options(port)
        finally:
            pool.terminate()


def test_one_more_configuration_file_moves_a_run_to_flink():
    local, remote = options(), options(CONFIGS / "clusters/flink.yaml")
    assert local == (None, None)
    assert remote[0] == remote[1] and "--runner=PortableRunner" in remote[0]


def both(folder: Path, beam: list[str]) -> tuple[Manifest, Manifest]:
    """What extraction and deduplication make of two dumps, the same dump again and a book."""
    (folder / "tale.txt").write_text(BOOK)
    dumps = [EXTRACT / "nlwiki.xml", EXTRACT / "enwiki.xml.bz2"]
    inputs = {"w": files(*dumps), "again": files(*dumps[:1]), "b": files(folder / "tale.txt")}
    settings = config(w=WIKI, again=WIKI, b=BOOKS).model_copy(update={"beam": beam})
    out = Output(Location(str(folder / "extract")), "extract", extract.VERSION, "0" * 16)
    extracted = extract.run(settings, inputs, out)
    documents = Artifact(out.location, "extract", "0" * 16)
    out = Output(Location(str(folder / "dedup")), "dedup", dedup.VERSION, "1" * 16)
    return extracted, dedup.run(dedup.DedupConfig(beam=beam), {"documents": documents}, out)


@pytest.mark.slow
@pytest.mark.flink
def test_flink_writes_the_bytes_that_one_process_writes(tmp_path: Path, flink: list[str], monkeypatch):
    monkeypatch.setattr(work_units, "XML_UNIT_BYTES", 8000)
    found = {}
    for name, beam in {"flink": flink, "here": ["--runner=FnApiRunner"]}.items():
        (tmp_path / name).mkdir()
        found[name] = both(tmp_path / name, beam)
    assert [digests(made) for made in found["flink"]] == [digests(made) for made in found["here"]]
    extracted, deduplicated = found["flink"]
    assert len(extracted.files) > 8 and deduplicated.drops["duplicate"] > 5
    assert deduplicated.drops == found["here"][1].drops


@pytest.mark.campaign
@pytest.mark.flink
def test_an_error_on_flink_arrives_as_its_one_line(tmp_path: Path, flink: list[str]):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    settings = config(b=BOOKS).model_copy(update={"beam": flink})
    out = Output(Location(str(tmp_path / "out")), "extract", extract.VERSION, "0" * 16)
    with pytest.raises(UserError, match=r"a\.txt: is not UTF-8") as error:
        extract.run(settings, {"b": files(tmp_path / "a.txt")}, out)
    assert "\n" not in str(error.value)


@pytest.mark.campaign
@pytest.mark.flink
@pytest.mark.parametrize("dies", [False, True])
def test_a_worker_pool_that_is_missing_or_dies_is_one_line(tmp_path: Path, dies: bool, capfd):
    if not JOB_SERVER:
        pytest.skip("CLOZE_FLINK names no job server of Beam's for Flink")
    port = free_port()
    started = tmp_path / "started"

    def work(_: str) -> None:
        started.touch()
        time.sleep(60)

    pool = worker_pool(port, tmp_path / "log") if dies else None
    try:
        if pool:
            wait_for_port(port)
            threading.Thread(target=kill_once, args=(started, pool.pid), daemon=True).start()
        problem = r"the worker pool at .*, or one of its workers, has died" if dies else "no worker pool answers at "
        with pytest.raises(UserError, match=f"^beam: {problem}.*finished parts are kept$") as error:
            for_each(["a", "b"], work, pool_options(port))
        assert "\n" not in str(error.value) and "java" not in capfd.readouterr().err
    finally:
        if pool and pool.poll() is None:
            os.killpg(pool.pid, signal.SIGKILL)


def kill_once(started: Path, group: int) -> None:
    while not started.exists():
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
