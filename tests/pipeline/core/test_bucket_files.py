"""Files with a content for each bucket."""

from pathlib import Path

import pytest

from cloze.pipeline.core.bucket_files import read_bucket, shard_groups, write_buckets
from cloze.pipeline.core.errors import DamagedFile
from cloze.pipeline.core.storage import Location

CONTENTS = [b"first", b"", b"third " * 1000]


def test_a_bucket_holds_what_was_written_for_it(folder: str) -> None:
    files = [Location(f"{folder}/one"), Location(f"{folder}/two")]
    write_buckets(files[0], CONTENTS)
    write_buckets(files[1], [memoryview(content) for content in reversed(CONTENTS)])
    for bucket in range(3):
        assert read_bucket(files, 3, bucket) == [CONTENTS[bucket], CONTENTS[2 - bucket]]


def test_a_changed_byte_is_damage(tmp_path: Path) -> None:
    file = Location(f"{tmp_path}/file")
    write_buckets(file, CONTENTS)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert read_bucket([file], 3, 0) == [b"first"]
    with pytest.raises(DamagedFile, match="is damaged"):
        read_bucket([file], 3, 2)


@pytest.mark.parametrize(("count", "groups", "largest"), [(0, 0, 0), (3, 3, 1), (40, 20, 2), (600, 19, 32)])
def test_groups_cover_all_shards_once(count: int, groups: int, largest: int) -> None:
    found = shard_groups(count)
    assert [shard for group in found for shard in group] == list(range(count))
    assert len(found) == groups
    assert max(map(len, found), default=0) == largest
