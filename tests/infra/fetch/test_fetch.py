import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloze.infra.cli import main
from cloze.infra.fetch import download
from cloze.infra.fetch.http import CONTACT
from cloze.pipeline.core.lease_files import Owner, lease_file
from cloze.pipeline.core.retries import SETTING
from cloze.pipeline.core.storage import Location
from tests.infra.fetch.dump_server import (
    DumpServer,
    Fault,
    another_range,
    cut,
    dump_server,
    no_ranges,
    overloaded,
    replaced,
    wrong_byte,
)
from tests.paths import REPOSITORY

RANGE = 6 << 20  # S3 joins ranges of 5 MiB or more
PAGES = "xywiki-20260201-pages-articles-multistream.xml.bz2"
INDEX = "xywiki-20260201-pages-articles-multistream-index.txt.bz2"
FILES = {PAGES: random.Random(0).randbytes(3 * RANGE + 17), INDEX: random.Random(1).randbytes(1000)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DumpServer]:
    monkeypatch.setattr(download, "RANGE_BYTES", RANGE)
    with dump_server() as state:
        state.add_dump("xywiki", "20260101", {"old.xml.bz2": b"old"})
        state.add_dump("xywiki", "20260201", FILES)
        state.add_dump("xywiki", "20260301", {"new.xml.bz2": b"half"}, status="in-progress")
        yield state


def fetch(server: DumpServer, to: object, *arguments: str) -> int:
    return main(["fetch", "wikipedia", "xy", *arguments, "--to", str(to), "--mirror", server.url])


def content(folder: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.files()}


