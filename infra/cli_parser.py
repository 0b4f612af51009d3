"""The arguments of the command line, and their help."""

import argparse
from typing import NoReturn

from cloze.infra.cli_model_options import OUTPUTS, add_model_arguments, add_model_options

_RUN = """RUN is a YAML file (anything that contains a / or ends in .yaml or .yml, such as ./quickstart.yaml), or
the name of a run that was started before under --root: its configuration is then the one that it was last
started with, which is stored in ROOT/runs/NAME.yaml. key=value overrides a key of the configuration; so
do the keys of another YAML file. NAME@promoted is the run that is promoted as NAME, as it was then.
`cloze config` lists all keys.
"""
_JSON = {
    "plan": """--json prints one list, an object for each stage, in order:
  stage, action (run, continue, skip; wait if one of your files is missing), reason,
  output (a path or s3://), fingerprint: null while they depend on a stage that is not finished;
  with --cluster, --estimate, --calibrate or --size also estimate: null for a stage that is skipped, otherwise
  seconds, cpu_seconds, gpu_seconds, dollars, memory_bytes, gpu_bytes, disk_bytes (that stay), scratch_bytes (while it
  runs), s3_requests (null where unknown), measured (false if a rate is not measured), notes (a list of lines)
""",
    "status": """--json prints one list, an object for each stage, in order:
  stage, state (done, half-done, not started, waiting), reason,
  location (a path or s3://), fingerprint, bytes (of all files there): null while waiting,
  seconds, counts, drops (name -> number): null unless the stage is finished,
  progress ({parts, checkpoint_step}): null unless half-done,
  owner (of the run that is writing it: host, pid, since, done, total, unit; or null),
  job (the last job of this run, the same for each stage: id, cluster, started, ended, exit_status; or null),
  warnings (a list of lines), heldout (the newest held-out row of metrics.jsonl, or null),
  scores (pretrained, random, majority, ... -> accuracy, interval, ..., or null),
  metric, scored_split (of a finished task: the score that counts, and the split: test or dev; or null),
  overlap (of a task whose examples were compared with the training text: see the guide "results"; or null),
  page (the location of the report, or null),
  checks (of a finished stage, a list of {stage, name, passed, message, value, reference, limit})
NaN and infinite numbers are null.
""",
    "promote": """--json prints the event, with --list a list of all, the oldest first:
  number, kind (promote or rollback), digest (of the pretrained checkpoint), run,
  stages (name -> folder and fingerprint of the output), init (what pretraining started from, or null),
  by (user@host), when, why, restores (of a rollback: the number of the event that it returns to)
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
  cloze embed quickstart --input texts.parquet --to vectors --layers second-to-last
  cloze inspect quickstart "He sat on the bank of the river." "The bank lent him money."   attention, as a page
  cloze submit configs/bert-base.yaml --cluster configs/clusters/local.yaml
  cloze submit configs/bert-base.yaml --detach             a job of this machine, which outlives the terminal
  cloze job list                                           the jobs of this machine, or of a --cluster
  cloze fetch wikipedia simple                             the newest dump of the Simple English Wikipedia
  cloze compare quickstart authors --labels 50,200,1000    how many labels did pretraining save?
  cloze promote my-wiki --why "two points better"          my-wiki@promoted is now this run's model
  cloze export my-wiki@promoted --to my-bert               whatever my-wiki has trained since
  cloze doctor --cluster configs/clusters/local.yaml       what is missing there, and how to fix it
  cloze plan configs/bert-base.yaml --size enwiki=24GB --cluster CLUSTER.yaml   what would it take, and cost?
  cloze config pretrain.optimizer                          list these configuration keys
"""


_RUN_COMMANDS = {
    "run": "run all stages that are not finished",
    "finetune": "run the fine-tuning tasks and the stages that they need",
    "plan": "show what `run` would do, and why",
    "status": "show the state and the results of each stage",
    "report": "write the HTML report about the finished stages",
    "export": "write the pretrained or a fine-tuned model for transformers and the Hugging Face Hub",
    "predict": "predict each [MASK] of a text, or with --task what the lines of standard input are",
    "embed": "compute a vector for each line of standard input, or each row of files",
    "compare": "compare a task's model with others by number of labels: what did pretraining save?",
    "inspect": "write an HTML page that shows what the pretrained model makes of a text, or of two",
    "promote": "promote a finished run that passes its checks, for NAME@promoted",
    "submit": "submit the run as a job, follow its log, return its exit status",
}


class _Parser(argparse.ArgumentParser):
    """Prints an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cloze: {message}; see {self.prog} --help\n")


def new_parser() -> argparse.ArgumentParser:
    """Returns the parser. Its options have the name of the command as `command`."""
    parser = _Parser(
        prog="cloze",
        description="A Wikipedia dump, books or a team's own documents in; a pretrained, fine-tuned BERT out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in _RUN_COMMANDS.items():
        _add_run_command(commands, name, text)
    _add_job(commands)
    _add_config(commands)
    _add_doctor(commands)
    _add_fetch(commands)
    return parser


def _add_run_command(commands: "argparse._SubParsersAction[_Parser]", name: str, text: str) -> None:
    """A command of a run: RUN, overrides and --root, and what only some of these commands have."""
    command = commands.add_parser(
        name,
        help=text,
        description=f"{text}\n\n{_RUN}",
        epilog=OUTPUTS.get(name) or _JSON.get(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("run", metavar="RUN", help="such as configs/quickstart.yaml, or quickstart")
    add_model_arguments(command, name)
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
    command.set_defaults(command=name, until=None, force=None, json=False, only_tasks=name == "finetune")
    if name in _JSON or name in ("predict", "compare"):
        command.add_argument("--json", action="store_true", help="print JSON; see below")
    _add_execution(command, name)
    add_model_options(command, name)
    options = {
        "plan": _add_estimate,
        "promote": _add_promote,
        "submit": _add_submit,
    }
    if name in options:
        options[name](command)


def _add_execution(command: argparse.ArgumentParser, name: str) -> None:
    """The options about which stages are executed."""
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


def _add_promote(command: argparse.ArgumentParser) -> None:
    command.add_argument("--as", dest="name", metavar="NAME", help="the name to promote it as; by default the run's")
    command.add_argument("--why", metavar="TEXT", default="", help="the reason, which is kept")
    action = command.add_mutually_exclusive_group()
    action.add_argument("--rollback", action="store_true", help="return to the model that was promoted before")
    action.add_argument("--event", metavar="N", type=int, help="promote again what event N of --list has promoted")
    action.add_argument("--list", action="store_true", help="list all promotions and rollbacks, the oldest first")


def _add_submit(command: argparse.ArgumentParser) -> None:
    _add_cluster(command)
    command.add_argument("--detach", action="store_true", help="print the job's id and return")
    command.add_argument(
        "--render", action="store_true", help="on Kubernetes: print the RayJob as YAML and send nothing"
    )


def _add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cluster", metavar="YAML", help="such as configs/clusters/local.yaml; by default this machine"
    )


def _add_job(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "list, follow and stop the jobs that `submit` has started"
    actions = commands.add_parser("job", help=text, description=text).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    for name, text in (
        ("list", "list the jobs, the newest first"),
        ("status", "show the state of a job: pending, running, succeeded, failed or stopped"),
        ("logs", "print the log of a job"),
        ("stop", "ask a job to save and end; it has five minutes"),
        ("wait", "wait for the end of a job, return the run's exit status"),
    ):
        command = actions.add_parser(name, help=text, description=text)
        if name != "list":
            command.add_argument("job", metavar="ID", help="the job's id, as `cloze job list` shows it")
        _add_cluster(command)
        if name in ("list", "status"):
            command.add_argument(
                "--json",
                action="store_true",
                help="print JSON: id, run, root, state, reason, submitted, started, ended, exit_status",
            )
        if name == "logs":
            command.add_argument("--follow", action="store_true", help="print what is added until the job ends")
        if name == "stop":
            command.add_argument("--wait", action="store_true", help="return when the job has ended")
        command.set_defaults(command="job")


def _add_estimate(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cluster",
        metavar="YAML",
        help="estimate what the stages that would run take on this cluster: time, machines, dollars, memory, disk",
    )
    command.add_argument("--estimate", action="store_true", help="the same on this machine")
    command.add_argument(
        "--calibrate", action="store_true", help="the same; first measure this machine's speed, in 20 seconds"
    )
    command.add_argument("--prices", metavar="YAML", help="by default configs/prices.yaml")
    command.add_argument(
        "--size",
        metavar="SOURCE=SIZE",
        action="append",
        help="the size of a source whose files are not here, such as enwiki=24GB (may be repeated)",
    )


def _add_config(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "list the configuration keys: type, default and meaning"
    command = commands.add_parser("config", help=text, description=text)
    command.add_argument(
        "key", metavar="KEY", nargs="?", help="only this key, or the keys below it: pretrain.optimizer"
    )
    command.add_argument(
        "--markdown", action="store_true", help="print Markdown, as in docs/reference/configuration.md"
    )
    command.set_defaults(command="config")


def _add_doctor(commands: "argparse._SubParsersAction[_Parser]") -> None:
    text = "check what is missing on this machine, on S3 and on a cluster, and how to fix it"
    command = commands.add_parser(
        "doctor",
        help=text,
        description=f"{text}\n\nOne line for each check, with its fix: ok, warning (slower, or some runs fail) or\n"
        "missing (runs fail). The exit status is 2 if something is missing, else 0.",
        epilog="--json prints one list, an object for each check: where, check, state, found, fix",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("run", metavar="RUN", nargs="?", help="a run, whose root and sources on S3 are checked")
    command.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="as for `cloze run`")
    command.add_argument("--root", metavar="ROOT", help='a folder or s3://bucket/prefix; the default is "runs"')
    command.add_argument("--cluster", metavar="YAML", help="such as configs/clusters/local.yaml")
    command.add_argument("--json", action="store_true", help="print JSON; see below")
    command.set_defaults(command="doctor")


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
    command.set_defaults(command="fetch")
