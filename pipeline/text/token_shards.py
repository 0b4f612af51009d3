"""Token shards: the files of tokenized documents, and how slices of them are read.

A shard is three .npy files: the concatenated ids; the offsets of the sentences in them, [sentences + 1]; and the
documents as ranges of sentences. Local files are memory-mapped; from S3 only ranges are fetched.
"""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.ragged import offsets_of, ragged_ranges
from cloze.pipeline.core.s3_file import S3File
from cloze.pipeline.core.schema import text_key
from cloze.pipeline.core.storage import Location


class DocumentSentences(NamedTuple):
    """The sentences first to last - 1 of a shard. Sentence i has the shard's ids offsets[i] to offsets[i + 1]."""

    shard: int
    offsets: Sequence[int]
    first: int
    last: int


#: A document: hashes of its id and of its source, its first sentence in the shard and the one after its last.
DOCUMENT_RUN = np.dtype([("key", "<u8"), ("source", "<u8"), ("first", "<u4"), ("last", "<u4"), ("heldout", "?")])
_MAX_GAP = 1 << 20  # bytes between two slices up to which one request for both is faster than two
_MAX_REQUESTS = 16  # at the same time


def shard_files(
    name: str, ids: np.ndarray, sentences: npt.NDArray[np.uint32], documents: np.ndarray
) -> dict[str, bytes]:
    """Returns a token shard's files: relative path -> bytes. `documents` has the type DOCUMENT_RUN."""
    arrays = {"ids": ids, "sentences": sentences, "documents": documents}
    return {f"{folder}/{name}.npy": _npy(array) for folder, array in arrays.items()}


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


class TokenShard:
    """One shard of a tokens artifact. Its files are opened when they are first used."""

    def __init__(self, artifact: Location, name: str) -> None:
        self._artifact, self.name = artifact, name

    @cached_property
    def documents(self) -> np.ndarray:
        """[documents] of type DOCUMENT_RUN."""
        return _load(self._artifact / f"documents/{self.name}.npy")

    @cached_property
    def sentences(self) -> Sequence[int]:
        """The offsets of the sentences, [sentences + 1]; items are Python integers."""
        return _load(self._artifact / f"sentences/{self.name}.npy").data

    def ids(self) -> np.ndarray:
        """Returns all ids of the shard."""
        return _load(self._ids)

    def slices(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> np.ndarray:
        """Returns the ids of each range, concatenated: [sum of lengths]."""
        if self._ids.is_s3:
            return _fetch_slices(self._ids, starts, lengths)
        return self.ids()[ragged_ranges(starts, lengths)]

    @property
    def _ids(self) -> Location:
        return self._artifact / f"ids/{self.name}.npy"


def token_shards(artifact: Artifact) -> list[TokenShard]:
    """Returns the shards of a tokens artifact, in the order of their names."""
    names = [file.name.removesuffix(".npy") for file in artifact.files("documents/")]
    return [TokenShard(artifact.location, name) for name in names]


class TokenizedCorpus(Sequence[DocumentSentences]):
    """The documents of one split, of all shards, in the order of their keys: the same however they are sharded."""

    def __init__(self, shards: Sequence[TokenShard], heldout: bool) -> None:
        self._shards = shards
        rows_of_shards = [np.flatnonzero(shard.documents["heldout"] == heldout) for shard in shards]
        documents = np.concatenate([shard.documents[rows] for shard, rows in zip(shards, rows_of_shards, strict=True)])
        order = np.argsort(documents["key"], kind="stable")
        counts = [len(rows) for rows in rows_of_shards]
        self._shard_of = np.repeat(np.arange(len(shards), dtype=np.uint32), counts)[order]
        self._shard = self._shard_of.data
        self._first, self._last = (np.ascontiguousarray(documents[name][order]).data for name in ("first", "last"))
        self.keys: npt.NDArray[np.uint64] = documents["key"][order]
        self._sources: npt.NDArray[np.uint64] = documents["source"][order]
        index = np.empty(len(order), np.int64)
        index[order] = np.arange(len(order))
        self._indices_of_shards = np.split(index, np.cumsum(counts)[:-1])

    def __len__(self) -> int:
        return len(self._shard)

    def __getitem__(self, index: int) -> DocumentSentences:  # type: ignore[override]  # slices are not supported
        shard = self._shard[index]
        return DocumentSentences(shard, self._shards[shard].sentences, self._first[index], self._last[index])

    def indices_of_shard(self, shard: int) -> npt.NDArray[np.int64]:
        """Returns the indices of a shard's documents, in the shard's order."""
        return self._indices_of_shards[shard]

    def shards_of(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Returns the shard of each of these documents."""
        return self._shard_of[indices]

    def passes(self, default: int, by_source: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """[documents]: the number of passes over each, which is `default` unless `by_source` has its source."""
        result = np.full(len(self), default, np.int64)
        for source, passes in by_source.items():
            result[self._sources == text_key(source)] = passes
        return result


def _load(file: Location) -> np.ndarray:
    if file.local_path:
        return np.load(file.local_path, mmap_mode="r").view(np.ndarray)
    return np.load(io.BytesIO(file.read_bytes()))


def _fetch_slices(file: Location, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> np.ndarray:
    """Returns slices of a .npy file on S3, concatenated. One request fetches slices that are close together."""
    order = np.argsort(starts)
    with file.open() as source:
        assert isinstance(source, S3File)
        version = np.lib.format.read_magic(source)  # type: ignore[arg-type]
        assert version == (1, 0), f"{file}: .npy version {version}"
        _, _, dtype = np.lib.format.read_array_header_1_0(source)  # type: ignore[arg-type]
        first_byte, gap = source.tell(), _MAX_GAP // dtype.itemsize
        reach = np.maximum.accumulate((starts + lengths)[order])
        begins = np.concatenate([[True], starts[order][1:] > reach[:-1] + gap])
        block_starts = starts[order][begins]
        block_ends = reach[np.concatenate([begins[1:], [True]])]

        def read(block: tuple[int, int]) -> np.ndarray:
            start, end = block
            data = source.read_at((end - start) * dtype.itemsize, first_byte + start * dtype.itemsize)
            return np.frombuffer(data, dtype)

        with ThreadPoolExecutor(_MAX_REQUESTS) as requests:
            blocks = list(requests.map(read, zip(block_starts.tolist(), block_ends.tolist(), strict=True)))
    block = np.empty(len(starts), np.int64)
    block[order] = np.cumsum(begins) - 1
    moved = starts - block_starts[block] + offsets_of(block_ends - block_starts)[block]
    return np.concatenate(blocks)[ragged_ranges(moved, lengths)]
