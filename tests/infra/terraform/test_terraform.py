"""infra/terraform: its form, its modules on a mocked provider, and mutations of them."""

import re
from pathlib import Path

import pytest

from tests.infra.terraform.terraform_runs import SOURCE, Terraform, is_missing

pytestmark = pytest.mark.skipif(is_missing(), reason="terraform is not installed")

ROOTS = sorted(str(file.parent.relative_to(SOURCE)) for file in SOURCE.rglob(".terraform.lock.hcl"))
MODULES = sorted(file.name.split(".")[0] for file in (SOURCE / "tests").glob("*.tftest.hcl") if "env" not in file.name)
PLATFORMS = 15  # of the provider's release: for each a hash of its archive

#: file -> (what stands there, what is put in its place, what a test then says)
MUTATIONS = {
    "a wildcard action": ("modules/identity/policies.tf", '"s3:DeleteObject"', '"s3:*"', "a wildcard action"),
    "a role for any pod": (
        "modules/identity/main.tf",
        '"aws:RequestTag/kubernetes-namespace"       = each.value.namespace\n',
        "",
        "a pod of another service account",
    ),
    "encryption off": ("modules/storage/main.tf", '"AES256"', '"aws:kms"', "not encrypted with SSE-S3"),
    "a public bucket": (
        "modules/storage/main.tf",
        "restrict_public_buckets = true",
        "restrict_public_buckets = false",
        "can be made public",
    ),
    "without TLS": (
        "modules/storage/main.tf",
        '"aws:SecureTransport" = "false"',
        '"aws:SecureTransport" = "true"',
        "without TLS",
    ),
    "artifacts expire": (
        "modules/storage/main.tf",
        "expired_object_delete_marker = true",
        "days = 90",
        "deletes live artifacts",
    ),
    "an open endpoint": (
        "modules/cluster/main.tf",
        "? var.allowed_cidrs : null",
        '? toset(["0.0.0.0/0"]) : null',
        "open to more than the allow-list",
    ),
    "disks in clear": (
        "modules/nodes/launch_templates.tf",
        "encrypted             = true",
        "encrypted             = false",
        "A disk is not encrypted",
    ),
    "a missing taint": (
        "modules/nodes/main.tf",
        '? { key = "nvidia.com/gpu", value = "present" }',
        '? { key = "cloze/pool", value = name }',
        "Pods without GPUs can occupy",
    ),
    "a GPU that is always there": (
        "modules/nodes/main.tf",
        "min_size     = 0",
        "min_size     = 1",
        "keeps machines though no job runs",
    ),
    "credentials of the node": (
        "modules/nodes/launch_templates.tf",
        "hops = 1",
        "hops = 2",
        "take the node's credentials",
    ),
    "an autoscaler that knows no GPUs": (
        "modules/nodes/scale_from_zero.tf",
        "resources/nvidia.com/gpu",
        "resources/gpu",
        "machines which do not exist yet have GPUs",
    ),
    "GPUs that have not appeared yet": (
        "modules/nodes/main.tf",
        "k8s.amazonaws.com/accelerator",
        "cloze/accelerator",
        "starts a second machine until the GPUs",
    ),
    "a system away from its volume": (
        "modules/nodes/main.tf",
        "var.system.min_nodes == 1 ?",
        "false ?",
        "in another zone than Dagster's volume",
    ),
    "network policies that nobody enforces": (
        "modules/platform/main.tf",
        'enableNetworkPolicy = "true"',
        'enableNetworkPolicy = "false"',
        "enforces no network policy",
    ),
    "a head on spot": (
        "modules/platform/main.tf",
        'head_pool       = "head"',
        'head_pool       = "cpu"',
        "head may run on spot",
    ),
    "GPUs that nobody hears of": (
        "modules/observability/main.tf",
        "alarm_actions       = [aws_sns_topic.alarms.arn]",
        "alarm_actions       = []",
        "told of GPUs that are forgotten",
    ),
}


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    return Terraform(tmp_path_factory.mktemp("terraform") / "copy")


def test_files_are_formatted(terraform: Terraform) -> None:
    assert terraform.succeed("fmt", "-check", "-recursive", "-list=true") == ""


