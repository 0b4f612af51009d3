"""A disk that fills while a stage writes: one line and status 2; with room, the same command writes the same bytes."""

import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cloze.pipeline.core.artifacts import Manifest
from tests.test_main_job import (  # noqa: F401
    STAGES,
    arguments,
    assert_same_bytes,
    cloze,
    digests,
    finished,
    manifests,
)

_PAGE = 4096  # the unit in which a tmpfs counts a file
_SHARE = (0.55, 0.9)  # of what a stage writes; with less than half of its estimate it does not start


class Disk:
    """A small disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set_free_space(self, bytes: int) -> None:
        size = shutil.disk_usage(self.folder).used + bytes
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def run_on_full_disk(disk: Disk, until: str, free: int) -> str:
    """Run the stages with too few `free` bytes, and again with room. Returns the line of the first run."""
    command = [*arguments(str(disk.folder)), "--until", until]
    disk.set_free_space(free)
    full = cloze(*command)
    line = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 2 and line.startswith(f"cloze: {disk.folder}/"), full.stderr
    assert "Traceback" not in full.stderr and full.stderr.count("cloze: ") == 1, full.stderr
    disk.set_free_space(1 << 30)
    again = cloze(*command)
    assert again.returncode == 0, again.stderr
    return line


def bytes_of(folder: Path) -> int:
    return sum(-(-file.stat().st_size // _PAGE) * _PAGE for file in folder.rglob("*") if file.is_file())


@pytest.mark.campaign
def test_a_full_disk_in_a_data_stage(disk: Disk, tmp_path: Path) -> None:
    quiet, stage = tmp_path / "quiet", "extract"
    assert cloze(*arguments(str(quiet)), "--until", stage).returncode == 0
    free = int(random.uniform(*_SHARE) * bytes_of(quiet))
    print(f"drew {free:,} free bytes")
    assert "no space is left on the device; free some, or name a folder on another disk" in run_on_full_disk(
        disk, stage, free
    )
    actual, expected = (manifests(str(root), [stage])[stage] for root in (disk.folder, quiet))
    assert digests(actual) == digests(expected)
    assert (actual.counts, actual.drops) == (expected.counts, expected.drops)


@pytest.mark.campaign
@pytest.mark.parametrize("stage", ["examples-128", "pretrain", "finetune-authors"])
def test_a_full_disk_in_a_stage_on_ray(disk: Disk, finished: tuple[str, Mapping[str, Manifest]], stage: str) -> None:  # noqa: F811
    root, by_stage = finished
    for before in (*STAGES[: STAGES.index(stage)], *(["encode"] if stage.startswith("finetune") else [])):
        shutil.copytree(Path(root, before), disk.folder / before)
    if stage == "pretrain":  # two checkpoints fit, the following ones do not
        free = int(2.5 * min(map(bytes_of, Path(root).glob("pretrain/*/checkpoints/step-*"))))
        line = run_on_full_disk(disk, stage, free)
        assert "the last checkpoint cannot be written" in line and "No space left on device" in line
    else:
        free = int(random.uniform(*_SHARE) * bytes_of(Path(root, stage)))
        print(f"drew {free:,} free bytes")
        assert "no space is left on the device" in run_on_full_disk(disk, stage, free)
    assert cloze(*arguments(str(disk.folder))).returncode == 0
    assert_same_bytes(manifests(str(disk.folder)), by_stage)
