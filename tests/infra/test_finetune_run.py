"""A run of fine-tuning tasks alone: no documents, vocabulary or pretraining; and `cloze finetune`."""

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from cloze.infra.cli import main
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import stage_files
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from tests.infra.mood_task import MOODS, WORDS, write_task
from tests.paths import REPOSITORY

QUICKSTART = "configs/quickstart.yaml"
TASK = "{name: mood, file: mood.jsonl, learning_rate: 1e-3, epochs: 2, batch_size: 8, max_seq_length: 16"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which holds the configurations of the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


@pytest.fixture
def own_yaml() -> str:
    """A run of one task, with a BERT as transformers saves it and a labelled file."""
    write_task("tiny")
    Path("own.yaml").write_text(f"name: own\nfinetune:\n  - {TASK}, init: models/tiny}}\n")
    return "own.yaml"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("cloze: ").rstrip()


def labels_of_the_guide(texts: list[str]) -> list[str]:
    """What the guide's code prints for these texts, with the folder my-classifier and without PyTorch."""
    guide = (REPOSITORY / "docs/guide/fine-tuning.md").read_text()
    [code] = (block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "onnxruntime" in block)
    code, replaced = re.subn(r"texts = .*", f"texts = {texts}", code)
    assert replaced == 1
    return ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True))


