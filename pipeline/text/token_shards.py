"""Tokenized documents, and the files of a tokens artifact that hold them.

A token shard holds documents of one split, in the order of their keys, as three .npy files: the ids of all documents,
the number of ids of each sentence, and the documents. Its name is the split and a number, such as train-00000.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.ragged import Ints, Ragged, offsets_of
from cloze.pipeline.core.schema import text_key
from cloze.pipeline.core.storage import Location

#: A document: hashes of its id and of its source, and its number of sentences.
TOKENIZED_DOCUMENT = np.dtype([("key", "<u8"), ("source", "<u8"), ("sentences", "<u4")])


class TokenizedDocuments(NamedTuple):
    """Documents as token ids."""

    ids: np.ndarray  # [tokens], of all documents
    sentences: Ints  # [sentences] of type uint32: the number of ids of each
    documents: np.ndarray  # [documents] of type TOKENIZED_DOCUMENT

    @staticmethod
    def concatenate(parts: Iterable["TokenizedDocuments"]) -> "TokenizedDocuments":
        return TokenizedDocuments(*map(np.concatenate, zip(*parts, strict=True)))

    @property
    def sentence_offsets(self) -> npt.NDArray[np.int64]:
        """[sentences + 1]: where each sentence begins in `ids`."""
        return offsets_of(self.sentences)

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """[documents + 1]: the first sentence of each document."""
        return offsets_of(self.documents["sentences"])

    def take(self, rows: Ints) -> "TokenizedDocuments":
        """Returns the documents with these indices, in their order."""
        ids = self.ids_by_document()
        return TokenizedDocuments(
            np.concatenate([self.ids[:0], *(ids[row] for row in rows)]),
            Ragged(self.sentences, self.document_offsets).take(rows).values,
            self.documents[rows],
        )

    def divide(self, counts: Ints) -> Iterator["TokenizedDocuments"]:
        """Returns the first counts[0] documents, the next counts[1], and so on, without copying."""
        documents = offsets_of(counts)
        sentences = self.document_offsets[documents]
        offsets = (self.sentence_offsets[sentences], sentences, documents)
        for start, end in pairwise(zip(*offsets, strict=True)):
            yield TokenizedDocuments(*(array[i:j] for array, i, j in zip(self, start, end, strict=True)))

    def ids_by_document(self) -> list[np.ndarray]:
        """Returns the ids of each document, without copying."""
        return [self.ids[start:end] for start, end in pairwise(self.sentence_offsets[self.document_offsets].tolist())]

    def passes(self, default: int, by_source: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """[documents]: the number of passes over each, which is `default` unless `by_source` has its source."""
        result = np.full(len(self.documents), default, np.int64)
        for source, passes in by_source.items():
            result[self.documents["source"] == text_key(source)] = passes
        return result

    def to_bytes(self) -> bytes:
        """Returns what `from_bytes` reads."""
        return b"".join(map(_npy, self))

    @staticmethod
    def from_bytes(data: bytes) -> "TokenizedDocuments":
        source = io.BytesIO(data)
        return TokenizedDocuments(*(np.load(source) for _ in TokenizedDocuments._fields))

    def shard_files(self, name: str) -> dict[str, bytes]:
        """Returns the files of a token shard: relative path -> bytes."""
        return {f"{folder}/{name}.npy": _npy(array) for folder, array in self._asdict().items()}


def token_shard_names(tokens: Artifact) -> list[str]:
    """Returns the names of the shards of a tokens artifact, sorted."""
    return [file.name.removesuffix(".npy") for file in tokens.files("documents/")]


def read_token_shard(artifact: Location, name: str) -> TokenizedDocuments:
    """Read a shard of a tokens artifact, whole."""
    files = (artifact / f"{folder}/{name}.npy" for folder in TokenizedDocuments._fields)
    return TokenizedDocuments(*(np.load(io.BytesIO(file.read_bytes())) for file in files))


def _npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()
