"""Runs the data stages on a Ray cluster of three nodes and ends one in the middle of each: FOLDER, with dump.xml in it.

Prints a line of JSON for each stage: its files' digests and counts, the number of nodes that have run harnesses of
Beam, and whether a node was ended while the stage ran.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from cloze.infra.ray_session import ray_session
from cloze.pipeline.core.artifacts import Artifact, Manifest
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.storage import Location
from cloze.pipeline.dedup import stage as dedup
from cloze.pipeline.examples import stage as examples
from cloze.pipeline.examples.config import LengthConfig
from cloze.pipeline.extract import stage as extract
from cloze.pipeline.extract import work_units
from cloze.pipeline.extract.config import ExtractConfig
from cloze.pipeline.tokens import stage as tokens
from cloze.pipeline.vocab import stage as vocab
from cloze.pipeline.vocab.config import VocabConfig

UNIT_BYTES = 50_000
WORDS_PER_TOKEN_SHARD = 50_000

Inputs = dict[str, Any]


class Node:
    """A node of a cluster that has a CPU."""

    def __init__(self, cluster: Any):
        self.cluster = cluster
        self.node = cluster.add_node(num_cpus=1)
        raylet = self.node.all_processes["raylet"][0].process.pid
        self.process = psutil.Process(raylet)

    def runs_harness(self) -> bool:
        try:
            found = [process.cmdline() for process in self.process.children(recursive=True)]
        except psutil.Error:
            return False
        return any("cloze.pipeline.core.beam_workers" in command for command in found)

    def pin(self, core: int) -> None:
        """Let the node's processes, and those that they start, run on one core only."""
        for process in [self.process, *self.process.children(recursive=True)]:
            process.cpu_affinity([core])

    def end(self) -> None:
        self.cluster.remove_node(self.node, allow_graceful=False)


def run_stages(
    folder: Path,
    on_stage: Callable[[str, Callable[[], Manifest]], None],
    unit_bytes: int = UNIT_BYTES,
    words_per_token_shard: int = WORDS_PER_TOKEN_SHARD,
) -> None:
    """Call on_stage(name, the function that runs the stage) for each data stage, in order."""
    work_units.XML_UNIT_BYTES = unit_bytes
    dump = folder / "dump.xml"
    source = {"name": "wiki", "kind": "wikipedia", "files": [str(dump)]}
    config = ExtractConfig.model_validate({"sources": [source], "heldout_fraction": 0.1})
    inputs: Inputs = {"wiki": [SourceFile(str(dump), "0" * 64, dump.stat().st_size)]}
    length = LengthConfig(max_seq_length=64, max_predictions_per_seq=10, dupe_factor=2)

    def artifact(name: str) -> Artifact:
        return Artifact(Location(str(folder / name)), name, "0" * 16)

    def stage(module: Any, name: str, config: Any, inputs: Mapping[str, Any], **options: int) -> None:
        out = Output(Location(str(folder / name)), name, module.VERSION, "0" * 16)
        on_stage(name, lambda: module.run(config, inputs, out, **options))

    stage(extract, "extract", config, inputs)
    stage(dedup, "dedup", dedup.DedupConfig(), {"documents": artifact("extract")})
    stage(vocab, "vocab", VocabConfig(size=1500), {"documents": artifact("dedup")})
    token_inputs = {"documents": artifact("dedup"), "vocab": artifact("vocab")}
    stage(tokens, "tokens", tokens.TokensConfig(), token_inputs, words_per_shard=words_per_token_shard)
    stage(examples, "examples", length, {"tokens": artifact("tokens"), "vocab": artifact("vocab")})


def content(manifest: Manifest) -> Any:
    """What does not depend on where the stage ran."""
    return [{name: file.sha256 for name, file in manifest.files.items()}, manifest.counts, manifest.drops]


def main(folder: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    nodes = [Node(cluster) for _ in range(3)]
    harnesses = set[int]()
    ended = dict[str, Node]()

    def on_stage(name: str, run: Callable[[], Manifest]) -> None:
        stopped = threading.Event()

        def end_a_node() -> None:
            while not stopped.is_set() and sum(file.is_file() for file in (folder / name).rglob("*")) < 20:
                time.sleep(0.01)
            harnesses.update(number for number, node in enumerate(nodes) if node.runs_harness())
            if not stopped.is_set():
                ended[name] = nodes.pop(0)
                ended[name].end()

        harnesses.clear()
        thread = threading.Thread(target=end_a_node)
        thread.start()
        try:
            manifest = run()
        finally:
            stopped.set()
            thread.join()
        print(json.dumps([name, content(manifest), len(harnesses), name in ended]), flush=True)
        nodes.append(Node(cluster))

    with ray_session():
        run_stages(folder, on_stage)
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
