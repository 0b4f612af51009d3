"""Beam's workers on a Ray cluster of two nodes with a CPU each. tests/pipeline/test_cluster.py runs stages on them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.paths import REPOSITORY

pytestmark = pytest.mark.campaign

#: Runs for_each over eight items on the cluster; each runs WORK and then writes down its name and its node.
DRIVER = """
import functools, os, signal, sys, time
from pathlib import Path

import psutil

from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.beam import for_each
from cloze.pipeline.core.errors import UserError

def work(item, folder):
    file = Path(folder, item)
    if not file.exists():
        WORK
        file.write_text(str(psutil.Process().parent().parent().pid))

with ray_session():
    try:
        for_each(list("abcdefgh"), functools.partial(work, folder=sys.argv[1]), None)
    except (UserError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


#: A cluster in a process of its own: its end would end a Ray session of the same process. Prints its address;
#: "add N" on standard input adds a node of N CPUs, "remove" removes it.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.startswith("add "):
        node = cluster.add_node(num_cpus=int(line.removeprefix("add ")))
    else:
        cluster.remove_node(node)
    print("done", flush=True)
cluster.shutdown()
"""


class Cluster:
    """A Ray cluster of two nodes with a CPU each, which another process has."""

    def __init__(self, process: "subprocess.Popen[str]"):
        self._process = process
        self.address = self._read()

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the cluster's process has ended"
        return line.strip()

    @contextmanager
    def one_more_node(self, cpus: int = 1) -> Iterator[None]:
        """While inside, the cluster has a third node, from the beginning to the end of the block."""
        self._change(f"add {cpus}")
        yield
        self._change("remove")

    def _change(self, command: str) -> None:
        assert self._process.stdin
        print(command, file=self._process.stdin, flush=True)
        assert self._read() == "done"


@pytest.fixture(scope="module")
def cluster(own_home: Path) -> Iterator[Cluster]:
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Cluster(process)


def start(cluster: Cluster, folder: Path, work: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY), **variables}
    code = DRIVER.replace("WORK", work)
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(cluster: Cluster, folder: Path, work: str) -> tuple[int, str]:
    with start(cluster, folder, work) as driver:
        _, message = driver.communicate(timeout=120)
    return driver.returncode, message


def harnesses() -> list[psutil.Process]:
    """The harnesses of this test process's cluster."""
    children = psutil.Process().children(recursive=True)
    return [process for process in children if "cloze.pipeline.core.beam_workers" in process.cmdline()]


def test_work_runs_on_all_nodes(cluster: Cluster, tmp_path: Path):
    status, message = run(cluster, tmp_path, "time.sleep(0.1)")
    assert status == 0, message
    nodes = [file.read_text() for file in tmp_path.iterdir()]
    assert len(nodes) == 8 and len(set(nodes)) == 2
    assert not harnesses()


def test_a_node_that_joins_the_cluster_is_used_at_once(cluster: Cluster, tmp_path: Path):
    with start(cluster, tmp_path, "time.sleep(8)", CLOZE_MAX_CPUS="3") as driver:
        while not list(tmp_path.iterdir()):
            assert driver.poll() is None
            time.sleep(0.1)
        with cluster.one_more_node():
            _, message = driver.communicate(timeout=240)
    assert driver.returncode == 0, message
    nodes = [file.read_text() for file in tmp_path.iterdir()]
    assert len(nodes) == 8 and len(set(nodes)) == 3


def test_an_error_that_a_user_can_fix_arrives_unchanged(cluster: Cluster, tmp_path: Path):
    assert run(cluster, tmp_path, "raise UserError('a.xml: is no dump')") == (1, "UserError: a.xml: is no dump\n")
    assert not harnesses()


def test_an_error_of_an_item_that_runs_while_a_worker_is_lost_ends_the_run(cluster: Cluster, tmp_path: Path):
    work = """first = Path(folder, 'first')
        try:
            first.touch(exist_ok=False)
        except FileExistsError:
            Path(folder, 'second').touch()
            time.sleep(3)  # the other worker is lost meanwhile
            raise UserError('a.xml: is no dump')
        while not Path(folder, 'second').exists():
            time.sleep(0.1)
        os.kill(os.getpid(), 9)"""
    assert run(cluster, tmp_path, work) == (1, "UserError: a.xml: is no dump\n")
    assert not harnesses()


def test_a_lost_worker_costs_its_item_only(cluster: Cluster, tmp_path: Path):
    count = "open(folder + '/' + item + '-runs', 'a').write('x')"
    once = "item != 'c' or Path(folder, 'lost').exists() or (Path(folder, 'lost').touch(), os.kill(os.getpid(), 9))"
    status, message = run(cluster, tmp_path, f"time.sleep(0.1); {count}; {once}")
    assert status == 0, message
    runs = {item: len((tmp_path / f"{item}-runs").read_text()) for item in "abcdefgh"}
    assert runs == {**dict.fromkeys("abcdefgh", 1), "c": 2}


def test_a_node_with_idle_workers_that_is_lost_ends_no_run(cluster: Cluster, tmp_path: Path):
    work = """Path(folder, item + '-started').touch()
        while item == 'a' and not Path(folder, 'lost').exists():
            time.sleep(0.1)"""
    with cluster.one_more_node(cpus=4):
        driver = start(cluster, tmp_path, work)
        while not (tmp_path / "a-started").exists() or time.time() < tmp_path.stat().st_mtime + 5:
            assert driver.poll() is None
            time.sleep(0.1)
    (tmp_path / "lost").touch()
    with driver:
        _, message = driver.communicate(timeout=240)
    assert driver.returncode == 0, message
    assert {file.name for file in tmp_path.iterdir()} >= set("abcdefgh")


def test_an_item_on_which_workers_are_lost_again_and_again_is_named(cluster: Cluster, tmp_path: Path):
    status, message = run(cluster, tmp_path, "item != 'c' or os.kill(os.getpid(), 9)")
    assert status == 1
    losses = "3 workers were lost, the last one with exit status -9 while it worked on c"
    assert message == f"LostWorkerError: beam: {losses}: was it out of memory? Run again: finished work is kept\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run(cluster: Cluster, tmp_path: Path, number: int):
    with start(cluster, tmp_path, "Path(folder, 'started').touch(); time.sleep(100)") as driver:
        while not (tmp_path / "started").exists():
            assert driver.poll() is None
            time.sleep(0.1)
        running = harnesses()
        assert running
        driver.send_signal(number)
        driver.wait(20)
    assert not psutil.wait_procs(running, timeout=20)[1]
