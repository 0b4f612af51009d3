"""A followed job: a real one of this machine, which runs the toy run."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.following import FollowedJob, JobFailed
from cloze.infra.launch.jobs import JobRequest, JobState
from cloze.infra.launch.local_jobs import LocalJobs
from cloze.infra.planner import Run
from cloze.pipeline.core.errors import UserError
from tests.infra.toy_job import interpreter
from tests.infra.toy_run import toy_run

STAGES = ["letters", "words", "pages"]


class Toy:
    """The toy run, and the jobs of this machine that run it."""

    def __init__(self, folder: Path, run: Run):
        self.source, self.run = folder / "source.txt", run
        python = interpreter(folder / "python", folder / "root", self.source)
        self.jobs = LocalJobs(ClusterConfig(name="here", python=str(python)))

    def follow(self, *force: str, until: str | None = None) -> FollowedJob:
        return FollowedJob(self.jobs, JobRequest(self.run.config, until, force))

    def file(self, name: str, text: str = "") -> Path:
        file = self.source.with_suffix(f".{name}")
        file.write_text(text)
        return file


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    monkeypatch.setenv("CLOZE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cloze.infra.launch.following._POLL", 0.05)
    (tmp_path / "source.txt").write_text("what letters reads")
    toy = Toy(tmp_path, toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt"))
    yield toy
    for info in toy.jobs.jobs():
        toy.jobs.stop(info.id)


def actions(job: FollowedJob) -> dict[str, str]:
    return {done.planned.stage.name: done.planned.action for done in job.stages(STAGES)}


def test_each_stage_is_yielded_when_its_output_appears_and_who_follows_again_attaches(
    toy: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    wait = toy.file("wait-words")
    first = toy.follow()
    assert first.is_new
    stages = first.stages(STAGES)
    letters = next(stages)
    assert (letters.planned.stage.name, letters.planned.action) == ("letters", "run")
    assert letters.planned.reason == f"no output yet; job {first.job}"
    assert letters.manifest.counts == {"letters": 2}
    assert toy.run.artifact("words") is None
    second = toy.follow()
    assert (second.job, second.is_new) == (first.job, False)
    wait.unlink()
    assert [(done.planned.stage.name, done.planned.action) for done in stages] == [("words", "run"), ("pages", "run")]
    assert actions(second) == {"letters": "skip", "words": "run", "pages": "run"}
    assert re.search(r"words    done in \d+ s: 2 letters", capfd.readouterr().err)


@pytest.mark.campaign
def test_the_jobs_last_line_says_whether_to_try_again(toy: Toy) -> None:
    fail = toy.file("fail-words", "words.size: 0 is too small")
    job = toy.follow()
    stages = job.stages(STAGES)
    assert next(stages).planned.stage.name == "letters"
    with pytest.raises(UserError, match=rf"^{job.job}: words\.size: 0 is too small$"):
        next(stages)
    fail.unlink()
    toy.file("crash-words")
    with pytest.raises(JobFailed, match=r": the run was killed by SIGKILL$"):
        actions(toy.follow())
    assert actions(toy.follow()) == {"letters": "skip", "words": "run", "pages": "run"}
    assert actions(toy.follow("words")) == {"letters": "skip", "words": "run", "pages": "skip"}


@pytest.mark.campaign
def test_a_job_that_is_stopped_ends_and_continues_when_it_is_submitted_again(toy: Toy) -> None:
    wait = toy.file("wait-words")
    job = toy.follow()
    stages = job.stages(STAGES)
    next(stages)
    toy.jobs.stop(job.job)
    with pytest.raises(UserError, match="was stopped; the same command continues from the finished parts"):
        next(stages)
    assert toy.jobs.info(job.job).state is JobState.STOPPED
    wait.unlink()
    assert actions(toy.follow()) == {"letters": "skip", "words": "run", "pages": "run"}


@pytest.mark.slow
def test_a_run_that_has_attached_to_a_job_long_before_it_is_stopped_does_not_submit_it_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.file("wait-words")
    next(toy.follow().stages(STAGES))
    attached = [toy.follow(), toy.follow()]
    toy.jobs.stop(attached[0].job)
    with pytest.raises(JobFailed, match="was being stopped when this run attached to it"):
        actions(attached[0])
    monkeypatch.setattr("cloze.infra.launch.following.STOP_SECONDS", 0)  # longer ago than a job takes to save
    with pytest.raises(UserError, match="was stopped; the same command continues from the finished parts"):
        actions(attached[1])


@pytest.mark.campaign
def test_a_job_that_has_read_other_files_than_there_are_now_is_not_taken_for_finished(toy: Toy) -> None:
    wait = toy.file("wait-words")
    next(toy.follow().stages(STAGES))
    toy.source.write_text("what letters reads next week")
    toy.run = Run(toy.run.config)
    second = toy.follow()
    assert not second.is_new
    wait.unlink()
    with pytest.raises(JobFailed, match=r": has succeeded, but letters is not finished for the present files under "):
        actions(second)
