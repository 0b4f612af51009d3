"""Requests to S3 as a proxy saw them -> the IAM actions that they need, and what a policy document says to each."""

import re
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit


class Needed(NamedTuple):
    """An action on a resource. `prefix` is that of a listing."""

    action: str
    resource: str
    prefix: str | None = None


def needed(method: str, path: str) -> Needed | None:
    """What a request needs. None for one that names its keys in its body. Raises ValueError for an unknown one."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    match method, bool(key), sorted(query.keys() & {"delete", "list-type", "uploadId", "uploads"}):
        case "GET", False, ["list-type"]:
            return Needed("s3:ListBucket", resource, query.get("prefix", [""])[0])
        case "HEAD", False, []:
            return Needed("s3:ListBucket", resource)
        case "POST", False, ["delete"]:
            return None
        case "GET" | "HEAD", True, []:
            return Needed("s3:GetObject", resource)
        case ("PUT", True, [] | ["uploadId"]) | ("POST", True, ["uploadId"] | ["uploads"]):
            return Needed("s3:PutObject", resource)
        case "DELETE", True, []:
            return Needed("s3:DeleteObject", resource)
        case "DELETE", True, ["uploadId"]:
            return Needed("s3:AbortMultipartUpload", resource)
    raise ValueError(f"{method} {path}: which action of IAM this needs is not known here; add it")


def allows(policy: dict[str, Any], need: Needed) -> bool:
    """Whether a statement allows it. Statements have Allow, lists, and StringLike on s3:prefix at most."""
    return any(
        need.action in statement["Action"]
        and any(fnmatchcase(need.resource, pattern) for pattern in statement["Resource"])
        and _condition_holds(statement, need)
        for statement in policy["Statement"]
        if statement["Effect"] == "Allow"
    )


def _condition_holds(statement: dict[str, Any], need: Needed) -> bool:
    if "Condition" not in statement:
        return True
    patterns = statement["Condition"]["StringLike"]["s3:prefix"]
    return need.prefix is not None and any(fnmatchcase(need.prefix, pattern) for pattern in patterns)


def granted(policy: dict[str, Any]) -> set[tuple[str, str]]:
    """Each action with each part of the bucket for which it is allowed, such as (s3:GetObject, inputs)."""
    pairs: set[tuple[str, str]] = set()
    for statement in policy["Statement"]:
        patterns = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix") or statement["Resource"]
        pairs |= {(action, _part(pattern)) for action in statement["Action"] for pattern in patterns}
    return pairs


def used(needs: list[Needed]) -> set[tuple[str, str]]:
    """The same for what was needed."""
    return {(need.action, _part(need.prefix if need.prefix is not None else need.resource)) for need in needs}


def _part(text: str) -> str:
    return re.sub("^arn:aws:s3:::[^/]*/", "", text).partition("/")[0]
