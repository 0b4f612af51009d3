"""README, CONTRIBUTING and docs match the code: links, commands, configurations, paths, make's targets."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
QUICKSTART = REPOSITORY / "configs/quickstart.yaml"

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"(?<![\w./<*-])(?:pipeline|training|infra|tests|configs)/[\w./-]*\w(?![\w*<])")


def shown(page: Path) -> str:
    """A page as its name in the repository, for the names of tests and failures."""
    return str(page.relative_to(REPOSITORY))


def text_of(page: Path) -> str:
    """A page's text without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _FENCE.findall(page.read_text()) if name == language]


def code_lines(page: Path) -> list[str]:
    """The lines of indented code; those that end in a backslash with the next one."""
    joined = re.sub(r" \\\n +", " ", text_of(page))
    return re.findall(r"^    (.*)$", joined, re.MULTILINE)


def code_spans(page: Path) -> list[str]:
    """Inline code, each on one line."""
    prose = re.sub(r"^    .*$", "", text_of(page), flags=re.MULTILINE)
    return [" ".join(span.split()) for span in _SPAN.findall(prose)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_relative_link_leads_to_a_file_and_its_heading(page: Path) -> None:
    for link in _LINK.findall(text_of(page)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(target), f"{link}: {shown(target)} has no such heading"


def test_the_table_of_contents_names_every_page() -> None:
    contents = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(text_of(contents))}
    assert [shown(page) for page in DOCS.rglob("*.md") if page not in {contents, *linked}] == []


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    """From the repository's root or, as docs/checks.md names tests, from tests/."""
    roots = (REPOSITORY, REPOSITORY / "tests")
    missing = [path for path in _PATH.findall(text_of(page)) if not any((root / path).exists() for root in roots)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_configuration_is_valid(page: Path, tmp_path: Path) -> None:
    """A whole run or cluster by itself; a part of a run as a further file after the quickstart's."""
    from cloze.infra.launch.cluster_config import ClusterConfig
    from cloze.infra.run_config import RunConfig
    from cloze.pipeline.core.config import load
    from cloze.pipeline.core.errors import UserError

    invalid = []
    for number, block in enumerate(blocks(page, "yaml")):
        content = yaml.safe_load(block)
        keys = content.keys()
        file = tmp_path / f"block-{number}.yaml"
        file.write_text(block)
        try:
            if "address" in keys or "kubernetes" in keys:
                load(ClusterConfig, file)
            elif keys <= ClusterConfig.model_fields.keys() - {"name"}:  # a part of a cluster's file
                load(ClusterConfig, file, ["name=part"])
            elif "name" in keys:
                has_partitions = "partitions" in content.get("schedule", {})
                load(RunConfig, file, ["partition.language=la", "partition.date=20261101"] if has_partitions else [])
            else:
                load(RunConfig, QUICKSTART, [str(file)])
        except UserError as error:
            invalid.append(str(error))
    assert invalid == []


def test_the_complete_example_is_the_quickstart() -> None:
    assert blocks(DOCS / "guide/configuration.md", "yaml")[0] == QUICKSTART.read_text()


def cloze_commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `cloze` command on a page: in indented code, and inline where it has arguments."""
    for line in [*code_lines(page), *code_spans(page)]:
        command = re.split(r"\s{2,}| \| | && | < ", line.removeprefix(".venv/bin/"))[0]
        if not re.match(r"cloze [a-z]+( |$)", command) or "..." in command:
            continue
        optional = re.sub(r" \[(--\w+ \w+|\w+)\]", r" \1", command)  # [--until STAGE], [KEY]
        yield shlex.split(optional, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_command_is_accepted(page: Path) -> None:
    from cloze.infra.cli_parser import new_parser

    parser = new_parser()
    commands = next(action.choices for action in parser._actions if action.choices)
    assert isinstance(commands, dict)
    for arguments in cloze_commands(page):
        assert arguments[0] in commands, f"cloze {arguments[0]}: is not a command"
        if len(arguments) > 1 and "--help" not in arguments:
            _, rest = parser.parse_known_args(arguments)  # exits where it does not accept them
            assert [word for word in rest if "=" not in word and not word.endswith(".yaml")] == [], arguments


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", DOCS / "guide/commands.md"], ids=shown)
def test_every_command_is_listed(page: Path) -> None:
    from cloze.infra.cli_parser import new_parser

    commands = next(action.choices for action in new_parser()._actions if action.choices)
    assert {arguments[0] for arguments in cloze_commands(page)} == set(commands)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join([*code_lines(page), *code_spans(page)])
    assert set(re.findall(r"^make (\w+)", code, re.MULTILINE)) <= targets


def test_pre_commit_runs_what_make_lint_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    [linting] = re.findall(r"^lint:.*\n\t(.*)$", makefile, re.MULTILINE)
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == linting.replace("$(BIN)", ".venv/bin").split(" && ")


_MARK = "CLOZE_TEST_OF_THE_DOCS"
_PORTS = {6379: "Ray", 8265: "its dashboard", 10001: "its clients"}  # as `ray start` has them


@pytest.fixture
def bare_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables without an active environment; Ray's processes that were started with them are ended."""
    mark, folder = uuid.uuid4().hex, tempfile.mkdtemp(prefix="cloze-")  # a short path: Ray's sockets are there
    yield {
        "HOME": str(tmp_path),
        "PATH": os.defpath,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_TMPDIR": folder,
        _MARK: mark,
    }
    while left := list(marked(mark)):  # what one of them starts meanwhile is found the next time
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)
    shutil.rmtree(folder)


def marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:  # another user's, or it has ended
            continue


def wait_until_free(ports: dict[int, str], seconds: float = 120.0) -> None:
    """Raises TimeoutError when something else, such as a Ray of this machine's, keeps one of them."""
    deadline = time.monotonic() + seconds
    for port, whose in ports.items():
        while not free(port):
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {port} is taken, which the cluster of the guide needs for {whose}: free it")
            time.sleep(1)


def free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True


@pytest.mark.campaign
def test_the_cluster_shown_runs_a_job_with_no_environment_active_and_another_ray_at_work(
    tmp_path: Path, bare_environment: dict[str, str], ray_session: None
) -> None:
    [recipe] = re.findall(r"To try it here:\n\n((?:    .*\n)+)", (DOCS / "guide/cluster.md").read_text())
    assert recipe.rstrip().endswith(" --cluster configs/clusters/local.yaml")
    shown = f"{recipe.rstrip()} --until vocab vocab.size=500\n"  # as written, and less of it
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    wait_until_free(_PORTS)
    command = ["/bin/sh", "-e", "-c", shown]
    done = subprocess.run(
        command, cwd=tmp_path, env=bare_environment, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vocab             done in" in done.stdout
    [vocabulary] = (tmp_path / "runs").glob("vocab/*/vocab.txt")
    assert len(vocabulary.read_text().splitlines()) == 500
