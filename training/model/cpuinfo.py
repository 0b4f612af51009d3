"""/proc/cpuinfo -> a property of this machine's processor."""

from pathlib import Path


def cpuinfo(key: str) -> str:
    """The value of a key such as "flags" or "model name" for the first core, or an empty string."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
