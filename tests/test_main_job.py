"""The main job, end to end: the quickstart's real texts with fewer steps, on a folder, on S3, and killed on the way."""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from cloze.pipeline.core.artifacts import Manifest, read_manifest
from cloze.pipeline.core.ray_cluster import NODE_TYPES, NodeType
from cloze.pipeline.core.storage import Location
from tests.paths import REPOSITORY

QUICKSTART = "configs/quickstart.yaml"
SHORTER = [
    "pretrain.phases.0.steps=20",
    "pretrain.phases.1.steps=6",
    "pretrain.checkpoint_every=5",
    "pretrain.eval_every=10",
    "pretrain.eval_batches=2",
    "pretrain.optimizer.warmup_steps=4",
    "finetune.authors.epochs=1",
]
DATA_STAGES = ["extract", "dedup", "vocab", "tokens", "examples-64", "examples-128"]
STAGES = [*DATA_STAGES, "pretrain", "finetune-authors", "overlap-authors", "report"]
_FOLDERS = [*STAGES, "encode"]  # of the stage encode-authors

CLOZE = [sys.executable, "-m", "cloze.infra.cli"]


def cloze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLOZE, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )


def arguments(root: str) -> list[str]:
    return ["run", QUICKSTART, f"root={root}", *SHORTER]


def run(root: str) -> subprocess.CompletedProcess[str]:
    return cloze(*arguments(root))


def manifests(root: str, stages: Sequence[str] = _FOLDERS) -> dict[str, Manifest]:
    """Each stage's only finished artifact under a root."""
    found = {}
    for stage in stages:
        folder = Location(root) / stage
        artifacts = {file.uri.removeprefix(f"{folder.uri}/").partition("/")[0] for file in folder.files()}
        assert len(artifacts) == 1, (stage, artifacts)
        manifest = read_manifest(folder / artifacts.pop())
        assert manifest
        found[stage] = manifest
    return found


def digests(manifest: Manifest) -> dict[str, str]:
    return {name: file.sha256 for name, file in manifest.files.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Mapping[str, Manifest]]]:
    root = str(tmp_path_factory.mktemp("runs"))
    done = run(root)
    assert done.returncode == 0, done.stderr
    yield root, manifests(root)


