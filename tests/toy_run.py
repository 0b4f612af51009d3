"""A run of three small stages, letters -> words -> pages, for the tests of what brings stages about."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest

from infra.run import Run, RunConfig, Stage
from pipeline.artifacts import Manifest, Output
from pipeline.config import Compute, Config, identity

VERSION = 1

#: Called with the stage and the letter before a part is made: a test puts a failure here.
before_part: Callable[[str, str], None] | None = None


class ToyConfig(Config):
    parts: str = "abc"
    size: int = 1
    warning: str = ""
    workers: Annotated[int, Compute] = 1


def run(config: ToyConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """Each letter of `parts` becomes a part with one file; vowels are dropped."""
    for done, letter in enumerate(config.parts, start=1):
        if out.part(letter) is None:
            if before_part:
                before_part(out.stage, letter)
            vowel = letter in "aeiou"
            files = {} if vowel else {f"letters/{letter}.txt": letter.encode() * config.size}
            out.commit(letter, files, counts={"letters": int(not vowel)}, drops={"vowels": int(vowel)})
        out.progress(done, len(config.parts), "letters")
    facts: dict[str, Any] = {
        "inputs": sorted(inputs),
        "checkpoint": {"path": "", "digest": f"digest of {config.parts}", "step": 0},
    }
    if config.warning:
        facts["warnings"] = [config.warning]
    return out.finish(out.planned(list(config.parts)), identity(config), {}, facts=facts)


def toy_run(patch: pytest.MonkeyPatch, root: str | Path, source: str | Path, **configs: ToyConfig) -> Run:
    """The run `toy` on that root: letters reads the file `source`, words reads letters, pages hangs on words' digest.

    `configs` gives a stage other settings than the default. Lasts as long as `patch`.
    """
    config = {name: configs.get(name, ToyConfig()) for name in ("letters", "words", "pages")}
    stages = [
        Stage("letters", __name__, config["letters"], sources={"data": [str(source)]}),
        Stage("words", __name__, config["words"], inputs={"letters": "letters"}),
        Stage("pages", __name__, config["pages"], inputs={"checkpoint": "words", "letters": "letters"}),
    ]
    patch.setattr("infra.run.stages", lambda _: stages)
    patch.setattr("training.pretrain.final_checkpoint", lambda artifact: artifact.manifest.facts["checkpoint"])
    return Run(RunConfig.model_construct(name="toy", root=str(root), schedule="0 3 * * 0"))
