"""Runs one stage, whose inputs are finished: python -m tests.benchmarks._requests CONFIG STAGE."""

import sys

from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load

if __name__ == "__main__":
    with Run(load(RunConfig, sys.argv[1])) as run:
        run.execute(sys.argv[2])