def is_whole(folder: Location) -> bool:
    found = content(folder)
    marker = json.loads(found.pop(download.MARKER))
    assert (marker["wiki"], marker["date"]) == ("xywiki", "20260201")
    assert [file["bytes"] for file in marker["files"]] == [len(FILES[file["name"]]) for file in marker["files"]]
    return found == FILES


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_the_newest_finished_dump_is_downloaded_with_two_connections_and_a_user_agent(
    server: DumpServer, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.delay = 0.1
    assert fetch(server, folder) == 0
    assert is_whole(Location(f"{folder}/xywiki/20260201"))
    assert capsys.readouterr().out == f"files: [{folder}/xywiki/20260201/*.xml*.bz2]\n"
    assert server.most_at_once == 2
    assert [agent.split("/")[0] for agent in server.agents] == ["cloze"]
    asked = len(server.ranges)
    assert fetch(server, folder) == 0
    assert len(server.ranges) == asked


def test_the_user_agent_has_the_contact_of_the_environment(
    server: DumpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CONTACT, "mailto:ann@example.org")
    assert fetch(server, tmp_path) == 0
    [agent] = server.agents
    assert re.fullmatch(r"cloze/[\d.]+\S* \(mailto:ann@example\.org\) python-requests/\S+", agent)
    monkeypatch.setenv(CONTACT, "Ann\r\nHost: b")
    assert fetch(server, tmp_path) == 2
    line = "cloze: CLOZE_CONTACT is 'Ann\\r\\nHost: b'; give an e-mail address or a URL\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
@pytest.mark.parametrize("fault", [overloaded, cut, another_range, wrong_byte])
def test_a_bad_connection_changes_no_byte(server: DumpServer, folder: str, fault: object) -> None:
    server.faults = [lambda *_: False, fault, lambda *_: False, fault]
    assert fetch(server, folder) == 0
    assert is_whole(Location(f"{folder}/xywiki/20260201"))


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([no_ranges], "the server ignores ranges, which resuming requires; give another --mirror"),
        ([replaced], f"has {len(FILES[INDEX]) + 5} bytes instead of {len(FILES[INDEX])}; was it replaced? Run again"),
        ([wrong_byte] * 2, "twice its SHA-1 was not the published one, "),
    ],
)
def test_an_answer_that_stays_wrong_is_one_line_and_no_file(
    server: DumpServer, tmp_path: Path, faults: list, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = list(faults)
    assert fetch(server, tmp_path) == 2
    [*_, line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cloze: {server.url}/xywiki/20260201/{INDEX}: {message}")
    assert not [file for file in tmp_path.rglob("*.bz2") if ".partial" not in file.parts]
    assert fetch(server, tmp_path) == 0
    assert is_whole(Location(f"{tmp_path}/xywiki/20260201"))


def test_a_server_that_fails_for_too_long_is_one_line(
    server: DumpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SETTING, "1")
    server.faults = [overloaded] * 20
    assert fetch(server, tmp_path) == 2
    assert "the server fails (503), for " in capsys.readouterr().err.splitlines()[-1]


def fetch_one(server: DumpServer, to: object, fault: Fault) -> int:
    """Download a dump of one file, to whose only request this happens."""
    server.add_dump("onewiki", "20260201", {"one.xml.bz2": FILES[INDEX]})
    server.faults = [fault]
    return main(["fetch", "wikipedia", "one", "--to", str(to), "--mirror", server.url])


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_a_download_that_another_process_has_taken_over_writes_and_deletes_nothing_more(
    server: DumpServer, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place, before = Location(f"{folder}/onewiki/20260201"), dict[str, bytes]()

    def take_over(*_: object) -> bool:
        held = lease_file(place).read()
        assert held and lease_file(place).claim(Owner(token="other", attempt=held.owner.attempt + 1), held)
        before.update(content(place))
        return False

    assert fetch_one(server, folder, take_over) == 2
    assert "took over" in capsys.readouterr().err.splitlines()[-1]
    assert content(place) == before and "one.xml.bz2" not in before


def test_a_file_to_which_another_process_has_written_as_well_is_downloaded_again(
    server: DumpServer, tmp_path: Path
) -> None:
    place = tmp_path / "onewiki/20260201"

    def written(*_: object) -> bool:
        (place / ".partial/one.xml.bz2").write_bytes(b"late")
        return False

    assert fetch_one(server, tmp_path, written) == 0
    assert (place / "one.xml.bz2").read_bytes() == FILES[INDEX]


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_a_file_that_is_there_is_kept_if_its_digest_is_the_published_one(server: DumpServer, folder: str) -> None:
    place = Location(f"{folder}/xywiki/20260201")
    (place / PAGES).write_bytes(FILES[PAGES])
    (place / INDEX).write_bytes(bytes(len(FILES[INDEX])))  # its size without its content
    assert fetch(server, folder) == 0
    assert is_whole(place)
    assert {path.split("/")[-1] for path, _, _ in server.ranges} == {INDEX}


def test_a_file_is_on_the_disk_before_it_appears(
    server: DumpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, synced, fsync = tmp_path / "xywiki/20260201", list[tuple[int, bool]](), os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.append((os.fstat(descriptor).st_size, (place / PAGES).exists()))

    monkeypatch.setattr(os, "fsync", record)
    assert fetch(server, tmp_path) == 0
    assert (len(FILES[PAGES]), False) in synced


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_a_killed_download_continues_after_its_ranges(server: DumpServer, folder: str) -> None:
    """With ranges of 32 MiB: the process is a fresh one."""
    size = 32 << 20
    data = random.Random(2).randbytes(3 * size)
    server.add_dump("bigwiki", "20260201", {"big.xml.bz2": data})
    server.delay = 0.5
    command = [sys.executable, "-m", "cloze.infra.cli", "fetch", "wikipedia", "big", "--to", folder]
    command += ["--mirror", server.url]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as first:
        partial = Location(f"{folder}/bigwiki/20260201/.partial")
        while sum(partial.sizes().values()) < size:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
    kept = sum(partial.sizes().values()) // size * size
    server.ranges.clear()
    assert subprocess.run(command, env=environment, check=False, timeout=120).returncode == 0
    assert min(start for _, start, _ in server.ranges) >= kept > 0
    assert (Location(f"{folder}/bigwiki/20260201") / "big.xml.bz2").read_bytes() == data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zz"], "{url}: has no zzwiki; give the code of another language, or another --mirror"),
        (["Deutsch"], "Deutsch: is not the code of a Wikipedia's language; write for example en or zh-min-nan"),
        (["xy", "20250101"], "{url}: has no dump of xywiki of 20250101; leave the date out for the newest one"),
        (["xy", "yesterday"], "yesterday: is not the date of a dump; write for example 20261101"),
        (
            ["xy", "20260301"],
            "{url}/xywiki/20260301/dumpstatus.json: articlesmultistreamdump is 'in-progress', not done; wait, or give "
            "an earlier date",
        ),
    ],
)
def test_a_dump_that_there_is_not_is_one_line(
    server: DumpServer, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "wikipedia", *arguments, "--to", str(tmp_path), "--mirror", server.url]) == 2
    assert capsys.readouterr().err == f"cloze: {message.format(url=server.url)}\n"


def test_a_server_that_refuses_the_newest_dump_gets_no_older_one(
    server: DumpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = "/xywiki/20260301/dumpstatus.json"
    server.refused = {status}
    assert fetch(server, tmp_path) == 2
    assert capsys.readouterr().err == (
        f"cloze: {server.url}{status}: the server refuses it (403); give another --mirror\n"
    )


@pytest.mark.parametrize("page", [b"<html>sign in</html>", b"[]", b'{"jobs": {"articlesmultistreamdump": []}}'])
def test_a_dump_whose_description_is_another_page_is_one_line(
    server: DumpServer, tmp_path: Path, page: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.pages["/xywiki/20260201/dumpstatus.json"] = page
    assert fetch(server, tmp_path, "20260201") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "dumpstatus.json: does not describe the job articlesmultistreamdump; " in line


@pytest.mark.parametrize("mirror", ["dumps.wikimedia.org", "http://", "file:///data"])
def test_a_mirror_that_is_no_address_is_refused_at_once(
    tmp_path: Path, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "wikipedia", "xy", "--to", str(tmp_path), "--mirror", mirror]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "/xywiki/: cannot be requested (" in line and line.endswith("); give another --mirror")


def test_a_name_that_leaves_the_folder_is_refused(
    server: DumpServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add_dump("evilwiki", "20260201", {"../../x": b"x"})
    assert main(["fetch", "wikipedia", "evil", "20260201", "--to", str(tmp_path), "--mirror", server.url]) == 2
    assert "'../../x' is not the name of a file" in capsys.readouterr().err
