"""A Ray cluster on this machine whose autoscaler adds and removes nodes, next to a head without CPUs.

Ray's AutoscalingCluster does the same, but ends all of the user's other Ray processes, and needs a file that is not in
Ray's wheel. GPUs are pretended: Ray counts them, and PyTorch finds none.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from cloze.pipeline.core.ray_cluster import MAX_CPUS, MAX_GPUS, NODE_TYPES, NodeType
from tests.conftest import free_port

_HEAD, _HEAD_ID = "ray.head.default", "f" * 51 + "00000"  # the id that Ray's provider of nodes on one machine expects
_IDLE_MINUTES = 0.1


@contextmanager
def scaling_cluster(*types: NodeType) -> Iterator[dict[str, str]]:
    """Starts the cluster, and ends it with its nodes. Yields the environment of a job on it."""
    port = free_port()
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--num-cpus=0", f"--port={port}", "--block"]
    with tempfile.TemporaryDirectory(prefix="cloze-", ignore_cleanup_errors=True) as folder:
        config, log = Path(folder, "cluster.json"), Path(folder, "log")
        config.write_text(json.dumps(_config(f"127.0.0.1:{port}", types)))
        options = [f"--autoscaling-config={config}", "--include-dashboard=false", f"--temp-dir={folder}/r"]
        with log.open("wb") as file:
            variables = {**os.environ, **_VARIABLES}
            head = psutil.Popen([*command, *options], env=variables, stdout=file, stderr=file)
        try:
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None, log.read_text()
                time.sleep(0.2)
            yield {
                "RAY_ADDRESS": f"127.0.0.1:{port}",
                NODE_TYPES: json.dumps([kind._asdict() for kind in types]),
                MAX_CPUS: str(sum(kind.cpus * kind.max_nodes for kind in types if not kind.gpus)),
                MAX_GPUS: str(sum(kind.gpus * kind.max_nodes for kind in types)),
            }
        finally:
            processes = [head, *head.children(recursive=True)]
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=20)


_VARIABLES = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
}


def _config(address: str, types: tuple[NodeType, ...]) -> dict[str, Any]:
    kinds = {
        kind.name: {
            "resources": {"CPU": kind.cpus, "GPU": kind.gpus},
            "labels": {"ray.io/node-group": kind.name},
            "node_config": {},
            "min_workers": 0,
            "max_workers": kind.max_nodes,
        }
        for kind in types
    }
    return {
        "cluster_name": "scaling",
        "max_workers": sum(kind.max_nodes for kind in types),
        "idle_timeout_minutes": _IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_launch_config_check": True,
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": address,
        },
        "head_node_type": _HEAD,
        "available_node_types": {_HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **kinds},
        "auth": {},
        "docker": {},
        **{key: [] for key in _LISTS},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }


_LISTS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
]


class Nodes:
    """The nodes of a cluster, for a process without a Ray session."""

    def __init__(self, address: str):
        from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]

        self._client = GcsClient(address=address)

    def with_gpus(self) -> int:
        """The number of nodes with GPUs."""
        nodes = self._client.get_all_node_info(timeout=20).values()
        return sum("GPU" in node.resources_total for node in nodes if not node.state)  # 0: alive
