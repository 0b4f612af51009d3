"""The first half minute: versions, and five steps of a tiny model. If it fails, nothing else is tried."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from tests.gpu.kit import Figures, Kit, require

PACKAGES = (
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "numpy",
    "ray",
    "deepspeed",
    "pydantic",
    "tensorboardX",
    "protobuf",
)


def preflight(kit: Kit) -> Figures:
    import torch

    from cloze.training.model.compiled import can_compile

    found = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in PACKAGES},
    }
    print(found, flush=True)
    require("missing" not in (found["ray"], found["deepspeed"], found["pydantic"]), f"not installed: {found}")
    if kit.device == "cuda":
        require(torch.cuda.is_available(), f"torch finds no GPU: {found}")
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cards": torch.cuda.device_count(),
            "bf16": torch.cuda.is_bf16_supported(),
            "compiles": can_compile(torch.device("cuda")),
            "driver": _driver(),
        }
    return {**found, "losses": five_losses(kit)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _driver() -> str:
    """The driver's version and the card's clocks, as nvidia-smi prints them."""
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit,memory.used"
    try:
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def five_losses(kit: Kit) -> list[float]:
    """Train five steps on the packed examples, in bf16 on a GPU."""
    from tests.gpu.training import engine, model, packed_batches

    trained = engine(kit, model(kit), precision="bf16" if kit.device == "cuda" else "fp32")
    losses = []
    for step, batch in enumerate(packed_batches(kit, 5, 32)):
        result = trained.step([batch], 1e-4 * (step + 1), step)
        require(result is not None, "the step was abandoned")
        losses.append(round(result.totals.means()["loss"], 4))
    require(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    return losses
