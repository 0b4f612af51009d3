"""Executables named terraform, kubectl, helm, docker and aws, which need an account or a cluster: fakes that note how
they were called, but for their version, and fail on request. `docker push` puts an image into the registry of the local
AWS server."""

import json
import sys
from pathlib import Path

NAMES = ("terraform", "kubectl", "helm", "docker", "aws", "cloze")
VERSIONS = {"terraform": "Terraform v1.11.4\non linux_amd64", "aws": "aws-cli/2.0.0 Python/3.11.8", "helm": "v3.0.0+g1"}
_FAKE = """#!{python} -S
import json, os, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
folder = {folder!r}
if arguments[0] in ("version", "--version"):
    print(json.load(open(folder + "/versions.json"))[name])
    sys.exit()
with open(folder + "/calls", "a+") as calls:
    calls.seek(0)
    number = len(calls.readlines())
    calls.write(json.dumps([name, *arguments]) + chr(10))
if "login" in arguments or arguments[-1] == "--filename=-":
    sys.stdin.read()
failing = open(folder + "/failing").read()
if failing and number == int(failing):
    sys.exit(name + ": fails")
if open(folder + "/refused").read() in arguments:
    sys.exit(1)
line = " ".join([name, *arguments])
if name == "kubectl" and arguments[0] == "kustomize":
    os.execv({kubectl!r}, ["kubectl", *arguments])
if line.endswith("output -json"):
    sys.stdout.write(open(folder + "/outputs.json").read())
elif " show -json " in line:
    sys.stdout.write(open(folder + "/plan.json").read())
elif line.endswith("--output=json"):
    sys.stdout.write('{{"items": []}}')
elif name == "docker" and arguments[0] == "push":
    os.execv({python!r}, [{python!r}, {push!r}, *arguments[1].rpartition(":")[::2]])
"""
_PUSH = """
import boto3, json, sys
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = {"digest": "sha256:" + "0" * 64}
repository, tag = sys.argv[1:]
boto3.client("ecr").put_image(
    repositoryName=repository.partition("/")[2], imageTag=tag,
    imageManifest=json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": CONFIG, "layers": []}),
)
"""


class FakeTools:
    """A folder of fakes for the front of PATH."""

    def __init__(self, folder: Path, kubectl: str) -> None:
        self.bin, self._folder = folder / "bin", folder
        self.bin.mkdir(parents=True)
        (folder / "push.py").write_text(_PUSH)
        for name in NAMES:
            text = _FAKE.format(
                python=sys.executable, folder=str(folder), kubectl=kubectl, push=str(folder / "push.py")
            )
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.have()
        self.start()

    def have(self, **versions: str) -> None:
        """What the programs print of their versions."""
        (self._folder / "versions.json").write_text(json.dumps(VERSIONS | versions))

    def start(self, failing: int | None = None, refused: str = "-") -> None:
        """Forget the calls; the one with this number fails, and each with this argument."""
        (self._folder / "calls").write_text("")
        (self._folder / "refused").write_text(refused)
        (self._folder / "failing").write_text("" if failing is None else str(failing))

    def answers(self, plan: object, outputs: object) -> None:
        """What `terraform show -json` and `terraform output -json` print."""
        (self._folder / "plan.json").write_text(json.dumps(plan))
        (self._folder / "outputs.json").write_text(json.dumps(outputs))

    @property
    def calls(self) -> list[str]:
        return [" ".join(json.loads(line)) for line in (self._folder / "calls").read_text().splitlines()]
