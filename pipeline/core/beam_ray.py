"""Beam pipelines on a Ray cluster: Beam's runner in this process, its SDK harnesses on all nodes.

Only the names of work items travel through Beam. When a worker is lost, the others finish their current items, and the
pipeline runs again. Items skip what is finished, so a lost node costs the items that it worked on. The same happens
when more workers have started, because nodes have joined the cluster.
"""

import contextlib
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from cloze.pipeline.core.beam_harness import HarnessActor, HarnessReport
from cloze.pipeline.core.beam_losses import LossCounter, LostWorker
from cloze.pipeline.core.beam_metrics import run_to_end
from cloze.pipeline.core.beam_workers import connection_errors_hidden
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import cluster_cpus, without_gpu_nodes

if TYPE_CHECKING:
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner.worker_handlers import GrpcWorkerHandler
    from apache_beam.runners.runner import PipelineRunner

_START_SECONDS = 600.0  # until the first worker has started; a new machine takes minutes
_SETTLE_SECONDS = 5.0  # workers that start this soon after each other are used together
_DETECTION_SECONDS = 120.0  # from a broken connection until Ray reports the lost node
_END_SECONDS = 5.0  # for idle workers to delete their folders, before they are killed
_POLL_SECONDS = 0.2


def run_on_cluster(running: "beam.Pipeline", max_workers: int | None) -> None:
    """Run the pipeline to its end, with a worker for each CPU of the cluster, at most `max_workers`.

    Raises LostWorkerError when workers are lost on the same item again and again, or while no item is finished.
    """
    from apache_beam.options.pipeline_options import DirectOptions

    losses = LossCounter()
    with connection_errors_hidden(), _WorkerPool(max_workers) as pool:
        while True:
            attempt = _Attempt(running, pool)
            running.options.view_as(DirectOptions).direct_num_workers = len(attempt.workers)
            if attempt.run():
                return
            lost = [LostWorker(worker.work, worker.loss) for worker in pool.remove_lost()]
            losses.add_attempt(lost, attempt.finished_items)


