"""python -m tests.benchmarks [NAME] [ARGS...]: runs one benchmark, or all that take less than an hour."""

import importlib
import pkgutil
import sys
from pathlib import Path

_LONG = ("learns",)  # run only by name


def main(arguments: list[str]) -> int:
    names = sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if not module.name.startswith("_")
    )
    has_name = bool(arguments) and not arguments[0].startswith("-")
    short = [name for name in names if name not in _LONG]
    selected, options = (arguments[:1], arguments[1:]) if has_name else (short, arguments)
    if unknown := set(selected) - set(names):
        print(f"{', '.join(unknown)}: unknown benchmark; available: {', '.join(names)}", file=sys.stderr)
        return 2
    for name in selected:
        importlib.import_module(f"tests.benchmarks.{name}").main(options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
