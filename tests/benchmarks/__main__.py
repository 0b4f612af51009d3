"""python -m tests.benchmarks [NAME] [ARGS...]: run one benchmark, or all that do not take hours."""

import importlib
import pkgutil
import sys
from pathlib import Path

_LONG = ("learns",)


def main(arguments: list[str]) -> int:
    names = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))
    named = bool(arguments) and not arguments[0].startswith("-")
    all_short = [name for name in names if name not in _LONG]
    chosen, rest = (arguments[:1], arguments[1:]) if named else (all_short, arguments)
    if unknown := set(chosen) - set(names):
        print(f"{', '.join(unknown)}: is no benchmark; there are {', '.join(names)}", file=sys.stderr)
        return 2
    for name in chosen:
        importlib.import_module(f"tests.benchmarks.{name}").main(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
