"""Runs the data stages on a Ray cluster of one-core nodes: python -m tests.benchmarks._cluster FOLDER NODES.

Prints JSON: the wall seconds of each stage.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.tokens.stage import WORDS_PER_SHARD
from tests.pipeline.cluster_stages import Node, run_stages

UNIT_BYTES = 4 << 20


def main(folder: Path, nodes: int) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    for core in range(nodes):
        Node(cluster).pin(core)
    seconds: dict[str, float] = {}

    def on_stage(name: str, run: Callable[[], Manifest]) -> None:
        start = time.monotonic()
        run()
        seconds[name] = time.monotonic() - start

    with ray_session():
        run_stages(folder, on_stage, UNIT_BYTES, WORDS_PER_SHARD)
    cluster.shutdown()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
