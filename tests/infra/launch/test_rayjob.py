import copy
import itertools
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloze.infra.launch.cluster_config import ClusterConfig
from cloze.infra.launch.jobs import JobRequest
from cloze.infra.launch.kubernetes_jobs import _archive, prepare, render
from cloze.infra.launch.rayjob import Submission, as_yaml, job_name, rayjob
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load, parse
from cloze.pipeline.core.errors import UserError
from tests.infra.launch.kuberay import SCHEMA, kueue_refusals, refusals, schema_errors, unknown_fields
from tests.paths import QUICKSTART, REPOSITORY

EXAMPLE = REPOSITORY / "configs/clusters/kubernetes.yaml"
SUBMISSION = Submission(
    run="quickstart",
    root="s3://bucket/runs",
    digest="0123456789ab",
    entrypoint="python -m cloze.infra.cli run run.yaml",
    env_vars={"RAY_JOB_STOP_WAIT_TIME_S": "300"},
    runtime_env={"working_dir": "s3://bucket/runs/jobs/quickstart-0123456789ab.zip"},
)
FIXED_SIZE = ("node_types.cpu.min_nodes=8", "node_types.gpu.min_nodes=2")


def cluster(*overrides: str) -> ClusterConfig:
    return load(ClusterConfig, EXAMPLE, overrides)


