import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cloze.pipeline.core.beam import SerializedError, _local_options, for_each, pipeline, serialized_errors
from cloze.pipeline.core.beam_workers import RUN, LostWorkerError, crash_note, recorded_work
from cloze.pipeline.core.errors import DamagedFile, StorageError, UserError
from cloze.pipeline.core.signals import keyboard_interrupt_on
from tests.conftest import free_port

PROCESSES = ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def raising(error: Exception) -> Any:
    """A function that another process can be sent: it names nothing of this module."""

    def work(_: Any) -> None:
        from cloze.pipeline.core.beam import serialized_errors

        with serialized_errors():
            raise error

    return work


def over(options: list[str], work: Any, *elements: Any) -> None:
    with pipeline(options) as running:
        import apache_beam as beam

        _ = running | "Given" >> beam.Create(elements).with_output_types(Any) | "Work" >> beam.Map(work)


def test_errors_that_a_user_can_fix_keep_their_type_and_message(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError) as error:
        over(["--runner=FnApiRunner"], raising(UserError('a.xml: is "no" dump \\ mend it — so')), 1)
    assert str(error.value) == 'a.xml: is "no" dump \\ mend it — so'
    with pytest.raises(PermissionError) as denied:
        over(["--runner=FnApiRunner"], raising(PermissionError(13, "Permission denied", "/there")), 1)
    assert (denied.value.errno, denied.value.filename) == (13, "/there")
    for error in (DamagedFile("a.parquet: is damaged"), StorageError("s3://b/k: reading failed")):
        with pytest.raises(type(error), match=str(error)):
            over(["--runner=FnApiRunner"], raising(error), 1)
    assert "Traceback" not in capfd.readouterr().err


def test_an_item_that_raises_is_no_longer_recorded_as_current_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(RUN, f"{os.getpid()}:{tmp_path}")
    with pytest.raises(UserError), crash_note("range 1"):
        assert recorded_work(tmp_path) == ["range 1"]
        raise UserError("a.xml: is no dump")
    assert recorded_work(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runner=Nobody"], r"--runner=Nobody: "),
        (["--runner=no.module.Runner"], r"--runner=no\.module\.Runner: "),
        (["--direct_num_workers=two"], r"argument --direct_num_workers: invalid int value: 'two'"),
        (["--runner=FnApiRunner", "--direct_num_workrs=2"], r"no option --direct_num_workrs"),
        (["two"], r"two is not an option"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(options: list[str], said: str, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=f"^beam: .*{said}") as error:
        over(options, print, 1)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_a_job_server_that_does_not_answer_is_named_at_once(capfd: pytest.CaptureFixture[str]):
    endpoint = f"localhost:{free_port()}"
    with pytest.raises(UserError, match=rf"^beam: no job server answers at --job_endpoint={endpoint} \(.*\); start"):
        over(["--runner=PortableRunner", f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK"], print, 1)
    assert capfd.readouterr() == ("", "")


def test_large_work_uses_a_process_for_each_core_but_not_more_than_items(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    one = ["--runner=FnApiRunner"]
    assert _local_options(None, 1.0) == one
    assert _local_options(1, 100.0) == one
    assert _local_options(None, 100.0) == [*one, "--direct_running_mode=multi_processing", "--direct_num_workers=4"]
    assert _local_options(3, 100.0)[-1] == "--direct_num_workers=3"


def test_our_own_bugs_are_not_dressed_up():
    with pytest.raises(ZeroDivisionError), serialized_errors():
        _ = 1 / 0
    with pytest.raises(SerializedError, match="words"), serialized_errors():
        raise UserError("words")


@pytest.mark.slow
def test_an_error_of_another_process_is_raised_unchanged(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"^a\.xml: is no dump$"):
        over(PROCESSES, raising(UserError("a.xml: is no dump")), 1)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("parity", [0, 1])  # one of the two is at work, the other one late
def test_a_run_that_fails_ends_while_another_process_is_still_starting(parity: int, monkeypatch: pytest.MonkeyPatch):
    from apache_beam.runners.portability import local_job_service

    run = local_job_service.SubprocessSdkWorker.run

    def late(worker: Any) -> None:
        time.sleep(4 if int(worker._worker_id.rpartition("_")[2]) % 2 == parity else 0)
        run(worker)

    monkeypatch.setattr(local_job_service.SubprocessSdkWorker, "run", late)
    with pytest.raises(UserError, match=r"^a\.xml: is no dump$"):
        over(PROCESSES, raising(UserError("a.xml: is no dump")), 1)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_an_error_that_names_its_work():
    def killing(_: Any) -> None:
        from cloze.pipeline.core.beam import serialized_errors

        with serialized_errors("range 7 of a.xml"):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LostWorkerError, match=r"return code -?\d+ while it worked on range 7 of a\.xml: was it killed"):
        over(PROCESSES, killing, 1)


def test_an_interrupt_inside_an_item_stays_one() -> None:
    def interrupt(_: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with keyboard_interrupt_on(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        for_each([1], interrupt, ["--runner=FnApiRunner"])
