"""The two steps of the stage. Their items can run in any order, and exchange documents through scratch files.

    tokenize  a group of document shards -> its documents as token ids, in one file with a content for each token shard
    write     a token shard              -> its documents from all of these files, sorted by key

Memory: `tokenize` holds one document shard and twice the ids of its group, whose Parquet files have 32 MB and at most
one more shard; `write` four times the ids of a token shard, some 16 MB each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.artifacts import Artifact
from cloze.pipeline.core.bucket_files import read_bucket, shard_groups, write_buckets
from cloze.pipeline.core.file_digests import SourceFile
from cloze.pipeline.core.output import Output
from cloze.pipeline.core.ragged import offsets_of
from cloze.pipeline.core.schema import read_table
from cloze.pipeline.core.storage import Location
from cloze.pipeline.core.threads import map_in_threads
from cloze.pipeline.text.sentences import Splitter, load_splitter, split_sentences
from cloze.pipeline.text.token_shards import TokenizedDocuments
from cloze.pipeline.text.tokenizer import UNK, BulkTokenizer, load_tokenizer
from cloze.pipeline.tokens.tokenization import COLUMNS, sort_documents, tokenize_documents

_GROUP_BYTES = 32 << 20  # of Parquet files


class ShardCounts(NamedTuple):
    """The number of token shards of each split."""

    train: int
    heldout: int

    @classmethod
    def of(cls, counts: Mapping[str, int], words_per_shard: int) -> "ShardCounts":
        """`counts` are those of all documents. The words of the held-out ones are estimated from their number."""
        words = counts.get("words", 0)
        heldout = words * counts.get("heldout", 0) // max(counts.get("documents", 0), 1)
        return cls(1 + (words - heldout) // words_per_shard, 1 + heldout // words_per_shard)

    @property
    def names(self) -> list[str]:
        """The names of all token shards."""
        return [f"{split}-{number:05}" for split, count in self._asdict().items() for number in range(count)]

    def indices(self, keys: npt.NDArray[np.uint64], heldout: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Returns the index in `names` of each document's shard: the keys divide a split evenly."""
        count = np.where(heldout, self.heldout, self.train).astype(np.uint64)
        # key * count >> 64, exactly: from the two halves of the key, so that no product exceeds 64 bits.
        high, low = keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)
        number = high * count + (low * count >> np.uint64(32)) >> np.uint64(32)
        return number.astype(np.int64) + np.where(heldout, self.train, 0)


def document_groups(documents: Artifact) -> list[list[Location]]:
    """Returns groups of consecutive document shards, which depend on the artifact alone."""
    shards = documents.files("documents/")
    sizes = [documents.manifest.files[f"documents/{shard.name}"].bytes for shard in shards]
    return [[shards[number] for number in group] for group in groups_of_sizes(sizes)]


def groups_of_sizes(sizes: Sequence[int]) -> list[list[int]]:
    """Document shards of these sizes in bytes -> the numbers of those in each group."""
    block = (offsets_of(sizes) // _GROUP_BYTES).tolist()
    return [list(numbers) for group in shard_groups(len(sizes)) for _, numbers in groupby(group, block.__getitem__)]


@dataclass(frozen=True)
class Steps:
    """Runs the items of the steps: a group is named by its number, a token shard by its own name."""

    groups: Sequence[Sequence[Location]]  # of document shards
    shard_counts: ShardCounts
    vocab: Location
    splitter: SourceFile | None
    scratch: Location
    out: Output

    @property
    def group_names(self) -> list[str]:
        return [f"{number:05}" for number in range(len(self.groups))]

    def unfinished_groups(self) -> list[str]:
        """Returns the names of the groups without a file, which is written whole."""
        exist = map_in_threads(lambda name: (self.scratch / name).is_file(), self.group_names)
        return [name for name, exists in zip(self.group_names, exist, strict=True) if not exists]

    def finished_items(self) -> int:
        """Returns the number of finished items of both steps, on all workers."""
        return len(self.scratch.files()) + len((self.out.location / "parts").files())

    def tokenize_group(self, name: str) -> None:
        """Write a group's file in scratch."""
        write_buckets(self.scratch / name, self._documents_by_shard(self.groups[int(name)]))

    def write_shard(self, name: str) -> None:
        """Write a token shard and commit it. Without any document, the part has no file."""
        names = self.shard_counts.names
        files = [self.scratch / group for group in self.group_names]
        contents = read_bucket(files, len(names), names.index(name))
        documents = TokenizedDocuments.concatenate(map(TokenizedDocuments.from_bytes, contents))
        kept = sort_documents(documents)
        counts = {
            "documents": len(kept.documents),
            "heldout": len(kept.documents) if name.startswith("heldout") else 0,
            "sentences": len(kept.sentences),
            "tokens": len(kept.ids),
            "unknown": int((kept.ids == self._tokenizer.id_of(UNK)).sum()),
        }
        dropped = len(documents.documents) - len(kept.documents)
        drops = {"without pieces": dropped} if dropped else {}
        self.out.commit(name, kept.shard_files(name) if len(kept.documents) else {}, counts, drops)

    def _documents_by_shard(self, group: Sequence[Location]) -> list[bytes]:
        """Returns the group's documents of each token shard."""
        num_shards = sum(self.shard_counts)
        divided = list[list[TokenizedDocuments]]()
        for file in group:
            table = read_table(file, COLUMNS)
            documents = tokenize_documents(table, self._tokenizer, cached_splitter(self.splitter))
            heldout = np.array(table["split"].to_pylist(), object) == "heldout"
            shards = self.shard_counts.indices(documents.documents["key"], heldout)
            sorted_by_shard = documents.take(np.argsort(shards, kind="stable"))
            divided.append(list(sorted_by_shard.divide(np.bincount(shards, minlength=num_shards))))
        return [TokenizedDocuments.concatenate(parts).to_bytes() for parts in zip(*divided, strict=True)]

    @property
    def _tokenizer(self) -> BulkTokenizer:
        return _cached_tokenizer(self.vocab / "tokenizer.json")


@lru_cache(maxsize=1)
def _cached_tokenizer(location: Location) -> BulkTokenizer:
    """One for each worker process, whose cache of words is used for all its groups."""
    return BulkTokenizer(load_tokenizer(location))


@lru_cache(maxsize=1)
def cached_splitter(file: SourceFile | None) -> Splitter:
    """One for each worker process."""
    return load_splitter(file.location.read_bytes(), file.uri) if file else split_sentences
