"""Where tests find files: the repository, the small real files of tests/data, the larger ones beside the checkout."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "tests/data"
SHARED = REPOSITORY.parent / "shared"
QUICKSTART = REPOSITORY / "configs/quickstart.yaml"
