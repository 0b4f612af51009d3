"""Fails if a skipped test is not listed in .ci/skips.txt. Its argument is pytest's JUnit report."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main(report: str) -> int:
    allowed = {
        line.split(":", 1)[0].strip()
        for line in Path(__file__).with_name("skips.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    cases = list(ElementTree.parse(report).iter("testcase"))
    skipped = {
        f"{case.get('classname')}.{case.get('name')}": case.find("skipped").get("message")
        for case in cases
        if case.find("skipped") is not None
    }
    unlisted = {name: reason for name, reason in skipped.items() if name not in allowed}
    for name, reason in unlisted.items():
        print(f"{name} was skipped ({reason}) and is not listed in .ci/skips.txt")
    print(f"{len(cases)} tests, {len(skipped)} skipped, {len(unlisted)} of them not listed")
    return 1 if unlisted or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
