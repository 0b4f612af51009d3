import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster
import pytest

from cloze.infra.workflow.command import materialize
from cloze.infra.workflow.definitions import definitions
from cloze.infra.workflow.history import home, open_history
from cloze.infra.workflow.partitions import ConfiguredRun
from cloze.infra.workflow.run_process import process_tag
from cloze.pipeline.core.errors import UserError
from tests.conftest import free_port
from tests.infra.toy_run import toy_run

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # of Debian's packages
_STORAGE = """
storage:
  postgres:
    postgres_db:
      {{scheme: postgresql+psycopg2, hostname: 127.0.0.1, port: {port}, db_name: postgres, username: cloze,
       password: {{env: DAGSTER_POSTGRES_PASSWORD}}}}
"""


@pytest.fixture
def postgres() -> Iterator[int]:
    """The port of a Postgres server with an empty database."""
    if not _BINARIES:
        pytest.skip("Debian's postgresql is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="cloze-postgres-")), free_port()
    user: str | None = None
    if os.getuid() == 0:  # Postgres refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [_BINARIES[-1] / program, "-D", data, *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    try:
        run("initdb", "-U", "cloze", "-A", "trust", "--no-sync")
        run(
            "pg_ctl", "-w", "-l", f"{folder}/log", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1", "start"
        )
        try:
            yield port
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_the_command_line_and_dagster_share_a_history_in_postgres(
    postgres: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_POSTGRES_PASSWORD", "not asked for")
    settings = home() / "dagster.yaml"
    settings.write_text(settings.read_text() + _STORAGE.format(port=postgres))
    (tmp_path / "source.txt").write_text("what letters reads")
    os.utime(tmp_path / "source.txt", (1e9, 1e9))  # long ago: a tick takes it
    run = toy_run(monkeypatch, tmp_path / "root", tmp_path / "source.txt")
    ended = {name: value.replace('"started":"', '"started":"1') for name, value in process_tag("1" * 32).items()}
    with open_history() as instance:
        orphan = dagster.DagsterRun("toy", "1" * 32, status=dagster.DagsterRunStatus.STARTED, tags=ended)
        instance.add_run(orphan)
    assert materialize(run, "cloze run toy") == 0
    with dagster.DagsterInstance.get() as instance:  # as Dagster's pages and daemon read it
        statuses = [found.status for found in instance.get_runs()]
        assert statuses == [dagster.DagsterRunStatus.SUCCESS, dagster.DagsterRunStatus.FAILURE]
        assert instance.get_latest_materialization_event(dagster.AssetKey(["toy", "words"]))
        schedule = definitions(ConfiguredRun(run.config)).resolve_schedule_def("toy_schedule")
        assert len(schedule.evaluate_tick(dagster.build_schedule_context(instance)).run_requests or []) == 1
    assert not list((tmp_path / "home").rglob("*.db"))


def test_a_history_that_cannot_be_opened_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_POSTGRES_PASSWORD", "secret")
    settings = home() / "dagster.yaml"
    settings.write_text(settings.read_text() + _STORAGE.format(port=free_port()))
    with (
        pytest.raises(UserError, match=r"dagster.yaml: the history cannot be opened \(.*Connection refused"),
        open_history(),
    ):
        pass
    settings.write_text("storage: {postgres: {postgres_bd: {}}}\n")
    with pytest.raises(UserError, match=r"dagster.yaml: the history cannot be opened \(.*postgres_bd"), open_history():
        pass
