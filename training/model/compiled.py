"""A model -> the same model with its encoder layers compiled by torch.compile, in place.

Between a layer's matrix products there are dropout, residual sums, LayerNorm and GELU, each of which reads and writes
whole hidden states. Compilation fuses them. All layers share one compiled function; names of parameters stay.
"""

import importlib.util
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cloze.training.model.masked_lm_loss import softmax_step


def compile_layers(model: nn.Module) -> None:
    """Compile the encoder layers, which are `bert.layers`, and the softmax of the masked-LM head, if it has one.

    The first step with each new kind of shape compiles for some seconds. A second length or number of rows compiles a
    version for all others.
    """
    for layer in cast(Any, model.get_submodule("bert.layers")):
        layer.compile()
    head = getattr(model, "mlm", None)
    if head is not None and hasattr(head, "softmax"):
        head.softmax = torch.compile(softmax_step)


def without_compilation() -> AbstractContextManager[None]:
    """Compiled layers run as written."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def can_compile(device: torch.device) -> bool:
    """Whether this is a GPU for which layers can be compiled: it needs Triton, and what Triton builds its launcher
    with.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    return importlib.util.find_spec("triton") is not None and _can_build_extensions()


def _can_build_extensions() -> bool:
    """Whether there are a C compiler and Python's headers, which a distribution may package on their own."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]  # as in triton/runtime/build.py
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return any(map(shutil.which, compilers)) and headers.is_file()
