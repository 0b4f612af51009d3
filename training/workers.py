"""one function -> the same function in every worker of a Ray Train group, its progress shown in the driver.

The driver and its workers meet at a board, an actor: worker 0 writes there how far it is and reads whether the driver
wants it to leave; the driver ends workers of which nothing is heard any more, and Ray starts the group again.
"""

import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from pipeline.artifacts import Output, repeated
from pipeline.config import UserError

Tell = Callable[[float, str], bool]  # how much is done, and a note -> whether the driver wants worker 0 to leave
Work = Callable[[Any, Tell], None]  # the function: what it is given, how it tells its progress

_TELL_SECONDS = 0.5
_START_TIMEOUT = 1800.0  # seconds for all that comes before a group's first step, such as reading a checkpoint


class Group(NamedTuple):
    """How many workers, on how many processor cores each, and whether each has a GPU."""

    workers: int
    threads: int
    gpus: bool

    @classmethod
    def fitting(
        cls,
        cluster: Mapping[str, float],
        *,
        stage: str,
        gpus: int | Literal["auto"],
        workers: int | None,
        threads: int,
        without_gpus: int,
    ) -> "Group":
        """The group that was asked for; by itself a worker for each GPU, `without_gpus` of them where there is none.

        A machine with fewer cores than a worker has threads gives it those. Raises UserError when `cluster`
        (ray.cluster_resources()) has less than was asked for: Ray itself would wait for ever.
        """
        found, cores = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        threads = min(threads, cores)
        asked = found if gpus == "auto" else gpus
        count = workers or asked or max(1, min(without_gpus, cores // threads))
        if asked and max(asked, count) > found:
            raise UserError(f"{stage}: asks for {max(asked, count)} GPUs, there are {found}; lower gpus or workers")
        if count * threads > cores:
            raise UserError(
                f"{stage}: asks for {count} workers of {threads} processor cores, there are {cores} in all; "
                "lower workers or threads"
            )
        return cls(count, threads, asked > 0)


class _Board:
    """The actor where workers say that they have begun, and worker 0 how far it is."""

    def __init__(self) -> None:
        self._told = (0.0, "starting workers")
        self._heard = 0  # times that something was
        self._workers: list[Any] = []  # of the group that is at work
        self._stepping = False  # whether that group has told anything yet
        self._failure = ""
        self._leave = False

    def begin(self, worker: Any) -> str:
        """Every worker calls it with its actor's handle; it gets the failure that makes its work vain, if any."""
        self._heard += 1
        self._stepping = False
        self._workers.append(worker)
        return self._failure

    def tell(self, done: float, note: str) -> bool:
        self._heard += 1
        self._stepping = True
        self._told = (done, note)
        return self._leave

    def told(self) -> tuple[tuple[float, str], int, bool]:
        """What was told last, how often something was heard, and whether the group has told anything yet."""
        return self._told, self._heard, self._stepping

    def leave(self) -> None:
        self._leave = True

    def dismissed(self, note: str) -> list[Any]:
        """The workers' handles, which are the driver's to end; also those of groups that have long ended."""
        self._told = (self._told[0], note)
        workers, self._workers = self._workers, []
        return workers

    def fail(self, message: str) -> None:
        self._failure = message

    def failure(self) -> str:
        return self._failure


def fit(
    work: Work,
    argument: Any,
    group: Group,
    out: Output,
    total: float,
    unit: str,
    max_failures: int = 3,
    step_timeout: float | None = None,
    leaves: bool = False,
) -> None:
    """Call `work(argument, tell)` in every worker until all return; after a failure the whole group starts again.

    A group of which nothing is heard for `step_timeout` seconds is ended, which counts as a failure. `leaves` says that
    the work returns early once `tell` gives True: then a first SIGTERM makes it do so, and a second acts as ever.
    Each call is a Ray run with a name of its own, so that none inherits what another left behind. Raises the UserError
    that ended a worker, which no new start would mend; else Ray's TrainingFailedError, after `max_failures` of them;
    KeyboardInterrupt when the work has left early.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder, name = out.location / "ray", uuid.uuid4().hex
    resources = {"CPU": float(group.threads)} | ({"GPU": 1.0} if group.gpus else {})
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()  # no worker's node can take it
    trainer = TorchTrainer(
        _in_worker,
        train_loop_config={"work": work, "argument": argument, "board": board, "threads": group.threads},
        scaling_config=ScalingConfig(num_workers=group.workers, use_gpu=group.gpus, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=folder.path,
            storage_filesystem=folder.fs,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    with _terminated(leaves) as leave, _watched(board, out, total, unit, step_timeout, leave):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            if failure := _failure(board):
                raise failure from error
            raise
    if failure := _failure(board):
        raise failure
    (folder / name).delete()
    if not folder.files():  # another run of the same fingerprint may be at work
        folder.delete()
    if leave.is_set():
        raise KeyboardInterrupt


def _failure(board: Any) -> UserError | None:
    """What the user can mend, if a worker has told it."""
    import ray

    message = ray.get(board.failure.remote())
    return UserError(message) if message else None


def _in_worker(arguments: dict[str, Any]) -> None:
    import ray
    import torch
    import torch.distributed as dist

    board, told, leave = arguments["board"], 0.0, False
    if ray.get(board.begin.remote(ray.get_runtime_context().current_actor)):
        return  # Ray starts the group again after any failure, but the user's would only come again

    def tell(done: float, note: str) -> bool:
        nonlocal told, leave
        if dist.get_rank() == 0 and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            leave = bool(ray.get(board.tell.remote(done, note)))
        return leave

    torch.set_num_threads(arguments["threads"])
    try:
        arguments["work"](arguments["argument"], tell)
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise


@contextmanager
def _terminated(leaves: bool) -> Iterator[threading.Event]:
    """While inside, the first SIGTERM sets the event and does nothing else, if the work `leaves`."""
    wanted = threading.Event()
    if not leaves or threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield wanted
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(*_: object) -> None:
        wanted.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _watched(
    board: Any, out: Output, total: float, unit: str, step_timeout: float | None, leave: threading.Event
) -> Iterator[None]:
    """While inside, show what the board says, hand on the wish to leave, and end workers that are not heard of."""
    import ray
    from ray.exceptions import RayError

    heard, since = -1, time.monotonic()

    def look() -> bool:
        nonlocal heard, since
        try:
            (done, note), now_heard, stepping = ray.get(board.told.remote())
            if leave.is_set():
                board.leave.remote()
                note = f"{note}, saving and leaving"
            if now_heard != heard:
                heard, since = now_heard, time.monotonic()
            limit = step_timeout and (step_timeout if stepping else max(step_timeout, _START_TIMEOUT))
            if limit and time.monotonic() - since > limit:
                reason = f"nothing heard of the workers for {limit:g} s, starting others"
                for worker in ray.get(board.dismissed.remote(reason)):
                    ray.kill(worker)
                since = time.monotonic()
        except RayError:  # the cluster is going away, which fit() itself will tell
            return False
        out.progress(done, total, unit, note)
        return True

    with repeated(look, _TELL_SECONDS):
        yield
