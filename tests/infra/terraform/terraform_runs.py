"""Terraform on a copy of infra/terraform: found, initialised without a network, run, its answers read."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.paths import REPOSITORY

SOURCE = REPOSITORY / "infra/terraform"
PLUGINS = (
    "CLOZE_TERRAFORM_PLUGINS"  # a folder with registry.terraform.io/hashicorp/aws, where no registry can be reached
)


class Terraform:
    """Runs of terraform in folders of one copy. The copy's working files are kept from run to run."""

    def __init__(self, copy: Path):
        self.copy = copy
        shutil.copytree(SOURCE, copy, symlinks=True, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))

    def run(self, *command: str, folder: str = ".", seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """The finished command, whatever its exit status."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        env |= {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"}
        env |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        return subprocess.run(
            ["terraform", f"-chdir={self.copy / folder}", *command],
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def succeed(self, *command: str, folder: str = ".") -> str:
        """What the command prints."""
        done = self.run(*command, folder=folder)
        assert done.returncode == 0, f"terraform {' '.join(command)} in {folder}: {done.stdout}{done.stderr}"
        return done.stdout

    def init(self, folder: str = ".", *options: str) -> None:
        """Skips the test where the provider is not to be had."""
        plugins = _plugins()
        found = [f"-plugin-dir={plugins}"] if plugins else []
        done = self.run("init", "-input=false", "-no-color", "-lockfile=readonly", *found, *options, folder=folder)
        if done.returncode and "hashicorp/aws" in done.stderr and not plugins:
            pytest.skip(f"the AWS provider is not here: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr

    def problems(self, *names: str) -> list[str]:
        """What the runs of these files of tests/ say is wrong."""
        events = self._events(*names)
        return [
            " ".join((event["diagnostic"]["summary"], event["diagnostic"].get("detail", "")))
            for event in events
            if event["type"] == "diagnostic" and event["diagnostic"]["severity"] == "error"
        ]

    def outputs(self, name: str) -> dict[str, dict[str, Any]]:
        """The outputs of each run of a file of tests/, which all pass."""
        return {
            run: {output: one["value"] for output, one in state.get("outputs", {}).items()}
            for run, state in self.states(name).items()
        }

    def states(self, name: str) -> dict[str, dict[str, Any]]:
        """The state after each run of a file of tests/, which all pass. Slower: prints the provider too."""
        events = self._events(name, verbose=True)
        assert events[-1]["test_summary"]["status"] == "pass", events[-1]
        return {event["@testrun"]: event["test_state"] for event in events if event["type"] == "test_state"}

    def _events(self, *names: str, verbose: bool = False) -> list[dict[str, Any]]:
        """What `terraform test` tells of its runs, one event a line."""
        chosen = [f"-filter=tests/{name}.tftest.hcl" for name in names]
        done = self.run("test", "-json", *(["-verbose"] if verbose else []), *chosen)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def is_missing() -> bool:
    return shutil.which("terraform") is None


def _plugins() -> str | None:
    """The folder of CLOZE_TERRAFORM_PLUGINS, or one where packages of programs usually are."""
    if given := os.environ.get(PLUGINS):
        return given
    places = [Path("/usr/share/terraform/plugins"), Path("/usr/local/share/terraform/plugins"), *Path("/opt").glob("*")]
    return next((str(place) for place in places if (place / "registry.terraform.io/hashicorp/aws").is_dir()), None)
