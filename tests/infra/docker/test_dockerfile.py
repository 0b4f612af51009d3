"""infra/docker/Dockerfile: hadolint, and what it does not know: user, secrets, what the context has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REPOSITORY

DOCKERFILE = REPOSITORY / "infra/docker/Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


def hadolint(text: str) -> str:
    return subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True).stdout


def stages() -> list[str]:
    return re.split(r"(?m)^(?=FROM )", DOCKERFILE.read_text())[1:]


def without_comments() -> str:
    return re.sub(r"(?m)^#.*$", "", DOCKERFILE.read_text())


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE.read_text()) == ""


@pytest.mark.parametrize(
    ("line", "mutated", "rule"),
    [
        ("FROM ${BASE} AS packages", "FROM python AS packages", "DL3006"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("apt-get install --yes --no-install-recommends", "apt-get install", "DL3014"),
    ],
)
def test_hadolint_notices_a_mutation(line: str, mutated: str, rule: str) -> None:
    assert rule in hadolint(DOCKERFILE.read_text().replace(line, mutated))


def test_the_base_is_one_version_of_python_of_a_named_registry() -> None:
    [base] = re.findall(r"(?m)^ARG BASE=(.*)$", DOCKERFILE.read_text())
    assert re.fullmatch(r"docker\.io/library/python:3\.11-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    assert {stage.split()[1] for stage in stages()} == {"${BASE}"}


def test_packages_have_the_versions_of_constraints_txt() -> None:
    commands = re.findall(r"pip install .*", DOCKERFILE.read_text())
    assert len(commands) == 2
    for command in commands:
        assert " -c constraints.txt " in command or " --no-deps " in command, command


def test_no_secret_is_an_argument_or_a_variable() -> None:
    """Both stay in the image's history."""
    names = set(re.findall(r"(?m)^ARG ([A-Z_]+)", DOCKERFILE.read_text()))
    assert names == {"BASE", "DEVICE", "TORCH_CPU_INDEX", "COMMIT"}
    assert not re.findall(r"(?i)https?://[^/\s]*@|(?:token|password|secret|key)\w*=", without_comments())


def test_the_user_owns_nothing_of_the_image_but_the_home() -> None:
    assert not re.findall(r"--chown|--chmod|\b(?:chown|chmod|setcap)\b", without_comments())


def test_kuberay_can_give_the_image_its_commands() -> None:
    assert "ENTRYPOINT" not in without_comments()


def test_the_image_ends_as_user_1000_with_its_commit() -> None:
    last = stages()[-1]
    assert re.findall(r"(?m)^USER (.*)$", last) == ["1000:1000"]
    assert 'org.opencontainers.image.revision="${COMMIT}"' in last


def test_pips_settings_are_a_secret_of_the_stage_that_is_left_behind() -> None:
    packages, last = stages()
    assert "pip" not in re.sub("#.*", "", last)
    installs = re.findall(r"(?ms)^RUN (.*?)(?<!\\)$", packages)
    assert all("--mount=type=secret,id=pip" in one for one in installs if "pip install" in one)


def test_the_context_has_what_the_dockerfile_copies_and_nothing_else() -> None:
    sources = [line.split()[1:-1] for line in DOCKERFILE.read_text().splitlines() if line.startswith("COPY ")]
    copied = {name for names in sources for name in names if not name.startswith(("--from", "/"))}
    lines = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
