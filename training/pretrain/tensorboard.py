"""rows of metrics -> a TensorBoard event file.

The file is made anew from all rows whenever metrics.jsonl is: so each step is in it once, however often
a run was resumed, and it can lie on S3.
"""

import struct
from collections.abc import Sequence

from cloze.training.pretrain.facts import Row

FILE = "tensorboard/events.out.tfevents.0.cloze"
_KEYS = {"split", "step", "time"}  # what a row is about, not what it says


class EventFile:
    """Encodes each row once."""

    def __init__(self) -> None:
        self._encoded = [_event(wall_time=0.0, file_version="brain.Event:2")]

    def __call__(self, rows: Sequence[Row]) -> bytes:
        """The file's bytes; `rows` begins with those of the call before."""
        self._encoded += map(_row, rows[len(self._encoded) - 1 :])
        return b"".join(self._encoded)


def _row(row: Row) -> bytes:
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    values = [
        Summary.Value(tag=f"{row['split']}/{key}", simple_value=value) for key, value in row.items() if key not in _KEYS
    ]
    return _event(wall_time=row["time"], step=row["step"], summary=Summary(value=values))


def _event(**fields: object) -> bytes:
    """An Event as a TFRecord: its length, its bytes, and a checksum of each."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    data = Event(**fields).SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as TFRecord wants it."""
    from tensorboardX.crc32c import crc32c

    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
