"""Jobs of different lengths -> several worker groups at once, which take them from one queue until it is empty.

A group keeps its processes from one job to the next, as starting them takes longer than a small job. When a worker is
killed, only its group starts again, with the job that it had begun.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, NamedTuple

from cloze.training.cluster.collectives import broadcast_object
from cloze.training.cluster.elastic import Placement, capacity, free_worker_slots
from cloze.training.cluster.heartbeat import Progress, ReportProgress, actor_on_this_node
from cloze.training.cluster.ray_train import RestartPolicy, WorkerGroup, run_group

JobFunction = Callable[[Any, Any, ReportProgress], None]  # called with the setup, a job's argument, and for progress


class Job(NamedTuple):
    """Work for one group. It starts when the jobs named in `after` are finished; those that are not queued are."""

    name: str
    argument: Any
    work: float  # in the unit of the progress
    after: tuple[str, ...] = ()


def startable_jobs(waiting: Sequence[Job], running: Sequence[Job] = ()) -> list[Job]:
    """Those of the waiting jobs that need not wait for another one."""
    unfinished = {job.name for job in [*waiting, *running]}
    return [job for job in waiting if unfinished.isdisjoint(job.after)]


class JobQueue:
    """The jobs that no group has taken, in order, and what each group is running. A Ray actor."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = list(jobs)
        self._running: dict[int, Job] = {}
        self._done: dict[int, float] = {}  # work

    def put_back(self, group: int) -> None:
        """Put the job of a group that was killed back to the front."""
        if job := self._running.pop(group, None):
            self._waiting.insert(0, job)

    def next(self, group: int) -> tuple[Job, float] | None:
        """A group has finished its job, if any: returns its next one, and the work that it has done. None if no job
        can start: when a group finishes a job that others wait for, it takes these itself.
        """
        if finished := self._running.pop(group, None):
            self._done[group] = self._done.get(group, 0.0) + finished.work
        if startable := startable_jobs(self._waiting, list(self._running.values())):
            job = self._running[group] = startable[0]
            self._waiting.remove(job)
            return job, self._done.get(group, 0.0)
        return None

    def has_job(self, group: int) -> bool:
        """Whether the group has a job that it has begun, or one that it can begin."""
        running = list(self._running.values())
        return group in self._running or bool(startable_jobs(self._waiting, running))


class SummedProgress:
    """Adds up what the groups report, each from its own thread, and shows it with the note of the last one."""

    def __init__(self, progress: Progress, groups: int) -> None:
        self._progress, self._done, self._lock = progress, [0.0] * groups, threading.Lock()

    def of_group(self, group: int) -> Progress:
        def report(done: float, total: float, unit: str, note: str) -> None:
            with self._lock:
                self._done[group] = done
                self._progress.show(self._progress.done + sum(self._done), note)

        return Progress(replace(self._progress.out, reporter=report), self._progress.total, self._progress.unit)


def run_jobs(
    function: JobFunction,
    setup: Any,
    jobs: Sequence[Job],
    placement: Placement,
    progress: Progress,
    max_groups: int | None = None,
) -> None:
    """Call `function(setup, job.argument, report_progress)` in every worker of a group, for each job.

    As many groups run at once as have room on the cluster and a job to begin with, but at least one and at most
    `max_groups`. On a cluster that scales, each group waits for its nodes. The function reports the work that is done
    within its job.

    Raises what `run_workers` raises, as soon as one group fails; the others are then killed, as all are by Ctrl-C.
    """
    import ray

    slots = capacity().slots(placement.threads, placement.gpus) if placement.scales else free_worker_slots(placement)
    fitting = slots // placement.workers
    groups = max(1, min(fitting, len(startable_jobs(jobs)), max_groups or fitting))
    queue, summed, cancelled = actor_on_this_node(JobQueue, jobs), SummedProgress(progress, groups), threading.Event()

    def run(number: int) -> None:
        group = WorkerGroup(_run_in_worker, (function, setup, queue, number), placement)
        run_group(
            group,
            RestartPolicy(),
            summed.of_group(number),
            stop=threading.Event(),
            cancelled=cancelled,
            is_needed=lambda: bool(ray.get(queue.has_job.remote(number))),
        )

    with ThreadPoolExecutor(groups) as threads:
        try:
            for ended in as_completed([threads.submit(run, number) for number in range(groups)]):
                ended.result()
        finally:
            cancelled.set()
            ray.kill(queue)  # workers that are still starting get no job


def _run_in_worker(argument: tuple[JobFunction, Any, Any, int], report_progress: ReportProgress) -> None:
    import ray
    import torch.distributed as dist

    function, setup, queue, group = argument
    is_first = dist.get_rank() == 0
    if is_first:
        ray.get(queue.put_back.remote(group))
    while taken := broadcast_object(ray.get(queue.next.remote(group)) if is_first else None):
        job, done = taken
        function(setup, job.argument, lambda done_in_job, note, done=done: report_progress(done + done_in_job, note))
