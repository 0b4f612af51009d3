"""The storage that Ray Train requires: nothing is kept in it, as checkpoints are Cloze's own."""

from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
from ray.train.v2._internal.constants import VALIDATE_STORAGE_MARKER_FILENAME


class EmptyStorage(pafs.FileSystemHandler):
    """Writes are discarded. Only the marker exists by which Ray checks that all nodes reach the storage."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EmptyStorage)

    def get_type_name(self) -> str:
        return "empty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [
            pafs.FileInfo(
                path,
                pafs.FileType.File if path.endswith(VALIDATE_STORAGE_MARKER_FILENAME) else pafs.FileType.NotFound,
            )
            for path in paths
        ]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return []

    def create_dir(self, path: str, recursive: bool) -> None: ...
    def delete_dir(self, path: str) -> None: ...
    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None: ...
    def delete_root_dir_contents(self) -> None: ...
    def delete_file(self, path: str) -> None: ...
    def move(self, src: str, dest: str) -> None: ...
    def copy_file(self, src: str, dest: str) -> None: ...

    def open_input_stream(self, path: str) -> Any:
        raise FileNotFoundError(path)

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.BufferOutputStream()

    open_append_stream = open_output_stream


def empty_storage() -> pafs.FileSystem:
    return pafs.PyFileSystem(EmptyStorage())
