"""Windows of examples that each node reads only once: the first worker that needs one reads it, the others map a file.

The files of a worker group are in one folder on each node, in shared memory or on the disk. The kernel releases a lock
when its process ends. So another worker reads the window that a killed worker was reading, and a folder that no process
has locked can be deleted. If files cannot be written, every worker reads all windows itself: the examples are the same.
"""

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from cloze.training.pretrain.example_arrays import ExampleArrays

_PREFIX = "cloze-windows-"
_KEPT_WINDOWS = 3  # all workers take the same steps together, so they are a few batches apart at most
_SHARED_MEMORY = Path("/dev/shm")
_MIN_FREE_BYTES = 2**30  # of shared memory: four windows of length 512 take about 300 MB


class WindowCache:
    """The windows that the workers of a group share on this node."""

    def __init__(self, name: str, parent: Path | None = None) -> None:
        """Create the folder, if no other worker has, and delete the folders of groups that have ended.

        All workers of the group pass the same unique `name`. The folder is in `parent`, by default in shared memory if
        there is room, else where temporary files are.
        """
        parent = parent or _parent_folder()
        self._folder = parent / f"{_PREFIX}{name}"
        for folder in parent.glob(f"{_PREFIX}*"):
            if folder != self._folder:
                _delete_unused(folder)
        self._in_use: BinaryIO | None = None
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._in_use = _lock(_in_use(self._folder), fcntl.LOCK_SH)
        self._can_store = self._in_use is not None

    def get(self, name: str, read: Callable[[], ExampleArrays]) -> ExampleArrays:
        """Returns a window: mapped if a worker of the node has stored it, else read, and stored for the others.

        One worker reads at a time. The names of successive windows must sort in their order.
        """
        if (stored := self._stored(name)) is not None:
            return stored
        if (lock := self._reader_lock()) is None:
            return read()
        with lock:
            if (stored := self._stored(name)) is not None:  # while this worker waited for the lock
                return stored
            examples = read()
            self._store(name, examples)
            return examples

    def close(self) -> None:
        """Stop using the folder; the last worker deletes it. Mapped windows stay valid."""
        if self._in_use:
            self._in_use.close()
            _delete_unused(self._folder)

    def _stored(self, name: str) -> ExampleArrays | None:
        try:
            with pa.memory_map(str(self._file(name))) as file:
                table = pa.ipc.open_file(file).read_all()
        except OSError:
            return None
        return ExampleArrays.from_table(table, table.column("index").to_numpy(), table.column("epoch").to_numpy())

    def _store(self, name: str, examples: ExampleArrays) -> None:
        """Write the window's file, and delete the files of windows that all workers have passed."""
        table, temporary = examples.to_table(), self._folder / "window.tmp"
        try:
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            temporary.rename(self._file(name))
            for passed in sorted(self._folder.glob("*.arrow"))[:-_KEPT_WINDOWS]:
                passed.unlink()
        except OSError:  # no space, for example
            self._can_store = False
            with suppress(OSError):
                temporary.unlink()

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.arrow"

    def _reader_lock(self) -> BinaryIO | None:
        """Wait until no other worker of the node reads. Returns None if this worker cannot store what it reads."""
        with suppress(OSError):
            return _lock(self._folder / "reader.lock", fcntl.LOCK_EX) if self._can_store else None
        return None


def _parent_folder() -> Path:
    with suppress(OSError):
        if shutil.disk_usage(_SHARED_MEMORY).free >= _MIN_FREE_BYTES:
            return _SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _in_use(folder: Path) -> Path:
    """The file that every worker keeps locked while it uses the folder."""
    return folder / "in_use.lock"


def _lock(file: Path, operation: int) -> BinaryIO:
    """Lock a file until it is closed. Raises OSError."""
    opened = file.open("ab")
    fcntl.flock(opened, operation)
    return opened


def _delete_unused(folder: Path) -> None:
    """Delete the folder unless a process uses it."""
    with suppress(OSError), _lock(_in_use(folder), fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(folder, ignore_errors=True)
