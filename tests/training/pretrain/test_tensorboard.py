"""Rows of metrics in TensorBoard's file format."""

from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from cloze.training.pretrain.manifest_facts import MetricsRow
from cloze.training.pretrain.tensorboard import EventFile


def row(step: int, **values: float) -> MetricsRow:
    return {"split": "train", "step": step, "time": 1.7e9 + step, "loss": 3.0 / step} | values


def test_the_file_is_what_a_tensorboard_writer_writes_for_the_same_events(tmp_path: Path) -> None:
    first, second = Event(wall_time=0.0, file_version="brain.Event:2"), Event(wall_time=1.7e9 + 2, step=2)
    for name, number in (("loss", 1.5), ("skipped", 1.0)):
        second.summary.value.add(tag=f"train/{name}", simple_value=number)
    writer = RecordWriter(str(tmp_path / "events"))
    for event in (first, second):
        writer.write(event.SerializeToString())
    writer.close()
    assert EventFile()([row(2, skipped=1)]) == (tmp_path / "events").read_bytes()


def test_each_row_is_in_the_file_once_even_if_it_is_written_several_times() -> None:
    rows, file = [row(step) for step in range(1, 6)], EventFile()
    file(rows[:2])
    assert file(rows) == file(rows) == EventFile()(rows)
    assert file(rows).count(b"train/loss") == 5
