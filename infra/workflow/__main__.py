"""`dagster dev` with the definitions and the history of Cloze; passes on the arguments."""

import os
import signal
import sys

from cloze.infra.workflow.dagster_yaml import lacking
from cloze.infra.workflow.history import home, open_history, settings_file
from cloze.infra.workflow.run_process import end_orphans
from cloze.pipeline.core.errors import UserError


def main() -> None:
    """Replace this process by Dagster's webserver and daemon, after the end of runs whose process has ended."""
    folder = home()
    if keys := lacking(settings_file(folder)):
        print(
            f"cloze: {settings_file(folder)}: is yours and lacks Cloze's {', '.join(keys)}: runs may overlap, or stay "
            "STARTED after a crash; copy them from the file that Cloze writes into an empty folder, or delete yours",
            file=sys.stderr,
        )
    with open_history() as instance:
        end_orphans(instance)
    os.environ |= {"DAGSTER_HOME": str(folder), "DAGSTER_DISABLE_TELEMETRY": "yes", "RAY_USAGE_STATS_ENABLED": "0"}
    # A script's shell ignores SIGINT for what it starts in the background. Dagster would then ignore SIGTERM as well.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The newer command that Dagster's warning recommends requires its own project layout.
    quiet = ["-W", "ignore:Function `dev_command`"]
    os.execv(
        sys.executable, [sys.executable, *quiet, "-m", "dagster", "dev", "-m", "cloze.infra.workflow", *sys.argv[1:]]
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"cloze: {error}", file=sys.stderr)
        sys.exit(2)
