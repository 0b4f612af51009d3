"""The artifact that a stage writes: its parts, committed one by one, then its manifest. See artifacts.py."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from cloze.pipeline.core.artifacts import Facts, FileRecord, Manifest, Part, matches_record, read_manifest
from cloze.pipeline.core.cpu_time import StageClock
from cloze.pipeline.core.errors import DamagedFile, UserError
from cloze.pipeline.core.lease_files import WorkDone, is_lease_file
from cloze.pipeline.core.leases import Lease
from cloze.pipeline.core.retries import expect_answers
from cloze.pipeline.core.software_versions import git_commit, package_versions
from cloze.pipeline.core.storage import FILES_PER_REQUEST, Location
from cloze.pipeline.core.threads import map_in_threads, prefetch, run_periodically

_MAX_LISTINGS = 5
_PARTS_READ_AHEAD = 64

ProgressReporter = Callable[[float, float, str, str], None]  # done, total, unit, note


def progress_period(location: Location, listed: int) -> float:
    """Returns the seconds between two listings of `listed` files: the requests per hour do not grow with the files."""
    return (2.0 if location.is_s3 else 0.5) * max(1, -(-listed // FILES_PER_REQUEST))


@dataclass
class Output:
    """The artifact that a stage writes. Workers have a copy of it; only the driver's reports progress."""

    location: Location
    stage: str
    version: int
    fingerprint: str
    reporter: ProgressReporter | None = None
    lease: Lease | None = None  # None in a run without a planner, and where the store has no conditional writes
    started: float = field(default_factory=time.monotonic)
    cpu: StageClock = field(default_factory=StageClock, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reporter": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.location.is_s3:  # the driver has read and written there
            expect_answers()

    @property
    def root(self) -> Location:
        """The folder of all artifacts: this one is <root>/<stage>/<fingerprint>/."""
        return Location(self.location.uri.rsplit("/", 2)[0])

    def check_lease(self) -> None:
        """Raises LeaseLost if another run has taken over. Called directly before each write and deletion."""
        if self.lease:
            self.lease.check()

    def clear(self) -> None:
        """Delete everything except the lease; first the manifest, so that no half-deleted folder looks finished.

        The files that the manifest names are deleted by name: a listing may omit them. The part that a missing file
        belongs to is not finished.
        """

        def delete(name: str) -> None:
            self.check_lease()
            (self.location / name).delete()

        files: list[str] = []
        with suppress(DamagedFile):
            if manifest := read_manifest(self.location):
                files = list(manifest.files)
        delete("manifest.json")
        map_in_threads(delete, files)
        for _ in range(_MAX_LISTINGS):  # one may omit a file
            names = {path.partition("/")[0] for path in self.location.sizes()}
            if not (names := {name for name in names if not is_lease_file(name)}):
                return
            for name in names:
                delete(name)

    def finished_part(self, name: str, listed: Mapping[str, int] | None = None) -> Part | None:
        """Returns the record of a part, or None unless it can be read and all its files exist with their size.

        `listed` is a listing of the artifact, path -> size. Files that it does not confirm are checked by their names.
        """
        try:
            part = Part.model_validate_json((self.location / f"parts/{name}.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        doubtful = {path: file for path, file in part.files.items() if (listed or {}).get(path) != file.bytes}
        return part if all(matches_record(self.location / path, file) for path, file in doubtful.items()) else None

    def finished_parts(self, names: Sequence[str]) -> dict[str, Part]:
        """Returns those of the named parts that are finished.

        Their records are read by name, as a listing may omit some; one listing confirms most of their files. A stage
        may skip these parts, but only finishes with those that `require_parts` returns.
        """
        return {part.name: part for part in self._finished(names)}

    def finished_names(self, names: Sequence[str]) -> set[str]:
        """Returns the names of `finished_parts`, whose records are not kept."""
        return {part.name for part in self._finished(names)}

    def _finished(self, names: Sequence[str]) -> Iterator[Part]:
        listed = self.location.sizes() if len(names) > 1 else {}
        found = prefetch(lambda name: self.finished_part(name, listed), names, _PARTS_READ_AHEAD)
        return (part for part in found if part)

    def write_file(self, path: str, data: bytes) -> FileRecord:
        """Write a file of a part that is committed later, atomically. Raises LeaseLost."""
        (self.location / path).write_bytes(data, self.check_lease)
        return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def commit(
        self,
        name: str,
        files: Mapping[str, bytes],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
        written: Mapping[str, FileRecord] | None = None,
    ) -> Part:
        """Write the part's files (relative path -> bytes), then its record; each write is atomic.

        `written` are files of the part that have been written before. Raises LeaseLost.
        """
        records = dict(written or {})
        records |= {path: self.write_file(path, data) for path, data in files.items()}
        part = Part(
            name=name, files=records, counts=dict(counts or {}), drops=dict(drops or {}), facts=dict(facts or {})
        )
        self._write_record(f"parts/{name}.json", part.model_dump_json())
        return part

    def _write_record(self, path: str, text: str) -> None:
        file, data = self.location / path, text.encode("utf-8")
        if self.lease:
            self.lease.write_record(file, data)
        else:
            file.write_bytes(data)

    def report_progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        if self.lease:
            self.lease.progress = WorkDone(done=done, total=total, unit=unit, note=note)
        if self.reporter:
            self.reporter(done, total, unit, note)

    @contextmanager
    def reporting_progress(
        self, done: Callable[[], float], total: float, unit: str, note: str = "", listed: int = 0
    ) -> Iterator[None]:
        """Report `done()` of `total` when the block begins, periodically while it runs, and when it ends.

        `listed` is the number of files that a call of `done` lists.
        """

        def report() -> bool:
            self.report_progress(min(done(), total), total, unit, note)
            return True

        report()
        with run_periodically(report, progress_period(self.location, listed)):
            yield
        report()

    def reporting_parts(self, total: int, unit: str) -> AbstractContextManager[None]:
        """While inside the block, report the number of committed parts, of all workers, as progress."""
        records = self.location / "parts"
        return self.reporting_progress(lambda: len(records.files()), total, unit, listed=total)

    def require_parts(self, names: Sequence[str]) -> list[Part]:
        """Returns the parts with these names, sorted by name. Raises UserError when one is not finished.

        Every file is looked up by its name: an outdated listing may contain one that was deleted.
        """
        return list(self.read_parts(names))

    def read_parts(self, names: Sequence[str]) -> Iterator[Part]:
        """Yields what `require_parts` returns, as the parts are read. Raises UserError at the end."""
        names, missing = sorted(names), list[str]()
        for name, part in zip(names, prefetch(self.finished_part, names, _PARTS_READ_AHEAD), strict=True):
            if part:
                yield part
            else:
                missing.append(name)
        if missing:
            raise UserError(
                f"{self.location}/parts/{missing[0]}.json: this part or one of its files is missing "
                f"({len(missing)} of {len(names)} parts); run again: finished parts are kept"
            )

    def finish(
        self,
        parts: Sequence[Part],
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        counts: Mapping[str, int] | None = None,
        drops: Mapping[str, int] | None = None,
        facts: Facts | Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest, which makes the artifact finished. Raises LeaseLost.

        `parts` are all parts, as `require_parts` returns them; their counts and drops are added to `counts` and
        `drops`.
        """
        all_counts, all_drops = Counter(counts or {}), Counter(drops or {})
        for part in parts:
            all_counts.update(part.counts)
            all_drops.update(part.drops)
        manifest = Manifest(
            stage=self.stage,
            version=self.version,
            fingerprint=self.fingerprint,
            config=dict(config),
            inputs=dict(inputs),
            counts=dict(sorted(all_counts.items())),
            drops=dict(sorted(all_drops.items())),
            files={path: file for part in parts for path, file in sorted(part.files.items())},
            facts=facts.plain if isinstance(facts, Facts) else dict(facts or {}),
            seconds=round(time.monotonic() - self.started, 3),
            cpu_seconds=self.cpu.seconds(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=package_versions(),
            git_commit=git_commit(),
        )
        self._write_record("manifest.json", manifest.model_dump_json(indent=1))
        self.location.delete_stale_writes()
        return manifest
