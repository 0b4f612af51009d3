import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cloze.infra import named_runs
from cloze.infra.launch import cluster_config, job_folder, kubernetes_config, ray_jobs
from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.job_folder import stage_files
from cloze.infra.launch.jobs import Unreachable
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load, parse
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.ray_cluster import NodeType
from cloze.pipeline.core.storage import Location
from tests.conftest import free_port, wait_for_port
from tests.paths import REPOSITORY

CONFIG = str(REPOSITORY / "configs/quickstart.yaml")
REMOTE = ClusterConfig(name="remote", address="http://10.0.0.1:8265")
SHARED = ClusterConfig(name="shared", address="http://10.0.0.1:8265", shared_disk=True)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which holds the quickstart's sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")


def staged(cluster: ClusterConfig, *overrides: str, until: str | None = None) -> tuple[Path, RunConfig]:
    """The job's working directory, and the configuration in it."""
    folder = Path("sent")
    stage_files(folder, load(RunConfig, CONFIG, overrides), cluster, until)
    return folder, load(RunConfig, folder / "run.yaml")


def test_the_job_receives_the_code_and_the_configuration() -> None:
    folder, _ = staged(SHARED)
    names = ["cloze", "run.yaml", "submitted.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == names
    sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "cloze/infra/cli.py",
        "cloze/pipeline/core/storage.py",
        "cloze/training/pretrain/stage.py",
        "cloze/infra/launch/ray_jobs.py",
    } <= sent
    assert not [name for name in sent if "__pycache__" in name]


