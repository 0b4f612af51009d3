"""A folder of infra/terraform/environments -> its account, its region, the names of what it creates."""

import re
from dataclasses import dataclass
from pathlib import Path

from cloze.pipeline.core.errors import UserError


@dataclass(frozen=True)
class Environment:
    """An environment, such as dev: its data and its platform, each with a state of its own."""

    name: str
    account: str
    region: str
    clone: Path

    @property
    def terraform(self) -> Path:
        return self.clone / "infra/terraform"

    @property
    def data(self) -> Path:
        return self.terraform / "environments" / self.name / "data"

    @property
    def platform(self) -> Path:
        return self.terraform / "environments" / self.name / "platform"

    @property
    def cluster(self) -> str:
        """Name of the EKS cluster, and of its context in the kubeconfig."""
        return f"cloze-{self.name}"

    @property
    def bucket(self) -> str:
        return f"cloze-{self.name}-{self.account}"

    @property
    def state_bucket(self) -> str:
        return f"cloze-state-{self.account}"

    @property
    def cluster_file(self) -> Path:
        """The file for `cloze submit --cluster`."""
        return self.clone / f"configs/clusters/eks-{self.name}.yaml"

    @property
    def build(self) -> Path:
        """Files of this clone that are written again each time."""
        return self.clone / "build" / "infra" / self.name


def read_environment(name: str, clone: Path) -> Environment:
    """The environment of a name. Raises UserError if it does not exist or has no account yet."""
    folder = clone / "infra/terraform/environments" / name
    if not folder.is_dir():
        known = ", ".join(sorted(path.name for path in folder.parent.iterdir())) or "none"
        raise UserError(f"{name}: is no environment; infra/terraform/environments has {known}")
    settings = folder / "platform/terraform.tfvars"
    if not settings.is_file():
        raise UserError(f"{settings}: is missing; copy terraform.tfvars.example beside it and edit it")
    account = re.search(r'(?m)^account_id\s*=\s*"(\d{12})"', settings.read_text())
    region = re.search(r'(?m)^\s*region\s*=\s*"([a-z0-9-]+)"', (folder / "data/main.tf").read_text())
    if not account:
        raise UserError(f"{settings}: account_id is missing; add the twelve digits of `aws sts get-caller-identity`")
    if not region:
        raise UserError(f"{folder / 'data/main.tf'}: the provider has no region; add one such as us-east-1")
    return Environment(name, account[1], region[1], clone)
