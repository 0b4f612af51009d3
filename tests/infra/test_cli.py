import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloze.infra.cli import explain, main
from cloze.infra.cli_shared import print_json
from cloze.infra.run_config import RunConfig
from cloze.infra.stages import stages
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from tests.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs/quickstart.yaml")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which holds the quickstart's sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The last line that `cloze` prints, without its "cloze: ": the exit status is 2 and there is no traceback."""
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    out, err = capsys.readouterr()
    assert status == 2, err
    progress, lines = err.splitlines()[:-1], err.splitlines()
    assert all(line.startswith("[") for line in progress), err
    assert out == ""
    assert lines[-1].startswith("cloze: ")
    return lines[-1].removeprefix("cloze: ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: COMMAND; see cloze --help"),
        (["rnu", CONFIG], "argument COMMAND: invalid choice: 'rnu'"),
        (["run"], "the following arguments are required: RUN; see cloze run --help"),
        (["run", CONFIG, "--untill", "vocab"], "unrecognized arguments: --untill"),
        (["report", CONFIG, "--json"], "unrecognized arguments: --json"),
        (["run", "quickstart"], "quickstart: is not a run under runs, which has no runs; give another name, its root "),
        (
            ["submit", "quickstart", "--cluster", "gone.yaml"],
            "quickstart: is not a run under runs, which has no runs; ",
        ),
        (["run", CONFIG, "--root", "gs://bucket"], "gs://bucket: gs:// is not supported; "),
        (["plan", "quickstart", "--root", "gs://bucket"], "gs://bucket: gs:// is not supported; "),
        (["plan", "quickstart", "--root", ""], "the path is empty; "),
        (["run", "gone.yaml"], "gone.yaml: cannot be read (No such file or directory); "),
        (["run", CONFIG, "vocab"], "vocab: is not an override; write key=value"),
        (["run", CONFIG, "vocab.sise=9"], "vocab.sise=9: vocab.sise: unknown key; did you mean size?"),
        (["run", CONFIG, "vocab.size=many"], 'vocab.size=many: vocab.size is "many": '),
        (["run", CONFIG, "vocab.size=-1"], "vocab.size=-1: vocab.size is -1: "),
        (["run", CONFIG, "pretrain.phases.0.steps=0"], "pretrain.phases.0.steps=0: pretrain.phases.0.steps is 0: "),
        (["run", CONFIG, "name=my run"], 'name=my run: name is "my run": '),
        (["run", CONFIG, "root=gs://bucket"], "gs://bucket: gs:// is not supported; "),
        (["run", CONFIG, "schedule=weekly"], "schedule: weekly is not a cron expression; "),
        (
            ["run", CONFIG, "--until", "vocabulary"],
            "vocabulary: is not a stage of this run; its stages are extract, dedup, vocab, ",
        ),
        (["plan", CONFIG, "--force", "vocabulary"], "vocabulary: is not a stage of this run; "),
        (["run", CONFIG, "extract.sources.enwiki.files=[gone.bz2]"], "gone.bz2: no such file in "),
        (["run", CONFIG, "finetune.authors.file=gone.jsonl"], "gone.jsonl: no such file in "),
        (["submit", CONFIG, "--cluster", "gone.yaml"], "gone.yaml: cannot be read "),
        (
            ["config", "pretrain.optimiser"],
            "pretrain.optimiser: is not a configuration key; did you mean pretrain.optimiz",
        ),
        (["config", "vocab", "size=9"], "unrecognized arguments: size=9; see cloze --help"),
        (["job", "logs"], "the following arguments are required: ID; see cloze job logs --help"),
    ],
)
def test_a_mistake_is_an_error_of_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert mistake(capsys, *arguments).startswith(line)
    assert not Path("runs/extract").exists()


def test_two_sources_or_tasks_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, "run", CONFIG, "extract.sources.novels.name=enwiki")
    assert line.endswith("extract.sources has two entries named enwiki; give each a different name")


def test_a_root_that_cannot_be_a_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    line = mistake(capsys, "run", CONFIG, "root=file/runs")
    assert "file/runs" in line and "name a writable folder (root=, --to)" in line


def test_a_file_that_is_not_a_dump_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.xml").write_text("hello")
    assert mistake(capsys, "run", CONFIG, "extract.sources.enwiki.files=[x.xml]").startswith(f"{Path.cwd()}/x.xml: ")


def test_a_missing_bucket_is_named(capsys: pytest.CaptureFixture[str], s3_bucket: str) -> None:
    line = mistake(capsys, "run", CONFIG, "root=s3://nowhere-at-all/runs")
    assert line.startswith("s3://nowhere-at-all/runs/") and "the bucket does not exist (404 NoSuchBucket)" in line


def test_plan_shows_what_would_be_done_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines] == [stage.name for stage in stages(load(RunConfig, CONFIG))]
    assert all(line[1] == "run" for line in lines)
    assert lines[0][-1].startswith("runs/extract/")
    assert {line[0]: line[-2:] for line in lines}["finetune-authors"] == ["after", "pretrain"]
    assert [path.name for path in Path("runs").iterdir()] == ["sources"]