def test_the_code_is_sent_without_hidden_files_and_a_large_file_in_it_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = Path("package/cloze")
    for name in (".git/config", "infra/cli.py", "infra/__pycache__/cli.pyc", "data.bin"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(name)
    monkeypatch.setattr(job_folder, "_PACKAGE", package.absolute())
    folder, _ = staged(SHARED)
    assert sorted(path.name for path in (folder / "cloze").rglob("*") if path.is_file()) == ["cli.py", "data.bin"]
    shutil.rmtree(folder)
    (package / "data.bin").write_bytes(bytes(3_000_000))
    with pytest.raises(UserError, match=r"package/cloze/data\.bin: has 3 MB, but this folder is sent to the cluster"):
        staged(SHARED)


def test_overrides_are_part_of_the_jobs_configuration() -> None:
    _, config = staged(SHARED, "pretrain.seed=7", "vocab.size=1234")
    assert (config.pretrain.seed, config.vocab.size) == (7, 1234)
    assert config.pretrain == load(RunConfig, CONFIG, ["pretrain.seed=7"]).pretrain


def test_on_a_shared_disk_paths_become_absolute() -> None:
    folder, config = staged(SHARED)
    assert config.root == f"{Path.cwd()}/runs"
    assert config.extract.sources[1].files == [f"{Path.cwd()}/configs/quickstart/books/*.txt"]
    assert config.finetune[0].file == f"{Path.cwd()}/configs/quickstart/authors.jsonl.gz"
    assert not (folder / "sources").exists()


def test_without_a_shared_disk_local_files_are_uploaded() -> None:
    folder, config = staged(REMOTE, "root=s3://bucket/runs")
    files = [file for source in config.extract.sources for file in source.files] + [config.finetune[0].file]
    assert len(files) == 5 and all(file.startswith("sources/") for file in files)
    books = {(folder / file).read_bytes() for file in config.extract.sources[1].files}
    assert books == {book.read_bytes() for book in Path("configs/quickstart/books").iterdir()}


def test_the_job_stores_the_users_own_paths_under_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = staged(REMOTE, "root=s3://bucket/runs", "pretrain.seed=7")
    for name, value in job_folder.job_environment(REMOTE)["env_vars"].items():
        monkeypatch.setenv(name, value)
    written: dict[str, bytes] = {}
    monkeypatch.setattr(Location, "exists", lambda _: False)
    monkeypatch.setattr(Location, "write_bytes", lambda self, data: written.update({self.uri: data}))
    here = Path.cwd()
    monkeypatch.chdir(folder)  # where Ray starts a job
    named_runs.store(config)
    [(place, text)] = written.items()
    assert place == "s3://bucket/runs/runs/quickstart.yaml"
    stored = parse(RunConfig, text, place)
    assert (stored.root, stored.pretrain.seed) == ("s3://bucket/runs", 7)
    assert stored.extract.sources[1].files == [f"{here}/configs/quickstart/books/*.txt"]
    assert stored.finetune[0].file == f"{here}/configs/quickstart/authors.jsonl.gz"


def test_the_job_receives_how_far_the_cluster_scales() -> None:
    assert "CLOZE_MAX_CPUS" not in job_folder.job_environment(REMOTE)["env_vars"]
    cluster = REMOTE.model_copy(update={"max_cpus": 64})
    assert job_folder.job_environment(cluster)["env_vars"]["CLOZE_MAX_CPUS"] == "64"
    types = (
        cluster_config.NodeType(name="cpu", cpus=16, memory_gb=64, max_nodes=4),
        cluster_config.NodeType(name="gpu", cpus=48, memory_gb=192, gpus=4, max_nodes=2),
    )
    cluster = REMOTE.model_copy(update={"node_types": types})
    variables = job_folder.job_environment(cluster)["env_vars"]
    assert (variables["CLOZE_MAX_CPUS"], variables["CLOZE_MAX_GPUS"]) == ("64", "8")
    assert [NodeType(**kind) for kind in json.loads(variables["CLOZE_NODE_TYPES"])] == [
        NodeType("cpu", 16, 0, 4),
        NodeType("gpu", 48, 4, 2),
    ]
    assert REMOTE.model_copy(update={"node_types": types[1:]}).cpu_limit == 96
    assert "CLOZE_HEAD_PRICE" not in variables, "which machine the head of a Ray cluster is, its file does not say"
    head = kubernetes_config.HeadConfig(instance_type="m7i.2xlarge")
    kubernetes = kubernetes_config.KubernetesConfig(image="cloze:1", head=head)
    variables = job_folder.job_environment(cluster.model_copy(update={"kubernetes": kubernetes}))["env_vars"]
    assert variables["CLOZE_HEAD_PRICE"] == "0.4032" and len(json.loads(variables["CLOZE_NODE_TYPES"])) == 2


def test_rays_own_keys_are_passed_through_and_its_variables_merged() -> None:
    keys = {"runtime_env": {"uv": ["six"], "env_vars": {"A": "ray", "B": "ray"}}, "env_vars": {"A": "cluster"}}
    environment = job_folder.job_environment(REMOTE.model_copy(update=keys))
    assert environment["uv"] == ["six"]
    assert (environment["env_vars"]["A"], environment["env_vars"]["B"]) == ("cluster", "ray")
    assert environment["env_vars"]["CLOZE_JOB_CLUSTER"] == "remote"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "address: http://a:1\nruntime_env: {working_dir: .}\n",
            "working_dir: Cloze sends the code and the run's",
        ),
        ("address: http://a:1\npip: [six]\nruntime_env: {pip: [six]}\n", "pip and runtime_env.pip name packages twice"),
        ("address: http://a:1\npython: p\nruntime_env: {uv: [six]}\n", "python selects an environment and uv creates"),
        ("address: http://a:1\nruntime_env: {env_vars: {THREADS: 4}}\n", "env_vars.THREADS: 4 is not text; quote it"),
        ("address: http://a:1\nruntime_env: {env_vars: null}\n", "runtime_env.env_vars: give a mapping of names to"),
        ("entrypoint_num_cpus: 1\n", "entrypoint_num_cpus requires a Ray cluster; give its address"),
    ],
)
def test_keys_that_contradict_each_other_are_an_error(lines: str, message: str) -> None:
    Path("cluster.yaml").write_text(f"name: a\n{lines}")
    with pytest.raises(UserError, match=message):
        load(ClusterConfig, "cluster.yaml")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"pip": 3}, r"runtime_env\['pip'\] must be of type str or List\[str\], got <class 'int'>; correct"),
        ({"pip": ["six"], "uv": ["six"]}, r"cannot be specified at the same time\. specified pip field: .*; correct"),
        ({"pip": "none.txt"}, r"none\.txt.*; correct runtime_env in the cluster's file$"),
    ],
)
def test_a_runtime_environment_that_ray_refuses_is_an_error_of_one_line(
    environment: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^runtime_env: .*{message}") as error:
        job_folder.job_environment(REMOTE.model_copy(update={"runtime_env": environment}))
    assert "\n" not in str(error.value)


def test_vocabularies_and_a_splitter_are_uploaded_when_their_stages_are_run() -> None:
    given = {"vocab.file": "vocab.txt", "vocab.compare": "other.txt", "tokens.splitter": "rules.py"}
    for name in given.values():
        Path(name).write_text(name)
    overrides = ["root=s3://bucket/runs", *(f"{key}={name}" for key, name in given.items())]
    folder, config = staged(REMOTE, *overrides)
    for sent, name in zip(
        (config.vocab.file, config.vocab.compare, config.tokens.splitter), given.values(), strict=True
    ):
        assert sent and sent.startswith("sources/")
        assert (folder / sent).read_text() == name
    Path("rules.py").unlink()
    shutil.rmtree(folder)
    _, config = staged(REMOTE, *overrides, until="vocab")
    assert config.tokens.splitter == "rules.py"


def test_the_folder_of_an_initial_model_becomes_absolute_and_is_not_uploaded() -> None:
    _, config = staged(SHARED, "pretrain.init=models/bert")
    assert config.pretrain.init == f"{Path.cwd()}/models/bert"
    shutil.rmtree("sent")
    remote = ["root=s3://bucket/runs", "pretrain.init=models/bert"]
    _, config = staged(REMOTE, *remote, until="vocab")
    assert config.pretrain.init == "models/bert"
    shutil.rmtree("sent")
    with pytest.raises(UserError, match=r"^pretrain\.init: models/bert is a folder of this machine; copy it to S3"):
        staged(REMOTE, *remote)


@pytest.mark.parametrize("init", ["0123456789ab", "s3://models/bert"])
def test_a_model_named_by_its_digest_or_on_s3_stays_named_so(init: str) -> None:
    _, config = staged(REMOTE, "root=s3://bucket/runs", f"pretrain.init='{init}'")
    assert config.pretrain.init == init


def test_paths_on_s3_do_not_change() -> None:
    _, config = staged(REMOTE, "root=s3://bucket/runs", "extract.sources.enwiki.files=[s3://dumps/*.bz2]")
    assert config.root == "s3://bucket/runs"
    assert config.extract.sources[0].files == ["s3://dumps/*.bz2"]


def test_a_local_root_is_refused_where_the_disk_is_not_shared() -> None:
    with pytest.raises(UserError, match="root: runs is a folder of this machine, which the cluster remote cannot"):
        staged(REMOTE)


def test_too_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_folder, "_MAX_UPLOAD_BYTES", 1_000_000)
    with pytest.raises(
        UserError, match=r"is too large to upload with the job .* copy it to S3, or set shared_disk: true"
    ):
        staged(REMOTE, "root=s3://bucket/runs")


