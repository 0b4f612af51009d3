"""python -m tests.campaign [ARGS...]: the tests marked campaign and those on Flink, their figures into docs/checks.md.

Takes pytest's arguments. Each figure is a test's seconds, its set-up included, beside what it has printed, such as the
random steps of its kills. Exits as pytest does. The page is left as it is where
a test has failed, or where arguments choose among the tests.
"""

import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs/checks.md"
HEADING = "## The last campaign\n"
TIMEOUT = 1800  # seconds of a test, after which pytest ends: some take eight minutes on an idle machine


def main(arguments: list[str]) -> int:
    report = REPOSITORY / ".venv/campaign.xml"
    options = ["-m", "campaign or flink", "-o", "junit_logging=system-out", "-o", f"faulthandler_timeout={TIMEOUT}"]
    options.append(f"--junitxml={report}")
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *arguments], cwd=REPOSITORY, check=False)
    if done.returncode == 0 and not arguments:
        before, heading, _ = PAGE.read_text().partition(HEADING)
        found = section(ElementTree.parse(report))
        PAGE.write_text(f"{before}{heading}{found}")
        print(f"{found}\nwritten into {PAGE}")
    return done.returncode


def section(report: "ElementTree.ElementTree[Any]") -> str:
    """pytest's report in XML -> Markdown: when and where it was, and a table."""
    every = list(report.iter("testcase"))
    cases = [case for case in every if case.find("skipped") is None]
    total = sum(float(case.get("time", 0)) for case in cases)
    lines = [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}: {len(cases)} tests, none failed, "
        f"{len(every) - len(cases)} skipped, {total / 60:.0f} minutes.",
        "",
        "| test | seconds | what it drew |",
        "|---|---|---|",
    ]
    for case in cases:
        file = case.get("classname", "").rpartition(".test_")[2]
        name = case.get("name", "").removeprefix("test_").replace("_", " ")
        lines.append(f"| {file}: {name} | {float(case.get('time', 0)):.0f} | {drew(case)} |")
    return "\n".join(lines) + "\n"


def drew(case: ElementTree.Element) -> str:
    """What a test has printed of itself: the lines that begin with killed, started or drew."""
    printed = case.findtext("system-out") or ""
    return "; ".join(line for line in printed.splitlines() if line.startswith(("killed", "started", "drew")))


def machine() -> str:
    """The processor, how many cores of it, and the memory, in words."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(": ")[2] if models else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB of memory, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
