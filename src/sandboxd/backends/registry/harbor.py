"""`ImageProjects` on Harbor: a private project for each client, with its quota, a rule for leftovers, an account.

Everything is asked for before it is made, so each step is safe to repeat; what somebody else has made is left alone.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from typing_extensions import override

from sandboxd.backends.registry.harbor_api import HarborApi, Json
from sandboxd.backends.registry.harbor_collection import HarborCollection
from sandboxd.backends.registry.transport import within
from sandboxd.images.projects import ImageProjects, PullAccount, PullAccounts
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId
from sandboxd.model.image_errors import ProjectForeignError
from sandboxd.model.image_names import belongs_to, user_project
from sandboxd.model.sources import Clock

ROBOT: Final = "sandboxd-pull-"
"""What the names of accounts begin with; eight digits follow, as a new one is made before the old one goes."""
RESTING: Final = timedelta(hours=1)
"""How long an account can still be used after another one took its place: nodes may be about to pull with it."""
UNLIMITED: Final = -1
"""Harbor's number for no quota."""
_BY_NAME: Final = {"X-Is-Resource-Name": "true"}
"""Or Harbor takes a project that is called 42 for the one with that number."""
_CRON: Final = "0 30 3 * * 0"
"""Seconds first: Sundays at 3:30."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarborRules:
    """What every client's project gets."""

    prefix: str = ""
    """Of their names."""
    quota_bytes: int = 0
    """Of each; `UNLIMITED`, or 0 to leave what Harbor gives by itself."""
    untagged_days: int = 7
    """After which Harbor removes what has no tag; 0 for never."""
    account_days: int = 90
    """That an account to pull with is good for; it is replaced when a third of them is left."""
    collect_cron: str = ""
    """When Harbor collects its garbage, seconds first; empty leaves that to others."""


