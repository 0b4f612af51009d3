"""A run of three small stages, letters -> words -> pages, for the tests of the planner, the workflow and status."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import pytest

from cloze.infra.checks.check import Check
from cloze.infra.planner import Run
from cloze.infra.run_config import RunConfig
from cloze.infra.stage_inputs import FinalCheckpoint, StageOutput
from cloze.infra.stages import Stage
from cloze.pipeline.core.artifacts import Manifest
from cloze.pipeline.core.config import Compute, Config, InputPath, identity, load
from cloze.pipeline.core.output import Output
from cloze.training.finetune.manifest_facts import FinetuneFacts
from tests.paths import QUICKSTART

VERSION = 1
VERSION_REASON = ""

#: Called with the stage and the letter before a part is created: a test sets a failure here.
before_part: Callable[[str, str], None] | None = None


class ToyConfig(Config):
    file: Annotated[str | None, InputPath("data")] = None
    parts: str = "abc"
    size: int = 1
    warning: str = ""
    workers: Annotated[int, Compute] = 1


def run(config: ToyConfig, inputs: Mapping[str, Any], out: Output) -> Manifest:
    """Each letter of `parts` becomes a part with one file; vowels are dropped."""
    letters = letters_of(config, inputs)
    for done, letter in enumerate(letters, start=1):
        if out.finished_part(letter) is None:
            if before_part:
                before_part(out.stage, letter)
            vowel = letter in "aeiou"
            files = {} if vowel else {f"letters/{letter}.txt": letter.encode() * config.size}
            out.commit(letter, files, counts={"letters": int(not vowel)}, drops={"vowels": int(vowel)})
        out.report_progress(done, len(letters), "letters")
    facts: dict[str, Any] = {"inputs": sorted(inputs), "checkpoint": _checkpoint(config)}
    if config.warning:
        facts["warnings"] = [config.warning]
    return out.finish(out.require_parts(list(letters)), identity(config), {}, facts=facts)


def letters_of(config: ToyConfig, inputs: Mapping[str, Any]) -> str:
    """The letters, each of which becomes a part: a test may take them from the inputs."""
    return config.parts


def _checkpoint(config: ToyConfig) -> dict[str, Any]:
    return {"path": "letters", "digest": f"digest of {config.parts}", "step": len(config.parts)}


def toy_run(
    patch: pytest.MonkeyPatch,
    root: str | Path,
    source: str | Path,
    checks: Mapping[str, tuple[Check, ...]] = MappingProxyType({}),
    overrides: Sequence[str] = (),
    **configs: ToyConfig,
) -> Run:
    """The run `toy` on that root: letters reads the file `source`, words reads letters, pages depends on words' digest.

    `configs` sets the configurations of stages, `checks` their checks. Lasts as long as `patch`.
    """
    letters, words, pages = (configs.get(name, ToyConfig()) for name in ("letters", "words", "pages"))
    letters = letters.model_copy(update={"file": str(source)})
    stages = [
        Stage(
            "letters",
            letters,
            VERSION,
            run,
            facts=FinetuneFacts,
            version_reason=VERSION_REASON,
            checks=checks.get("letters", ()),
        ),
        Stage("words", words, VERSION, run, reads={"letters": StageOutput("letters")}),
        Stage(
            "pages",
            pages,
            VERSION,
            run,
            reads={"checkpoint": FinalCheckpoint("words"), "letters": StageOutput("letters")},
        ),
    ]
    patch.setattr("cloze.infra.planner.stages", lambda _: stages)
    quickstart = QUICKSTART
    return Run(load(RunConfig, quickstart, ["name=toy", f"root={root}", *overrides]))
