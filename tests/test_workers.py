"""The group of workers: its size from what the cluster has, and how it ends."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Output
from pipeline.config import UserError
from pipeline.storage import Location
from training.workers import Group, Tell, fit

LAPTOP, GPU_NODE = {"CPU": 4.0}, {"CPU": 32.0, "GPU": 8.0}
ASKED: dict[str, Any] = {"stage": "pretrain", "gpus": "auto", "workers": None, "threads": 1, "without_gpus": 2}


@pytest.mark.parametrize(
    ("cluster", "asked", "group"),
    [
        (LAPTOP, {}, Group(2, 1, False)),
        (LAPTOP, {"threads": 3}, Group(1, 3, False)),
        (LAPTOP, {"workers": 4}, Group(4, 1, False)),
        ({"CPU": 1.0}, {"threads": 2}, Group(1, 1, False)),
        (GPU_NODE, {}, Group(8, 1, True)),
        (GPU_NODE, {"gpus": 2}, Group(2, 1, True)),
        (GPU_NODE, {"workers": 3}, Group(3, 1, True)),
        (GPU_NODE, {"gpus": 0}, Group(2, 1, False)),
        (LAPTOP, {"workers": (1, 8), "batch": 12}, Group(4, 1, False)),
        (LAPTOP, {"workers": (1, 8), "batch": 10}, Group(2, 1, False)),
        (LAPTOP, {"workers": (1, 3), "batch": 12, "threads": 2}, Group(2, 2, False)),
        (GPU_NODE, {"workers": (2, 16), "batch": 256}, Group(8, 1, True)),
        (GPU_NODE, {"workers": (2, 7), "batch": 256}, Group(4, 1, True)),
        ({"CPU": 2.0, "GPU": 8.0}, {"workers": (1, 8), "batch": 256}, Group(2, 1, True)),
    ],
)
def test_there_is_a_worker_for_each_gpu_unless_told_otherwise(cluster, asked, group):
    assert Group.fitting(cluster, **ASKED | asked) == group


@pytest.mark.parametrize(
    ("cluster", "asked", "message"),
    [
        (LAPTOP, {"gpus": 1}, "pretrain: asks for 1 GPUs, there are 0; lower gpus or workers"),
        (GPU_NODE, {"workers": 9}, "asks for 9 GPUs, there are 8"),
        (LAPTOP, {"workers": 3, "threads": 2}, "asks for 3 workers of 2 processor cores, there are 4 in all"),
        (LAPTOP, {"workers": (6, 9), "batch": 12}, "asks for 6 workers of 1 processor cores, there are 4 in all"),
        (GPU_NODE, {"workers": (16, 32), "batch": 256}, "asks for 16 GPUs, there are 8"),
        (LAPTOP, {"workers": (3, 9), "batch": 10}, "asks for 5 workers"),
    ],
)
def test_more_than_the_cluster_has_is_an_error_before_anything_starts(cluster, asked, message):
    with pytest.raises(UserError, match=message):
        Group.fitting(cluster, **ASKED | asked)


def test_what_a_user_can_mend_ends_the_group_with_one_line_and_no_second_try(ray_session, tmp_path):
    def work(folder: Path, tell: Tell) -> None:
        with (folder / "tries").open("a") as file:
            file.write("x")
        raise UserError("the loss is nan; lower learning_rate")

    with pytest.raises(UserError, match=r"^the loss is nan; lower learning_rate$"):
        fit(work, tmp_path, lambda: Group(1, 1, False), Output(Location(str(tmp_path)), "stage", 1, "0"), 10, "steps")
    assert (tmp_path / "tries").read_text() == "x"
