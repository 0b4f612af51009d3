import subprocess
import sys

from cloze.infra.launch.versions import differences, installed_versions, printed_versions, probe

HERE = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0", "numpy": "2.4.6"}


def test_equal_versions_do_not_differ() -> None:
    assert differences(HERE, HERE) == []
    assert differences({**HERE, "python": "3.11.2", "torch": "2.13.0+cu130", "pandas": "3.1"}, HERE) == []


def test_another_ray_or_python_is_an_error_and_another_package_is_not() -> None:
    there = {"python": "3.12.1", "ray": "2.59.0", "torch": "2.12.0"}
    assert [(str(one), one.is_error) for one in differences(there, HERE)] == [
        ("python is 3.12.1, on this machine 3.11.9", True),
        ("ray is 2.59.0, on this machine 2.60.0", True),
        ("torch is 2.12.0, on this machine 2.13.0", False),
        ("numpy is not installed, on this machine 2.4.6", False),
    ]


def test_another_interpreter_reports_its_versions() -> None:
    done = subprocess.run([sys.executable, "-c", probe()], capture_output=True, text=True, check=True)
    assert printed_versions(f"Running entrypoint\n{done.stdout}") == installed_versions()
    assert {"python", "ray", "torch", "pydantic"} <= installed_versions().keys()
    assert printed_versions("python: not found\n") is None
