"""The folder of this machine's user, for jobs and calibrations."""

import os
from pathlib import Path


def user_folder() -> Path:
    """Returns $CLOZE_HOME, by default ~/.cloze. It may not exist."""
    return Path(os.environ.get("CLOZE_HOME") or Path.home() / ".cloze")
