"""A small pretraining in a separate process that a test can kill, or on a cluster whose nodes are added and removed.

python -m tests.training.pretraining_drivers DRIVER INPUTS OUT SETTINGS, as built by `command`. Each step writes to
OUT/steps, where the test sees the progress.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.signals import keyboard_interrupt_on
from cloze.pipeline.core.storage import Location
from cloze.training.cluster import elastic as elastic_size
from cloze.training.pretrain.config import PretrainConfig
from tests.training.small_pretraining import trained

# Ray is imported where it is used: it reads the environment when it is imported.

Train = Callable[..., Artifact]  # `trained` with all arguments except on_step


def command(driver: str, inputs: dict[str, Artifact], out: Path, settings: PretrainConfig) -> list[str]:
    root = inputs["vocab"].location.path.removesuffix("/vocab/0")
    module = "tests.training.pretraining_drivers"
    return [sys.executable, "-m", module, driver, root, str(out), settings.model_dump_json()]


def main() -> None:
    driver, root, out, settings = sys.argv[1:]
    inputs = {name: Artifact(Location(root) / name / "0", name, "0") for name in ("vocab", "examples-16")}
    steps = Path(out, "steps")
    steps.mkdir(parents=True)
    train = partial(trained, Path(out), inputs, PretrainConfig.model_validate_json(settings))
    {"local": local, "spot": spot, "elastic": elastic}[driver](train, steps)


def local(train: Train, steps: Path) -> None:
    """A local Ray session, stopped by a signal like the command line. Writes a file for each step."""

    def slow_step(rank: int, step: int) -> None:
        (steps / str(step)).touch()
        time.sleep(0.7)

    try:
        with keyboard_interrupt_on(signal.SIGTERM), ray_session(num_cpus=2):
            train(on_step=slow_step)
    except KeyboardInterrupt as end:
        print(end)
        sys.exit(130)


def spot(train: Train, steps: Path) -> None:
    """Two nodes; the preemption of the worker's node is announced after its third step. Writes a file for each node."""
    import ray

    cluster, _ = nodes()

    def slow_step(rank: int, step: int) -> None:
        with (steps / ray.get_runtime_context().get_node_id()).open("a") as file:
            file.write(f"{step}\n")
        if len(list(steps.iterdir())) == 1:  # until the other node trains
            time.sleep(0.5)

    def drain() -> None:
        while not (at_work := [file for file in steps.iterdir() if "\n3\n" in file.read_text()]):
            time.sleep(0.1)
        ray_command = [Path(sys.executable).parent / "ray", "drain-node", "--address", cluster.address]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        which = ["--node-id", at_work[0].name, "--deadline-remaining-seconds", "10"]
        subprocess.run([*ray_command, *reason, *which], check=True)

    threading.Thread(target=drain, daemon=True).start()
    train(on_step=slow_step)
    ray.shutdown()
    cluster.shutdown()


def elastic(train: Train, steps: Path) -> None:
    """Two nodes: one is lost without notice after six steps, another is added 4 steps later. Logs step and workers."""
    import ray

    elastic_size._CHECK_SECONDS = 1.0
    cluster, (_, lost) = nodes()
    log = steps / "workers"

    def slow_step(rank: int, step: int) -> None:
        import torch.distributed as dist

        if rank == 0:
            with log.open("a") as file:
                file.write(f"{step} {dist.get_world_size()}\n")
        time.sleep(0.5 if dist.get_world_size() == 1 else 0.1)  # slow while alone, until the other node is added

    def wait(workers: int, steps: int) -> None:
        while training.is_alive() and not (log.exists() and log.read_text().count(f" {workers}\n") >= steps):
            time.sleep(0.1)

    training = threading.Thread(target=partial(train, on_step=slow_step), daemon=True)
    training.start()
    wait(workers=2, steps=6)
    cluster.remove_node(lost, allow_graceful=False)
    wait(workers=1, steps=4)
    cluster.add_node(num_cpus=1)
    training.join()
    ray.shutdown()
    cluster.shutdown()


def nodes() -> tuple[Any, list[Any]]:
    """A cluster of two nodes for one worker each, and the node of this process, which runs no worker."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster, added


if __name__ == "__main__":
    main()
