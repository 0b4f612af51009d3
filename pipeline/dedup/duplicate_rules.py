"""Descriptors of documents -> which documents are kept, and for each removed one the document kept instead.

A descriptor holds what the rules compare, as numbers. Documents are identified by their address.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.dedup import minhash

#: Why a document is removed; descriptors of removed documents hold the index.
REASONS = ("older revision", "same doc_id", "duplicate", "near duplicate")
_OLDER_REVISION, _SAME_ID, _DUPLICATE, _NEAR_DUPLICATE = range(len(REASONS))
#: A digest of these columns breaks ties last, so that even of equal documents from different places, always the same
#: one is kept.
TIE_COLUMNS = ["source", "language", "title", "url", "timestamp", "licence", "text"]
TIE_COLUMNS += ["file_sha256", "record_stream", "record_offset", "record_bytes"]

#: A document: digests of 128 bits (in two fields) of its doc_id and its content, 64 bits of the tie-breaking digest,
#: its revision, its length and its address.
DESCRIPTOR = np.dtype(
    [(name, "<u8") for name in ("id", "id_more", "content", "content_more", "tie")]
    + [(name, "<i8") for name in ("revision", "chars", "address")]
)
#: Two documents of a group of near duplicates, by address.
LINK = np.dtype([("address", "<i8"), ("other", "<i8")])
#: A removed document and the one kept instead, by address; `kept` may itself be removed in favour of another.
REMOVED = np.dtype([("address", "<i8"), ("kept", "<i8"), ("reason", "<i8")])


def addresses_of(shard: int, rows: Any) -> Any:
    """The addresses of documents: the number of the shard in the upper 32 bits, the row in the lower."""
    return (shard << 32) + rows


def shards_of(addresses: Any) -> Any:
    return addresses >> 32


def rows_of(addresses: Any) -> Any:
    return addresses & 0xFFFFFFFF


def describe_documents(table: pa.Table, first_address: int) -> npt.NDArray[Any]:
    """Documents -> DESCRIPTORs. The documents' addresses are consecutive."""
    descriptors = np.zeros(len(table), DESCRIPTOR)
    descriptors["address"] = first_address + np.arange(len(table))
    descriptors["revision"] = table["revision"].to_numpy()
    descriptors["chars"] = table["num_chars"].to_numpy()
    ids = b"".join(hashlib.sha256(doc_id.encode()).digest()[:16] for doc_id in table["doc_id"].to_pylist())
    contents = b"".join(bytes.fromhex(digest[:32]) for digest in table["content_hash"].to_pylist())
    for name, digests in (("id", ids), ("content", contents)):
        descriptors[name], descriptors[f"{name}_more"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    ties = [hashlib.sha256() for _ in descriptors]
    for name in TIE_COLUMNS:
        for tie, value in zip(ties, table[name].cast(pa.string()), strict=True):
            tie.update(value.as_buffer())
            tie.update(b"\0")
    descriptors["tie"] = np.frombuffer(b"".join(tie.digest()[:8] for tie in ties), ">u8")
    return descriptors


def keep_newest_revisions(descriptors: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """All documents of some doc_ids -> the newest revision of each doc_id, and the REMOVED others."""
    order = ["revision", "chars", "content", "content_more", "tie", "address"]
    descriptors, best = _rank_groups(descriptors, ["id", "id_more"], order)
    kept = descriptors[best]
    same = (descriptors["content"] == kept["content"]) & (descriptors["content_more"] == kept["content_more"])
    older = descriptors["revision"] < kept["revision"]
    return _separate(descriptors, best, np.where(older, _OLDER_REVISION, np.where(same, _DUPLICATE, _SAME_ID)))


def keep_distinct_contents(descriptors: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """All documents of some contents -> one document of each content, and the REMOVED others."""
    order = ["chars", "revision", "id", "id_more", "tie", "address"]
    descriptors, best = _rank_groups(descriptors, ["content", "content_more"], order)
    return _separate(descriptors, best, np.full(len(descriptors), _DUPLICATE))


def best_of_groups(descriptors: npt.NDArray[Any], group: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Documents, and the group of near duplicates to which each belongs -> the document of each group that is kept."""
    order = ["chars", "revision", "id", "id_more", "tie", "address"]
    descriptors, best = _rank_groups(descriptors, [], order, group)
    return descriptors[np.unique(best)]


def remove_near_duplicates(addresses: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Documents with near duplicates, and the kept one of each one's group, by address -> the REMOVED ones."""
    lost = addresses != kept
    removed = np.zeros(int(lost.sum()), REMOVED)
    removed["address"], removed["kept"], removed["reason"] = addresses[lost], kept[lost], _NEAR_DUPLICATE
    return removed


def _rank_groups(
    descriptors: npt.NDArray[Any], by: Sequence[str], order: Sequence[str], group: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Documents, sorted by group and from best to worst in it, and for each the index of the best in its group."""
    keys = [-descriptors[name] if name in ("revision", "chars") else descriptors[name] for name in order]
    groups = [descriptors[name] for name in by] if group is None else [group]
    sorting = np.lexsort([*reversed(keys), *groups])
    begins = np.zeros(len(descriptors), bool)
    begins[:1] = True
    for values in groups:
        values = values[sorting]
        begins[1:] |= values[1:] != values[:-1]
    return descriptors[sorting], np.flatnonzero(begins)[np.cumsum(begins) - 1]


def _separate(
    descriptors: npt.NDArray[Any], best: npt.NDArray[np.int64], reasons: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The kept documents, and the REMOVED ones."""
    kept = best == np.arange(len(descriptors))
    removed = np.zeros(int((~kept).sum()), REMOVED)
    removed["address"], removed["kept"] = descriptors["address"][~kept], descriptors["address"][best[~kept]]
    removed["reason"] = reasons[~kept]
    return descriptors[kept], removed


def connected_components(links: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """LINKs -> as few LINKs that connect the same documents: each document with the smallest address of its group."""
    addresses, numbers = np.unique(np.concatenate([links["address"], links["other"]]), return_inverse=True)
    roots = minhash.join_groups(np.arange(len(addresses)), numbers.reshape(2, -1).T)
    return links_to_roots(addresses, roots)


def links_to_roots(addresses: npt.NDArray[np.int64], roots: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Addresses, and the index of the first of each one's group -> a LINK for each document but the first."""
    members = np.flatnonzero(roots != np.arange(len(addresses)))
    links = np.zeros(len(members), LINK)
    links["address"], links["other"] = addresses[members], addresses[roots[members]]
    return links
