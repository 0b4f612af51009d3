"""Runs one extraction, in a separate process: python -m tests.benchmarks._extract DUMP [BEAM OPTIONS...]."""

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.extract import extract_into

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        extract_into(Path(sys.argv[1]), Path(folder), sys.argv[2:])
