"""Terraform in one folder: a plan is saved, can be looked at, and is then applied exactly as it was shown."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloze.infra.scripts import tools
from cloze.infra.scripts.environment import Environment


@dataclass(frozen=True)
class Root:
    """A root module: its folder, the file of its saved plan, its variables beside those of terraform.tfvars."""

    folder: Path
    plan_file: Path
    variables: Mapping[str, str]
    backend: Mapping[str, str]  # of the S3 state; empty: the state is in the folder

    def init(self) -> None:
        settings = [f"-backend-config={key}={value}" for key, value in self.backend.items()]
        tools.run(*self._terraform, "init", "-input=false", *settings)

    def plan(self, *, destroy: bool = False) -> dict[str, Any]:
        """Save a plan; returns it as `terraform show -json` prints it."""
        self.plan_file.parent.mkdir(parents=True, exist_ok=True)
        variables = [f"-var={key}={value}" for key, value in self.variables.items()]
        options = ["-destroy"] if destroy else []
        tools.run(*self._terraform, "plan", "-input=false", f"-out={self.plan_file}", *options, *variables)
        return json.loads(tools.output(*self._terraform, "show", "-json", str(self.plan_file)))

    def apply(self) -> None:
        """Do what the saved plan says."""
        tools.run(*self._terraform, "apply", "-input=false", str(self.plan_file))

    def outputs(self) -> dict[str, Any]:
        found = json.loads(tools.output(*self._terraform, "output", "-json"))
        return {name: output["value"] for name, output in found.items()}

    @property
    def has_local_state(self) -> bool:
        return (self.folder / "terraform.tfstate").exists()

    @property
    def _terraform(self) -> tuple[str, str]:
        return "terraform", f"-chdir={self.folder}"


def roots(environment: Environment, image_tag: str) -> tuple[Root, Root, Root]:
    """The bucket of the states, the environment's data, and its platform."""
    backend = {"bucket": environment.state_bucket, "region": environment.region}
    account = {"account_id": environment.account}
    return (
        Root(
            environment.terraform / "bootstrap",
            environment.build / "state.tfplan",
            account | {"region": environment.region},
            {},
        ),
        Root(environment.data, environment.build / "data.tfplan", account, backend),
        Root(environment.platform, environment.build / "platform.tfplan", {"image_tag": image_tag}, backend),
    )


def planned_resources(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The resources that there are after a plan: each has `type` and `values`."""
    modules = [plan.get("planned_values", {}).get("root_module", {})]
    while modules:
        module = modules.pop()
        yield from module.get("resources", [])
        modules += module.get("child_modules", [])


def pools(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The pools of machines that the environment's main.tf gives to its platform."""
    call = plan.get("configuration", {}).get("root_module", {}).get("module_calls", {}).get("platform", {})
    return call.get("expressions", {}).get("pools", {}).get("constant_value", {})
