"""python3 -m tests.gpu [--parts 0,1,2] [--out FOLDER] ...: all checks, one line each, then one line of JSON.

Files in the output folder: summary.json (the last line), results.jsonl (a line per check, as they end), log.txt (all
output of the checks, with tracebacks), kernels.txt, ray.txt (the end of Ray's logs after a failure). The exit status is
0 when all checks were ok, 1 when one failed, 2 when nothing can run.
"""

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from tests.gpu import pack
from tests.gpu.kit import MINUTES, Check, Kit, checks
from tests.gpu.processes import Hosts

SLOWER = 4  # a dry run on two busy cores
WHEELS = ("ray", "deepspeed", "pydantic", "tensorboardX")
WORK = "/tmp"  # not TMPDIR: the paths of Ray's sockets, below it, may have 107 characters at most


def main() -> int:
    options = arguments()
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what has been found is summed up
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    state = pack.state()
    if state == "missing":
        print(f"{pack.FOLDER}: the pack is missing; run make gpu-pack where the repository has its .venv")
        return 2
    if state == "stale":
        print(f"WARNING {pack.FOLDER}: packed from other sources or versions; run make gpu-pack again", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=WORK, ignore_cleanup_errors=True) as work:
        kit = Kit(options.device, options.tiny, str(pack.FOLDER / "corpus"), work, str(out))
        report = Report(kit, begun, {"pack": state or "current", **pack_facts(), "parts": options.parts})
        try:
            environment = hosts_environment(kit, install(Path(work, "site")))
            with Hosts(kit, environment) as hosts:
                run(report, hosts, options)
        except BaseException as error:  # of the kit itself, or a signal that ends it
            report.broken = repr(error)
        finally:
            print(report.write(), flush=True)
    return report.status


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu", description=__doc__)
    parser.add_argument("--parts", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a dry run on a CPU")
    parser.add_argument("--minutes", type=minutes, default=MINUTES, help="of each part, such as 1:4,2:4")
    parser.add_argument("--only", default="", help="run the checks whose names contain this")
    parser.add_argument("--out", type=Path, default=pack.REPOSITORY / "build/gpu-out")
    return parser.parse_args()


def minutes(text: str) -> dict[int, float]:
    return MINUTES | {int(part): float(limit) for part, _, limit in (one.partition(":") for one in text.split(","))}


def pack_facts() -> dict[str, Any]:
    manifest = json.loads((pack.FOLDER / "pack.json").read_text())
    return {"packed": manifest["built"], "commit": manifest["commit"], "changed_files": manifest["changed_files"]}


def install(site: Path) -> Path | None:
    """Unpack the packed wheels, unless this Python has them all; returns their folder. It takes no pip."""
    if all(importlib.util.find_spec(name) for name in WHEELS):
        return None
    for wheel in sorted((pack.FOLDER / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            for item in file.infolist():
                path = Path(file.extract(item, site))
                if mode := item.external_attr >> 16 & 0o777:  # Ray's programs must be executable
                    path.chmod(mode | 0o600)
    return site


def hosts_environment(kit: Kit, site: Path | None) -> dict[str, str]:
    path = [str(pack.REPOSITORY), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "RAY_TMPDIR": kit.work,
        "TORCHINDUCTOR_CACHE_DIR": f"{kit.work}/inductor",
        "TRITON_CACHE_DIR": f"{kit.work}/triton",
        "HF_HUB_OFFLINE": "1",
        **({"CUDA_VISIBLE_DEVICES": ""} if kit.device == "cpu" else {}),
    }


class Report:
    """The results so far, on the screen and in the output folder."""

    def __init__(self, kit: Kit, begun: float, about: dict[str, Any]) -> None:
        self.kit, self.begun, self.about = kit, begun, about
        self.results: dict[str, dict[str, Any]] = {}
        self.broken = ""
        self._lines = Path(kit.out, "results.jsonl")
        self._lines.write_text("")

    def add(self, check: Check, result: dict[str, Any]) -> None:
        """`result`: status ("ok", "FAIL", "not run"), figures or error, seconds."""
        self.results[check.name] = result
        print(line(check, result), flush=True)
        with self._lines.open("a") as file:
            file.write(json.dumps({"name": check.name, "part": check.part, **result}) + "\n")
        self.write()

    @property
    def status(self) -> int:
        return int(bool(self.broken) or any(result["status"] == "FAIL" for result in self.results.values()))

    def write(self) -> str:
        """Everything in one line of JSON, which is also in summary.json."""
        counts = [result["status"] for result in self.results.values()]
        summary = {
            "benchmark": "gpu",
            **{name: counts.count(name) for name in ("ok", "FAIL", "not run")},
            **({"broken": self.broken} if self.broken else {}),
            "seconds": round(time.monotonic() - self.begun, 1),
            "device": self.kit.device,
            "tiny": self.kit.tiny,
            **self.about,
            "checks": {
                name: {key: value for key, value in result.items() if key != "traceback"}
                for name, result in self.results.items()
            },
        }
        text = json.dumps(summary)
        Path(self.kit.out, "summary.json").write_text(f"{text}\n")
        return text


def line(check: Check, result: dict[str, Any]) -> str:
    if result["status"] == "not run":
        return f"not run: {check.name}: {result['error']}"
    if result["status"] == "FAIL":
        return f"FAIL {check.name}: {result['error'][:400]} ({result['seconds']:.1f} s)"
    figures = ", ".join(f"{name} {shown(value)}" for name, value in result["figures"].items())
    return f"ok   {check.name}: {figures} ({result['seconds']:.1f} s)"


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def run(report: Report, hosts: Hosts, options: argparse.Namespace) -> None:
    """Run the checks of the parts; ends when the preflight fails."""
    chosen = [check for check in checks() if options.only in check.name]
    for part in options.parts:
        deadline = time.monotonic() + 60 * options.minutes[part]
        for check in (check for check in chosen if check.part == part):
            left = deadline - time.monotonic()
            if left < check.least:
                report.add(check, {"status": "not run", "error": "no time left"})
                continue
            start = time.monotonic()
            limit = check.seconds * (SLOWER if options.tiny else 1)
            result = hosts.run(check, min(limit, left) if check.least else limit)
            report.add(check, {**result, "seconds": round(time.monotonic() - start, 1)})
            if part == 0 and result["status"] == "FAIL":
                return


if __name__ == "__main__":
    sys.exit(main())
