import os
from functools import partial
from pathlib import Path

import pytest

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_data import for_each


def work(name: str, folder: Path) -> None:
    with (folder / name).open("a") as file:
        file.write("x")
    if name == "b":
        os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_a_name_on_which_workers_are_lost_again_and_again_is_an_error(ray_session: None, tmp_path: Path):
    with pytest.raises(UserError, match="a worker process ended"):
        for_each(partial(work, folder=tmp_path), ["a", "b", "c"], None)
    assert (tmp_path / "b").read_text() == "xxxx"
