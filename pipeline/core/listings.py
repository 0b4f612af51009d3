"""Listings that a worker process keeps: looking up the files of each of its items would cost too many requests."""

from collections.abc import Mapping
from functools import lru_cache

from cloze.pipeline.core.storage import Location


@lru_cache(8)
def list_once(folder: Location, attempt: str) -> Mapping[str, int]:
    """Returns path -> size of the files in the folder when this process has listed it for the first time in an attempt.

    It may be outdated: what it contains is to be confirmed. `attempt` is a name that no other attempt has.
    """
    del attempt  # only the key of the cache
    return folder.sizes()
