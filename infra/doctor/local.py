"""What this machine needs in addition to what every node does: ports, Ray's token, room for the root."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cloze.infra.doctor.check import Check, missing, ok, warning
from cloze.infra.doctor.machine_checks import disk_space
from cloze.infra.doctor.machine_facts import MachineFacts, disk, writing_error
from cloze.pipeline.core.storage import Location, nearest_existing

_OTHERS_MAY_READ = 0o077
_CONNECT_SECONDS = 5.0
_LISTENS = "0A"  # the state of a socket in /proc/net/tcp


def local_checks(facts: MachineFacts, root: Location) -> Iterator[Check]:
    """Returns the checks of the machine that runs `cloze`."""
    if facts.gpus and facts.cuda:
        import torch

        yield torch_gpus(len(facts.gpus), torch.cuda.device_count())
    yield loopback()
    yield port(8265, "Ray's dashboard", "ray/dashboard", "ray start --dashboard-port=8266")
    yield port(3000, "Dagster's UI", "dagster", "CLOZE_CONFIG=RUN.yaml python -m cloze.infra.workflow -p 3001")
    yield ray_token(Path.home() / ".ray" / "auth_token")
    if root.local_path:
        yield root_folder(root.local_path)


def torch_gpus(installed: int, visible: int) -> Check:
    """Returns whether torch finds the GPUs that the driver lists."""
    check = "torch's GPUs"
    if visible >= installed:
        return ok(check, f"finds {visible}")
    found = f"finds {visible} of {installed}"
    if (selected := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return warning(check, f"{found}, as CUDA_VISIBLE_DEVICES={selected}", "unset it to use all")
    fix = "python -c 'import torch; torch.cuda.init()' prints the reason"
    return missing(check, found, fix)


def loopback() -> Check:
    """Returns whether processes of this machine can connect to each other, as those of Ray and Beam do."""
    check = "local ports"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), _CONNECT_SECONDS).close()
    except OSError as error:
        return missing(check, f"cannot connect to 127.0.0.1 ({error.strerror or error})", "ip link set lo up, as root")
    return ok(check, "can listen on 127.0.0.1")


def port(number: int, use: str, program: str, fix: str) -> Check:
    """Returns whether a port is free, or used by the program that it is meant for: part of its command line."""
    check = f"port {number}"
    try:
        socket.create_server(("127.0.0.1", number)).close()
    except OSError:
        pid, command = _listener(number)
        if program in command:
            return ok(check, f"{use} (process {pid})")
        user = f"process {pid} ({command[:60].strip()})" if pid else "another user's process"
        return warning(check, f"is used by {user}, so not free for {use}", f"end it, or {fix}")
    return ok(check, f"is free for {use}")


def _listener(number: int) -> tuple[int, str]:
    """The process of this user that listens on a TCP port, and its command line; (0, "") if there is none."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for row in map(str.split, Path(table).read_text().splitlines()[1:]):
                if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == number:
                    sockets.add(f"socket:[{row[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                return int(process.name), (process / "cmdline").read_text().replace("\0", " ")
    return 0, ""


def ray_token(file: Path) -> Check:
    """Returns whether the token that Ray sends to clusters can be used, if there is one."""
    check = "Ray's token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ok(check, "in RAY_AUTH_TOKEN")
    if not file.exists():
        return ok(check, "none: clusters with auth: token need RAY_AUTH_TOKEN or ~/.ray/auth_token")
    again = "write the cluster's token into it, or create one: ray get-auth-token --generate"
    try:
        if not file.read_bytes().strip():
            return missing(check, f"{file} is empty", again)
    except OSError as error:
        return missing(check, f"{file} cannot be read ({error.strerror})", again)
    if file.stat().st_mode & _OTHERS_MAY_READ:
        return warning(check, f"{file} can be read by other users", f"chmod 600 {file}")
    return ok(check, str(file))


def root_folder(root: Path) -> Check:
    """Returns whether the root's disk can be written and has room."""
    folder = nearest_existing(root)
    if not folder.is_dir():
        return missing("root", f"{folder} is a file", "set root= to a folder")
    if error := writing_error(folder):
        return missing("root", f"{folder}: no file can be created ({error})", "set root= to a folder that you own")
    return disk_space(disk(folder), "root", "set root= to a folder on another disk")
