"""What a fake of Harbor knows: accounts with their rights, projects, quotas, policies of retention."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from sandboxd.backends.registry.access import RegistryAccount

Json = Any
Right = tuple[str, str, str]
"""Kind with namespace (`system`, `project:*`, `project:acme`), resource, action."""
SYSTEM: Final = RegistryAccount(name="robot$sandboxd", password="Harbor12345")
NEEDED: Final[frozenset[Right]] = frozenset(
    {
        *(("system", "project", "create"), ("system", "quota", "list"), ("system", "quota", "update")),
        *(("project:*", "project", one) for one in ("read", "delete")),
        *(("project:*", "repository", one) for one in ("list", "pull", "push", "delete")),
        *(("project:*", "robot", one) for one in ("create", "list", "delete")),
        *(("project:*", "tag-retention", one) for one in ("create", "read")),
    }
)
"""What docs/images-kept.md asks of the account."""
COLLECTING: Final[frozenset[Right]] = frozenset(
    ("system", "garbage-collection", action) for action in ("read", "create")
)
"""What it needs beside that to schedule the garbage collection."""


@dataclass(kw_only=True)
class Robot:
    """An account."""

    number: int
    name: str
    secret: str
    rights: frozenset[Right]
    project: int = 0
    """0: of the system."""
    expires: int = -1
    disabled: bool = False
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    def may(self, project: str, resource: str, action: str) -> bool:
        kinds = ("system",) if not project else ("project:*", f"project:{project}")
        return any((kind, resource, action) in self.rights for kind in kinds)


@dataclass(kw_only=True)
class Project:
    """A project."""

    number: int
    name: str
    metadata: dict[str, str] = field(default_factory=lambda: {"public": "false"})
    limit: int = -1
    registry: int = 0
    blobs: dict[str, int] = field(default_factory=dict)
    """What counts in the quota, with its size."""
    repositories: set[str] = field(default_factory=set)


class RefusedError(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, code: str, message: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def answer(self) -> web.Response:
        text = {"errors": [{"code": self.code, "message": self.message or self.code.lower()}]}
        return web.json_response(text, status=self.status, headers=self.headers)


@dataclass(kw_only=True)
class HarborState:
    """All of it."""

    collection: Json = None
    """The schedule of the garbage collection, as it was asked for."""
    version: str = "v2.16.0-c50c7ddd"
    quotas: bool = True
    """Whether projects have any."""
    default_limit: int = 10 << 30
    robots: list[Robot] = field(
        default_factory=lambda: [Robot(number=1, name=SYSTEM.name, secret=SYSTEM.password, rights=NEEDED)]
    )
    projects: dict[str, Project] = field(default_factory=dict)
    retentions: dict[int, Json] = field(default_factory=dict)
    _last: int = 1

    def number(self) -> int:
        """A new one."""
        self._last += 1
        return self._last

    def given_project(self, name: str, *, limit: int = -1, **metadata: str) -> Project:
        """Make one without being asked."""
        made = Project(number=self.number(), name=name, limit=limit)
        made.metadata |= metadata
        self.projects[name] = made
        return made

    def numbered(self, number: int) -> Project:
        """Find one."""
        return next(one for one in self.projects.values() if one.number == number)

    def robots_of(self, project: str) -> list[Robot]:
        """The accounts of a project."""
        return [one for one in self.robots if one.project == self.projects[project].number]

    def who(self, request: web.Request) -> Robot | None:
        """Whose name and password were sent."""
        scheme, _, rest = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        name, _, secret = base64.b64decode(rest).decode().partition(":")
        for one in self.robots:
            alive = not one.disabled and (one.expires == -1 or one.expires > datetime.now(UTC).timestamp())
            if (one.name, one.secret) == (name, secret) and alive:
                return one
        return None

    def spend(self, project: Project, blobs: Mapping[str, int]) -> None:
        """Count blobs in a project's quota, or refuse them."""
        new = {digest: size for digest, size in blobs.items() if digest not in project.blobs}
        used, more = sum(project.blobs.values()), sum(new.values())
        if self.quotas and project.limit != -1 and more and used + more > project.limit:
            text = (
                f"adding {more / 1024:.1f} KiB of storage resource, which when updated to current usage of "
                f"{used / 1024:.1f} KiB will exceed the configured upper limit of {project.limit / 1024:.1f} KiB."
            )
            raise RefusedError(403, "DENIED", text)
        project.blobs |= new
