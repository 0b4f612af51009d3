"""The command line: cloze COMMAND RUN [key=value ...], where COMMAND is run, finetune, plan, status, report, export,
predict or submit; and cloze config [KEY].
"""

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

from cloze.infra.interrupts import end_process, ends_soon_when_interrupted
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.signals import interrupting_signal, keyboard_interrupt_on

if TYPE_CHECKING:
    from cloze.infra.planner import PlannedStage, Run

_RUN = """RUN is a YAML file (anything that contains a / or ends in .yaml or .yml, such as ./quickstart.yaml), or
the name of a run that was started before under --root: its configuration is then the one that it was last
started with, which is stored in ROOT/runs/NAME.yaml. key=value overrides a key of the configuration; so
do the keys of another YAML file. `cloze config` lists all keys.
"""
_JSON = {
    "plan": """--json prints one list, an object for each stage, in order:
  stage, action (run, continue, skip; wait if one of your files is missing), reason,
  output (a path or s3://), fingerprint: null while they depend on a stage that is not finished
""",
    "status": """--json prints one list, an object for each stage, in order:
  stage, state (done, half-done, not started, waiting), reason,
  location (a path or s3://), fingerprint, bytes (of all files there): null while waiting,
  seconds, counts, drops (name -> number): null unless the stage is finished,
  progress ({parts, checkpoint_step}): null unless half-done,
  owner (of the run that is writing it: host, pid, since, done, total, unit; or null),
  warnings (a list of lines), heldout (the newest held-out row of metrics.jsonl, or null),
  scores (pretrained, random, majority, ... -> accuracy, interval, ..., or null),
  metric, scored_split (of a finished task: the score that counts, and the split: test or dev; or null),
  page (the location of the report, or null)
NaN and infinite numbers are null.
""",
    "predict": """--json prints one list, for each [MASK] a list of {piece, probability}, the most likely first.
With --task the output is always JSON: an object for each line, with `predicted` and probabilities. With --input these
are columns of Parquet files.
""",
}
_EPILOG = """examples:
  cloze run configs/quickstart.yaml                        run all stages that are not finished
  cloze finetune configs/finetune.yaml                     fine-tune a model that is already there
  cloze plan configs/quickstart.yaml vocab.size=8000       show which stages that change would run again
  cloze run configs/quickstart.yaml root=s3://bucket/runs  write all outputs to S3
  cloze status quickstart --root s3://bucket/runs          name a run that was started before
  cloze export configs/quickstart.yaml --to my-bert        write a model for AutoModel and AutoTokenizer
  cloze predict configs/quickstart.yaml "She opened the [MASK]."
  cloze export configs/quickstart.yaml --task authors --to my-classifier --onnx
  cloze predict configs/quickstart.yaml --task authors < texts.txt
  cloze predict configs/quickstart.yaml --task authors --input texts.parquet --to predictions
  cloze submit configs/bert-base.yaml --cluster configs/clusters/local.yaml
  cloze config pretrain.optimizer                          list these configuration keys
"""

_STOPPED = "\ncloze: stopped{}; the same command continues from the finished parts"


def command() -> NoReturn:
    """The entry point of the command line."""
    status = main()
    if status > 128:  # interrupted
        end_process(status)
    sys.exit(status)


@keyboard_interrupt_on(signal.SIGINT, signal.SIGTERM)  # a terminated driver stops as an interrupted one does
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status.

    0: success; 1: a bug or a hardware fault, with a traceback; 2: an error that the user can fix, with a message of one
    line; 130: interrupted; 143: terminated.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse accepts overrides in one place only; people also write them after options.
    takes_overrides = "overrides" in options
    wrong = [word for word in rest if not takes_overrides or not _is_override(word)]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if takes_overrides:
        options.overrides += rest
    try:
        with reporting_waits(_print_wait), ends_soon_when_interrupted(_STOPPED.format("")):
            return int(options.command(options))
    except KeyboardInterrupt as end:
        print(_STOPPED.format(f" ({end})" if str(end) else ""), file=sys.stderr)
        return 128 + interrupting_signal()
    except Exception as error:
        message = explain(error)
        if message is None:
            traceback.print_exception(error)
            return 1
        print(f"cloze: {message}", file=sys.stderr)
        return 2


def _print_wait(note: str) -> None:
    print(f"cloze: {note}", file=sys.stderr)


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.endswith((".yaml", ".yml")))


def explain(error: BaseException | None) -> str | None:
    """The message of an error that a user can fix, however deep Beam or Ray has wrapped it; None for other errors."""
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
            return f"Dagster's history: {current}; set DAGSTER_HOME to a writable folder on a disk with free space"
        pending += [current.__cause__, getattr(current, "cause", None), current.__context__]
    return None


