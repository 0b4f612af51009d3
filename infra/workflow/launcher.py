"""How Dagster starts, watches and terminates the process of a run."""

import os
import signal
import time
from contextlib import suppress

import dagster
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus  # the interface has no public name

from cloze.infra.workflow.queue import ROOT
from cloze.infra.workflow.run_process import ENDED, has_ended, process_of, report_ended
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.processes import this_process

_SECONDS_TO_TELL = 600.0  # in which a run that was started has told its process, also on a loaded machine


class ProcessLauncher(dagster.DefaultRunLauncher):
    """Dagster's launcher of processes. It knows when one has ended, also one that another Dagster or `cloze run` has
    started, and ends it although the server that has started it no longer exists."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dagster.DagsterRun) -> CheckRunHealthResult:
        if has_ended(run) or (ROOT in run.tags and process_of(run) is None and self._was_started_long_ago(run)):
            return CheckRunHealthResult(WorkerStatus.FAILED, ENDED)
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def _was_started_long_ago(self, run: dagster.DagsterRun) -> bool:
        record = self._instance.get_run_record_by_id(run.run_id)
        return bool(record and record.start_time and time.time() - record.start_time > _SECONDS_TO_TELL)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run as Ctrl-C does: it saves, keeps what is finished, and ends within seconds."""
        run = self._instance.get_run_by_id(run_id)
        process = run and process_of(run)
        if not run or run.is_finished or not process:
            return super().terminate(run_id)
        if has_ended(run):
            self._stop_job(run)
            self._instance.report_run_canceling(run)
            report_ended(self._instance, self._instance.get_run_by_id(run_id) or run)
            return True
        if process.machine != this_process().machine:
            if not self._stop_job(run):
                return super().terminate(run_id)
            self._instance.report_run_canceling(run)
            return True
        self._instance.report_run_canceling(run)
        with suppress(ProcessLookupError):  # it ends just now
            os.kill(process.pid, signal.SIGINT)
        return True

    def _stop_job(self, run: dagster.DagsterRun) -> bool:
        """Stop the run's job on a cluster, which this process can reach although it cannot reach the run's own: the
        process that follows the job then ends. Returns whether it is stopped."""
        from cloze.infra.workflow.cluster import stop_job  # imports all of a run's stages

        try:
            return stop_job(run)
        except UserError as error:
            self._instance.report_engine_event(str(error), run)
            return False