def rendered(*overrides: str) -> dict[str, Any]:
    return rayjob("quickstart-0123456789ab-1", SUBMISSION, cluster(*overrides))


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod template of the head, of each group of workers, and of the submitter."""
    ray = job["spec"]["rayClusterSpec"]
    templates = {group["groupName"]: group["template"] for group in ray["workerGroupSpecs"]}
    return {"head": ray["headGroupSpec"]["template"], **templates, "submitter": job["spec"]["submitterPodTemplate"]}


def container_env(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}


CHOICES: list[list[tuple[str, ...]]] = [
    [(), FIXED_SIZE],
    [(), ("node_types.gpu.spot=false", "auth=disabled", "node_types.cpu.tolerations=[{key: team, value: ml}]")],
    [("retries=0",), ("retries=3", "kubernetes.service_account=cloze", "kubernetes.env_secrets=[aws]")],
    [("deadline_seconds=null",), ("deadline_seconds=3600", "kubernetes.image_pull_secrets=[registry]")],
    [("ttl_seconds=null",), ("ttl_seconds=0",), ("ttl_seconds=600",)],
]


@pytest.mark.parametrize("queue", [(), ("kubernetes.queue=team", *FIXED_SIZE)], ids=["no queue", "queue"])
def test_kuberay_accepts_each_configuration(queue: tuple[str, ...]) -> None:
    for choice in itertools.product(*CHOICES):
        overrides = [*queue, *itertools.chain(*choice)]
        job = rendered(*overrides)
        assert (overrides, refusals(job) + kueue_refusals(job)) == (overrides, [])
        assert (overrides, schema_errors(job), unknown_fields(job)) == (overrides, [], [])


def test_the_schema_notices_a_wrong_value_and_an_unknown_key() -> None:
    if not SCHEMA.exists():
        pytest.skip(f"{SCHEMA} is not there")
    job = rendered()
    job["spec"]["backoffLimit"] = "three"
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["restartpolicy"] = "Never"
    assert schema_errors(job) == [("spec.backoffLimit", "'three' is not of type 'integer'")]
    assert unknown_fields(job) == ["spec.rayClusterSpec.headGroupSpec.template.spec.restartpolicy"]


def group(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "mutually exclusive": lambda job: job["spec"].update(deletionStrategy={"deletionRules": [{}]}),
    "cannot have ttlSecondsAfterFinished": lambda job: job["spec"].update(
        shutdownAfterJobFinishes=False, ttlSecondsAfterFinished=9
    ),
    "not allowed to be suspended": lambda job: job["spec"].update(shutdownAfterJobFinishes=False, suspend=True),
    "SidecarMode doesn't support submitterPodTemplate": lambda job: job["spec"].update(submissionMode="SidecarMode"),
    "incompatible with InteractiveMode": lambda job: job["spec"].update(submissionMode="InteractiveMode"),
    "activeDeadlineSeconds must be": lambda job: job["spec"].update(activeDeadlineSeconds=0),
    "backoffLimit must not be": lambda job: job["spec"].update(backoffLimit=-1),
    "runtimeEnvYAML is not": lambda job: job["spec"].update(runtimeEnvYAML="[1]"),
    "no more than 47": lambda job: job["metadata"].update(name="a" * 48),
    "valid DNS1035": lambda job: job["metadata"].update(name="1-a"),
    "enableK8sTokenAuth": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(enableK8sTokenAuth=True),
    "minimum Ray version": lambda job: job["spec"]["rayClusterSpec"].update(rayVersion="2.51.0"),
    "the minimum Ray version": lambda job: job["spec"]["rayClusterSpec"].pop("rayVersion"),
    "restartPolicy should be": lambda job: group(job)["template"]["spec"].update(restartPolicy="Always"),
    "both rayStartParams and resources": lambda job: group(job).update(
        resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"}
    ),
    "rayStartParams['labels']": lambda job: group(job).update(rayStartParams={"labels": "a=b"}),
    "invalid label value": lambda job: group(job).update(labels={"run": "-a"}),
    "cannot be suspended": lambda job: group(job).update(suspend=True),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_kuberay_refuses_is_noticed(message: str) -> None:
    job = copy.deepcopy(rendered())
    assert refusals(job) == []
    REFUSED[message](job)
    assert any(message in refusal for refusal in refusals(job))


@pytest.mark.parametrize(
    "change",
    [
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        lambda job: job["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
        lambda job: job["spec"]["rayClusterSpec"].update(
            workerGroupSpecs=[{**group(job), "groupName": f"cpu-{number}"} for number in range(7)]
        ),
        lambda job: group(job).update(groupName="head"),
        lambda job: group(job).update(groupName="submitter"),
    ],
)
def test_what_kueue_refuses_is_noticed(change: Callable[[dict[str, Any]], object]) -> None:
    job = copy.deepcopy(rendered("kubernetes.queue=team", *FIXED_SIZE))
    assert kueue_refusals(job) == []
    change(job)
    assert len(kueue_refusals(job)) == 1


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("quickstart", "quickstart-0123456789ab-1"),
        ("BERT_base--v2", "bert-base-v2-0123456789ab-1"),
        ("2026-dump", "r-2026-dump-0123456789ab-1"),
        ("a" * 80, "a" * 30 + "-0123456789ab-1"),
        ("9" * 80, "r-" + "9" * 30 + "-0123456789ab-1"),
    ],
)
def test_a_jobs_name_is_a_dns_label_of_at_most_47_characters(run: str, name: str) -> None:
    assert job_name(run, "0123456789ab", 1) == name
    assert len(job_name(run, "0123456789ab", 1000)) <= 47


def test_deadlines_retries_and_the_end_of_the_cluster_are_kuberays() -> None:
    spec = rendered("retries=2", "deadline_seconds=3600", "kubernetes.pending_deadline_seconds=900")["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["preRunningDeadlineSeconds"]) == (2, 3600, 900)
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 0)
    assert "deletionStrategy" not in spec  # whose rules, beside being refused, do not hold for a job that is stopped


@pytest.mark.parametrize(("seconds", "kept"), [("null", None), ("0", "60"), ("600", "600")])
def test_a_job_names_the_time_that_it_is_kept(seconds: str, kept: str | None) -> None:
    assert rendered(f"ttl_seconds={seconds}")["metadata"]["annotations"].get("cloze/ttl-seconds") == kept


def test_a_queue_replaces_the_autoscaler() -> None:
    job = rendered("kubernetes.queue=team", *FIXED_SIZE)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "suspend" not in job["spec"]
    assert "enableInTreeAutoscaling" not in job["spec"]["rayClusterSpec"]
    assert [one["replicas"] for one in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == [8, 2]


def test_the_ray_cluster_scales_from_no_workers_and_requires_a_token() -> None:
    ray = rendered()["spec"]["rayClusterSpec"]
    assert ray["authOptions"] == {"mode": "token"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ray["rayVersion"])
    assert ray["enableInTreeAutoscaling"] and ray["autoscalerOptions"]["version"] == "v2"
    sizes = [(one["groupName"], one["minReplicas"], one["maxReplicas"]) for one in ray["workerGroupSpecs"]]
    assert sizes == [("cpu", 0, 8), ("gpu", 0, 2)]
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_spot_machines_have_the_time_of_a_notice_to_save_and_the_head_is_on_demand() -> None:
    templates = pods(rendered())
    capacity = {name: pod["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] for name, pod in templates.items()}
    assert capacity == {"head": "on-demand", "cpu": "on-demand", "gpu": "spot", "submitter": "on-demand"}
    assert templates["gpu"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert container_env(templates["gpu"])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "100"
    assert container_env(templates["head"])["RAY_JOB_STOP_WAIT_TIME_S"] == "100"
    assert "nodeSelector" not in pods(rendered("node_types.gpu.spot=false"))["cpu"]["spec"]


def test_requests_equal_limits_and_shared_memory_is_in_memory() -> None:
    gpu = pods(rendered())["gpu"]["spec"]
    amounts = {"cpu": "40", "memory": "160000M", "nvidia.com/gpu": "4"}
    assert gpu["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}
    shared = {"name": "shared-mem", "emptyDir": {"medium": "Memory", "sizeLimit": "64000M"}}
    assert shared in gpu["volumes"]
    assert {"name": "shared-mem", "mountPath": "/dev/shm"} in gpu["containers"][0]["volumeMounts"]
    assert gpu["nodeSelector"]["node.kubernetes.io/instance-type"] == "g6.12xlarge"
    assert gpu["tolerations"] == [{"key": "nvidia.com/gpu", "effect": "NoSchedule", "operator": "Exists"}]


def test_no_container_is_privileged_or_writes_outside_its_volumes() -> None:
    for pod in pods(rendered()).values():
        assert pod["spec"]["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        [container] = pod["spec"]["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container_env(pod)["HOME"] in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_variables_and_secrets_reach_rays_pods_as_they_are() -> None:
    head = pods(rendered("kubernetes.env_secrets=[aws]"))["head"]
    assert head["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "aws"}}]
    submission = Submission(**{**vars(SUBMISSION), "env_vars": {"PASSWORD": "a$(HOME)$$b"}})
    job = rayjob("a-1", submission, cluster())
    value = container_env(pods(job)["cpu"])["PASSWORD"]
    assert re.sub(r"\$\$", "$", value) == "a$(HOME)$$b"  # as Kubernetes reads it


def test_the_yaml_is_the_object_also_for_readers_of_yaml_1_1() -> None:
    submission = Submission(
        **{**vars(SUBMISSION), "env_vars": {"A": "y", "B": "no", "C": "1e3", "D": "0x1f", "E": "12:30"}}
    )
    job = rayjob("a-1", submission, cluster())
    text = as_yaml(job)
    assert yaml.safe_load(text) == job
    assert "value: 'y'" in text and "&id" not in text


# Configuration


def parsed(text: str) -> ClusterConfig:
    return parse(ClusterConfig, f"name: k\n{text}".encode(), "c.yaml")


def queued(*names: str) -> str:
    kinds = ", ".join(f"{{name: {name}, cpus: 4, memory_gb: 16, min_nodes: 1}}" for name in names)
    return f"node_types: [{kinds}]\nkubernetes: {{image: 'c:1', queue: team}}\n"


def test_as_many_types_of_machines_as_kueue_admits_are_accepted() -> None:
    job = rayjob("a-1", SUBMISSION, parsed(queued(*(f"cpu-{number}" for number in range(6)))))
    assert kueue_refusals(job) == []


TYPES = "node_types: [{name: cpu, cpus: 4, memory_gb: 16, max_nodes: 2}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kubernetes: {image: cloze}\n", r'image is "cloze": names another image after the next push; give its digest'),
        ("kubernetes: {image: 'host:5000/cloze:latest'}\n", r"names another image after the next push"),
        ("kubernetes: {image: 'cloze@sha256:12'}\n", r"a digest is sha256: and 64 hexadecimal digits"),
        ("kubernetes: {image: 'c:1'}\n", "node_types: kubernetes creates these machines; add one type at least"),
        (f"{TYPES}kubernetes: {{image: 'c:1'}}\naddress: http://h:8265\n", "remove one of them"),
        (f"{TYPES}kubernetes: {{image: 'c:1'}}\nshared_disk: true\n", "pods cannot access this machine's disk"),
        (f"{TYPES}kubernetes: {{image: 'c:1'}}\nentrypoint_num_cpus: 2\n", "the driver has the whole head"),
        (f"{TYPES}kubernetes: {{image: 'c:1', queue: team}}\n", "set min_nodes of cpu to its max_nodes"),
        (f"{TYPES.replace('cpu,', 'head,')}kubernetes: {{image: 'c:1'}}\n", "none the name head"),
        (queued("cpu", "submitter"), "none the name head or submitter"),
        (queued(*(f"cpu-{number}" for number in range(7))), "Kueue admits jobs with at most 6 types"),
    ],
)
def test_a_wrong_cluster_file_is_an_error_of_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parsed(text)
    assert str(error.value).startswith("c.yaml:") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "image", [f"cloze@sha256:{'a' * 64}", f"host:5000/a/cloze:1.2@sha256:{'a' * 64}", "host:5000/cloze:1"]
)
def test_an_image_is_named_by_its_digest_or_a_version(image: str) -> None:
    config = parsed(f"{TYPES}kubernetes: {{image: '{image}'}}\n").kubernetes
    assert config and config.image == image


# The archive


def request(*overrides: str, until: str | None = None) -> JobRequest:
    return JobRequest(load(RunConfig, QUICKSTART, ["root=s3://bucket/runs", *overrides]), until)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_the_archive_has_the_configuration_the_local_files_and_on_request_the_code(tmp_path: Path) -> None:
    for code in ("image", "upload"):
        submission, archive = prepare(request(until="vocab"), cluster(f"kubernetes.code={code}"))
        names = zipfile.ZipFile(BytesIO(archive)).namelist()
        assert {"job/run.yaml", "job/submitted.yaml"} <= set(names)
        assert any(name.startswith("job/sources/") for name in names)
        assert ("job/cloze/infra/cli.py" in names) == (code == "upload")
        assert ("CLOZE_GIT_COMMIT" in submission.env_vars) == (code == "upload")
        supervisor = "python -m cloze.infra.launch.supervisor --root s3://bucket/runs --"
        assert submission.entrypoint == f"{supervisor} python -m cloze.infra.cli run run.yaml --until vocab"
        assert submission.runtime_env["working_dir"] == f"s3://bucket/runs/jobs/quickstart-{submission.digest}.zip"


def test_a_file_with_a_time_before_1980_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: a")
    os.utime(tmp_path / "run.yaml", (0, 0))
    archive, _ = _archive(tmp_path)
    assert zipfile.ZipFile(BytesIO(archive)).read("job/run.yaml") == b"name: a"


def test_the_digest_is_that_of_the_run_its_files_and_its_cluster() -> None:
    def digest(*overrides: str, on: ClusterConfig, until: str | None = None) -> str:
        return prepare(request(*overrides, until=until), on)[0].digest

    here = cluster()
    assert digest(on=here) == digest(on=cluster("kubernetes.context=as-this-machine-names-it"))
    others = [
        digest("pretrain.seed=7", on=here),
        digest(on=here, until="vocab"),
        digest(on=cluster("kubernetes.image='cloze:2'")),
    ]
    assert len({digest(on=here), *others}) == 4


def test_render_prints_what_is_submitted_and_a_local_root_is_refused() -> None:
    text = render(request(), cluster())
    assert text.startswith("# Before it creates this object, cloze submit writes s3://bucket/runs/jobs/quickstart-")
    submission, _ = prepare(request(), cluster())
    name, printed = job_name("quickstart", submission.digest, 1), yaml.safe_load(text)
    submitted = printed["metadata"]["annotations"]["cloze/submitted"]
    assert submitted and printed == rayjob(name, replace(submission, submitted=submitted), cluster())
    with pytest.raises(
        UserError, match="root: runs is a folder of this machine, which the cluster kubernetes cannot"
    ) as error:
        render(JobRequest(load(RunConfig, QUICKSTART)), cluster())
    assert "shared_disk" not in str(error.value)
