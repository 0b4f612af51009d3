"""Fixtures that the tests of training share."""

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
