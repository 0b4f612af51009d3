"""What `cloze plan` estimates before a run, and what `cloze run` keeps of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cloze.infra.cli import main
from cloze.infra.estimate import record
from cloze.infra.estimate.command import parse_sizes
from cloze.infra.estimate.estimate import StageEstimate
from cloze.infra.estimate.rates import gpus, rates
from cloze.infra.estimate.work import parameters
from cloze.infra.launch.cluster_config import ClusterConfig, NodeType
from cloze.infra.launch.prices import load_prices, priced_node_types
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.storage import Location
from cloze.training.model.bert import BertConfig, BertForPreTraining
from cloze.training.model.hardware import data_sheet_flops
from tests.paths import REPOSITORY

CONFIG, BERT_BASE = str(REPOSITORY / "configs/quickstart.yaml"), str(REPOSITORY / "configs/bert-base.yaml")
CLUSTER = """
name: aws
address: http://127.0.0.1:8265
node_types:
  - {name: data, instance_type: c7i.8xlarge, cpus: 32, memory_gb: 64, max_nodes: 4}
  - {name: gpu, instance_type: %s, cpus: 16, memory_gb: 256, gpus: %d, gpu: %s}
"""
SIZES = ("--size", "enwiki=24GB", "--size", "books=4.6GB")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("CLOZE_HOME", str(tmp_path / "home"))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Stage -> its estimate."""
    assert main(["plan", *arguments, "--json"]) == 0
    return {entry["stage"]: entry["estimate"] for entry in json.loads(capsys.readouterr().out)}


def cluster(machine: str, count: int, gpu: str) -> str:
    Path("cluster.yaml").write_text(CLUSTER % (machine, count, gpu))
    return "cluster.yaml"


def test_the_parameters_are_those_of_the_model():
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=200)
    with torch.device("meta"):
        model = BertForPreTraining(config, 1000)
    assert parameters(config, 1000) == sum(tensor.numel() for tensor in model.parameters())


def test_each_rate_has_its_origin_and_each_card_a_peak():
    names = [rate.name for rate in rates().rates]
    assert len(set(names)) == len(names)
    assert all(rate.unit and rate.how for rate in rates().rates)
    assert all(data_sheet_flops(gpu.name, "bf16") for gpu in gpus().gpus)


def test_a_plan_of_files_that_are_not_here_rests_on_their_sizes(capsys: pytest.CaptureFixture[str]):
    on_h100 = cluster("p5.48xlarge", 8, "H100")
    found = plan(capsys, BERT_BASE, "--cluster", on_h100, *SIZES, "root=s3://bucket/runs", "--until", "pretrain")
    extract, pretrain = found["extract"], found["pretrain"]
    assert extract["dollars"] == pytest.approx(extract["seconds"] / 3600 * 4 * 1.428, rel=0.02)
    assert pretrain["dollars"] == pytest.approx(pretrain["seconds"] / 3600 * 55.04, rel=0.02), "and no CPU machines"
    # 900,000 steps of 256 examples at 128 tokens, and 100,000 at 512, with 69.9 and 301.5 GFLOP per full example, at
    # 24 % of 989 TFLOPS
    assert pretrain["gpu_seconds"] == pytest.approx(256 * (9e5 * 69.9e9 + 1e5 * 301.5e9) / (0.24 * 989e12), rel=0.1)
    assert pretrain["measured"] and pretrain["gpu_bytes"] == pytest.approx(13.5e9, rel=0.05)
    assert 5e5 < sum(stage["s3_requests"] for stage in found.values()) < 2e6
    twice = plan(
        capsys, BERT_BASE, "--cluster", on_h100, "--size", "enwiki=48GB", "--size", "books=9.2GB", "--until", "tokens"
    )
    assert twice["tokens"]["cpu_seconds"] == pytest.approx(2 * found["tokens"]["cpu_seconds"], rel=0.02)


def test_the_head_is_in_the_sum_or_named_as_not_in_it(capsys: pytest.CaptureFixture[str]):
    arguments = [BERT_BASE, *SIZES, "--until", "extract", "root=s3://bucket/runs", "--cluster", "cluster.yaml"]
    cluster("p5.48xlarge", 8, "H100")
    found = plan(capsys, *arguments)["extract"]
    assert main(["plan", *arguments]) == 0
    assert "so check these first): the head; S3 requests" in capsys.readouterr().out
    of_kubernetes = "kubernetes: {image: 'cloze:1', head: {instance_type: m7i.2xlarge}}"
    path = Path("cluster.yaml")
    path.write_text(path.read_text().replace("address: http://127.0.0.1:8265", of_kubernetes))
    priced = plan(capsys, *arguments)["extract"]
    assert priced["dollars"] / found["dollars"] == pytest.approx((4 * 1.428 + 0.4032) / (4 * 1.428), rel=0.01)
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "1 gpu (p5.48xlarge), the head at 0.4032 dollars an hour" in out and "the head;" not in out