def test_every_root_locks_the_provider_for_all_platforms() -> None:
    for root in ROOTS:
        lock = (SOURCE / root / ".terraform.lock.hcl").read_text()
        assert 'version     = "5.100.0"' in lock, root
        assert len(set(re.findall('"zh:[0-9a-f]{64}"', lock))) == PLATFORMS, root


def test_the_state_of_each_root_is_locked_encrypted_and_its_own() -> None:
    backends = {root: _block((SOURCE / root / "main.tf").read_text(), 'backend "s3"') for root in ROOTS if root != "."}
    states = {root: backend for root, backend in backends.items() if root.startswith("environments/")}
    assert len(states) == 4
    for root, backend in states.items():
        environment, part = root.split("/")[1:]
        assert re.search(rf'key\s+= "{environment}/{part}.tfstate"', backend), root
        assert re.search(r"use_lockfile\s+= true", backend), root
        assert re.search(r"encrypt\s+= true", backend), root


def test_every_root_refuses_other_accounts_and_tags_what_it_creates() -> None:
    """By the tags `infra/scripts/down` finds what is left."""
    for root in (root for root in ROOTS if root.startswith(("bootstrap", "environments"))):
        text = (SOURCE / root / "main.tf").read_text()
        provider = _block(text, 'provider "aws"')
        assert re.search(r"allowed_account_ids\s+= \[var\.account_id\]", provider), root
        assert "default_tags" in provider, root
        environment = "state" if root == "bootstrap" else root.split("/")[1]
        assert f'{{ project = "cloze", environment = "{environment}", managed-by = "terraform" }}' in text, root


def test_no_module_waits_for_another_by_depends_on() -> None:
    """Its data sources would be read after the plan, which then replaces what has their values in its name."""
    for file in SOURCE.rglob("*.tf"):
        text = file.read_text()
        for name in re.findall(r'^module "(\w+)"', text, re.MULTILINE):
            assert "depends_on" not in _block(text, f'module "{name}"'), f"{file}: {name}"


def test_every_input_has_a_type_and_a_description() -> None:
    for file in SOURCE.rglob("*.tf"):
        text = file.read_text()
        for name in re.findall(r'^(?:variable|output) "(\w+)"', text, re.MULTILINE):
            for kind in ("variable", "output"):
                if block := _block(text, f'{kind} "{name}"'):
                    assert "description = " in block, f"{file}: {name}"
                    assert kind == "output" or re.search(r"type\s+= ", block), f"{file}: {name}"


@pytest.mark.slow
def test_every_root_is_valid(terraform: Terraform) -> None:
    for root in (root for root in ROOTS if root.startswith(("bootstrap", "environments"))):
        terraform.init(root, "-backend=false")
        assert "The configuration is valid" in terraform.succeed("validate", "-no-color", folder=root)


@pytest.mark.slow
def test_the_modules_do_what_their_tests_say(terraform: Terraform) -> None:
    terraform.init()
    assert terraform.problems(*MODULES) == []
    assertions = sum(file.read_text().count("assert {") for file in (SOURCE / "tests").glob("*.tftest.hcl"))
    assert assertions >= 40


@pytest.mark.campaign
def test_each_mutation_is_caught(tmp_path: Path) -> None:
    """All mutations at once, since a run of terraform takes seconds: each is named by a failure of its own."""
    mutated = Terraform(tmp_path / "copy")
    for file, old, new, _ in MUTATIONS.values():
        path = mutated.copy / file
        text = path.read_text()
        assert old in text, f"{file} has no longer {old}"
        path.write_text(text.replace(old, new))
    mutated.init()
    problems = mutated.problems("identity", "storage", "cluster", "nodes", "platform", "observability")
    missed = [name for name, (*_, message) in MUTATIONS.items() if not any(message in problem for problem in problems)]
    assert not missed, problems


def _block(text: str, header: str) -> str:
    """The text of a block from its header to the brace that ends it, or "" if there is none."""
    found = re.search(rf"^( *){re.escape(header)} {{$.*?^\1}}$", text, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""