class HarborProjects(ImageProjects):
    """The projects of one Harbor."""

    def __init__(self, api: HarborApi, *, rules: HarborRules, accounts: PullAccounts | None, clock: Clock) -> None:
        """Take what it works with; without `accounts` none are made: nobody would pull with them."""
        self._api = api
        self._rules = rules
        self._accounts = accounts
        self._clock = clock
        self._checked = False

    async def close(self) -> None:
        """Give up its connections."""
        await self._api.close()

    @override
    async def prepare(self, client: ClientId, *, timeout: timedelta) -> None:
        name = self._name(client)
        async with _asking(timeout, f"project {name}"):
            await self._check()
            if not await self._api.has_project(name):
                await self._make(name)
            await self._converge(client, name)

    @override
    async def renew(self, client: ClientId, *, timeout: timedelta) -> bool:
        name = self._name(client)
        async with _asking(timeout, f"project {name}"):
            await self._check()
            if not await self._api.has_project(name):
                return False
            await self._converge(client, name)
        return True

    @override
    async def schedule_collection(self, *, timeout: timedelta) -> None:
        if self._rules.collect_cron:
            async with _asking(timeout, "schedule of the garbage collection"):
                await self._check()
                await HarborCollection(self._api, cron=self._rules.collect_cron).converge()

    @override
    async def remove_repository(self, client: ClientId, repository: str, *, timeout: timedelta) -> None:
        project, _, name = repository.partition("/")
        async with _asking(timeout, f"removal of {repository}"):
            if await self._api.has_project(project):
                await self._remove_repository(project, name)

    @override
    async def remove(self, client: ClientId, *, timeout: timedelta) -> bool:
        name = self._name(client)
        async with _asking(timeout, f"removal of project {name}"):
            await self._check()
            removed = await self._api.has_project(name) and await self._empty(client, name)
            if removed:
                await self._api.ask("DELETE", f"projects/{name}", 200, 404, right="project: delete", headers=_BY_NAME)
                log.info("images.project_removed", project=name)
            if self._accounts is not None:
                await self._accounts.remove(client)
        return removed

    def _name(self, client: ClientId) -> str:
        return user_project(client, prefix=self._rules.prefix)

    async def _check(self) -> None:
        if not self._checked:
            await self._api.check_version()
            self._checked = True

    async def _make(self, name: str) -> None:
        body: dict[str, Json] = {"project_name": name, "metadata": {"public": "false"}}
        if self._rules.quota_bytes:
            body["storage_limit"] = self._rules.quota_bytes
        answer = await self._api.ask("POST", "projects", 201, 409, right="project: create", body=body)
        if answer.status == 201:
            log.info("images.project_made", project=name)

    async def _empty(self, client: ClientId, name: str) -> bool:
        """Remove what is the client's from a project; False where something else is in it, too."""
        own, foreign = await self._repositories(client, name)
        for one in own:
            await self._remove_repository(name, one)
        if foreign:
            log.warning("images.project_left", project=name, repository=foreign[0])
            for robot in await self._robots((await self._project(name))["project_id"]):
                if _is_ours(robot):
                    await self._remove_robot(robot)
        return not foreign

    async def _converge(self, client: ClientId, name: str) -> None:
        project = await self._project(name)
        metadata, number = project.get("metadata") or {}, int(project["project_id"])
        if metadata.get("public") == "true" or project.get("registry_id"):
            raise ProjectForeignError(
                f"Harbor's project {name} is public, or a proxy of another registry: images of a client must not lie "
                "there. Make it private, or set another SANDBOXD_IMAGES_REPOSITORY_PREFIX.",
                project=name,
                client=client,
            )
        _, foreign = await self._repositories(client, name)
        if foreign:
            raise ProjectForeignError(
                f"Harbor's project {name} holds {foreign[0]}, which is no image of client {client}: the project is "
                "somebody else's. Nothing in it was touched. Rename it, or set another "
                "SANDBOXD_IMAGES_REPOSITORY_PREFIX.",
                project=name,
                client=client,
                repository=foreign[0],
            )
        await self._set_quota(name, number)
        await self._set_retention(name, number, str(metadata.get("retention_id") or ""))
        if self._accounts is not None:
            await self._set_account(self._accounts, client, name, number)

    async def _project(self, name: str) -> dict[str, Json]:
        answer = await self._api.ask("GET", f"projects/{name}", 200, right="project: read", headers=_BY_NAME)
        project: dict[str, Json] = self._api.read(answer, dict)
        return project

    async def _repositories(self, client: ClientId, project: str) -> tuple[list[str], list[str]]:
        """Return what of a project is the client's images, without the project's name, and what is something else."""
        listed = await self._api.pages(f"projects/{project}/repositories", right="repository: list")
        names = [str(one["name"]).removeprefix(f"{project}/") for one in listed]
        own = [one for one in names if belongs_to(one, client)]
        return own, [one for one in names if one not in own]

    async def _remove_repository(self, project: str, name: str) -> None:
        twice = name.replace("/", "%252F")  # once for Harbor's router, and once more for what it finds then
        path = f"projects/{project}/repositories/{twice}"
        await self._api.ask("DELETE", path, 200, 404, right="repository: delete")

    async def _set_quota(self, name: str, number: int) -> None:
        wanted = self._rules.quota_bytes
        if not wanted:
            return
        query = {"reference": "project", "reference_id": str(number)}
        found = await self._api.pages("quotas", right="quota: list (of the system)", query=query)
        if not found:
            if wanted != UNLIMITED:
                log.warning("images.project_without_quota", project=name, why="Harbor's quotas of projects are off")
            return
        if (found[0].get("hard") or {}).get("storage") == wanted:
            return
        right, body = "quota: update (of the system)", {"hard": {"storage": wanted}}
        await self._api.ask("PUT", f"quotas/{found[0]['id']}", 200, right=right, body=body)
        log.info("images.project_quota_set", project=name, bytes=wanted)

    async def _set_retention(self, name: str, number: int, there: str) -> None:
        """Let Harbor remove what has no tag. Images are the care's: Harbor does not know what pods are made from."""
        if not there:
            if self._rules.untagged_days:
                await self._make_retention(name, number)
            return
        answer = await self._api.ask("GET", f"retentions/{there}", 200, right="tag-retention: read")
        rules = self._api.read(answer, dict).get("rules") or []
        if rules and not any(keeps_tags(rule) for rule in rules):
            log.warning("images.project_retention_unsafe", project=name, retention=there)

    async def _make_retention(self, name: str, number: int) -> None:
        body = untagged_retention(number, days=self._rules.untagged_days)
        try:
            await self._api.ask("POST", "retentions", 201, right="tag-retention: create", body=body)
        except UnavailableError:
            if not (await self._project(name)).get("metadata", {}).get("retention_id"):
                raise  # else another replica was faster

    async def _set_account(self, accounts: PullAccounts, client: ClientId, project: str, number: int) -> None:
        """See that there is an account to pull with that is good for long enough; others of ours go, in their time."""
        now = self._clock.now()
        robots = await self._robots(number)
        kept = await accounts.get(client)
        least = now + timedelta(days=self._rules.account_days) / 3
        good = [one for one in robots if kept is not None and one.get("name") == kept.name and _lasts(one, least)]
        if not good:
            kept = await self._make_account(project)
            await accounts.put(client, kept)
            log.info("images.pull_account_made", project=project)
        if good and _born(good[0]) < now - RESTING:
            for one in robots:
                if _is_ours(one) and one not in good and _born(one) < now - RESTING:
                    await self._remove_robot(one)

    async def _robots(self, number: int) -> list[Json]:
        query = {"q": f"Level=project,ProjectID={number}"}
        return await self._api.pages("robots", right="robot: list (of the project)", query=query)

    async def _remove_robot(self, robot: Json) -> None:
        await self._api.ask("DELETE", f"robots/{robot['id']}", 200, 404, right="robot: delete (of the project)")

    async def _make_account(self, project: str) -> PullAccount:
        body = {
            "name": f"{ROBOT}{secrets.token_hex(4)}",
            "description": "Nodes pull this project's images with it. Made and replaced by sandboxd.",
            "level": "project",
            "disable": False,
            "duration": self._rules.account_days,
            "permissions": [
                {"kind": "project", "namespace": project, "access": [{"resource": "repository", "action": "pull"}]}
            ],
        }
        right = "robot: create (of the project), and all that the new one may do, repository: pull"
        made = self._api.read(await self._api.ask("POST", "robots", 201, right=right, body=body), dict)
        return PullAccount(name=str(made["name"]), password=str(made["secret"]))