@pytest.fixture(scope="module")
def labels() -> ModuleType:
    file = REPOSITORY / "configs/quickstart/label_authors.py"
    spec = importlib.util.spec_from_file_location("label_authors", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(root: str, stage: str = "dedup") -> list[dict[str, str]]:
    files = sorted(Path(root, stage).glob("*/documents/*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_every_page_and_chapter_is_kept_or_counted_with_its_reason(finished):
    _, by_stage = finished
    assert by_stage["extract"].drops
    assert_nothing_is_lost(by_stage)


def test_the_scores_include_random_weights_and_the_majority(finished):
    _, by_stage = finished
    scores = by_stage["finetune-authors"].facts["scores"]
    for variant in ("pretrained", "random", "majority"):
        low, high = scores[variant]["interval"]
        assert 0 <= low <= scores[variant]["accuracy"] <= high <= 1


def test_finetuning_depends_on_the_checkpoint_digest(finished):
    _, by_stage = finished
    assert by_stage["finetune-authors"].inputs["checkpoint"] == by_stage["pretrain"].facts["checkpoint"]["digest"]


def test_test_texts_are_not_in_the_pretraining_documents(finished):
    _, by_stage = finished
    splits = by_stage["overlap-authors"].facts["splits"]  # dev is from the novels that the model reads, test is not
    assert splits["test"]["overlapping"] == 0 and splits["dev"]["overlapping"] == splits["dev"]["examples"] == 225


def test_the_report_is_where_the_run_says(finished):
    root, _ = finished
    page = Path(root, "quickstart.html").read_text()
    assert "enwiki-excerpt.xml.bz2" in page


def test_a_second_run_skips_every_stage_and_prints_why(finished):
    root, by_stage = finished
    again = run(root)
    assert again.returncode == 0, again.stderr
    for stage in (*STAGES, "encode-authors"):
        assert re.search(rf"\] {stage} +skip: done .* nothing changed", again.stderr), (stage, again.stderr)
    assert manifests(root) == by_stage


def test_a_changed_key_runs_only_what_depends_on_it(finished):
    root, _ = finished
    plan = cloze("plan", QUICKSTART, f"root={root}", *SHORTER, "vocab.size=5000")
    assert plan.returncode == 0, plan.stderr
    lines = {line.split()[0]: line for line in plan.stdout.splitlines() if line.split()}
    assert " skip " in lines["extract"] and " skip " in lines["dedup"]
    assert "vocab.size: 6000 -> 5000" in lines["vocab"]
    assert "input vocab changed" in lines["tokens"]
    assert lines["finetune-authors"].rstrip().endswith("after pretrain")


def test_the_labelled_set_is_what_its_script_generates_from_the_books(finished, labels):
    root, _ = finished
    assert labels.labelled(documents(root)) == labels.read()


def test_no_paragraph_of_the_test_part_was_pretrained_on(finished, labels):
    root, _ = finished
    test = {row["text"] for row in labels.read() if row["split"] == "test"}
    assert test
    seen = [row["text"] for row in documents(root) if row["split"] == "train"]
    assert not [paragraph for paragraph in test if any(paragraph in text for text in seen)]


@pytest.mark.slow
def test_max_cost_ends_pretraining_with_a_checkpoint(finished, tmp_path):
    """The machine costs a dollar a second. All but one of the limit's dollars are another attempt's."""
    root, _ = finished
    shutil.copytree(
        root, tmp_path / "runs", ignore=shutil.ignore_patterns("pretrain", "finetune-*", "quickstart.spent")
    )
    endless = [*arguments(f"{tmp_path}/runs"), "pretrain.phases.1.steps=100000", "--until", "pretrain"]
    kind = NodeType("cpu", 2, 0, 1, dollars_per_hour=3600.0)
    variables = {**os.environ, NODE_TYPES: json.dumps([kind._asdict()])}
    with subprocess.Popen(
        [*CLOZE, *endless, "max_cost=1000"], cwd=REPOSITORY, env=variables, stderr=subprocess.PIPE, text=True
    ) as process:
        spent = tmp_path / "runs/runs/quickstart.spent"
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/pretrain/*/checkpoints/*/manifest.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        spent.mkdir(exist_ok=True)  # this attempt writes its own file every 30 s
        (spent / "another.json").write_text('{"dollars": 999}')
        _, err = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in err
    line = (
        r"cloze: max_cost: 1000 dollars are spent \(2 attempts\); what is finished is kept: the same command with a "
        r"higher max_cost continues \(pretrain: step (\d+) is saved\)"
    )
    (saved,) = re.findall(line, err.splitlines()[-1])
    assert list(tmp_path.glob(f"runs/pretrain/*/checkpoints/step-{int(saved):06d}-*"))
    (own,) = (json.loads(file.read_text())["dollars"] for file in spent.iterdir() if file.name != "another.json")
    assert 1 <= own < 1000, "neither attempt has spent it alone"


@pytest.mark.campaign
def test_a_run_on_s3_that_was_killed_in_some_stage_ends_with_the_bytes_of_one_on_a_disk(finished, s3_bucket):
    """The campaign kills one in every stage, and on a disk."""
    _, by_stage = finished
    stage, root = random.choice(STAGES[:-1]), f"{s3_bucket}/runs"
    print(f"killed in {stage}")
    kill_in(stage, root)
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert_same_bytes(manifests(root), by_stage)


@pytest.mark.campaign
def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(finished, tmp_path):
    _, by_stage = finished
    root = str(tmp_path)
    for stage in STAGES[:-1]:
        kill_in(stage, root)
        if stage == "pretrain":
            end_pretraining(root)
    done = run(root)
    assert done.returncode == 0, done.stderr
    assert_same_bytes(manifests(root), by_stage)


def assert_same_bytes(actual: Mapping[str, Manifest], expected: Mapping[str, Manifest]) -> None:
    for stage in DATA_STAGES:
        assert digests(actual[stage]) == digests(expected[stage]), stage
    assert actual["pretrain"].facts["checkpoint"]["digest"] == expected["pretrain"].facts["checkpoint"]["digest"]
    assert_nothing_is_lost(actual)
    scores, expected_scores = (each["finetune-authors"].facts["scores"] for each in (actual, expected))
    assert json.dumps(scores) == json.dumps(expected_scores)


def assert_nothing_is_lost(by_stage: Mapping[str, Manifest]) -> None:
    """In each stage, what the stages before it have kept is kept or counted with its reason."""
    counts = {stage: manifest.counts for stage, manifest in by_stage.items()}
    for stage in ("extract", "dedup"):
        assert counts[stage]["records"] == counts[stage]["documents"] + sum(by_stage[stage].drops.values()), stage
    assert counts["dedup"]["records"] == counts["extract"]["documents"]
    documents, heldout = (counts["dedup"][name] for name in ("documents", "heldout"))
    for stage in ("vocab", "tokens", "examples-64", "examples-128"):
        assert counts[stage]["documents"] == documents, stage
    assert counts["tokens"]["heldout"] == heldout
    assert counts["overlap-authors"]["documents"] == documents - heldout  # the test set is compared with what trains
    assert counts["pretrain"]["steps"] == 26
    splits = {split: counts["encode"][split] for split in ("train", "dev", "test")}
    assert counts["encode"]["rows"] == sum(splits.values())
    assert counts["finetune-authors"] == splits


def end_pretraining(root: str) -> None:
    """Start the run and end it with SIGTERM once a checkpoint is saved."""
    with subprocess.Popen([*CLOZE, *arguments(root)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        while not list(Path(root).glob("pretrain/*/checkpoints/*/manifest.json")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143
    (saved,) = re.findall(r"pretrain: step (\d+) is saved", err)
    assert 5 <= int(saved) < 26 and list(Path(root).glob(f"pretrain/*/checkpoints/step-{int(saved):06d}-*"))


def kill_in(stage: str, root: str) -> None:
    """Start the run and end all of its processes with SIGKILL once `stage` has begun to write."""
    process = subprocess.Popen(
        [*CLOZE, *arguments(root)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not begun(Location(root) / stage):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def begun(stage: Location) -> bool:
    """Whether the stage has written more than its lease."""
    return any("/lease" not in file.uri for file in stage.files())
