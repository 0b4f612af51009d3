"""`dagster dev` with the definitions and the history of Cloze; passes on the arguments."""

import os
import sys

from cloze.infra.workflow.history import home


def main() -> None:
    """Replace this process by Dagster's webserver and daemon."""
    os.environ |= {"DAGSTER_HOME": str(home()), "DAGSTER_DISABLE_TELEMETRY": "yes", "RAY_USAGE_STATS_ENABLED": "0"}
    # The newer command that Dagster's warning recommends requires its own project layout.
    quiet = ["-W", "ignore:Function `dev_command`"]
    os.execv(
        sys.executable, [sys.executable, *quiet, "-m", "dagster", "dev", "-m", "cloze.infra.workflow", *sys.argv[1:]]
    )


if __name__ == "__main__":
    main()
