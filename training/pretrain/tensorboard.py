"""Metrics rows -> a TensorBoard event file.

The file is written as a whole from all rows, like metrics.jsonl: each step is in it once, even if a run is resumed
several times, and it can be stored on S3.
"""

import struct
from collections.abc import Sequence

from cloze.training.pretrain.manifest_facts import MetricsRow

FILE = "tensorboard/events.out.tfevents.0.cloze"
_NOT_METRICS = {"split", "step", "time"}


class EventFile:
    """Encodes each row once."""

    def __init__(self) -> None:
        self._records = [_record(wall_time=0.0, file_version="brain.Event:2")]

    def __call__(self, rows: Sequence[MetricsRow]) -> bytes:
        """The content of the file. `rows` must start with the rows of the previous call."""
        self._records += map(_row_record, rows[len(self._records) - 1 :])
        return b"".join(self._records)


def _row_record(row: MetricsRow) -> bytes:
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    values = [
        Summary.Value(tag=f"{row['split']}/{key}", simple_value=value)
        for key, value in row.items()
        if key not in _NOT_METRICS
    ]
    return _record(wall_time=row["time"], step=row["step"], summary=Summary(value=values))


def _record(**event: object) -> bytes:
    """An Event as a TFRecord: its length, its bytes, and a masked CRC-32C of each."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    data = Event(**event).SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