def test_max_gpus_and_max_cpus_limit_what_is_estimated_as_what_runs(capsys: pytest.CaptureFixture[str]):
    arguments = [BERT_BASE, "--cluster", cluster("p5.48xlarge", 8, "H100"), *SIZES, "--until", "pretrain"]
    whole = plan(capsys, *arguments)
    with Path("cluster.yaml").open("a") as file:
        file.write("max_gpus: 4\nmax_cpus: 64\n")
    half = plan(capsys, *arguments)
    assert half["pretrain"]["seconds"] == pytest.approx(2 * whole["pretrain"]["seconds"], rel=0.01)
    assert half["pretrain"]["gpu_seconds"] == pytest.approx(whole["pretrain"]["gpu_seconds"], rel=0.01)
    assert half["pretrain"]["dollars"] == pytest.approx(2 * whole["pretrain"]["dollars"], rel=0.01), "one machine"
    assert half["examples-512"]["seconds"] == pytest.approx(2 * whole["examples-512"]["seconds"], rel=0.1)
    assert half["examples-512"]["dollars"] == pytest.approx(whole["examples-512"]["dollars"], rel=0.1)
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "max_cpus: 64 of the 128 CPUs for the data stages are used" in out and "max_gpus: 4 of the 8 GPUs" in out


def test_more_gpus_than_the_cluster_has_are_no_estimate(capsys: pytest.CaptureFixture[str]):
    arguments = [BERT_BASE, "--cluster", cluster("p5.48xlarge", 8, "H100"), *SIZES, "--until", "pretrain"]
    found = plan(capsys, *arguments, "pretrain.gpus=16")["pretrain"]
    assert found["seconds"] is None and found["disk_bytes"] > 0
    assert found["notes"] == [
        "16 GPUs requested, but the cluster can scale to 8 (max_gpus or node_types in its file); lower gpus or workers"
    ]


def test_training_on_several_kinds_of_gpus_uses_all_at_the_speed_of_the_slowest(capsys: pytest.CaptureFixture[str]):
    arguments = [BERT_BASE, "--cluster", cluster("p5.48xlarge", 8, "H100"), *SIZES, "--until", "pretrain"]
    with Path("cluster.yaml").open("a") as file:
        file.write("  - {name: l4, instance_type: g6.48xlarge, cpus: 192, memory_gb: 768, gpus: 8, gpu: L4}\n")
    both = plan(capsys, *arguments)["pretrain"]
    assert "all GPUs are as fast as the slowest, L4" in both["notes"] and not both["measured"]
    assert both["dollars"] == pytest.approx(both["seconds"] / 3600 * (55.04 + 13.3504), rel=0.01)
    eight = plan(capsys, *arguments, "pretrain.gpus=8")["pretrain"]
    assert eight["measured"] and eight["dollars"] == pytest.approx(eight["seconds"] / 3600 * 55.04, rel=0.01)


def test_a_card_that_nobody_has_measured_says_so(capsys: pytest.CaptureFixture[str]):
    on_l4 = cluster("g6.48xlarge", 8, "L4")
    arguments = [BERT_BASE, "--cluster", on_l4, *SIZES, "--until", "pretrain", "pretrain.phases.0.micro_batch_size=512"]
    found = plan(capsys, *arguments)["pretrain"]
    assert not found["measured"] and found["seconds"] > 3600
    assert any("has 24 GB: lower micro_batch_size" in note for note in found["notes"])
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "L4: not measured; in brackets the time at 40% of its peak" in out and "not measured (" in out


