"""one function -> the same function in every worker of a Ray Train group, its progress shown in the driver."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from pipeline.artifacts import Output, repeated
from pipeline.config import UserError

Tell = Callable[[float, str], None]  # how much is done, and a note
Work = Callable[[Any, Tell], None]  # the function: what it is given, how it tells its progress

_TELL_SECONDS = 0.5


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
    """The actor where worker 0 writes how far it is."""

    def __init__(self) -> None:
        self._told = (0.0, "starting workers")
        self._failure = ""

    def tell(self, done: float, note: str) -> None:
        self._told = (done, note)

    def told(self) -> tuple[float, str]:
        return self._told

    def fail(self, message: str) -> None:
        self._failure = message

    def failure(self) -> str:
        return self._failure


def fit(work: Work, argument: Any, group: Group, out: Output, total: float, unit: str, max_failures: int = 3) -> None:
    """Call `work(argument, tell)` in every worker until all return; after a failure the whole group starts again.

    Each call is a Ray run with a name of its own, so that none inherits what another left behind. Raises the UserError
    that ended a worker, which no new start would mend; else Ray's TrainingFailedError, after `max_failures` of them.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    folder, name = out.location / "ray", uuid.uuid4().hex
    resources = {"CPU": float(group.threads)} | ({"GPU": 1.0} if group.gpus else {})
    board = ray.remote(num_cpus=0)(_Board).remote()
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
    with _shown(board, out, total, unit):
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


def _failure(board: Any) -> UserError | None:
    """What the user can mend, if a worker has told it."""
    import ray

    message = ray.get(board.failure.remote())
    return UserError(message) if message else None


def _in_worker(arguments: dict[str, Any]) -> None:
    import ray
    import torch
    import torch.distributed as dist

    board, told = arguments["board"], 0.0
    if ray.get(board.failure.remote()):
        return  # Ray starts the group again after any failure, but the user's would only come again

    def tell(done: float, note: str) -> None:
        nonlocal told
        if dist.get_rank() == 0 and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            board.tell.remote(done, note)

    torch.set_num_threads(arguments["threads"])
    try:
        arguments["work"](arguments["argument"], tell)
    except UserError as error:
        ray.get(board.fail.remote(str(error)))
        raise


@contextmanager
def _shown(board: Any, out: Output, total: float, unit: str) -> Iterator[None]:
    """While inside, show what the board says."""
    import ray
    from ray.exceptions import RayError

    def look() -> bool:
        try:
            done, note = ray.get(board.told.remote())
        except RayError:  # the cluster is going away, which fit() itself will tell
            return False
        out.progress(done, total, unit, note)
        return True

    with repeated(look, _TELL_SECONDS):
        yield
