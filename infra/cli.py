"""The command line: what each command of cli_parser.py does, and how errors and interrupts end it."""

import argparse
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from cloze.infra import cli_models
from cloze.infra.cli_parser import new_parser
from cloze.infra.cli_shared import is_override, load_run, print_json
from cloze.infra.explain import explain
from cloze.infra.interrupts import end_process, ends_soon_when_interrupted
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.retries import reporting_waits
from cloze.pipeline.core.signals import interrupting_signal, keyboard_interrupt_on, own_ending

if TYPE_CHECKING:
    from cloze.infra.planner import PlannedStage, Run

_STOPPED = "\ncloze: stopped{}; the same command continues from the finished parts"
#: The argument of a command that may be left out: argparse does not find it after an option.
_OPTIONAL_ARGUMENTS = {"predict": "text", "inspect": "second", "fetch": "date"}


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
    line; 130: interrupted; 143: terminated; 141: nobody reads the output any more.
    """
    parser = new_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse accepts overrides in one place only; people also write them after options.
    takes_overrides = "overrides" in options
    wrong = [word for word in rest if not takes_overrides or not is_override(word)]
    rest = [word for word in rest if word not in wrong]
    late = _OPTIONAL_ARGUMENTS.get(options.command)
    if late and len(wrong) == 1 and not wrong[0].startswith("-") and getattr(options, late) is None:
        setattr(options, late, wrong.pop())
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if takes_overrides:
        options.overrides += rest
    try:
        with reporting_waits(_print_wait), ends_soon_when_interrupted(_STOPPED.format("")):
            status = int(_COMMANDS[options.command](options))
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as end:
        note, ending = f" ({end})" if str(end) else "", own_ending()
        print(f"{ending.line}{note}" if ending else _STOPPED.format(note), file=sys.stderr)
        return _exit_status(end)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads_stdout():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest of the buffer goes there
            return 128 + signal.SIGPIPE
        message = explain(error)
        if message is None:
            traceback.print_exception(error)
        else:
            print(f"cloze: {message}", file=sys.stderr)
        return _exit_status(error)


def _exit_status(error: BaseException) -> int:
    """The exit status of a command that this exception ends."""
    if isinstance(error, KeyboardInterrupt):
        ending = own_ending()
        return ending.status if ending else 128 + interrupting_signal()
    return 1 if explain(error) is None else 2


def _nobody_reads_stdout() -> bool:
    """Whether stdout is a pipe whose reader has ended, as in `cloze config | head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _print_wait(note: str) -> None:
    print(f"cloze: {note}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    return _materialize(options, load_run(options))


def _materialize(options: argparse.Namespace, run: "Run") -> int:
    from cloze.infra.estimate.record import estimate_start
    from cloze.infra.job_record import is_job, recorded_job

    until, force, wait = options.until, options.force or [], not options.no_wait
    with recorded_job(run, _exit_status) as first_attempt:
        if is_job():  # where it runs needs no Dagster
            from cloze.infra.execution import run_stages, still_forced

            estimate_start(run, until, still_forced(run, force, first_attempt))
            return run_stages(run, until, force, wait=wait, first_attempt=first_attempt)
        from cloze.infra.workflow.command import materialize

        estimate_start(run, until, force)
        return materialize(run, " ".join(["cloze", *sys.argv[1:]]), until=until, force=force, wait=wait)


def _finetune(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    run = load_run(options)
    from cloze.infra.live_report import render_run

    first = [
        planned.stage.name
        for planned in run.plan(force=options.force or [])
        if planned.action != "skip" and not planned.stage.is_task and not planned.stage.publish
    ]
    if first:
        stages = ", ".join(first)
        print(f"the tasks start from this run's pretraining, which is not finished; first: {stages}", file=sys.stderr)
    status = _materialize(options, run)
    if not any(stage.publish for stage in run.stages.values()):  # its report also reads stages that were not needed
        print(render_run(type(run)(run.config)))
    return status


def _plan(options: argparse.Namespace) -> int:
    run = load_run(options)
    plan = run.plan(options.until, options.force or [])
    if options.command == "plan":
        if options.cluster or options.estimate or options.calibrate or options.size:
            return _estimate(options, run, plan)
        if options.prices:
            raise UserError("--prices: are those of an estimate; add --cluster FILE or --estimate")
    if options.json:
        return print_json([_plan_entry(planned) for planned in plan])
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


def _estimate(options: argparse.Namespace, run: "Run", plan: "list[PlannedStage]") -> int:
    from cloze.infra.estimate.command import stage_estimates

    estimates = stage_estimates(
        run,
        plan,
        options.cluster,
        options.prices,
        options.size or [],
        calibrate=options.calibrate,
        show=not options.json,
    )
    if not options.json:
        return 0
    entries = zip(map(_plan_entry, plan), estimates, strict=True)
    return print_json([{**entry, "estimate": estimate and estimate.plain} for entry, estimate in entries])


def _plan_entry(planned: "PlannedStage") -> dict[str, Any]:
    return {
        "stage": planned.stage.name,
        "action": "run" if planned.waits_for else planned.action,  # the run finishes those stages first
        "reason": planned.reason,
        "output": planned.output and planned.output.location.uri,
        "fingerprint": planned.output and planned.output.fingerprint,
    }


def _status(options: argparse.Namespace) -> int:
    run = load_run(options)
    from cloze.infra.job_record import read_job
    from cloze.infra.status import print_status, statuses

    if options.json:
        job = read_job(run)
        return print_json([{**status.plain(), "job": job and job.plain()} for status in statuses(run)])
    print_status(run)
    return 0


def _report(options: argparse.Namespace) -> int:
    run = load_run(options)
    from cloze.infra.live_report import render_run

    print(render_run(run))
    return 0


def _config(options: argparse.Namespace) -> int:
    from cloze.infra.config_reference import configuration_markdown, print_keys

    if options.markdown:
        print(configuration_markdown(options.key), end="")
    else:
        print_keys(options.key)
    return 0


def _submit(options: argparse.Namespace) -> int:
    run = load_run(options)  # reports an error of the configuration here, not on the cluster
    run.check_forced(options.until, options.force or [])
    from cloze.infra.launch import commands

    return commands.render(options) if options.render else commands.submit(options)


def _job(options: argparse.Namespace) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from cloze.infra.launch import commands

    functions = {
        "list": commands.list_jobs,
        "status": commands.show_status,
        "logs": commands.show_logs,
        "stop": commands.stop,
        "wait": commands.wait,
    }
    try:
        return functions[options.action](options)
    except KeyboardInterrupt as end:
        if options.action not in ("logs", "stop", "wait"):
            raise
        print(f"\ncloze: detached from {options.job}, which goes on as it did", file=sys.stderr)
        return _exit_status(end)


def _promote(options: argparse.Namespace) -> int:
    from cloze.infra import promotion_commands as commands

    if options.list:
        return commands.list_events(options)
    if options.rollback:
        return commands.roll_back_run(options)
    if options.event is not None:
        return commands.promote_event(options)
    return commands.promote_run(options, load_run(options))


def _doctor(options: argparse.Namespace) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if options.run and is_override(options.run) and "=" in options.run:  # argparse takes the first override for RUN
        raise UserError(f"{options.run}: overrides belong to a run; name it before them")
    from cloze.infra.doctor.report import doctor

    return doctor(options.run, options.overrides, options.root, options.cluster, as_json=options.json)


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


_COMMANDS = {
    "run": _run,
    "finetune": _finetune,
    "plan": _plan,
    "status": _status,
    "report": _report,
    "export": cli_models.export,
    "predict": cli_models.predict,
    "embed": cli_models.embed,
    "compare": cli_models.compare,
    "inspect": cli_models.inspect,
    "promote": _promote,
    "submit": _submit,
    "job": _job,
    "fetch": _fetch,
    "config": _config,
    "doctor": _doctor,
}


if __name__ == "__main__":
    command()