@pytest.mark.parametrize("cluster", [REMOTE, SHARED])
def test_a_missing_file_is_an_error_before_the_job_is_submitted(cluster: ClusterConfig) -> None:
    missing = ["root=s3://bucket/runs", "finetune.authors.file=gone.jsonl"]
    with pytest.raises(UserError, match=r"gone\.jsonl: no such file"):
        staged(cluster, *missing)


def test_a_file_that_only_a_later_stage_reads_may_be_missing() -> None:
    _, config = staged(SHARED, "finetune.authors.file=gone.jsonl", until="pretrain")
    assert config.finetune[0].file == "gone.jsonl"


def test_the_cluster_of_this_machine_is_configured() -> None:
    cluster = load(ClusterConfig, REPOSITORY / "configs/clusters/local.yaml")
    assert (cluster.address, cluster.auth, cluster.shared_disk) == ("http://127.0.0.1:8265", "token", True)


def test_an_address_must_be_an_http_address() -> None:
    Path("cluster.yaml").write_text("name: a\naddress: ray://head:10001\n")
    with pytest.raises(UserError, match=r'^cluster\.yaml:2: address is "ray://head:10001": '):
        load(ClusterConfig, "cluster.yaml")


def cluster(**keys: Any) -> ClusterConfig:
    return ClusterConfig(name="a", address="http://10.0.0.1:8265", **keys)