def stages(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Stage -> action."""
    lines = [line.split() for line in printed(capsys, *arguments).splitlines()[1:]]
    return {line[0]: line[1] for line in lines}


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        ("", "has nothing to run; add extract, vocab, examples and pretrain, or tasks to finetune"),
        (
            f"finetune: [{TASK}}}]",
            "finetune.mood has no model to start from, as the run has no pretraining; set its init ",
        ),
        ("examples: {}", "extract, vocab and pretrain are missing; add them, or remove examples to fine-tune only"),
        (
            f"vocab: {{size: 9}}\nexamples: {{}}\nfinetune: [{TASK}, init: m}}]",
            "extract and pretrain are missing; add them, or remove vocab and examples to fine-tune only",
        ),
    ],
)
def test_a_partial_configuration_is_an_error_of_one_line(
    capsys: pytest.CaptureFixture[str], yaml: str, line: str
) -> None:
    Path("own.yaml").write_text(f"name: own\n{yaml}\n")
    assert error(capsys, "plan", "own.yaml").startswith(f"own.yaml:1: the configuration: {line}")


def test_one_missing_section_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "vocab is missing; add it, or remove extract, examples and pretrain to fine-tune only"
    assert error(capsys, "plan", QUICKSTART, "vocab=null").endswith(expected)


def test_the_example_is_planned_before_its_files_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert stages(capsys, "plan", "configs/finetune.yaml") == {
        "encode-mrpc": "wait",
        "finetune-mrpc": "wait",
        "overlap-mrpc": "wait",
        "report": "run",
    }


def test_a_task_with_its_own_model_is_not_compared_with_the_runs_positions() -> None:
    positions = ["pretrain.model.max_position_embeddings=128", "finetune.authors.max_seq_length=256"]
    assert load(RunConfig, QUICKSTART, [*positions, "finetune.authors.init=models/bert"]).finetune
    with pytest.raises(ValueError, match="max_seq_length 256 is more than the model's 128 positions"):
        load(RunConfig, QUICKSTART, positions)


def test_of_a_run_with_pretraining_the_tasks_and_what_they_need_are_run(
    capsys: pytest.CaptureFixture[str], own_yaml: str
) -> None:
    everything = stages(capsys, "plan", QUICKSTART)
    assert stages(capsys, "finetune", QUICKSTART, "--dry-run") == everything
    names = ("encode-authors", "finetune-authors", "overlap-authors")
    own_model = "finetune.authors.init=models/tiny"
    assert stages(capsys, "finetune", QUICKSTART, own_model, "--dry-run") == dict.fromkeys(names, "run")
    line = error(capsys, "finetune", QUICKSTART, own_model, "--dry-run", "--force", "vocab")
    assert line == f"vocab: is not a stage of this run; its stages are {', '.join(names)}"
    line = error(capsys, "finetune", QUICKSTART, "finetune=[]", "--dry-run")
    assert line == "quickstart: has no fine-tuning task; add one to finetune"


def test_a_task_that_trains_nothing_has_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("name: own\nfinetune: [{name: pairs, kind: minimal_pairs, file: a.jsonl, init: m}]\n")
    line = error(capsys, "export", "own.yaml", "--task", "pairs", "--to", "pairs")
    assert line == (
        "--task pairs: a task of the kind minimal_pairs trains no model; export or use the model that it starts from"
    )


def test_a_model_without_the_head_that_a_task_scores_with_is_an_error_before_the_run(
    capsys: pytest.CaptureFixture[str], own_yaml: str
) -> None:
    from transformers import BertConfig, BertModel

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=10, max_position_embeddings=16, **shape)).save_pretrained("models/tiny")
    Path("pairs.jsonl").write_text('{"sentence_good": "a day", "sentence_bad": "day a"}\n')
    task = "{name: pairs, kind: minimal_pairs, file: pairs.jsonl, init: models/tiny, max_seq_length: 16}"
    Path("own.yaml").write_text(f"name: own\nfinetune: [{task}]\n")
    capsys.readouterr()  # transformers' progress
    line = f"{Path('models/tiny').absolute()}: has no masked-LM head, with which this task scores; "
    assert error(capsys, "finetune", own_yaml) == f"{line}give a model as it was pretrained"


def test_tasks_alone_are_sent_to_a_cluster(own_yaml: str) -> None:
    cluster = ClusterConfig(name="a", address="http://10.0.0.1:8265", shared_disk=True)
    stage_files(Path("sent"), load(RunConfig, own_yaml), cluster)
    [task] = load(RunConfig, "sent/run.yaml").finetune
    assert (task.init, task.file) == (f"{Path.cwd()}/models/tiny", f"{Path.cwd()}/mood.jsonl")


def files_are_predicted_like_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_yaml: str
) -> None:
    """The rows of several files in parts of 16, which a repeated call keeps."""
    monkeypatch.setattr("cloze.training.finetune.prediction.file_prediction._ROWS", 16)
    texts = [f"a {mood} {word}" + " a" * number for number in range(9) for mood in MOODS for word in WORDS]
    Path("new").mkdir()
    for name, start in (("a", 0), ("b", 18)):
        lines = (json.dumps({"id": text, "text": text}) + "\n" for text in texts[start : start + 18])
        Path(f"new/{name}.jsonl").write_text("".join(lines))
    command = ("predict", own_yaml, "--task", "mood", "--input", "new", "--to", "out")
    assert printed(capsys, *command) == f"{Path('out').absolute()}\n"
    parts = {path: path.read_bytes() for path in sorted(Path("out").glob("*.parquet"))}
    assert [path.name for path in parts] == [f"part-0000{number}.parquet" for number in range(4)]
    rows = pq.read_table("out").to_pylist()
    assert json.loads(Path("out/_predictions.json").read_text())["rows"] == len(rows) == len(texts)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{text}\n" for text in texts)))
    predicted = map(json.loads, printed(capsys, "predict", own_yaml, "--task", "mood").splitlines())
    assert rows == [{"id": text, "text": text, **one} for text, one in zip(texts, predicted, strict=True)]

    first, second, *_ = parts
    changed = first.stat().st_mtime_ns
    second.unlink()
    printed(capsys, *command, "finetune.mood.threads=1", "finetune.mood.workers=2")
    assert first.stat().st_mtime_ns == changed and {path: path.read_bytes() for path in parts} == parts
    Path("new/c.jsonl").write_text('{"text": "a day"}\n')
    line = "is not of this model, these settings and these inputs; give another folder"
    assert error(capsys, *command) == f"{first.absolute()}: {line}"
    assert error(capsys, *command[:-2]).startswith("--input and --to belong together: ")
    assert error(capsys, *command[:-3], "none/*", "--to", "x") == ("none/*: no file matches; correct the pattern")
    assert error(capsys, *command[:-3], "mood.jsonl", "--to", "new").startswith(
        f"{Path('new').absolute()}: has a.jsonl"
    )


def test_tasks_alone_are_planned_run_shown_and_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own_yaml: str, ray_session: None
) -> None:
    names = ("encode-mood", "finetune-mood", "overlap-mood", "report")
    assert stages(capsys, "plan", own_yaml) == dict.fromkeys(names, "run")
    lines = printed(capsys, "finetune", own_yaml).splitlines()
    page = Path("runs/own.html")
    assert lines[0].startswith("finetune-mood: accuracy ") and lines[2:] == [f"report: {page.absolute()}"]
    unknown = "The pretraining texts of tiny are not known: the examples were not compared with them."
    assert lines[1] == f"overlap-mood: {unknown}" and unknown in page.read_text()
    assert " for the majority class, " in lines[0] and "random" not in lines[0]
    finished = dict.fromkeys(names, "skip")
    assert stages(capsys, "plan", "own") == finished  # by its name
    again = dict.fromkeys(names[1:], "run")
    for change in ("finetune.mood.epochs=1", "finetune.mood.seeds=[1, 2]", "finetune.mood.freeze_encoder=true"):
        assert stages(capsys, "plan", own_yaml, change) == finished | again
    renamed = stages(capsys, "plan", own_yaml, "finetune.mood.name=other")
    assert renamed == {"encode-other": "skip", "finetune-other": "run", "overlap-other": "run", "report": "run"}
    longer = stages(capsys, "plan", own_yaml, "finetune.mood.max_seq_length=9")
    assert longer == dict.fromkeys(names, "run")

    _, task, overlap, report = json.loads(printed(capsys, "status", own_yaml, "--json"))
    assert (task["state"], task["metric"], task["scored_split"]) == ("done", "accuracy", "test")
    assert list(task["scores"]) == ["pretrained", "majority", "bag_of_words"] and report["page"] == str(page.absolute())
    assert overlap["overlap"] == {"unknown": ["tiny"]} and task["overlap"] is None
    assert lines[0] in printed(capsys, "status", own_yaml)

    text = page.read_text()
    assert "Fine-tuned on the task mood, the pretrained model reaches" in text and "No stage is finished" not in text
    assert "mood: labelled data" in text and "mood: initial weights" in text and "tiny/model.safetensors" in text
    assert 'id="fine-tuning"' in text and 'id="pretraining"' not in text and 'id="vocabulary"' not in text
    assert printed(capsys, "report", own_yaml) == f"{page.absolute()}\n"

    folder = Path("my-classifier").absolute()
    assert printed(capsys, "export", own_yaml, "--task", "mood", "--to", folder.name, "--onnx") == f"{folder}\n"
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good"}
    monkeypatch.setattr("sys.stdin", io.StringIO("a good day\na bad night\n"))
    predicted = printed(capsys, "predict", own_yaml, "--task", "mood").splitlines()
    assert [json.loads(line).keys() for line in predicted] == 2 * [{"predicted", "probabilities"}]
    files_are_predicted_like_lines(capsys, monkeypatch, own_yaml)
    assert labels_of_the_guide(["a good day", "a bad night"]) == [json.loads(line)["predicted"] for line in predicted]
    for command in (["export", own_yaml, "--to", "my-bert"], ["predict", own_yaml, "a [MASK]"]):
        assert error(capsys, *command).startswith("own: only fine-tunes, so it has no pretrained model; ")
    assert error(capsys, "run", own_yaml, "--until", "pretrain").startswith("pretrain: is not a stage of this run; ")

    # The same task in a run with pretraining: it is finished, and the page shows what there is.
    Path("task.yaml").write_text(f"finetune:\n  - {TASK}, init: models/tiny}}\n")
    assert printed(capsys, "finetune", QUICKSTART, "task.yaml").splitlines() == [
        *lines[:2],
        str(Path("runs/quickstart.html").absolute()),
    ]
    assert "This run is not finished: extract (not started)" in Path("runs/quickstart.html").read_text()


@pytest.mark.campaign
def test_each_signal_ends_all_groups_of_a_search_and_the_run_continues(own_yaml: str) -> None:
    search = ["finetune.mood.learning_rate=[1e-3,1e-4,1e-5]", "finetune.mood.epochs=60", "finetune.mood.threads=1"]
    command = [sys.executable, "-m", "cloze.infra.cli", "finetune", own_yaml, *search]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def end(number: signal.Signals, is_time: Callable[[psutil.Process], bool]) -> None:
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
            while not is_time(psutil.Process(driver.pid)):
                assert driver.poll() is None
                time.sleep(0.05)
            processes = psutil.Process(driver.pid).children(recursive=True)
            driver.send_signal(number)
            assert driver.wait(30) == 128 + number  # after 2 to 6 s, on a machine with nothing else to do
        assert not psutil.wait_procs(processes, timeout=10)[1]

    end(signal.SIGTERM, lambda driver: train_workers(driver) == 2)
    end(signal.SIGINT, lambda driver: bool(parts("pretrained-*.json")) and train_workers(driver) > 0)
    before = {path: path.stat().st_mtime_ns for path in parts("*.json")}
    assert 0 < len(before) < 4  # three trials and the variant
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def parts(pattern: str) -> list[Path]:
    return list(Path("runs").glob(f"finetune-mood/*/parts/{pattern}"))


def train_workers(driver: psutil.Process) -> int:
    """The number of training workers among the processes of a driver."""
    count = 0
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            count += "RayTrainWorker" in str(process.cmdline())
    return count


def test_tasks_with_the_same_examples_share_a_stage_and_weights_are_not_part_of_it(
    capsys: pytest.CaptureFixture[str], own_yaml: str
) -> None:
    other = TASK.replace("1e-3", "1e-4").replace("mood,", "other,")
    longer = TASK.replace("mood,", "longer,").replace("max_seq_length: 16", "max_seq_length: 8")
    tasks = "".join(f"  - {task}, init: models/tiny}}\n" for task in (TASK, other, longer))
    Path("own.yaml").write_text(f"name: own\nfinetune:\n{tasks}")
    names = ["encode-mood", "finetune-mood", "finetune-other", "encode-longer", "finetune-longer", "report"]
    assert [name for name in stages(capsys, "plan", own_yaml) if not name.startswith("overlap-")] == names

    def fingerprints() -> dict[str, str]:
        plan = json.loads(printed(capsys, "plan", own_yaml, "--json"))
        return {stage["stage"]: stage["fingerprint"] for stage in plan[:2]}

    before = fingerprints()
    weights = Path("models/tiny/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    encoded, trained = fingerprints().values()
    assert encoded == before["encode-mood"] and trained != before["finetune-mood"]
    vocab = Path("models/tiny/vocab.txt")
    vocab.write_text(vocab.read_text().replace("night", "noon"))
    assert fingerprints()["encode-mood"] != before["encode-mood"]
