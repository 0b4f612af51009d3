"""Of documents that are described by numbers: which of them stay, and for which the others go."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.dedup import minhash

REASONS = ("older revision", "same doc_id", "duplicate", "near duplicate")
#: What decides last, by a digest: even of documents that are equal but for where they are from, the same one stays.
TIES = ["source", "language", "title", "url", "timestamp", "licence", "text"]
TIES += ["file_sha256", "record_stream", "record_offset", "record_bytes"]

#: A document. `place` says where it lies; the others say what it holds: digests of 64 bits, or numbers.
ROW = np.dtype(
    [(name, "<u8") for name in ("id", "id_more", "content", "content_more", "tie")]
    + [(name, "<i8") for name in ("revision", "chars", "place")]
)
PAIR = np.dtype([("place", "<i8"), ("other", "<i8")])
GONE = np.dtype([("place", "<i8"), ("kept", "<i8"), ("reason", "<i8")])  # `kept` may itself be gone, for another


def described(table: pa.Table, first: int) -> npt.NDArray[Any]:
    """Documents -> rows of ROW; `first` is the place of the first."""
    rows = np.zeros(len(table), ROW)
    rows["place"] = first + np.arange(len(table))
    rows["revision"] = table["revision"].to_numpy()
    rows["chars"] = table["num_chars"].to_numpy()
    ids = b"".join(hashlib.sha256(doc_id.encode()).digest()[:16] for doc_id in table["doc_id"].to_pylist())
    contents = b"".join(bytes.fromhex(digest[:32]) for digest in table["content_hash"].to_pylist())
    for name, digests in (("id", ids), ("content", contents)):
        rows[name], rows[f"{name}_more"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    ties = [hashlib.sha256() for _ in rows]
    for name in TIES:
        for tie, value in zip(ties, table[name].cast(pa.string()), strict=True):
            tie.update(value.as_buffer())
            tie.update(b"\0")
    rows["tie"] = np.frombuffer(b"".join(tie.digest()[:8] for tie in ties), ">u8")
    return rows


def by_id(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Every row of some doc_ids -> of each doc_id the newest revision, and the others, gone."""
    order = ["revision", "chars", "content", "content_more", "tie", "place"]
    rows, first = _grouped(rows, ["id", "id_more"], order)
    best = rows[first]
    equal = (rows["content"] == best["content"]) & (rows["content_more"] == best["content_more"])
    reasons = np.where(rows["revision"] < best["revision"], 0, np.where(equal, 2, 1))
    return _parted(rows, first, reasons)


def by_content(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Every row of some contents -> of each content one, and the others, gone."""
    order = ["chars", "revision", "id", "id_more", "tie", "place"]
    rows, first = _grouped(rows, ["content", "content_more"], order)
    return _parted(rows, first, np.full(len(rows), 2))


def by_group(rows: npt.NDArray[Any], group: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Rows and the group of near duplicates that each is of -> those that go."""
    order = ["chars", "revision", "id", "id_more", "tie", "place"]
    rows, first = _grouped(rows, [], order, group)
    return _parted(rows, first, np.full(len(rows), 3))[1]


def _grouped(
    rows: npt.NDArray[Any], by: Sequence[str], order: Sequence[str], group: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Rows, sorted by group and from best to worst in it, and for each the index of its group's best."""
    keys = [-rows[name] if name in ("revision", "chars") else rows[name] for name in order]
    groups = [rows[name] for name in by] if group is None else [group]
    sorting = np.lexsort([*reversed(keys), *groups])
    begins = np.zeros(len(rows), bool)
    begins[:1] = True
    for values in groups:
        values = values[sorting]
        begins[1:] |= values[1:] != values[:-1]
    return rows[sorting], np.flatnonzero(begins)[np.cumsum(begins) - 1]


def _parted(
    rows: npt.NDArray[Any], first: npt.NDArray[np.int64], reasons: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    stays = first == np.arange(len(rows))
    gone = np.zeros(int((~stays).sum()), GONE)
    gone["place"], gone["kept"], gone["reason"] = rows["place"][~stays], rows["place"][first[~stays]], reasons[~stays]
    return rows[stays], gone


def forest(pairs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pairs of places -> as few that join the same: each place with the smallest that it is joined to."""
    places, numbers = np.unique(np.concatenate([pairs["place"], pairs["other"]]), return_inverse=True)
    root = minhash.joined(np.arange(len(places)), numbers.reshape(2, -1).T)
    return tied(places, root)


def tied(places: npt.NDArray[np.int64], root: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    leaves = np.flatnonzero(root != np.arange(len(places)))
    joined = np.zeros(len(leaves), PAIR)
    joined["place"], joined["other"] = places[leaves], places[root[leaves]]
    return joined
