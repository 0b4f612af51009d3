"""Cloze: a Wikipedia dump, books or your own documents become a pretrained, fine-tuned BERT.

    import cloze

    model = cloze.load("quickstart", root="runs")  # a run by its name or its YAML file, or an exported folder
    model.fill_mask("The [MASK] of the town")
    model.embed(["a text", "another"])  # [texts, hidden]

The command line is `cloze`; docs/ has the guides. In a clone this folder holds links to pipeline/, training/ and
infra/; an installed package holds the folders themselves.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cloze.training.checkpoints.pretrained_model import PretrainedModel

__all__ = ["load"]

try:
    __version__ = version("cloze")
except PackageNotFoundError:  # a copy that was sent to a cluster, not installed there
    __version__ = ""


def load(run: "str | Path", root: str | None = None) -> "PretrainedModel":
    """The pretrained model of a run, to fill masks and embed texts with.

    `run`: a YAML file, the name of a run under `root` ("runs" by default), or the folder of a Hugging Face BERT, such
    as `cloze export` writes. Raises ValueError, in one line, for what is missing or not finished.
    """
    from cloze.infra.load_model import load

    return load(run, root)
