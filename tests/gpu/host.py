"""A process that runs checks: python -m tests.gpu.host KIT HOST RESULTS, started by tests.gpu.

Reads a check as JSON per line from standard input. Writes its result as a line of JSON to the file descriptor RESULTS.
Whatever it and its children print goes to the log.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.gpu.kit import Check, Failed, Kit


def main() -> None:
    kit, host, results = Kit(**json.loads(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    os.set_inheritable(results, False)  # processes that outlive this one must not keep the pipe open
    if kit.tiny:
        prepare_dry_run()
    with session(host), os.fdopen(results, "w", buffering=1) as out:
        for line in sys.stdin:
            check = Check(*json.loads(line))
            print(f"\n===== {check.name}", flush=True)
            print(json.dumps(result(check, kit), default=str), file=out)
            release_memory()


def prepare_dry_run() -> None:
    """Compile without inductor, whose C++ takes most of a minute for each graph; one thread, as cores may be busy."""
    import torch

    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="aot_eager")


@contextmanager
def session(host: str) -> Iterator[None]:
    if host == "plain":
        yield
        return
    from cloze.infra.ray_session import ray_session

    with ray_session():
        yield


def result(check: Check, kit: Kit) -> dict[str, Any]:
    try:
        return {"ok": True, "figures": dict(check.call(kit))}
    except BaseException as error:  # also KeyboardInterrupt and SystemExit: the next check may still work
        traceback.print_exc()
        clean = isinstance(error, Failed)
        return {"ok": False, "clean": clean, "error": one_line(error), "traceback": traceback.format_exc()[-4000:]}


def one_line(error: BaseException) -> str:
    """The error and its first cause, in one line."""
    cause: BaseException = error
    while following := cause.__cause__ or cause.__context__:
        cause = following
    return "; from ".join(f"{type(one).__name__}: {message(one)}" for one in dict.fromkeys((error, cause)))


def message(error: BaseException) -> str:
    """Of several lines, which are mostly another process' traceback, the first and the last."""
    lines = [text for text in map(str.strip, str(error).splitlines()) if text.strip("^~")]
    return " ... ".join(dict.fromkeys(text[:300] for text in (*lines[:1], *lines[-1:])))


def release_memory() -> None:
    """Free the memory of the last check's models."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
