"""Kubernetes objects -> grants of the API server that cloze does not need, or that it lacks."""

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

#: What `cloze submit`, `cloze job` and `cloze doctor` call; docs/guide/kubernetes.md asks an administrator for it.
_NEEDED = {("ray.io", "rayjobs", verb) for verb in ("get", "list", "watch", "create", "delete")} | {
    ("", resource, verb) for resource in ("pods", "pods/log", "events") for verb in ("get", "list")
}
_SUBJECTS = {("ServiceAccount", "dagster"), ("Group", "cloze:submitters")}


def access_problems(objects: list[Json]) -> Iterator[str]:
    roles = [one for one in objects if one["kind"] == "Role"]
    for role in roles:
        granted = {
            (group, resource, verb)
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for what, difference in (("grants", granted - _NEEDED), ("lacks", _NEEDED - granted)):
            yield from (f"{_name(role)}: {what} {verb} {resource}" for _, resource, verb in sorted(difference))
    known = {("Role", role["metadata"]["name"]) for role in roles}
    for one in objects:
        if one["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            yield f"{_name(one)}: is of the whole cluster"
        if one["kind"] == "RoleBinding":
            if (one["roleRef"]["kind"], one["roleRef"]["name"]) not in known:
                yield f"{_name(one)}: binds a role that is not among these"
            for subject in one["subjects"]:
                if (subject["kind"], subject["name"]) not in _SUBJECTS:
                    yield f"{_name(one)}: binds {subject['kind']} {subject['name']}"


def _name(one: Json) -> str:
    return f"{one['kind']} {one['metadata']['name']}"
