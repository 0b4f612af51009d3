"""A run of three small stages that a promotion needs, for tests: a vocabulary, a "pretraining" and a "task".

The source file is JSON: {"loss": ..., "score": ...} are what the held-out loss and the score come out as.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest

from cloze.infra.checks import figures
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stage_inputs import FinalCheckpoint, StageOutput
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import Config, InputPath, identity, load
from cloze.pipeline.core.output import Output
from cloze.training.checkpoints.warm_start import is_name, weights_files
from cloze.training.finetune.manifest_facts import FinetuneFacts
from cloze.training.pretrain.manifest_facts import PretrainFacts
from tests.paths import QUICKSTART

_WEIGHTS = "checkpoints/final/model.safetensors"


class ToyPretrain(Config):
    data: Annotated[str, InputPath()]
    init: Annotated[str | None, InputPath(files_in=weights_files, is_name=is_name)] = None
    seed: int = 0


def write_vocab(config: Config, inputs: Mapping[str, Any], out: Output) -> Manifest:
    return out.finish([out.commit("vocab", {"vocab.txt": b"[PAD]\na\n"}, counts={"tokens": 1})], identity(config), {})


def pretrain(config: ToyPretrain, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """The weights are the source file's bytes, the seed and the digest of the weights that training started from."""
    data = inputs["data"].location.read_bytes()
    init = inputs["init"].sha256 if "init" in inputs else "random"
    weights = data + f" {config.seed} {init}".encode()
    digest = hashlib.sha256(weights).hexdigest()
    record = {"weights": f"pretrain/{out.fingerprint}/{_WEIGHTS}"}
    (out.root / "digests" / f"{digest}.{out.fingerprint}.json").write_text(json.dumps(record))
    row = {"loss": json.loads(data)["loss"]}
    facts = {
        "checkpoint": {"path": "checkpoints/final", "digest": digest, "step": 1},
        "metrics": {"train": row, "heldout": row},
    }
    return out.finish([out.commit("checkpoint", {_WEIGHTS: weights})], identity(config), {}, facts=facts)


def finetune(config: ToyPretrain, inputs: Mapping[str, Any], out: Output) -> Manifest:
    score = json.loads(inputs["data"].location.read_bytes())["score"]
    facts = {"scores": {"pretrained": {"accuracy": score, "interval": [score - 0.02, score + 0.02]}}}
    return out.finish([out.commit("scores", {"scores.json": b"{}"})], identity(config), {"labels": "0"}, facts=facts)


def stages(config: RunConfig) -> list[Stage]:
    assert config.extract and config.pretrain
    [source] = config.extract.sources
    data = next(iter(source.files))
    return [
        Stage("vocab", config.tokens, 1, write_vocab),
        Stage(
            "pretrain",
            ToyPretrain(data=data, init=config.pretrain.init, seed=config.pretrain.seed),
            1,
            pretrain,
            reads={"vocab": StageOutput("vocab")},
            facts=PretrainFacts,
            checks=(figures.PRETRAINING_FINITE, figures.HELDOUT_LOSS),
        ),
        Stage(
            "finetune-authors",
            ToyPretrain(data=data),
            1,
            finetune,
            reads={"checkpoint": FinalCheckpoint("pretrain")},
            facts=FinetuneFacts,
            checks=(figures.TASK_FINITE, figures.SCORE),
            is_task=True,
        ),
    ]


class Weekly:
    """The run `weekly`, which continues from weekly@promoted, under a root and with a source file."""

    def __init__(self, root: str, folder: Path, patch: pytest.MonkeyPatch):
        patch.setattr("cloze.infra.planner.stages", stages)
        self.root, self.source, self.file = root, folder / "dump.json", folder / "weekly.yaml"

    def config(self, overrides: Sequence[str] = ()) -> RunConfig:
        source = {"kind": "documents", "name": "dump", "files": [str(self.source)], "language": "en"}
        settings = [f"extract.sources={json.dumps([source])}", "pretrain.init=weekly@promoted", "finetune=[]"]
        return load(RunConfig, QUICKSTART, ["name=weekly", f"root={self.root}", *settings, *overrides])

    def run(self, *overrides: str, loss: float | None = None, score: float = 0.9) -> Run:
        """The run, with another source file if a `loss` is given."""
        if loss is not None:
            self.source.write_text(json.dumps({"loss": loss, "score": score}))
        return Run(self.config(overrides))