@asynccontextmanager
async def _asking(timeout: timedelta, what: str) -> AsyncIterator[None]:
    """Bound a block, and call answers that lack something by our name.

    Raises:
        DeadlineError: The time is over.
        UnavailableError: Harbor answers nonsense.
    """
    async with within(timeout, what):
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnavailableError(f"Harbor's answers cannot be read ({error!r}): {what}.", what=what) from error


def untagged_retention(project: int, *, days: int) -> dict[str, Json]:
    """Return the policy that keeps whatever has a tag, and what has none for some days."""
    return {
        "algorithm": "or",
        "scope": {"level": "project", "ref": project},
        "trigger": {"kind": "Schedule", "settings": {"cron": _CRON}, "references": {}},
        "rules": [_rule("always", {}, untagged=False), _rule("nDaysSinceLastPush", {"nDaysSinceLastPush": days})],
    }


def keeps_tags(rule: Json) -> bool:
    """Whether a rule of a policy keeps everything that has a tag."""
    try:
        tags = [one["pattern"] for one in rule["tag_selectors"] if one.get("decoration") == "matches"]
        scope = [one["pattern"] for one in rule["scope_selectors"]["repository"]]
    except (KeyError, TypeError):
        return False
    everywhere = tags == scope == ["**"]
    return rule.get("template") == "always" and not rule.get("disabled") and everywhere


def _rule(template: str, params: dict[str, int], *, untagged: bool = True) -> dict[str, Json]:
    extras = '{"untagged":true}' if untagged else '{"untagged":false}'
    return {
        "disabled": False,
        "action": "retain",
        "template": template,
        "params": params,
        "tag_selectors": [{"kind": "doublestar", "decoration": "matches", "pattern": "**", "extras": extras}],
        "scope_selectors": {"repository": [{"kind": "doublestar", "decoration": "repoMatches", "pattern": "**"}]},
    }


def _is_ours(robot: Json) -> bool:
    return f"+{ROBOT}" in str(robot.get("name", ""))


def _lasts(robot: Json, until: datetime) -> bool:
    ends = robot.get("expires_at")
    return not robot.get("disable") and isinstance(ends, int) and (ends == -1 or ends > until.timestamp())


def _born(robot: Json) -> datetime:
    """When an account was made; one that does not say so is taken for new, and stays."""
    try:
        return datetime.fromisoformat(str(robot["creation_time"])).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.max.replace(tzinfo=UTC)