def _explain_os_error(error: OSError) -> str | None:
    fixes = {
        errno.ENOSPC: "no space is left on the device; free some or set root= to another disk",
        errno.EDQUOT: "the disk quota is used up; free some or set root= to another disk",
        errno.EACCES: "no permission; change the folder's owner or set root= to a folder that you own",
        errno.EPERM: "not permitted; change the folder's owner or set root= to a folder that you own",
        errno.EROFS: "the file system is read-only; set root= to a folder that can be written",
        errno.ENOTDIR: "a part of that path is a file, not a folder; correct the path",
    }
    if error.errno in fixes:
        name = error.filename2 or error.filename
        return f"{name}: {fixes[error.errno]}" if name else fixes[error.errno]
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith("s3://"):
        return f"{error.filename}: is missing; run the same command again: what is finished is kept"
    text = str(error)  # in another process a StorageError may have become a plain OSError
    return text if error.errno is None and text.startswith("s3://") else None


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    run = _load(options)
    from cloze.infra.workflow import materialize

    command = " ".join(["cloze", *sys.argv[1:]])
    return materialize(run, command, until=options.until, force=options.force or [], wait=not options.no_wait)


def _finetune(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    run = _load(options)
    from cloze.infra.live_report import render_run
    from cloze.infra.workflow import materialize

    first = [
        planned.stage.name
        for planned in run.plan(force=options.force or [])
        if planned.action != "skip" and not planned.stage.is_task and not planned.stage.publish
    ]
    if first:
        stages = ", ".join(first)
        print(f"the tasks start from this run's pretraining, which is not finished; first: {stages}", file=sys.stderr)
    command = " ".join(["cloze", *sys.argv[1:]])
    status = materialize(run, command, force=options.force or [], wait=not options.no_wait)
    if not any(stage.publish for stage in run.stages.values()):  # its report also reads stages that were not needed
        print(render_run(type(run)(run.config)))
    return status


def _plan(options: argparse.Namespace) -> int:
    plan = _load(options).plan(options.until, options.force or [])
    if options.json:
        return _print_json([_plan_entry(planned) for planned in plan])
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cloze.infra.display import relative_path

    table = Table("stage", "", "why", "output", box=None, pad_edge=False, header_style="bold")
    for planned in plan:
        if planned.output:
            output = relative_path(planned.output.location)
        else:
            names = planned.waits_for or ("its file exists",)
            output = f"after {names[0] if len(names) == 1 else 'the stages before it'}"
        table.add_row(*map(Text, (planned.stage.name, _plan_entry(planned)["action"], planned.reason, output)))
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def _plan_entry(planned: "PlannedStage") -> dict[str, Any]:
    return {
        "stage": planned.stage.name,
        "action": "run" if planned.waits_for else planned.action,  # the run finishes those stages first
        "reason": planned.reason,
        "output": planned.output and planned.output.location.uri,
        "fingerprint": planned.output and planned.output.fingerprint,
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
    from cloze.infra.export import export_run, export_task
    from cloze.pipeline.core.storage import Location

    to = Location(options.to).absolute()
    if options.task:
        export_task(run, options.task, to, options.onnx)
    else:
        export_run(run, to, options.onnx)
    print(to)
    return 0


def _predict(options: argparse.Namespace) -> int:
    if options.task:
        return _predict_task(options)
    if options.input or options.to:
        raise UserError("--input and --to require a fine-tuned model: name its task with --task")
    if not options.text:
        raise UserError("give a TEXT with [MASK], or --task NAME and its inputs as lines of standard input")
    run = _load(options)
    from cloze.infra.export import print_predictions
    from cloze.infra.load_model import model_of

    predictions = model_of(run).fill_mask(options.text)
    if options.json:
        return _print_json([[prediction._asdict() for prediction in of_mask] for of_mask in predictions])
    print_predictions(predictions)
    return 0


def _predict_task(options: argparse.Namespace) -> int:
    """Print a JSON object for each line of standard input; with --input write files instead."""
    if options.text:
        options.overrides.insert(0, options.text)  # argparse takes the first override for the text
    if bool(options.input) != bool(options.to):
        raise UserError("--input and --to belong together: the files to read, and the folder for their predictions")
    if wrong := [word for word in options.overrides if not _is_override(word)]:
        raise UserError(f"{wrong[0]!r}: with --task the inputs are lines of standard input, or files with --input")
    run = _load(options)
    if options.input:
        from cloze.infra.predict_files import predict_files
        from cloze.pipeline.core.storage import Location

        to = Location(options.to).absolute()
        predict_files(run, options.task, options.input, to)
        print(to)
        return 0
    from cloze.infra.export import predict_lines

    for prediction in predict_lines(run, options.task, sys.stdin):
        print(json.dumps(prediction, ensure_ascii=False), flush=True)
    return 0


def _config(options: argparse.Namespace) -> int:
    from cloze.infra.config_reference import configuration_markdown, print_keys

    if options.markdown:
        print(configuration_markdown(options.key), end="")
    else:
        print_keys(options.key)
    return 0


def _print_json(value: Any) -> int:
    print(json.dumps(_finite(value), indent=1, allow_nan=False))
    return 0


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinite numbers, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _submit(options: argparse.Namespace) -> int:
    _load(options)  # reports an error of the configuration here, not on the cluster
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
    # Ray and Dagster read these when they are imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    from cloze.infra import named_runs
    from cloze.infra.planner import Run

    run = Run(named_runs.read(options.run, options.overrides, options.root), only_tasks=options.only_tasks)
    for name in [*(options.force or []), *([options.until] if options.until else [])]:
        run.stage(name)
    return run


class _Parser(argparse.ArgumentParser):
    """Prints an error in one line, without the usage."""

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
        ("run", _run, "run all stages that are not finished"),
        ("finetune", _finetune, "run the fine-tuning tasks and the stages that they need"),
        ("plan", _plan, "show what `run` would do, and why"),
        ("status", _status, "show the state and the results of each stage"),
        ("report", _report, "write the HTML report about the finished stages"),
        ("export", _export, "write the pretrained or a fine-tuned model for transformers and the Hugging Face Hub"),
        (
            "predict",
            _predict,
            "predict each [MASK] of a text, or with --task what the lines of standard input are",
        ),
        ("submit", _submit, "submit the run to a Ray cluster, follow its log, return its exit status"),
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
            command.add_argument("text", metavar="TEXT", nargs="?", help='such as "She opened the [MASK]."')
        command.add_argument(
            "overrides",
            metavar="key=value",
            nargs="*",
            default=[],
            help="for example pretrain.seed=7; or a YAML file with such keys",
        )
        command.add_argument(
            "--root",
            metavar="ROOT",
            help='a folder or s3://bucket/prefix that overrides root; for the name of a run the default is "runs"',
        )
        command.set_defaults(until=None, force=None, json=False, only_tasks=name == "finetune")
        if name in _JSON:
            command.add_argument("--json", action="store_true", help="print JSON; see below")
        if name in ("run", "finetune"):
            command.add_argument("--dry-run", action="store_true", help="show the plan, as `cloze plan` does")
            command.add_argument(
                "--no-wait", action="store_true", help="fail if another run is writing an output that this one needs"
            )
        if name in ("run", "plan", "submit"):
            command.add_argument("--until", metavar="STAGE", help="run the stages up to this one")
        if name in ("run", "finetune", "plan", "submit"):
            command.add_argument(
                "--force",
                metavar="STAGE",
                action="append",
                help="run this stage again, even if it is finished (may be repeated)",
            )
        if name in ("export", "predict"):
            command.add_argument("--task", metavar="NAME", help="the fine-tuned model of this task")
        if name == "predict":
            command.add_argument(
                "--input",
                metavar="PATH",
                action="append",
                help="with --task: predict all rows of a file (.parquet, .jsonl, .csv, .tsv), glob or folder (may be "
                "repeated)",
            )
            command.add_argument(
                "--to",
                metavar="DIR",
                help="with --input: a new folder, or s3://bucket/prefix, for Parquet files with the rows and their "
                "predictions; repeated, an interrupted prediction continues",
            )
        if name == "export":
            command.add_argument(
                "--to", metavar="DIR", required=True, help="a new or empty folder, or s3://bucket/prefix"
            )
            command.add_argument("--onnx", action="store_true", help="also write model.onnx, for onnxruntime")
        if name == "submit":
            command.add_argument("--cluster", metavar="YAML", required=True, help="such as configs/clusters/local.yaml")
        command.set_defaults(command=function)
    _add_config(commands)
    _add_fetch(commands)
    return parser


def _add_config(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "list the configuration keys: type, default and meaning"
    command = commands.add_parser("config", help=text, description=text)
    command.add_argument(
        "key", metavar="KEY", nargs="?", help="only this key, or the keys below it: pretrain.optimizer"
    )
    command.add_argument(
        "--markdown", action="store_true", help="print Markdown, as in docs/reference/configuration.md"
    )
    command.set_defaults(command=_config)


def _add_fetch(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "download a finished Wikipedia dump, continue an interrupted download, check its digests"
    command = commands.add_parser("fetch", help=text, description=text)
    command.add_argument("source", choices=["wikipedia"], metavar="wikipedia", help="what to download")
    command.add_argument("language", metavar="LANG", help="code of the Wikipedia's language, such as en")
    command.add_argument(
        "date", metavar="DATE", nargs="?", help="such as 20261101; by default the newest finished dump"
    )
    command.add_argument("--to", metavar="DIR", default="data", help="a folder, or s3://bucket/prefix (default: data)")
    command.add_argument("--mirror", metavar="URL", help="of a server with the layout of https://dumps.wikimedia.org")
    command.set_defaults(command=_fetch)


def _fetch(options: argparse.Namespace) -> int:
    from cloze.infra.display import relative_path
    from cloze.infra.fetch.download import fetch
    from cloze.infra.fetch.http import Http
    from cloze.infra.fetch.wikipedia import MIRROR, find_dump
    from cloze.pipeline.core.storage import Location

    http = Http()
    dump = find_dump(http, options.language, options.date, (options.mirror or MIRROR).rstrip("/"))
    folder = fetch(http, dump, Location(options.to).absolute())
    print(f"files: [{relative_path(folder)}/*.xml*.bz2]")
    return 0


if __name__ == "__main__":
    command()