@pytest.mark.parametrize("config", ["bert-base", "bert-large", "one-gpu-day"])
def test_the_papers_configurations_are_planned_before_their_data_exists(
    capsys: pytest.CaptureFixture[str], config: str
) -> None:
    assert main(["plan", f"configs/{config}.yaml"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{stage} " in out for stage in ("extract", "examples-128", "examples-512", "pretrain", "report"))
    assert "no file matches" in out


def test_a_plan_as_json_contains_for_each_stage_what_the_table_does(capsys: pytest.CaptureFixture[str]) -> None:
    missing = "finetune.authors.file=gone.jsonl"
    assert main(["plan", CONFIG, missing, "--until", "finetune-authors"]) == 0
    table = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert main(["plan", CONFIG, missing, "--until", "finetune-authors", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    planned = json.loads(out)
    assert [stage["stage"] for stage in planned] == list(table)
    assert all(list(stage) == ["stage", "action", "reason", "output", "fingerprint"] for stage in planned)
    assert [stage["action"] for stage in planned] == [line[1] for line in table.values()]
    first, last = planned[0], planned[-1]
    assert first["reason"] == "no output yet"
    assert first["output"] == f"{Path.cwd()}/runs/extract/{first['fingerprint']}"
    assert (last["stage"], last["action"]) == ("finetune-authors", "wait")
    assert last["reason"].startswith("gone.jsonl: no such file in ")
    assert last["output"] is None and last["fingerprint"] is None


def test_a_dry_run_is_the_plan_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for command in (["plan", CONFIG], ["run", CONFIG, "--dry-run"]):
        assert main([*command, "--until", "dedup", "--force", "dedup"]) == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1] and "forced" in printed[0].out
    assert [path.name for path in Path("runs").iterdir()] == ["sources"]
    assert not Path("dagster").exists()


def test_nan_and_infinity_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([{"loss": math.nan, "rows": (1, -math.inf, {"a": 0.1})}, True, None, "ü"])
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == [
        {"loss": None, "rows": [1, None, {"a": 0.1}]},
        True,
        None,
        "ü",
    ]


def test_the_help_explains_what_a_run_is_and_what_its_json_contains(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "finetune", "plan", "status", "report", "export", "predict", "submit"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        out = capsys.readouterr().out
        assert end.value.code == 0
        assert "anything that contains a / or ends in .yaml" in out and "--root ROOT" in out
        assert ("--json prints one list" in out) is (command in ("plan", "status", "predict"))


def test_overrides_may_come_before_and_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "vocab.size=500", "--until", "vocab", "root=elsewhere"]) == 0
    assert "elsewhere/vocab/" in capsys.readouterr().out


def test_until_ends_the_plan_and_force_marks_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "--until", "dedup", "--force", "dedup"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:3] for line in lines] == [["extract", "run", "no"], ["dedup", "run", "forced"]]


def test_a_bug_gets_a_traceback_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("cloze.infra.planner.Run.plan", broken)
    assert main(["plan", CONFIG]) == 1
    assert capsys.readouterr().err.endswith("RuntimeError: a bug\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_ends_has_its_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("cloze.infra.planner.Run.plan", lambda *_: os.kill(os.getpid(), number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert main(["plan", CONFIG]) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "\ncloze: stopped; the same command continues from the finished parts\n"


def test_a_users_error_is_found_inside_the_exceptions_of_runners() -> None:
    class RayTaskError(Exception):
        cause: BaseException | None = None

    wrapped = RayTaskError("a worker failed")
    wrapped.cause = UserError("a.txt: is broken; fix it")
    beam = RuntimeError("step SplitPages failed")
    beam.__cause__ = wrapped
    assert explain(beam) == "a.txt: is broken; fix it"
    assert explain(RuntimeError("a bug")) is None
    assert explain(None) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "/data/a: no space is left on the device; "),
        (errno.EACCES, "/data/a: no permission; "),
        (errno.EROFS, "/data/a: the file system is read-only; "),
    ],
)
def test_an_error_of_the_file_system_is_explained(number: int, words: str) -> None:
    explained = explain(OSError(number, os.strerror(number), "/data/a"))
    assert explained and explained.startswith(words)


def test_a_missing_file_that_no_configuration_names_is_a_bug() -> None:
    assert explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "shard")) is None


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cloze.infra import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'dagster', 'apache_beam', 'deepspeed', 'pyarrow', 'numpy', 'pydantic'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'{heavy} loaded' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cloze run configs/quickstart.yaml" in done.stdout


def test_output_that_nobody_reads_ends_a_command_without_a_traceback() -> None:
    command = [sys.executable, "-m", "cloze.infra.cli", "config", "pretrain", "--markdown"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # before it writes: it imports first
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
