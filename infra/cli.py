"""cloze run|plan|status|report|export|predict|submit RUN [key=value ...] [--root ROOT]"""

import argparse
import errno
import json
import math
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.signals import keyboard_interrupt_on

if TYPE_CHECKING:
    from cloze.infra.planner import Run, Step

_RUN = """RUN is a YAML file (anything with a / in it, or that ends in .yaml or .yml: ./quickstart.yaml), or else the
name of a run that was started before under --root: then its configuration is the one that it was last
started with, which ROOT/runs/NAME.yaml keeps. key=value overrides any key of it, and so do the keys of a
further YAML file.
"""
_JSON = {
    "plan": """--json prints one list, an object for each stage, in order:
  stage, action (run, continue, skip; wait where a file of yours is missing), reason,
  output (a path or s3://), fingerprint: null while they hang on what a stage before will give
""",
    "status": """--json prints one list, an object for each stage, in order:
  stage, state (done, half-done, not started, waiting), reason,
  location (a path or s3://), fingerprint, bytes (of all that lies there): null while waiting,
  seconds, counts, drops (name -> number): null unless the stage has ended,
  progress ({parts, checkpoint_step}): null unless half-done,
  warnings (a list of lines), heldout (the newest held-out row of metrics.jsonl, or null),
  scores (pretrained, random, majority -> accuracy, interval, ..., or null), page (the report's, or null)
A number that is none (NaN, infinite) is null.
""",
    "predict": """--json prints one list, for each [MASK] a list of {piece, probability}, the likeliest first
""",
}
_EPILOG = """examples:
  cloze run configs/quickstart.yaml                        every stage that is not done yet
  cloze plan configs/quickstart.yaml vocab.size=8000       what that change would run again
  cloze run configs/quickstart.yaml root=s3://bucket/runs  the same, on S3
  cloze status quickstart --root s3://bucket/runs          a run by its name, from any folder
  cloze export configs/quickstart.yaml --to my-bert        what transformers' AutoModel and AutoTokenizer load
  cloze predict configs/quickstart.yaml "She opened the [MASK]."
  cloze submit configs/bert-base.yaml --cluster configs/clusters/local.yaml
"""


