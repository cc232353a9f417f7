"""The operations of Harbor's own API that a fake of it has, by their names in the description."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import unquote

from aiohttp import web

from tests.harbor_state import HarborState, Json, Project, RefusedError, Robot

_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request of somebody who is known."""

    request: web.Request
    who: Robot
    parts: list[str]
    """Of the path, encoded."""
    body: Json

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query


@dataclass(frozen=True, kw_only=True)
class Told:
    """An answer."""

    status: int = 200
    body: Json = None
    headers: dict[str, str] = field(default_factory=dict)
    empty: bool = False
    """No body at all, where the description has one: Harbor has nothing to tell."""


class HarborOperations:
    """What they do."""

    def __init__(self, state: HarborState) -> None:
        self._state = state
        self._by_name: dict[str, Callable[[Asked], Told]] = {
            "headProject": self._head_project,
            "createProject": self._create_project,
            "getProject": self._get_project,
            "deleteProject": self._delete_project,
            "listRepositories": self._list_repositories,
            "deleteRepository": self._delete_repository,
            "listQuotas": self._list_quotas,
            "updateQuota": self._update_quota,
            "ListRobot": self._list_robots,
            "CreateRobot": self._create_robot,
            "DeleteRobot": self._delete_robot,
            "createRetention": self._create_retention,
            "getRetention": self._get_retention,
            "getGCSchedule": self._get_collection,
            "createGCSchedule": self._create_collection,
        }

    def answer(self, name: str, request: web.Request, path: str, body: Json) -> Told:
        """Do what is asked, or refuse it."""
        who = self._state.who(request)
        if name == "getSystemInfo":
            return Told(body={"auth_mode": "db_auth", **({"harbor_version": self._state.version} if who else {})})
        if who is None:
            raise RefusedError(401, "UNAUTHORIZED")
        return self._by_name[name](Asked(request=request, who=who, parts=path.strip("/").split("/"), body=body))

    def _head_project(self, asked: Asked) -> Told:
        return Told(status=200 if asked.query["project_name"] in self._state.projects else 404)

    def _create_project(self, asked: Asked) -> Told:
        self._need(asked, "", "project", "create")
        name = asked.body["project_name"]
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise RefusedError(400, "BAD_REQUEST", "project name is not in lower case or contains illegal characters")
        if name in self._state.projects:
            raise RefusedError(409, "CONFLICT", f"The project named {name} already exists")
        limit = asked.body.get("storage_limit") or self._state.default_limit
        made = self._state.given_project(name, limit=limit, **asked.body.get("metadata", {}))
        return Told(status=201, headers={"Location": f"/api/v2.0/projects/{made.number}"})

    def _get_project(self, asked: Asked) -> Told:
        project = self._project(asked, "project", "read")
        more = {"registry_id": project.registry} if project.registry else {}
        shown = {
            "project_id": project.number,
            "name": project.name,
            "owner_id": 1,
            "owner_name": "admin",
            "creation_time": "2026-01-01T00:00:00.000Z",
            "metadata": project.metadata,
            "repo_count": len(project.repositories),
            **more,
        }
        return Told(body=shown)

    def _delete_project(self, asked: Asked) -> Told:
        project = self._project(asked, "project", "delete")
        if project.repositories:
            raise RefusedError(412, "PRECONDITION", "the project contains repositories, can not be deleted")
        self._state.robots = [one for one in self._state.robots if one.project != project.number]
        del self._state.projects[project.name]
        return Told()

    def _list_repositories(self, asked: Asked) -> Told:
        project = self._project(asked, "repository", "list")
        return _page(asked, [{"id": 1, "name": one} for one in sorted(project.repositories)])

    def _delete_repository(self, asked: Asked) -> Told:
        project = self._project(asked, "repository", "delete")
        name = f"{project.name}/{unquote(unquote(asked.parts[3]))}"
        if name not in project.repositories:
            raise RefusedError(404, "NOT_FOUND", f"repository {name} not found")
        project.repositories.discard(name)
        return Told()

    def _list_quotas(self, asked: Asked) -> Told:
        self._need(asked, "", "quota", "list")
        assert asked.query["reference"] == "project"
        found = [one for one in self._state.projects.values() if str(one.number) == asked.query["reference_id"]]
        quotas = [
            {"id": one.number, "hard": {"storage": one.limit}, "used": {"storage": sum(one.blobs.values())}}
            for one in found
        ]
        return Told(body=quotas if self._state.quotas else [])

    def _update_quota(self, asked: Asked) -> Told:
        self._need(asked, "", "quota", "update")
        self._state.numbered(int(asked.parts[1])).limit = asked.body["hard"]["storage"]
        return Told()

    def _list_robots(self, asked: Asked) -> Told:
        found = re.fullmatch(r"Level=project,ProjectID=(\d+)", asked.query["q"])
        assert found is not None, asked.query["q"]
        project = self._state.numbered(int(found[1]))
        self._need(asked, project.name, "robot", "list")
        return _page(asked, [_robot(one) for one in self._state.robots_of(project.name)])

    def _create_robot(self, asked: Asked) -> Told:
        body, (permission,) = asked.body, asked.body["permissions"]
        assert body["level"] == permission["kind"] == "project"
        project = self._state.projects[permission["namespace"]]
        self._need(asked, project.name, "robot", "create")
        wanted = [(one["resource"], one["action"]) for one in permission["access"]]
        if not all(asked.who.may(project.name, *one) for one in wanted):
            raise RefusedError(403, "DENIED", f"permission scope is invalid: {asked.who.name}")
        if not (body["duration"] == -1 or body["duration"] > 0) or not _NAME.fullmatch(body["name"]):
            raise RefusedError(400, "BAD_REQUEST")
        name = f"robot${project.name}+{body['name']}"
        if any(one.name == name for one in self._state.robots):
            raise RefusedError(409, "CONFLICT", f"robot account {name} already exists")
        ends = datetime.now(UTC) + timedelta(days=body["duration"])
        made = Robot(
            number=self._state.number(),
            name=name,
            secret=secrets.token_urlsafe(24),
            project=project.number,
            rights=frozenset((f"project:{project.name}", *one) for one in wanted),
            expires=int(ends.timestamp()) if body["duration"] > 0 else -1,
        )
        self._state.robots.append(made)
        told = {"id": made.number, "name": name, "secret": made.secret, "expires_at": made.expires}
        return Told(status=201, body={**told, "creation_time": _time(made.made)})

    def _delete_robot(self, asked: Asked) -> Told:
        found = [one for one in self._state.robots if str(one.number) == asked.parts[1]]
        if not found:
            raise RefusedError(404, "NOT_FOUND")
        self._need(asked, self._state.numbered(found[0].project).name, "robot", "delete")
        self._state.robots.remove(found[0])
        return Told()

    def _create_retention(self, asked: Asked) -> Told:
        body = asked.body
        project = self._state.numbered(body["scope"]["ref"])
        self._need(asked, project.name, "tag-retention", "create")
        if "retention_id" in project.metadata:
            raise RefusedError(400, "BAD_REQUEST", f"project {project.number} already has retention policy")
        scheduled = body["trigger"]["kind"] == "Schedule" and len(body["trigger"]["settings"]["cron"].split()) == 6
        if body["algorithm"] != "or" or body["scope"]["level"] != "project" or not scheduled:
            raise RefusedError(400, "BAD_REQUEST")
        number = self._state.number()
        self._state.retentions[number] = {**body, "id": number}
        project.metadata["retention_id"] = str(number)
        return Told(status=201, headers={"Location": f"/api/v2.0/retentions/{number}"})

    def _get_retention(self, asked: Asked) -> Told:
        policy = self._state.retentions[int(asked.parts[1])]
        self._need(asked, self._state.numbered(policy["scope"]["ref"]).name, "tag-retention", "read")
        return Told(body=policy)

    def _get_collection(self, asked: Asked) -> Told:
        self._need(asked, "", "garbage-collection", "read")
        there = self._state.collection
        if there is None:
            return Told(empty=True)
        kept = {name: there["parameters"].get(name) for name in ("delete_untagged", "workers")}  # and nothing else
        shown = {"id": 1, "job_kind": there["schedule"]["cron"], "job_parameters": json.dumps(kept), "deleted": False}
        return Told(body={**shown, "schedule": there["schedule"]})

    def _create_collection(self, asked: Asked) -> Told:
        self._need(asked, "", "garbage-collection", "create")
        if asked.body["schedule"]["type"] != "Custom" or len(asked.body["schedule"]["cron"].split()) != 6:
            raise RefusedError(400, "BAD_REQUEST")
        self._state.collection = asked.body
        return Told(status=201)

    def _need(self, asked: Asked, project: str, resource: str, action: str) -> None:
        if not asked.who.may(project, resource, action):
            raise RefusedError(403, "FORBIDDEN", asked.who.name)

    def _project(self, asked: Asked, resource: str, action: str) -> Project:
        name = unquote(asked.parts[1])
        told = asked.request.headers.get("X-Is-Resource-Name", "false") == "true"
        by_name = told or not name.isdecimal() or resource == "repository"
        if by_name and name not in self._state.projects:
            raise RefusedError(403, "FORBIDDEN")  # as one that the caller may not see
        project = self._state.projects[name] if by_name else self._state.numbered(int(name))
        self._need(asked, project.name, resource, action)
        return project


def _robot(robot: Robot) -> Json:
    return {
        "id": robot.number,
        "name": robot.name,
        "level": "project" if robot.project else "system",
        "disable": robot.disabled,
        "editable": True,
        "duration": 1,
        "expires_at": robot.expires,
        "creation_time": _time(robot.made),
    }


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _page(asked: Asked, items: list[Json]) -> Told:
    size = min(int(asked.query.get("page_size", "10")), 100)
    start = (int(asked.query.get("page", "1")) - 1) * size
    return Told(body=items[start : start + size], headers={"X-Total-Count": str(len(items))})