def test_a_job_has_the_interpreter_that_runs_cloze_only_where_the_cluster_sees_it() -> None:
    assert cluster(shared_disk=True).interpreter == sys.executable
    assert cluster().interpreter == "python"
    assert cluster(shared_disk=True, pip=("six",)).interpreter == "python"  # of the environment that Ray creates
    for disk in (False, True):
        assert cluster(shared_disk=disk, python="/opt/bert/bin/python").interpreter == "/opt/bert/bin/python"
        assert cluster(shared_disk=disk, python="python3.11").interpreter == "python3.11"


def test_workers_run_the_jobs_interpreter_unless_it_is_the_clusters_own() -> None:
    interpreters = [
        job_folder.job_environment(one)["env_vars"].get("CLOZE_WORKERS_PYTHON")
        for one in (cluster(), cluster(pip=("six",)), cluster(shared_disk=True), cluster(python="python3.11"))
    ]
    assert interpreters == [None, None, sys.executable, "python3.11"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "python: .venv/bin/python\n",
            r"python \.venv/bin/python would be relative to the job's own folder; ",
        ),
        (
            "python: python3\npip: [six]\n",
            "python selects an environment and pip creates another one; remove one of them",
        ),
        ('python: ""\n', r'^cluster\.yaml:3: python is "": '),
    ],
)
def test_an_interpreter_that_no_machine_could_find_is_refused(lines: str, message: str) -> None:
    Path("cluster.yaml").write_text(f"name: a\naddress: http://10.0.0.1:8265\n{lines}")
    with pytest.raises(UserError, match=message):
        load(ClusterConfig, "cluster.yaml")


