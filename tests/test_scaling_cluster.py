"""A whole run on a cluster whose autoscaler starts and removes nodes: which nodes are there at which time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cloze.pipeline.core.ray_cluster import NODE_TYPES, NodeType
from cloze.pipeline.core.threads import run_periodically
from tests.paths import REPOSITORY
from tests.scaling_cluster import Nodes, scaling_cluster

#: `cloze ARGUMENTS`, with gloo in place of NCCL: the cluster's GPUs are pretended.
DRIVER = """
import sys
from ray.train import torch

class GlooTrainer(torch.TorchTrainer):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, torch_config=torch.TorchConfig(backend="gloo"), **options)

torch.TorchTrainer = GlooTrainer
from cloze.infra.cli import main
sys.exit(main(sys.argv[1:]))
"""

EXAMPLES = {"examples-64", "examples-128"}

#: The quickstart with a few steps.
SHORT = [
    "vocab.compare=null",
    "pretrain.phases.0.steps=6",
    "pretrain.phases.1.steps=2",
    "pretrain.eval_batches=1",
    "pretrain.optimizer.warmup_steps=4",
    "finetune.authors.epochs=1",
    "finetune.authors.compare_random=false",
]


class Sample(NamedTuple):
    """The number of GPU nodes, and the stages that were finished before."""

    gpu_nodes: int
    finished: set[str]


@contextmanager
def sampling(root: Path, nodes: Nodes) -> Iterator[list[Sample]]:
    samples: list[Sample] = []

    def sample() -> bool:
        finished = {manifest.parents[1].name for manifest in root.glob("*/*/manifest.json")}
        samples.append(Sample(nodes.with_gpus(), finished))
        return True

    with run_periodically(sample, 0.2):
        yield samples


def start(variables: dict[str, str], root: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DRIVER, "run", "configs/quickstart.yaml", f"root={root}", *SHORT, *arguments]
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


@pytest.mark.campaign
def test_gpu_nodes_are_there_only_while_training_needs_them(own_home: Path, tmp_path: Path):
    cpu, gpu = NodeType("cpu", 2, 0, 1), NodeType("gpu", 1, 1, 2)
    with scaling_cluster(cpu, gpu) as variables:
        nodes = Nodes(variables["RAY_ADDRESS"])
        with sampling(tmp_path, nodes) as samples:
            with start(variables, tmp_path) as run:
                _, log = run.communicate(timeout=500)
            assert run.returncode == 0, log
            deadline = time.monotonic() + 60
            while nodes.with_gpus():
                assert time.monotonic() < deadline, "GPU nodes are kept after the run"
                time.sleep(0.2)
        pretraining = [one.gpu_nodes for one in samples if one.finished >= EXAMPLES and "pretrain" not in one.finished]
        assert [one.gpu_nodes for one in samples if EXAMPLES - one.finished and one.gpu_nodes] == []
        assert max(pretraining) == 2 and pretraining[0] == 0
        check_that_ctrl_c_ends_the_wait(variables, tmp_path, [cpu, gpu._replace(cpus=2)])


def check_that_ctrl_c_ends_the_wait(variables: dict[str, str], root: Path, types: list[NodeType]) -> None:
    """GPU nodes have fewer cores than `types` promise: a worker with two fits on none."""
    promised = {**variables, NODE_TYPES: json.dumps([kind._asdict() for kind in types])}
    with start(promised, root, "pretrain.threads=2", "pretrain.seed=2") as run:
        assert run.stderr
        while "waiting for 2 GPUs" not in run.stderr.readline():
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        started = time.monotonic()
        run.communicate(timeout=60)
    assert run.returncode == 130 and time.monotonic() < started + 10
