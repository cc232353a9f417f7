"""Clients' projects on a fake of Harbor, whose images lie in a real docker-registry.

Harbor itself does not run here: what the fake does was read from Harbor's sources, and each exchange is held against
Harbor's description of its API.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandboxd.backends.registry.access import RegistryAccount
from sandboxd.backends.registry.harbor import UNLIMITED, HarborProjects, HarborRules, keeps_tags
from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.harbor_registry import HarborRegistry
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.model.errors import ExhaustedError, NotFoundError, UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.image_errors import ProjectForeignError
from sandboxd.model.image_names import belongs_to, user_project, user_repository
from tests.fakes.manager import FakeClock
from tests.fakes.pull_accounts import FakePullAccounts
from tests.harbor import Harbor, a_harbor
from tests.harbor_state import COLLECTING, NEEDED, SYSTEM, Right, Robot

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry") is None, reason="needs docker-registry (Debian: apt-get install docker-registry)"
)

SOON = timedelta(seconds=20)
ACME, OTHER = ClientId("acme"), ClientId("other")
RULES = HarborRules(prefix="boxes", quota_bytes=1 << 20)
REPOSITORY = "boxes-acme/acme/gemini-cli-user-ada"


@dataclass(kw_only=True)
class World:
    """A Harbor, and us before it."""

    harbor: Harbor
    clock: FakeClock
    accounts: FakePullAccounts
    stack: AsyncExitStack

    def projects(self, rules: HarborRules = RULES, account: RegistryAccount = SYSTEM) -> HarborProjects:
        api = HarborApi(self.harbor.address, plain=True, authority=None, account=account)
        self.stack.push_async_callback(api.close)
        return HarborProjects(api, rules=rules, accounts=self.accounts, clock=self.clock)

    def registry(self, account: RegistryAccount = SYSTEM) -> HarborRegistry:
        api = HarborApi(self.harbor.address, plain=True, authority=None, account=account)
        self.stack.push_async_callback(api.close)
        made = HarborRegistry(self.harbor.address, api=api, plain=True, account=account)
        self.stack.push_async_callback(made.close)
        return made

    @property
    def robots(self) -> list[Robot]:
        return self.harbor.state.robots_of("boxes-acme")

    def refuse(self, *rights: Right) -> None:
        self.harbor.state.robots[0].rights -= set(rights)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_harbor(tmp_path) as harbor, AsyncExitStack() as stack:
        clock = FakeClock(datetime.now(UTC))
        yield World(harbor=harbor, clock=clock, accounts=FakePullAccounts(), stack=stack)


async def push(registry: HarborRegistry, repository: str, content: bytes = b"layer", tag: str = "g000001") -> Manifest:
    blob = {"mediaType": "application/octet-stream", "digest": digest_of(content), "size": len(content)}
    await registry.upload(repository, content, digest=digest_of(content), timeout=SOON)
    text = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob, "layers": [blob]}
    manifest = Manifest(media_type=OCI_MANIFEST, content=json.dumps(text).encode())
    await registry.push(repository, tag, manifest, timeout=SOON)
    return manifest


async def test_a_client_gets_a_private_project_with_quota_rules_and_account_once(world: World) -> None:
    projects = world.projects()

    await projects.prepare(ACME, timeout=SOON)
    made = world.harbor.state.projects["boxes-acme"]
    before = (dict(made.metadata), made.limit, list(world.robots), dict(world.accounts.kept))
    world.harbor.seen.clear()
    await projects.prepare(ACME, timeout=SOON)

    assert (made.metadata["public"], made.limit) == ("false", 1 << 20)
    (policy,) = world.harbor.state.retentions.values()
    assert [keeps_tags(rule) for rule in policy["rules"]] == [True, False]
    assert policy["rules"][1]["params"] == {"nDaysSinceLastPush": 7}
    (robot,) = world.robots
    assert (world.accounts.kept[ACME].name, world.accounts.kept[ACME].password) == (robot.name, robot.secret)
    assert robot.rights == {("project:boxes-acme", "repository", "pull")}
    assert (dict(made.metadata), made.limit, list(world.robots), dict(world.accounts.kept)) == before
    assert {one.split()[0] for one in world.harbor.seen} == {"HEAD", "GET"}, "looked at, and nothing changed"


async def test_the_account_pulls_the_images_of_its_client_and_no_others_and_pushes_none(world: World) -> None:
    projects, registry = world.projects(), world.registry()
    for client in (ACME, OTHER):
        await projects.prepare(client, timeout=SOON)
        await push(registry, f"boxes-{client}/{client}/gemini-cli-user-ada")
    kept = world.accounts.kept[ACME]

    node = world.registry(RegistryAccount(name=kept.name, password=kept.password))

    assert await node.tags(REPOSITORY, timeout=SOON) == ["g000001"]
    with pytest.raises(UnavailableError, match="401"):
        await node.manifest("boxes-other/other/gemini-cli-user-ada", "g000001", timeout=SOON)
    with pytest.raises(UnavailableError, match="401"):
        await push(node, REPOSITORY, b"another")


async def test_a_quota_that_is_spent_is_told_at_once_and_one_that_was_raised_is_set(world: World) -> None:
    registry = world.registry()
    await world.projects(replace(RULES, quota_bytes=1000)).prepare(ACME, timeout=SOON)
    await push(registry, REPOSITORY, b"x" * 600)

    with pytest.raises(ExhaustedError, match="will exceed the configured upper limit"):
        await push(registry, REPOSITORY, b"y" * 600, "g000002")
    assert world.harbor.registry.open_uploads() == [], "what was begun was taken back"

    await world.projects(replace(RULES, quota_bytes=UNLIMITED)).prepare(ACME, timeout=SOON)
    await push(registry, REPOSITORY, b"y" * 600, "g000002")
    assert world.harbor.state.projects["boxes-acme"].limit == -1


async def test_a_quota_that_is_left_to_harbor_needs_no_right_and_one_that_harbor_has_not_is_no_failure(
    world: World,
) -> None:
    world.refuse(("system", "quota", "list"), ("system", "quota", "update"))
    await world.projects(replace(RULES, quota_bytes=0)).prepare(ACME, timeout=SOON)
    assert world.harbor.state.projects["boxes-acme"].limit == world.harbor.state.default_limit

    world.harbor.state.robots[0].rights = NEEDED
    world.harbor.state.quotas = False
    await world.projects().prepare(ACME, timeout=SOON)


async def test_a_token_that_has_expired_is_replaced_also_where_many_ask_at_once(world: World) -> None:
    await world.projects().prepare(ACME, timeout=SOON)
    registry = world.registry()
    await push(registry, REPOSITORY)
    assert await registry.tags(REPOSITORY, timeout=SOON) == ["g000001"]

    for _ in range(2):
        world.harbor.expire_tokens()
        found = await asyncio.gather(*(registry.tags(REPOSITORY, timeout=SOON) for _ in range(5)))
        assert found == [["g000001"]] * 5
    await push(registry, REPOSITORY, tag="g000002")


async def test_where_a_client_has_no_project_there_are_no_images_and_renewing_makes_none(world: World) -> None:
    registry, digest = world.registry(), digest_of(b"none")
    assert await registry.tags(REPOSITORY, timeout=SOON) == []
    assert await registry.attached(REPOSITORY, digest, timeout=SOON) == []
    assert await registry.detach(REPOSITORY, digest, timeout=SOON) == 0
    await registry.delete(REPOSITORY, digest, timeout=SOON)
    with pytest.raises(NotFoundError):
        await registry.manifest(REPOSITORY, digest, timeout=SOON)
    assert not await world.projects().renew(ACME, timeout=SOON)
    assert not await world.projects().remove(ACME, timeout=SOON)
    await world.projects().remove_repository(ACME, REPOSITORY, timeout=SOON)

    assert world.harbor.state.projects == {}
    with pytest.raises(UnavailableError, match="401"):  # a wrong password does not mean that there is nothing
        await world.registry(replace(SYSTEM, password="wrong")).tags(REPOSITORY, timeout=SOON)


async def test_a_project_of_somebody_else_is_refused_and_left_as_it_is(world: World) -> None:
    public = world.harbor.state.given_project("boxes-acme", public="true")
    with pytest.raises(ProjectForeignError, match="is public"):
        await world.projects().prepare(ACME, timeout=SOON)

    public.metadata["public"] = "false"
    await push(world.registry(), "boxes-acme/web/shop")
    with pytest.raises(ProjectForeignError, match="holds web/shop"):
        await world.projects().prepare(ACME, timeout=SOON)
    assert not await world.projects().remove(ACME, timeout=SOON), "an erasure ends, and leaves what is not the client's"

    assert world.harbor.state.retentions == {}
    assert public.repositories == {"boxes-acme/web/shop"}
    assert public.limit == -1
    assert world.robots == []


async def test_of_a_project_that_others_use_too_an_erasure_takes_what_is_the_clients(world: World) -> None:
    await world.projects().prepare(ACME, timeout=SOON)
    for repository in (REPOSITORY, "boxes-acme/web/shop"):
        await push(world.registry(), repository)

    assert not await world.projects().remove(ACME, timeout=SOON)

    assert world.harbor.state.projects["boxes-acme"].repositories == {"boxes-acme/web/shop"}
    assert world.robots == []
    assert world.accounts.kept == {}


async def test_an_empty_project_that_somebody_has_prepared_is_taken(world: World) -> None:
    world.harbor.state.given_project("boxes-acme", auto_scan="true")

    await world.projects().prepare(ACME, timeout=SOON)

    made = world.harbor.state.projects["boxes-acme"]
    assert (made.limit, made.metadata["auto_scan"]) == (1 << 20, "true")


@pytest.mark.parametrize("right", sorted(NEEDED - {("project:*", "project", "delete")}))
async def test_a_right_that_the_account_lacks_is_named(world: World, right: Right) -> None:
    world.refuse(right)
    resource, action = right[1:]

    async def use() -> None:
        await world.projects().prepare(ACME, timeout=SOON)
        await push(world.registry(), REPOSITORY)
        await world.registry().delete(REPOSITORY, digest_of(b"none"), timeout=SOON)
        world.accounts.kept.clear()
        world.clock.advance(timedelta(hours=2).total_seconds())
        for _ in range(2):
            world.harbor.state.projects["boxes-acme"].limit = 5
            await world.projects().prepare(ACME, timeout=SOON)

    with pytest.raises(UnavailableError) as caught:
        await use()

    assert f"{resource}: {action}" in caught.value.message or "401" in caught.value.message


async def test_what_is_no_harbor_is_too_old_or_does_not_know_us_is_said(world: World) -> None:
    there = world.harbor.registry.address
    distribution = HarborApi(there, plain=True, authority=None, account=SYSTEM)
    world.stack.push_async_callback(distribution.close)
    with pytest.raises(UnavailableError, match=r"is no Harbor.*SANDBOXD_IMAGES_REGISTRY_KIND"):
        await distribution.check_version()

    with pytest.raises(UnavailableError, match="does not know the account"):
        await world.projects(account=replace(SYSTEM, password="wrong")).prepare(ACME, timeout=SOON)

    world.harbor.state.version = "v2.11.2-0a1b2c3d"
    with pytest.raises(UnavailableError, match=r"version v2\.11\.2.*2\.12"):
        await world.projects().prepare(ACME, timeout=SOON)
    assert world.harbor.state.projects == {}


async def test_an_account_is_replaced_before_it_ends_and_the_old_one_goes_an_hour_later(world: World) -> None:
    projects = world.projects(replace(RULES, account_days=30))
    await projects.prepare(ACME, timeout=SOON)
    (first,) = world.robots

    world.clock.advance(timedelta(days=19).total_seconds())
    assert await projects.renew(ACME, timeout=SOON)
    assert world.robots == [first]

    world.clock.advance(timedelta(days=2).total_seconds())
    await projects.renew(ACME, timeout=SOON)
    second = world.robots[1]
    second.made, second.expires = world.clock.now(), int((world.clock.now() + timedelta(days=30)).timestamp())
    assert world.accounts.kept[ACME].name == second.name
    for _ in range(2):
        await projects.renew(ACME, timeout=SOON)
        assert world.robots == [first, second], "nodes may be about to pull with the first"
        world.clock.advance(timedelta(minutes=50).total_seconds())

    await projects.renew(ACME, timeout=SOON)
    assert world.robots == [second]


async def test_an_answer_that_lacks_something_is_told_as_such(world: World) -> None:
    for lacking in ("project_id", "secret"):
        world.harbor.lacking = lacking

        with pytest.raises(UnavailableError, match=rf"cannot be read.*{lacking}.*project boxes-acme"):
            await world.projects().prepare(ACME, timeout=SOON)
    assert world.accounts.kept == {}


async def test_an_account_that_was_disabled_or_lost_is_replaced_and_others_accounts_stay(world: World) -> None:
    projects = world.projects()
    await projects.prepare(ACME, timeout=SOON)
    world.robots[0].disabled = True
    theirs = replace(world.robots[0], number=77, name="robot$boxes-acme+scanner", disabled=False)
    theirs.made -= timedelta(days=9)
    world.harbor.state.robots.append(theirs)

    await projects.renew(ACME, timeout=SOON)
    second = world.accounts.kept.pop(ACME)
    await projects.renew(ACME, timeout=SOON)

    assert world.accounts.kept[ACME].name != second.name
    assert theirs in world.robots


async def test_two_replicas_at_once_leave_one_project_and_an_account_that_works(world: World) -> None:
    await asyncio.gather(*(world.projects().prepare(ACME, timeout=SOON) for _ in range(2)))
    await push(world.registry(), REPOSITORY)

    kept = world.accounts.kept[ACME]
    node = world.registry(RegistryAccount(name=kept.name, password=kept.password))
    assert await node.tags(REPOSITORY, timeout=SOON) == ["g000001"]
    assert list(world.harbor.state.projects) == ["boxes-acme"]


async def test_a_client_goes_with_its_project_its_images_and_its_accounts(world: World) -> None:
    projects, registry = world.projects(), world.registry()
    await projects.prepare(ACME, timeout=SOON)
    await push(registry, REPOSITORY)
    await push(registry, "boxes-acme/acme/gemini-cli-user-bob")

    await projects.remove_repository(ACME, REPOSITORY, timeout=SOON)
    assert world.harbor.state.projects["boxes-acme"].repositories == {"boxes-acme/acme/gemini-cli-user-bob"}
    assert await projects.remove(ACME, timeout=SOON)
    assert not await projects.remove(ACME, timeout=SOON)

    assert world.harbor.state.projects == {}
    assert [one.name for one in world.harbor.state.robots] == [SYSTEM.name]
    assert world.accounts.kept == {}


@pytest.mark.parametrize("client", ["42", "a__b", "a--b", "A.B", "x" * 63, "a-x0123456789ab"])
async def test_every_client_has_a_project_whatever_it_is_called(world: World, client: str) -> None:
    name = ClientId(client)
    rules = replace(RULES, prefix="")
    world.harbor.state.given_project("first").number = 42

    await world.projects(rules).prepare(name, timeout=SOON)
    repository = user_repository(name, FreelancerId("ada"), prefix=user_project(name))
    await push(world.registry(), repository)
    await world.projects(rules).prepare(name, timeout=SOON)

    assert belongs_to(repository, name)
    assert set(world.harbor.state.projects) == {"first", user_project(name)}
    assert await world.projects(rules).remove(name, timeout=SOON)


async def test_the_garbage_collection_is_scheduled_where_it_is_not_and_another_schedule_is_left_alone(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.harbor.state.robots[0].rights |= COLLECTING
    wishing = world.projects(replace(RULES, collect_cron="0 0 4 * * 0"))

    await world.projects().schedule_collection(timeout=SOON)
    unasked = world.harbor.state.collection
    await wishing.schedule_collection(timeout=SOON)
    made = world.harbor.state.collection
    await wishing.schedule_collection(timeout=SOON)
    silent = "images.collection_otherwise" not in capsys.readouterr().out
    await world.projects(replace(RULES, collect_cron="0 0 5 * * 0")).schedule_collection(timeout=SOON)

    assert unasked is None
    assert made == {
        "schedule": {"type": "Custom", "cron": "0 0 4 * * 0"},
        "parameters": {"delete_untagged": True, "workers": 1},
    }
    assert silent
    assert world.harbor.state.collection == made
    assert "images.collection_otherwise" in capsys.readouterr().out
    assert world.harbor.seen.count("POST /system/gc/schedule") == 1


async def test_one_that_keeps_what_has_no_tag_is_another_schedule_too(world: World) -> None:
    world.harbor.state.robots[0].rights |= COLLECTING
    theirs = {"schedule": {"type": "Custom", "cron": "0 0 4 * * 0"}, "parameters": {"delete_untagged": False}}
    world.harbor.state.collection = theirs

    await world.projects(replace(RULES, collect_cron="0 0 4 * * 0")).schedule_collection(timeout=SOON)

    assert world.harbor.state.collection == theirs


async def test_without_the_right_it_is_told_which_one_is_needed(world: World) -> None:
    with pytest.raises(UnavailableError, match="garbage-collection: read"):
        await world.projects(replace(RULES, collect_cron="0 0 4 * * 0")).schedule_collection(timeout=SOON)