def submit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cloze submit` as a user runs it, in the current folder."""
    command = [sys.executable, "-m", "cloze.infra.cli", "submit", CONFIG, "--cluster", "cluster.yaml", *arguments]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_an_unreachable_cluster_is_an_error_of_one_line() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    Path("cluster.yaml").write_text(f"name: none\naddress: {address}\nshared_disk: true\nauth: disabled\n")
    done = submit()
    assert done.returncode == 2
    assert done.stderr == (
        f"cloze: cluster.yaml: no Ray cluster answers at {address}; correct it, or start one: ray start --head\n"
    )


class Handler(BaseHTTPRequestHandler):
    """Answers without a line on stderr."""

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """The address of a server with this handler."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def answering(status: int, body: bytes) -> AbstractContextManager[str]:
    """The address of a server that answers so to a request for Ray's version, and to others with status 503."""

    class Version(Handler):
        def do_GET(self) -> None:
            self.answer(status if self.path == "/api/version" else 503, body)

    return serving(Version)


def connected(address: str) -> ray_jobs.RayJobs:
    return ray_jobs.RayJobs(ClusterConfig(name="a", address=address, auth="disabled"), "c.yaml")


def error_of(action: Callable[[str], object], argument: str) -> UserError:
    with pytest.raises(UserError) as error:
        action(argument)
    return error.value


def test_a_cluster_that_does_not_answer_is_told_from_what_is_no_ray_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    nothing = f"http://127.0.0.1:{free_port()}"
    assert type(error := error_of(connected, nothing)) is Unreachable
    assert str(error) == f"c.yaml: no Ray cluster answers at {nothing}; correct it, or start one: ray start --head"
    for status, body, kind in (
        (503, b"", Unreachable),  # a proxy before a head that has not started yet
        (200, b"<html>", UserError),
        (404, b"", UserError),
        (403, b"", UserError),
    ):
        with answering(status, body) as address:
            assert type(error_of(connected, address)) is kind, status
    with answering(200, b'{"ray_version": "2.60.0"}') as address:
        jobs = connected(address)
        proxy_answers = error_of(jobs.info, "job")
    for error, cause in ((proxy_answers, "503"), (error_of(jobs.info, "job"), "Connection refused")):
        assert type(error) is Unreachable
        assert re.match(rf"c\.yaml: lost the cluster at {address} \(.*{cause}.*\); the same command", str(error))


def restarting_dashboard(answers: list[tuple[int, str]]) -> AbstractContextManager[str]:
    """The address of a cluster with one job, which answers in turn, the last answer again and again, when asked about
    it; it has no connection that follows the log."""

    class Dashboard(Handler):
        def do_GET(self) -> None:
            status, body = 200, '{"ray_version": "2.60.0"}'
            if self.path.endswith("/logs"):
                body = '{"logs": "all of the log\\n"}'
            elif self.path.endswith("/tail"):
                status = 404
            elif self.path != "/api/version":
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.answer(status, body.encode())

    return serving(Dashboard)


def test_a_log_is_followed_over_a_restart_of_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_RETRY_SECONDS", 0.01)
    runs, done = (
        (200, json.dumps({"type": "SUBMISSION", "status": status, "entrypoint": "e"}))
        for status in ("RUNNING", "SUCCEEDED")
    )
    starts = (500, "Traceback (most recent call last):\n  File ...\nRpcError: the head has not started")
    with restarting_dashboard([runs, starts, (503, ""), runs, starts, done]) as address:
        assert "".join(connected(address).logs("job", follow=True)) == "all of the log\n"
    monkeypatch.setattr(ray_jobs, "LOST_SECONDS", 0.1)
    with restarting_dashboard([runs, starts]) as address, pytest.raises(Unreachable) as error:
        list(connected(address).logs("job", follow=True))
    assert "(RpcError: the head has not started" in str(error.value) and "\n" not in str(error.value)


def test_a_job_that_a_signal_has_killed_has_the_exit_status_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.dashboard.modules.job.pydantic_models import JobType
    from ray.job_submission import JobDetails, JobStatus

    monkeypatch.setattr(ray_jobs, "_connect", lambda *_: None)
    killed = JobDetails(type=JobType.SUBMISSION, status=JobStatus.FAILED, entrypoint="", driver_exit_code=-9)
    assert ray_jobs.RayJobs(REMOTE, "c.yaml")._info(killed).exit_status == 1


def test_where_no_agent_accepts_jobs_the_error_names_the_port_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutAgent:
        def submit_job(self, **_: Any) -> None:
            raise RuntimeError("Request failed with status code 500: No available agent to submit job")

        def get_address(self) -> str:
            return "http://10.0.0.1:8265"

    monkeypatch.setattr(ray_jobs, "_START_TIMEOUT", -1)
    with pytest.raises(UserError, match="No available agent to submit job; start Ray with --dashboard-agent-listen-po"):
        ray_jobs._submit_job(WithoutAgent(), "job", "python")


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard's address of a real `ray start --head` that requires the token `secret`."""
    with started_head(sys.executable, tmp_path_factory.mktemp("ray")) as address:
        yield address


@contextmanager
def started_head(python: str, home: Path) -> Iterator[str]:
    """`ray start --head` of that interpreter's environment, which is on no PATH, as long as the context is open."""
    dashboard = free_port()
    env = {
        **os.environ,
        "HOME": str(home),
        "PATH": os.defpath,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "secret",
    }
    command = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    sockets = tempfile.mkdtemp(prefix="cloze-")  # a short path for Ray's sockets
    command += [f"--temp-dir={sockets}/r", "--disable-usage-stats"]
    with (home / "log").open("wb") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_port(dashboard)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.campaign
def test_a_real_cluster_runs_the_job_and_its_exit_status_is_returned(ray_head: str) -> None:
    Path("cluster.yaml").write_text(f"name: head\naddress: {ray_head}\nshared_disk: true\nauth: token\n")
    refused = submit(RAY_AUTH_TOKEN="wrong")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"cloze: cluster.yaml: auth: token is refused by {ray_head}; ")

    done = submit("--until", "vocab", "vocab.size=500", RAY_AUTH_TOKEN="secret")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.startswith("submitted as quickstart-")
    assert "vocab             done in" in done.stdout
    assert list(Path("runs").glob("vocab/*/vocab.txt"))
    stored = named_runs.read("quickstart")
    assert stored.vocab.size == 500
    assert stored.extract.sources[1].files == [f"{Path.cwd()}/configs/quickstart/books/*.txt"]

    Path("no.xml").write_text("hello")
    wrong = submit("extract.sources.enwiki.files=[no.xml]", RAY_AUTH_TOKEN="secret")
    assert wrong.returncode == 2
    assert wrong.stdout.splitlines()[-1].startswith(f"cloze: {Path.cwd()}/no.xml: ")


@pytest.mark.campaign
def test_an_interpreter_that_does_not_exist_or_lacks_a_package_is_an_error_of_one_line(ray_head: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "bare"], check=True)
    text = f"name: head\naddress: {ray_head}\nshared_disk: true\n"
    fix = "set python in the cluster's file to the interpreter of an environment with Cloze, or start Ray in one\n"
    for python, wrong in (
        (f"{Path.cwd()}/bare/bin/python", "on the cluster head ray is not installed, on this machine 2.60.0"),
        (f"{Path.cwd()}/gone/bin/python", "the cluster head cannot run {}"),
    ):
        Path("cluster.yaml").write_text(f"{text}python: {python}\n")
        done = submit(RAY_AUTH_TOKEN="secret")
        assert done.returncode == 2
        assert re.fullmatch(f"cloze: cluster.yaml: {wrong.format(python)}; {fix}", done.stderr)


@pytest.mark.campaign
def test_workers_have_the_jobs_packages_even_if_ray_was_started_without_them(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lacking = environment_without("tokenizers", tmp_path / "lacking")
    with started_head(lacking, tmp_path_factory.mktemp("ray")) as address:
        Path("cluster.yaml").write_text(f"name: head\naddress: {address}\nshared_disk: true\n")
        done = submit("--until", "vocab", "vocab.size=500", RAY_AUTH_TOKEN="secret")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vocab             done in" in done.stdout


@pytest.mark.campaign
def test_an_interpreter_may_be_in_a_folder_whose_name_contains_a_space(ray_head: str) -> None:
    Path("our environment").symlink_to(sys.prefix)
    text = f"name: head\naddress: {ray_head}\nshared_disk: true\npython: {Path.cwd()}/our environment/bin/python\n"
    Path("cluster.yaml").write_text(text)
    done = submit("--until", "vocab", "vocab.size=500", RAY_AUTH_TOKEN="secret")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "vocab             done in" in done.stdout


def environment_without(package: str, folder: Path) -> str:
    """The interpreter of an environment that has all packages of this one except that."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    installed, reduced = (
        Path(sysconfig.get_path("purelib", vars={"base": str(base)})) for base in (sys.prefix, folder)
    )
    for entry in installed.iterdir():
        if not entry.name.startswith((package, "__editable__")):
            (reduced / entry.name).symlink_to(entry)
    python = f"{folder}/bin/python"
    lacks = subprocess.run([python, "-c", f"import ray, {package}"], capture_output=True, text=True, check=False)
    assert lacks.stderr.endswith(f"No module named '{package}'\n")
    return python


@pytest.mark.campaign
def test_submitting_a_detached_job_again_attaches_to_it(ray_head: str) -> None:
    Path("cluster.yaml").write_text(f"name: head\naddress: {ray_head}\nshared_disk: true\nauth: token\n")
    command = [
        sys.executable,
        "-m",
        "cloze.infra.cli",
        "submit",
        CONFIG,
        "--cluster",
        "cluster.yaml",
        "--until",
        "vocab",
    ]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_TOKEN": "secret"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr
        sent = first.stderr.readline()
        assert sent.startswith("submitted as ")
        time.sleep(1)
        first.send_signal(signal.SIGINT)
        left = first.stderr.read()
        assert first.wait(60) == 130
    job = sent.split()[-1]
    assert f"detached; {job} continues to run" in left
    assert left.endswith(f"  cloze job stop {job} --cluster cluster.yaml\n")

    again = submit("--until", "vocab", RAY_AUTH_TOKEN="secret")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stderr == f"{job} is running already; attached\n"
    assert again.stdout.count("vocab             done in") == 1
