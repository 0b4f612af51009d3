"""One fault of each kind while documents are extracted to S3: the same manifest, or one true line and then the same."""

import json
import math
import random
import time
from pathlib import Path

import pytest

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import StorageError
from tests.paths import QUICKSTART
from tests.s3_proxy import KINDS, Fault, Proxy

_TEXT = "It was a long day at sea, and nobody on board the ship had anything at all to say about the number {}."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for name, texts in {"a": [_TEXT.format(1), ""], "b": [_TEXT.format(2), "Too short."]}.items():
        rows = [json.dumps({"id": f"{name}-{number}", "text": text}) for number, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return folder


def execute(files: Path, root: str) -> tuple[str, Manifest]:
    """What a run did for the stage, and the manifest."""
    source = {"name": "own", "kind": "documents", "files": [f"{files}/*.jsonl"]}
    run = Run(load(RunConfig, QUICKSTART, [f"root={root}", f"extract.sources={json.dumps([source])}"]))
    planned, manifest = run.execute("extract")
    return planned.action, manifest


def content(manifest: Manifest) -> dict[str, object]:
    return manifest.model_dump(exclude={"seconds", "cpu_seconds", "finished"})


@pytest.fixture(scope="module")
def quiet(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    _, manifest = execute(files, str(tmp_path_factory.mktemp("quiet")))
    assert manifest.counts["records"] == 4 and manifest.counts["documents"] == 2
    assert sum(manifest.drops.values()) == 2
    return manifest


@pytest.mark.slow
@pytest.mark.usefixtures("short_s3_waits")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_changes_no_byte_and_loses_nothing(
    files: Path,
    quiet: Manifest,
    s3_bucket: str,
    proxy: Proxy,
    kind: str,
) -> None:
    root, times, after = f"{s3_bucket}/extract-{time.monotonic_ns()}", 2.0, random.randrange(6)
    if kind.endswith("list"):  # no listing is true
        times, after = math.inf, 0
    elif kind == "expired":
        times = 1  # only once are credentials without an expiry date read again
    print(f"drew {kind} after {after} requests")
    proxy.faults.append(fault := Fault(kind, times=times, after=after))
    if kind == "denied":  # permanent
        with pytest.raises(
            StorageError, match=r"^s3://.* failed: access is denied \(403 AccessDenied\); .*objects there$"
        ):
            execute(files, root)
        proxy.faults.clear()
    _, manifest = execute(files, root)
    assert fault.hits
    assert content(manifest) == content(quiet)
    assert execute(files, root) == ("skip", manifest)
