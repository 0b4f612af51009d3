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
    skipped = [case for case in cases if case.find("skipped") is not None]
    unlisted = [case for case in skipped if not allowed & {case.get("classname"), _name(case)}]
    for case in unlisted:
        print(f"{_name(case)} was skipped ({case.find('skipped').get('message')}) and is not listed in .ci/skips.txt")
    print(f"{len(cases)} tests, {len(skipped)} skipped, {len(unlisted)} of them not listed")
    return 1 if unlisted or not cases else 0


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}.{case.get('name')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