def test_rates_that_nobody_has_measured_are_named_where_they_are_used(capsys: pytest.CaptureFixture[str]):
    def lines(*arguments: str) -> list[str]:
        assert main(["plan", CONFIG, "--estimate", "--until", "extract", *arguments]) == 0
        out = capsys.readouterr().out.splitlines()
        return [line for line in out if line.startswith(("rates", "not measured, "))]

    measured, is_set = lines()
    assert measured == (
        "rates of CPUs and memory: measured 2026-11-24 on AMD with avx512_bf16, 2026-11-28 on Intel Xeon with "
        "amx_bf16 (docs/benchmarks.md)"
    )
    assert is_set == "not measured, but set (infra/estimate/rates.yaml): start.seconds"
    Path("own.jsonl.gz").write_bytes(b"compressed")
    measured, is_set = lines('extract.sources=[{"kind": "documents", "name": "own", "files": ["own.jsonl.gz"]}]')
    assert "2026-11-29 on Intel Xeon with amx_bf16" in measured
    assert is_set.endswith(": start.seconds, text.per_gz, words.per_document.documents")


def test_a_source_without_files_or_size_is_named(capsys: pytest.CaptureFixture[str]):
    found = plan(capsys, BERT_BASE, "--estimate", "--until", "dedup")
    assert found["extract"]["seconds"] is None
    assert found["extract"]["notes"] == ["the files of enwiki are missing; name their size: --size enwiki=24GB"]
    assert main(["plan", BERT_BASE, "--estimate", "--until", "dedup"]) == 0
    assert "the last row is without extract, dedup" in capsys.readouterr().out.splitlines()


def test_sizes_are_numbers_with_units():
    assert parse_sizes(["a=24GB", "b=1.5kB"], ["a", "b"]) == {"a": 24_000_000_000, "b": 1500}
    for wrong in ("a", "a=", "a=many", "a=-3GB", "a=.GB", "a=3XB"):
        with pytest.raises(UserError, match="write for example enwiki=24GB"):
            parse_sizes([wrong], ["a"])
    with pytest.raises(UserError, match="c is not an input of this run; it has a, b"):
        parse_sizes(["c=1GB"], ["a", "b"])
    with pytest.raises(UserError, match=r"^--size a=999TB: is more than 100\.0 TB, "):
        parse_sizes(["a=999TB"], ["a"])


def test_what_a_finished_stage_counted_replaces_its_estimate(capsys: pytest.CaptureFixture[str]):
    guessed = plan(capsys, CONFIG, "--estimate", "--until", "dedup")
    assert main(["run", CONFIG, "--until", "extract"]) == 0
    capsys.readouterr()
    [file] = Path("runs/extract").glob("*/manifest.json")
    manifest = json.loads(file.read_text())
    found = plan(capsys, CONFIG, "--estimate", "--until", "dedup")
    assert found["extract"] is None
    written = sum(file["bytes"] for file in manifest["files"].values())
    assert found["dedup"]["disk_bytes"] == written
    assert guessed["dedup"]["disk_bytes"] == pytest.approx(written, rel=0.3)
    stored = json.loads(Path("runs/runs/quickstart.estimate.json").read_text())["extract"]
    assert stored["fingerprint"] == manifest["fingerprint"]
    assert stored["cpu_seconds"] == guessed["extract"]["cpu_seconds"] and manifest["cpu_seconds"] > 0


def test_a_run_that_would_fill_the_disk_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 10**9}))
    root = Location(str(tmp_path / "runs"))
    record.check_disk(root, [StageEstimate("a", disk_bytes=9e8)])
    assert capsys.readouterr().err == ""
    record.check_disk(root, [StageEstimate("a", disk_bytes=1e9, scratch_bytes=9e8)])  # within the error of an estimate
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {root}: the run needs about 1.9 GB, but the disk of {tmp_path} has 1.0 GB free")
    with pytest.raises(UserError, match=r"runs: the run needs about 4\.0 GB, but the disk of .* has 1\.0 GB free"):
        record.check_disk(
            root, [StageEstimate("a", disk_bytes=1e9, scratch_bytes=2e9), StageEstimate("b", disk_bytes=1e9)]
        )
    record.check_disk(Location("s3://bucket/runs"), [StageEstimate("a", disk_bytes=1e15)])


def test_a_job_gets_the_prices_of_its_nodes():
    prices = load_prices(None)
    assert prices
    kind = NodeType(name="gpu", cpus=8, memory_gb=64, gpus=1, gpu="A10G", instance_type="g5.2xlarge")
    config = ClusterConfig(name="aws", address="http://127.0.0.1:8265", node_types=(kind,))
    assert priced_node_types(config, prices) == [("gpu", 8, 1, 1, 1.212)]
    unknown = config.model_copy(update={"node_types": (kind.model_copy(update={"instance_type": "x1"}),)})
    assert priced_node_types(unknown, prices) == priced_node_types(config, None) == [("gpu", 8, 1, 1, None)]