@keyboard_interrupt_on(
    signal.SIGTERM
)  # a terminated driver ends as an interrupted one: workers stopped, the last line said
def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: done; 1: a bug or a fault of the machine, with a traceback; 2: one line that says what to mend."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes overrides in one place only; people write them behind options, too.
    if wrong := [
        word for word in rest if word.startswith("-") or not ("=" in word or word.endswith((".yaml", ".yml")))
    ]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    options.overrides += rest
    try:
        return int(options.command(options))
    except KeyboardInterrupt as end:
        saved = f" ({end})" if str(end) else ""
        print(f"\ncloze: stopped{saved}; the same command goes on from what is finished", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            traceback.print_exception(error)
            return 1
        print(f"cloze: {message}", file=sys.stderr)
        return 2


def explain(error: BaseException | None) -> str | None:
    """The line for a fault that a user can mend, however deep a runner has wrapped it; None for any other."""
    seen: list[BaseException] = []
    pending = [error]
    while pending:
        current = pending.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        if isinstance(current, UserError):
            return str(current)
        if isinstance(current, OSError) and (line := _explain_os_error(current)):
            return line
        if isinstance(current, sqlite3.OperationalError):
            return f"Dagster's history: {current}; set DAGSTER_HOME to a folder with space that can be written"
        pending += [current.__cause__, getattr(current, "cause", None), current.__context__]
    return None


def _explain_os_error(error: OSError) -> str | None:
    mends = {
        errno.ENOSPC: "no space is left on the device; free some or set root= to another disk",
        errno.EDQUOT: "the disk quota is used up; free some or set root= to another disk",
        errno.EACCES: "no permission; change the folder's owner or set root= to a folder of yours",
        errno.EPERM: "not permitted; change the folder's owner or set root= to a folder of yours",
        errno.EROFS: "the file system is read-only; set root= to a folder that can be written",
        errno.ENOTDIR: "a part of that path is a file, not a folder; correct the path",
    }
    if error.errno in mends:
        name = error.filename2 or error.filename
        return f"{name}: {mends[error.errno]}" if name else mends[error.errno]
    text = str(error)
    if "AWS Error" in text or "S3" in text:  # pyarrow gives the service's answer as text alone
        first = " ".join(text.split())
        return f"S3: {first[:300]}; check root=, AWS_ENDPOINT_URL, AWS_REGION and the credentials"
    return None


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    run = _load(options)
    from cloze.infra.workflow import materialize

    command = " ".join(["cloze", *sys.argv[1:]])
    return materialize(run, command, until=options.until, force=options.force or [])


def _plan(options: argparse.Namespace) -> int:
    steps = _load(options).plan(options.until, options.force or [])
    if options.json:
        return _print_json([_planned(step) for step in steps])
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cloze.infra.display import shown

    table = Table("stage", "", "why", "output", box=None, pad_edge=False, header_style="bold")
    for step in steps:
        names = step.waits_for or ("its file is there",)
        before = names[0] if len(names) == 1 else "the stages before it"
        output = shown(step.output.location) if step.output else f"after {before}"
        table.add_row(*map(Text, (step.stage.name, _planned(step)["action"], step.reason, output)))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def _planned(step: "Step") -> dict[str, Any]:
    from cloze.infra.planner import NOT_YET

    return {
        "stage": step.stage.name,
        "action": "run" if step.reason == NOT_YET else step.action,  # a run would come to it
        "reason": step.reason,
        "output": step.output and step.output.location.uri,
        "fingerprint": step.output and step.output.fingerprint,
    }


def _status(options: argparse.Namespace) -> int:
    run = _load(options)
    from cloze.infra.status import print_status, statuses

    if options.json:
        return _print_json([status.plain() for status in statuses(run)])
    print_status(run)
    return 0


def _report(options: argparse.Namespace) -> int:
    run = _load(options)
    from cloze.infra.live_report import render_run

    print(render_run(run))
    return 0


def _export(options: argparse.Namespace) -> int:
    run = _load(options)
    from cloze.infra.export import export_run
    from cloze.pipeline.core.storage import Location

    to = Location(options.to).absolute()
    export_run(run, to)
    print(to)
    return 0


def _predict(options: argparse.Namespace) -> int:
    run = _load(options)
    from cloze.infra.export import guesses, print_guesses

    found = guesses(run, options.text)
    if options.json:
        return _print_json([[guess._asdict() for guess in of_mask] for of_mask in found])
    print_guesses(found)
    return 0


def _print_json(value: Any) -> int:
    print(json.dumps(_finite(value), indent=1, allow_nan=False))
    return 0


def _finite(value: Any) -> Any:
    """The same with None for a number that JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _submit(options: argparse.Namespace) -> int:
    _load(options)  # a wrong configuration is said here, not on the cluster
    from cloze.infra.launch.ray_jobs import submit

    return submit(
        options.run,
        options.overrides,
        options.cluster,
        until=options.until,
        force=options.force or [],
        root=options.root,
    )


def _load(options: argparse.Namespace) -> "Run":
    # Both packages look for these at import time.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    from cloze.infra import named_runs
    from cloze.infra.planner import Run

    run = Run(named_runs.read(options.run, options.overrides, options.root))
    for name in [*(options.force or []), *([options.until] if options.until else [])]:
        run.stage(name)
    return run


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cloze: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cloze",
        description="A Wikipedia dump, books or a team's own documents in; a pretrained, fine-tuned BERT out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("run", _run, "bring about every output that is not there yet"),
        ("plan", _plan, "say what `run` would do, and why"),
        ("status", _status, "say how far each stage is and what it scores by now"),
        ("report", _report, "write the page about the run, from what is finished"),
        ("export", _export, "write the pretrained model as transformers and the Hugging Face Hub take it"),
        ("predict", _predict, "say what the pretrained model would put in place of each [MASK]"),
        ("submit", _submit, "send the run to a Ray cluster, follow its log, return its exit status"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text}\n\n{_RUN}",
            epilog=_JSON.get(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("run", metavar="RUN", help="such as configs/quickstart.yaml, or quickstart")
        if name == "predict":
            command.add_argument("text", metavar="TEXT", help='such as "She opened the [MASK]."')
        command.add_argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="for example pretrain.seed=7; or a YAML file of such keys",
        )
        command.add_argument(
            "--root",
            metavar="ROOT",
            help='a folder or s3://bucket/prefix: root= of the run; of a NAME "runs" by default',
        )
        command.set_defaults(until=None, force=None, json=False)
        if name in _JSON:
            command.add_argument("--json", action="store_true", help="for a program to read; see below")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="what `plan` does")
        if name in ("run", "plan", "submit"):
            command.add_argument("--until", metavar="STAGE", help="stop after this stage")
            command.add_argument("--force", metavar="STAGE", action="append", help="run this stage again (repeatable)")
        if name == "export":
            command.add_argument(
                "--to", metavar="DIR", required=True, help="a new or empty folder, or s3://bucket/prefix"
            )
        if name == "submit":
            command.add_argument("--cluster", metavar="YAML", required=True, help="such as configs/clusters/local.yaml")
        command.set_defaults(command=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