class _Worker:
    """An actor of the cluster, and what it has reported."""

    def __init__(self) -> None:
        import ray

        actor: Any = ray.remote(HarnessActor)
        # Two calls at once: `drain` arrives while `run` runs.
        options = {"num_cpus": 1, "scheduling_strategy": "SPREAD", "label_selector": without_gpu_nodes()}
        self._actor = actor.options(**options, max_concurrency=2).remote()
        self.ready: Any = self._actor.is_ready.remote()
        self.started = False
        self.reports: Any = None  # the stream of its harness's reports, while one runs
        self.work = ""
        self.loss = ""  # how it was lost
        self.error: Exception | None = None  # Ray's, of a lost actor

    def run_harness(self, variables: dict[str, str]) -> None:
        self.work = ""
        self.reports = self._actor.run.options(num_returns="streaming").remote(variables)

    def drain(self) -> None:
        self._actor.drain.remote()

    def kill(self) -> None:
        import ray

        ray.kill(self._actor)
        self.reports = None

    def receive(self, reference: Any) -> Any:
        """Returns the value of an available reference; None if the actor is lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

        try:
            return ray.get(reference)
        except (RayTaskError, RuntimeEnvSetupError):
            raise
        except RayError as error:
            self.loss, self.error = "with its node or its process", error
            return None


class _WorkerPool:
    """A worker for each CPU of the cluster. Those that find no free CPU wait: their demand makes the cluster grow."""

    def __init__(self, limit: int | None):
        self._limit = limit
        self._workers = list[_Worker]()
        self._last_start = 0.0

    def __enter__(self) -> "_WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()

    def start(self) -> list[_Worker]:
        """Returns the workers that have started.

        Raises UserError when none has started after ten minutes, and Ray's error when none can start.
        """
        cpus = cluster_cpus()
        wanted = cpus if self._limit is None else max(1, min(self._limit, cpus))
        self._workers += [_Worker() for _ in range(wanted - len(self._workers))]
        deadline = time.monotonic() + _START_SECONDS
        while not (started := self.started()):
            if self._workers and all(worker.error for worker in self._workers):
                raise next(worker.error for worker in self._workers if worker.error)
            if time.monotonic() > deadline:
                raise UserError(
                    "beam: no worker has started on the Ray cluster within ten minutes, as no CPU is free; add nodes, "
                    "or wait for other jobs, and run again: finished parts are kept"
                )
            time.sleep(_POLL_SECONDS)
        return started

    def started(self) -> list[_Worker]:
        """The workers that have started; none while more of them start."""
        import ray

        starting = {worker.ready: worker for worker in self._workers if not (worker.started or worker.loss)}
        if starting:
            for reference in ray.wait(list(starting), num_returns=len(starting), timeout=0)[0]:
                starting[reference].started = starting[reference].receive(reference) or False
                self._last_start = time.monotonic()
        started = [worker for worker in self._workers if worker.started]
        waits = len(started) < len(self._workers) and time.monotonic() < self._last_start + _SETTLE_SECONDS
        return [] if waits else started

    def remove_lost(self) -> list[_Worker]:
        """Remove the lost workers and return them."""
        lost = [worker for worker in self._workers if worker.loss]
        self._workers = [worker for worker in self._workers if not worker.loss]
        for worker in lost:
            worker.kill()
        return lost


class _Attempt:
    """One execution of the pipeline, on the workers that have started."""

    def __init__(self, running: "beam.Pipeline", pool: _WorkerPool):
        self._running, self._pool = running, pool
        self.workers = pool.start()
        self.finished_items = False  # whether an item was finished
        self._handlers = list["GrpcWorkerHandler"]()
        self._error: BaseException | None = None  # with which Beam has ended
        self._ended = threading.Event()  # Beam has finished or failed, and will close its connections
        self._may_close = threading.Event()

    def run(self) -> bool:
        """Returns True if the pipeline has finished, False if it is to run again: workers are lost, or more started.

        Raises the pipeline's error.
        """
        self._running.runner = _runner(self)
        thread = threading.Thread(target=self._execute, daemon=True)
        thread.start()
        try:
            runs_again = self._watch()
            if runs_again:
                self._drain()
            elif not self._error:
                self._drain(_END_SECONDS)
            else:
                for worker in self.workers:
                    worker.kill()
        finally:
            self._may_close.set()
        while thread.is_alive():
            self._fail_pending_bundles()
            thread.join(_POLL_SECONDS)
        if self._error and not runs_again:
            raise self._error
        return not self._error

    def start_harness(self, handler: "GrpcWorkerHandler", variables: dict[str, str]) -> None:
        """Called by Beam for each of its worker handlers."""
        self.workers[len(self._handlers)].run_harness(variables)
        self._handlers.append(handler)

    def wait_to_close(self) -> None:
        """Called by Beam before it closes its connections: items that still run must not lose theirs."""
        self._error = sys.exc_info()[1]
        self._ended.set()
        self._may_close.wait()

    def _execute(self) -> None:
        try:
            run_to_end(self._running)
        except Exception as error:
            self._error = error
        self._ended.set()

    def _watch(self) -> bool:
        """Wait until Beam has ended (returns False), or the pipeline has to run again (returns True)."""
        ended = None
        while True:
            self._receive_reports()
            if self._ended.is_set():
                # The connection to a lost node breaks before Ray reports the loss.
                ended = ended or time.monotonic()
                if not _is_broken_connection(self._error) or time.monotonic() > ended + _DETECTION_SECONDS:
                    return False
            if any(worker.loss for worker in self.workers) or len(self._pool.started()) > len(self.workers):
                return True

    def _drain(self, seconds: float = math.inf) -> None:
        """Wait until all workers have finished their items or are lost, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        running = [worker for worker in self.workers if worker.reports]
        for worker in running:
            worker.drain()
        while any(worker.reports and not worker.loss for worker in running) and time.monotonic() < deadline:
            self._receive_reports()

    def _receive_reports(self) -> None:
        """Receive the reports that arrive within a moment."""
        import ray

        streams = {worker.reports: worker for worker in self.workers if worker.reports and not worker.loss}
        if not streams:
            time.sleep(_POLL_SECONDS)
            return
        available, _ = ray.wait(list(streams), num_returns=len(streams), timeout=_POLL_SECONDS, fetch_local=False)
        for stream in cast(list[Any], available):
            worker = streams[stream]
            try:
                report: HarnessReport | None = worker.receive(next(stream))
            except StopIteration:
                worker.reports = None
                continue
            if report:
                self.finished_items |= worker.work not in ("", report.work)
                worker.work = report.work
                worker.loss = report.loss

    def _fail_pending_bundles(self) -> None:
        """Let Beam end, which waits indefinitely for what lost workers have not finished."""
        from apache_beam.portability.api import beam_fn_api_pb2

        for handler in self._handlers:
            for future in list(handler.control_conn._futures_by_id.values()):
                response = beam_fn_api_pb2.InstructionResponse(
                    instruction_id=future.instruction_id, error="a worker was lost"
                )
                future.set(response)


def _is_broken_connection(error: BaseException | None) -> bool:
    from grpc import RpcError

    return isinstance(error, RpcError) or "Channel closed prematurely" in str(error)  # Beam's data channel


def _runner(attempt: _Attempt) -> "PipelineRunner":
    """Returns Beam's local runner, with the workers of this attempt."""
    import ray
    from apache_beam.portability import python_urns
    from apache_beam.portability.api import endpoints_pb2
    from apache_beam.runners.portability.fn_api_runner import worker_handlers
    from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment, python_sdk_capabilities
    from google.protobuf import json_format, text_format

    address = ray.util.get_node_ip_address()

    class ActorHandler(worker_handlers.GrpcWorkerHandler):
        """Beam's side of a worker."""

        def __init__(self, _: bytes, *arguments: Any):
            super().__init__(*arguments)

        def host_from_worker(self) -> str:
            return address

        def start_worker(self) -> None:
            variables = {
                "WORKER_ID": self.worker_id,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                    endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
                ),
                "PIPELINE_OPTIONS": json_format.MessageToJson(self.provision_info.provision_info.pipeline_options),
            }
            attempt.start_harness(self, variables)

        def close(self) -> None:
            """Without waiting for the worker, which may be lost, as Beam would do."""
            attempt.wait_to_close()
            self.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)
            with contextlib.suppress(Exception):  # of a broken connection
                self.data_conn.close()

    worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(ActorHandler)
    # Beam's decorator hides the type of what it decorates.
    environment = SubprocessSDKEnvironment("", python_sdk_capabilities())  # pyright: ignore[reportCallIssue]
    return FnApiRunner(default_environment=environment)
