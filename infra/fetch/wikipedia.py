"""A language and a date -> a finished dump of its Wikipedia: the names, sizes and digests of its files.

The server publishes them for each date in dumpstatus.json (https://meta.wikimedia.org/wiki/Data_dumps).
"""

import json
import re
from typing import Any, NamedTuple

from cloze.infra.fetch.http import Http, NotFound
from cloze.pipeline.core.errors import UserError

MIRROR = "https://dumps.wikimedia.org"
_ARTICLES = "articlesmultistreamdump"  # pages of articles, in bz2 files that can be read in parallel, with an index


class DumpFile(NamedTuple):
    """A file of a dump. `sha1` is the published digest, in hexadecimal."""

    name: str
    url: str
    bytes: int
    sha1: str


class _NotFinished(UserError):
    """The server has no finished dump of this date."""


class Dump(NamedTuple):
    """A finished dump: the files with the pages of its articles."""

    wiki: str  # such as enwiki
    date: str  # such as 20261101
    files: tuple[DumpFile, ...]


def wiki_of(language: str) -> str:
    """The name of a language's Wikipedia: zh-min-nan -> zh_min_nanwiki."""
    return f"{language.replace('-', '_')}wiki"


def find_dump(http: Http, language: str, date: str | None = None, mirror: str = MIRROR) -> Dump:
    """Returns the dump of this date (YYYYMMDD), by default the newest one that is finished.

    Raises UserError for a language or date that the server does not have, and for a dump that is not finished.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", language):
        raise UserError(f"{language}: is not the code of a Wikipedia's language; write for example en or zh-min-nan")
    wiki = wiki_of(language)
    if date:
        if not re.fullmatch(r"\d{8}", date):
            raise UserError(f"{date}: is not the date of a dump; write for example 20261101")
        return _finished_dump(http, wiki, date, mirror)
    unfinished: list[str] = []
    for candidate in _dates(http, wiki, mirror):
        try:
            return _finished_dump(http, wiki, candidate, mirror)
        except _NotFinished as error:
            unfinished.append(str(error))
    raise UserError(unfinished[0] if unfinished else f"{mirror}/{wiki}/: has no dump; give another --mirror")


def _dates(http: Http, wiki: str, mirror: str) -> list[str]:
    """Returns the dates of the server's dumps, the newest first."""
    try:
        page = http.text(f"{mirror}/{wiki}/")
    except NotFound as error:
        raise UserError(f"{mirror}: has no {wiki}; give the code of another language, or another --mirror") from error
    return sorted(set(re.findall(r'href="(\d{8})/"', page)), reverse=True)


def _finished_dump(http: Http, wiki: str, date: str, mirror: str) -> Dump:
    url = f"{mirror}/{wiki}/{date}/dumpstatus.json"
    try:
        text = http.text(url)
    except NotFound as error:
        message = f"{mirror}: has no dump of {wiki} of {date}; leave the date out for the newest one"
        raise _NotFinished(message) from error
    try:
        job: dict[str, Any] = json.loads(text)["jobs"][_ARTICLES]
        status = job["status"]
    except (ValueError, KeyError, TypeError) as error:
        raise _NotFinished(f"{url}: does not describe the job {_ARTICLES}; give another date or --mirror") from error
    if status != "done":
        raise _NotFinished(f"{url}: {_ARTICLES} is {status!r}, not done; wait, or give an earlier date")
    try:
        files = [
            DumpFile(_file_name(name), f"{mirror}{file['url']}", int(file["size"]), str(file["sha1"]))
            for name, file in dict(job["files"]).items()
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise _NotFinished(f"{url}: lacks the size or the SHA-1 of a file ({error}); give another date") from error
    if not files:
        raise _NotFinished(f"{url}: {_ARTICLES} has no files; give another date")
    return Dump(wiki, date, tuple(sorted(files)))


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"{name!r} is not the name of a file")
    return name
