import platform
import re
import tomllib

from cloze.infra.package_versions import PACKAGES, differences, installed_versions, pinned_versions
from tests.paths import REPOSITORY


def test_the_packages_are_the_projects_dependencies() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert list(PACKAGES) == [re.split("[>=<[]", dependency)[0].lower() for dependency in project["dependencies"]]


def test_every_package_is_installed_and_pinned() -> None:
    assert list(installed_versions()) == ["python", *PACKAGES]
    assert list(pinned_versions()) == list(PACKAGES)
    assert installed_versions()["python"] == platform.python_version()


def test_missing_packages_and_other_versions_are_differences() -> None:
    ours = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "rich": "15.0.0"}
    assert differences(ours, {**ours, "python": "3.11.2", "torch": "2.13.0+cpu", "more": "1"}) == []
    theirs = {"python": "3.12.7", "ray": "2.49.1", "torch": "2.13.0"}
    assert differences(ours, theirs) == [
        "python 3.12.7 instead of 3.11.7",
        "ray 2.49.1 instead of 2.60.0",
        "rich 15.0.0 is missing",
    ]
