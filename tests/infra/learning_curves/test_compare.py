"""`cloze compare`: the run that it derives from a task, its errors, and its curves from trainings on a tiny model."""

import json
import re
from pathlib import Path

import pytest
import torch.distributed as dist

from cloze.infra.cli import main
from cloze.infra.learning_curves.comparison import Comparison, comparison
from cloze.infra.open_run import open_run
from cloze.infra.planner import Run
from cloze.training.finetune.tasks.classification import ClassificationConfig
from tests.infra.mood_task import write_task
from tests.paths import REPOSITORY
from tests.training.finetune.tasks.trained import train_in_process

TASK = "{name: mood, file: mood.jsonl, init: models/tiny, learning_rate: 1e-3, epochs: 2, batch_size: 8"
PAIRS = "{name: pairs, kind: minimal_pairs, file: pairs.jsonl, init: models/tiny}"


@pytest.fixture(autouse=True)
def own_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a run of two tasks, a BERT as transformers saves it, and 40 rows of train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    write_task("tiny", "published")
    Path("own.yaml").write_text(f"name: own\nfinetune:\n  - {TASK}, max_seq_length: 16}}\n  - {PAIRS}\n")


def compared(labels: list[int], seeds: int = 1, encoder: str | None = None, *overrides: str) -> Comparison:
    return comparison(open_run("own.yaml", overrides), "mood", labels, seeds, encoder)


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err.removeprefix("cloze: ").rstrip()


def test_each_number_and_seed_is_a_task_of_a_run_of_its_own() -> None:
    config = compared([40, 8], seeds=2, encoder="models/published").config
    assert config.name == "own-mood-labels" and config.root == "runs"
    tasks = [task for task in config.finetune if isinstance(task, ClassificationConfig)]
    names = [f"mood-{labels}-seed{seed}" for labels in (8, 40) for seed in (0, 1)]
    assert [task.name for task in tasks] == [*names, *(f"{name}-encoder" for name in names)]
    samples = [(task.train_sample.rows, task.train_sample.seed) for task in tasks if task.train_sample]
    assert samples == 2 * [(8, 0), (8, 1), (40, 0), (40, 1)]
    assert [task.seeds for task in tasks] == 4 * [(0,), (1,)]
    assert [task.compare_random for task in tasks] == 4 * [True] + 4 * [False]
    assert [Path(task.init or "").name for task in tasks] == 4 * ["tiny"] + 4 * ["published"]
    assert {task.seed for task in tasks} == {0}  # it draws the splits


@pytest.mark.parametrize(
    ("epochs", "labels", "expected"), [("2", 40, (2,)), ("2", 8, (10,)), ("2", 2, (20,)), ("30", 8, (30,))]
)
def test_few_labels_have_as_many_steps_as_all_in_twenty_epochs_at_most(
    epochs: str, labels: int, expected: tuple[int, ...]
) -> None:
    [task] = compared([labels], 1, None, f"finetune.mood.epochs={epochs}").config.finetune
    assert isinstance(task, ClassificationConfig) and task.epochs == expected


def test_what_is_finished_is_found_again_with_more_numbers_and_seeds() -> None:
    def fingerprints(labels: list[int], seeds: int) -> dict[str, str | None]:
        run = Run(compared(labels, seeds).config)
        return {name: run.fingerprint(name) for name in run.stages if name.startswith(("finetune-", "encode-"))}

    few, more = fingerprints([8], 1), fingerprints([4, 8, 40], 3)
    assert None not in few.values() and few.items() <= more.items()
    assert len(set(more.values())) == len(more) == 18


def test_what_cannot_be_compared_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    labels = ("--labels", "8")
    assert error(capsys, "own.yaml", "moods", *labels) == "moods: is not a task of own; its tasks are: mood, pairs"
    assert error(capsys, "own.yaml", "pairs", *labels).startswith("pairs: is a task of another kind; name one of")
    line = "the task mood has 40 labelled rows in train, of 2 labels; give numbers from 2 to 40"
    assert error(capsys, "own.yaml", "mood", "--labels", "8,41") == f"--labels 41: {line}"
    assert error(capsys, "own.yaml", "mood", "--labels", "1,8") == f"--labels 1: {line}"
    assert error(capsys, "own.yaml", "mood", "--labels", "8,ten").startswith("--labels 8,ten: is not a list of numbers")
    assert error(capsys, "own.yaml", "mood", *labels, "--seeds", "0") == "--seeds 0: give 1 or more"


def test_without_a_finished_pretraining_there_is_no_checkpoint_to_compare(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Path("configs").symlink_to(REPOSITORY / "configs")
    own_file = ("finetune.authors.file=mood.jsonl", "finetune.authors.files=null")
    line = error(capsys, "configs/quickstart.yaml", "authors", "--labels", "8", *own_file)
    assert line == f"pretrain: is not finished under {tmp_path}/runs; finish it with cloze run and --until pretrain"


@pytest.fixture
def trains_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainings in this process, which is a process group, in place of Ray's workers."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("cloze.training.finetune.stage._train", train_in_process)
    monkeypatch.setattr("cloze.infra.ray_session.LazyRaySession.start", lambda session: None)


def test_curves_are_trained_shown_and_not_trained_again(capsys: pytest.CaptureFixture[str], trains_here: None) -> None:
    command = ["compare", "own.yaml", "mood", "--labels", "4,40", "--encoder", "models/published", "--seeds", "1"]
    assert main(command) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    names = ["this checkpoint", "random weights", "a bag of words", "published"]
    header, few, many, *lines = out.splitlines()
    assert re.split(r"  +", header.strip()) == ["labels", *names]
    assert few.split()[0] == "4" and many.split()[0] == "40" and many.count("100.0 %") >= 1  # the bag of words
    assert lines[0] == "mood: accuracy on test, one seed; the majority class reaches 50.0 %"
    assert lines[1].startswith("With 4 labels this checkpoint reaches ")
    assert lines[-1] == "curves: runs/own-mood-labels.html"
    assert "[  8/8] finetune-mood-40-seed0-encoder  done" in err and "overlap" not in err
    assert "Cloze learning curves" in Path("runs/own-mood-labels.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("finetune-*/*/manifest.json")}
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert list(found["curves"]) == names and found["page"] == f"{Path.cwd()}/runs/own-mood-labels.html"
    assert {path: path.stat().st_mtime_ns for path in before} == before and err.count("skip: ") == 8
    assert not Path("runs/own.html").exists()
