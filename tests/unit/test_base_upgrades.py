"""Upgrades of bases: packages made again in a build sandbox, the old image kept until the new one has booted."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from typing_extensions import override

from sandboxd.manager.auto_upgrades import AT_ONCE, QUIET, RETRY, AutoUpgrades
from sandboxd.manager.backend_port import SandboxSpec
from sandboxd.manager.image_ports import CommitInProgressError
from sandboxd.manager.image_views import raise_failure
from sandboxd.manager.own_deeds import OwnDeeds
from sandboxd.manager.rowless import PAGE
from sandboxd.model.commit_errors import (
    BaseCurrentError,
    CommitCancelledError,
    CommitOvertakenError,
    PackagesUnknownError,
    ReplayIncompleteError,
    SandboxNotRestingError,
)
from sandboxd.model.errors import RequestIdReusedError, SandboxNotFoundError, UnavailableError
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import ClientId, SandboxId
from sandboxd.model.image import CommitPhase, CommitTrigger, Generation, GenerationId, GenerationStatus, build_sandbox
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.package_history import KnownPackage, PackageRecord
from sandboxd.model.packages import InstalledPackages, Package, PackageManager
from sandboxd.model.replay import ReplayAction, ReplayPolicy
from sandboxd.model.sandbox import AgentEndpoint, Sandbox, SandboxState
from tests.eventually import eventually
from tests.fakes.agent import FakeAgent, FakeIo
from tests.fakes.images import BASE
from tests.fakes.lifecycle import FakeDuties
from tests.manager_world import SOON, ManagerWorld, a_caller, a_request
from tests.unit.test_replay import a_package

G = GenerationStatus
M = PackageManager
NEW_BASE = replace(BASE, digest=f"sha256:{'c' * 64}")
RG = a_package(M.DPKG, "ripgrep", "14.1-1")
SIX = a_package(M.PIP, "six", "1.17.0")
TOOL = b"usr/local/bin/tool"
SKIP, FAIL = ReplayPolicy.SKIP, ReplayPolicy.FAIL


@dataclass
class Mirror:
    """What package managers can have in build sandboxes, and what they did there."""

    world: ManagerWorld
    versions: dict[str, list[str]] = field(default_factory=lambda: {"ripgrep": ["14.1-1"], "six": ["1.17.0"]})
    """The newest last."""
    commands: list[list[str]] = field(default_factory=list)
    sandboxes: list[SandboxSpec] = field(default_factory=list)
    hanging: asyncio.Event | None = None

    def start(self, spec: SandboxSpec, endpoint: AgentEndpoint, agent: FakeAgent) -> None:
        if spec.sandbox in self.world.units.rows.sandboxes:
            return
        self.sandboxes.append(spec)
        self.world.packages.installed[endpoint] = InstalledPackages(packages=[], sequence=0)
        agent.programs["sudo"] = lambda process: self.install(process, spec.sandbox, endpoint)

    async def install(self, process: FakeIo, sandbox: SandboxId, endpoint: AgentEndpoint) -> int:
        if self.hanging is not None:
            await self.hanging.wait()
        words = list(process.spec.argv)
        command = [word for word in words[words.index("-i") + 1 :] if "=" not in word or not word[0].isupper()]
        self.commands.append(command)
        if "install" not in command:
            return 0
        source = self.world.packages.installed
        installed = list(source[endpoint].packages)
        for word in command[command.index("--") + 1 :]:
            name, _, version = word.replace("==", "=").partition("=")
            there = self.versions.get(name, [])
            if not there or (version and version not in there):
                await process.write(f"Reading\x1b[31m\nE: no {word} anywhere\r\n\0".encode())
                return 100
            manager = M.DPKG if command[0] == "apt-get" else M.PIP
            installed.append(a_package(manager, name, version or there[-1]))
        source[endpoint] = replace(source[endpoint], packages=installed)
        names = sorted(one.key.name for one in installed)
        self.world.builder.roots[sandbox] = f"new base with {names}"
        self.world.builder.files[sandbox] = {f"usr/bin/{name}".encode(): b"program" for name in names}
        return 0


@pytest.fixture
def world() -> ManagerWorld:
    made = ManagerWorld(keeps_root=False, commits=True)
    assert made.core.commits is not None
    assert made.core.commits.bases is not None
    made.core.commits.bases.watch_seconds = 0.02
    return made


@pytest.fixture
def mirror(world: ManagerWorld) -> Mirror:
    made = Mirror(world)
    world.backend.on_start = made.start
    return made


async def given(world: ManagerWorld, *packages: Package, files: dict[bytes, bytes] | None = None) -> Sandbox:
    """A paused sandbox with an image of its own that has packages, and a template that has moved on."""
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = "with packages"
    world.builder.files[sandbox.id] = {f"usr/bin/{one.key.name}".encode(): b"program" for one in packages} | (
        files or {}
    )
    await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    known(world, sandbox.id, *packages)
    world.running.present = NEW_BASE
    return world.row(sandbox.id)


def known(world: ManagerWorld, sandbox: SandboxId, *packages: Package) -> None:
    life = world.row(sandbox).incarnation
    assert life is not None
    world.units.rows.package_records[sandbox] = PackageRecord(
        sandbox=sandbox,
        incarnation=life,
        known={one.key: KnownPackage(package=one) for one in packages},
        looked=True,
        complete=True,
    )


async def upgrade(world: ManagerWorld, sandbox: Sandbox, policy: ReplayPolicy = FAIL) -> Generation:
    return (await world.manager.images.upgrade(a_request(), sandbox.id, policy, timeout=SOON)).generation


async def begun(world: ManagerWorld, sandbox: Sandbox) -> Generation:
    shown = await world.manager.images.upgrade(a_request(), sandbox.id, FAIL, wait=False, timeout=SOON)
    return shown.generation


async def came_to(world: ManagerWorld, generation: Generation) -> Generation:
    assert world.core.commits is not None
    return await world.core.commits.wait(generation.id, timeout=SOON)


def nothing_is_left(world: ManagerWorld) -> bool:
    return not (world.backend.files | world.backend.kept) - set(world.units.rows.sandboxes)


def left_out(generation: Generation) -> dict[str, list[str]]:
    assert generation.content is not None
    return {one.reason: list(one.paths) for one in generation.content.left_out if one.reason != "secret"}


async def test_packages_are_made_again_on_the_new_base_and_the_next_start_takes_what_came_of_it(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG, SIX)

    made = await upgrade(world, sandbox)

    assert (made.status, made.trigger, made.base) == (G.ACTIVE, CommitTrigger.UPGRADE, str(NEW_BASE))
    assert mirror.commands[0] == ["apt-get", "update", "--quiet"]
    assert [(one[0], one[-1]) for one in mirror.commands[1:]] == [
        ("apt-get", "ripgrep=14.1-1"),
        ("python3", "six==1.17.0"),
    ]
    row = world.row(sandbox.id)
    assert (row.image, row.state, row.incarnation) == (made.image, SandboxState.PAUSED, sandbox.incarnation)
    assert "base was upgraded (g000002)" in row.state_reason
    assert str(world.probe.probed[-1]) == made.reference
    assert CommitPhase.REPLAY.value in made.seconds
    assert [one.key.name for one in world.units.rows.sboms[made.id].packages] == ["ripgrep", "six"]
    assert left_out(made) == {}
    old = world.units.rows.generations[sandbox.image.generation] if sandbox.image else None
    assert old is not None
    assert (old.status, old.bootable) == (G.SUPERSEDED, True)


async def test_the_build_sandbox_is_nobodys_and_is_gone_afterwards(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)

    made = await upgrade(world, sandbox)

    (spec,) = mirror.sandboxes
    assert (spec.sandbox, spec.image, spec.client) == (build_sandbox(made.id), "", sandbox.client)
    agents = [one for one in world.connector.agents.values() if one.sandbox == spec.sandbox]
    assert all(not one.model_endpoint for one in agents), "it has a token of somebody's"
    with pytest.raises(SandboxNotFoundError):
        await world.manager.get(a_caller(), spec.sandbox)
    assert nothing_is_left(world)
    await eventually(lambda: world.units.rows.leases == {})


async def test_an_upgrade_is_put_on_record_before_anything_is_done(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    recorded = list[tuple[str, SandboxId, int]]()

    class Recording(OwnDeeds):
        @override
        def recorded(
            self, action: str, *, client: ClientId, sandbox: SandboxId, target: str = ""
        ) -> AbstractAsyncContextManager[None]:
            recorded.append((action, sandbox, len(mirror.sandboxes)))
            return nullcontext()

    assert world.core.commits is not None
    world.core.commits.deeds = Recording()

    await upgrade(world, sandbox)

    assert recorded == [("Image/Upgrade", sandbox.id, 0)]


async def test_the_next_life_runs_from_the_upgraded_image_and_can_be_committed_and_rolled_back(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    made = await upgrade(world, sandbox)

    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    running = world.row(sandbox.id).incarnation
    assert running is not None
    assert world.backend.images[running] == made.reference
    world.builder.roots[sandbox.id] = "more"
    again = (await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)).generation
    assert (again.status, again.base) == (G.ACTIVE, str(NEW_BASE))

    rolled = await world.manager.images.rollback(a_request(), sandbox.id, 1)
    assert (rolled.generation.status, rolled.generation.base) == (G.ACTIVE, str(BASE))


async def test_a_version_that_cannot_be_had_is_replaced_by_the_newest_and_that_is_said(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG, SIX)
    mirror.versions["ripgrep"] = ["15.0-1"]

    made = await upgrade(world, sandbox)

    assert made.status is G.ACTIVE
    assert left_out(made) == {"package_version": ["dpkg ripgrep 14.1-1, now 15.0-1"]}


async def test_a_package_that_cannot_be_installed_keeps_the_old_image_and_is_named(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG, SIX)
    del mirror.versions["ripgrep"]

    with pytest.raises(
        ReplayIncompleteError, match=r"dpkg ripgrep 14\.1-1 \(Reading\?\[31m / E: no ripgrep anywhere / \?\)"
    ):
        await upgrade(world, sandbox)

    assert world.row(sandbox.id).image == sandbox.image
    assert nothing_is_left(world)


async def test_by_policy_it_is_left_out_and_named(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG, SIX)
    del mirror.versions["ripgrep"]

    made = await upgrade(world, sandbox, SKIP)

    assert made.status is G.ACTIVE
    assert left_out(made) == {"package_failed": ["dpkg ripgrep 14.1-1"], "not_replayed": ["usr/bin/ripgrep"]}
    assert "2 things were left out" in world.row(sandbox.id).state_reason


async def test_a_manager_that_only_says_that_it_has_installed_is_not_believed(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)

    def lying(spec: SandboxSpec, endpoint: AgentEndpoint, agent: FakeAgent) -> None:
        mirror.start(spec, endpoint, agent)
        agent.programs["sudo"] = lambda _: asyncio.sleep(0, 0)

    world.backend.on_start = lying

    with pytest.raises(ReplayIncompleteError, match="it is not there"):
        await upgrade(world, sandbox)


async def test_files_of_no_package_keep_the_old_image_before_anything_is_started(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG, files={TOOL: b"by curl"})

    with pytest.raises(ReplayIncompleteError, match="usr/local/bin/tool"):
        await upgrade(world, sandbox)

    assert mirror.sandboxes == []


async def test_by_policy_files_of_no_package_are_left_out_and_named(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG, files={TOOL: b"by curl"})

    made = await upgrade(world, sandbox, SKIP)

    assert left_out(made) == {"by_hand": [TOOL.decode()], "not_replayed": [TOOL.decode()]}


async def test_where_nothing_has_to_be_installed_the_base_itself_is_what_is_started(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    world.baselines.bases[NEW_BASE.digest] = {b"var/lib/dpkg/info/ripgrep.list": b"", b"usr/bin/ripgrep": b"program"}

    made = await upgrade(world, sandbox)

    assert (made.status, made.unchanged, made.reference) == (G.DISCARDED, True, "")
    assert world.row(sandbox.id).image is None
    assert mirror.sandboxes == []
    rolled = await world.manager.images.rollback(a_request(), sandbox.id, 1)
    assert rolled.generation.status is G.ACTIVE


async def test_an_image_that_does_not_boot_leaves_the_old_one(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    world.probe.error = ImageBrokenError("It does not boot: /bin/sh.", image="x")

    with pytest.raises(ImageBrokenError):
        await upgrade(world, sandbox)

    assert world.row(sandbox.id).image == sandbox.image


async def test_an_upgraded_image_that_does_not_start_falls_back_to_the_one_before(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    made = await upgrade(world, sandbox)
    world.backend.broken_images.add(made.reference)

    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert (resumed.state, world.row(sandbox.id).image) == (SandboxState.ACTIVE, sandbox.image)


async def test_what_runs_is_not_upgraded(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    with pytest.raises(SandboxNotRestingError):
        await upgrade(world, sandbox)


@pytest.mark.parametrize("moved", [False, True], ids=["same base", "no image"])
async def test_what_starts_from_the_present_base_is_not_upgraded(world: ManagerWorld, moved: bool) -> None:
    if moved:
        sandbox = await world.given_paused()
        world.running.present = NEW_BASE
    else:
        sandbox = await given(world, RG)
        world.running.present = BASE

    with pytest.raises(BaseCurrentError):
        await upgrade(world, sandbox)
    plan = await world.manager.images.plan_upgrade(a_caller(), sandbox.id, timeout=SOON)
    assert (plan.needed, list(plan.packages)) == (False, [])


@pytest.mark.parametrize("record", ["none", "incomplete", "rolled back"])
async def test_where_nobody_knows_what_is_installed_nothing_is_upgraded(world: ManagerWorld, record: str) -> None:
    sandbox = await given(world, RG)
    records, rows = world.units.rows.package_records, world.units.rows.generations
    match record:
        case "none":
            del records[sandbox.id]
        case "incomplete":
            records[sandbox.id] = replace(records[sandbox.id], complete=False)
        case _:
            assert sandbox.image is not None
            active = rows[sandbox.image.generation]
            rows[active.id] = replace(active, given_up=sandbox.incarnation)

    with pytest.raises(PackagesUnknownError):
        await upgrade(world, sandbox)


async def test_what_is_rolled_back_to_at_rest_is_not_upgraded_with_the_packages_of_what_it_was_rolled_back_from(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    world.builder.roots[sandbox.id] = "with a mistake"
    await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    known(world, sandbox.id, RG, SIX)

    await world.manager.images.rollback(a_request(), sandbox.id, 1)

    with pytest.raises(PackagesUnknownError):
        await upgrade(world, sandbox)


async def test_what_an_upgrade_was_rolled_back_to_can_be_upgraded_again(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    await upgrade(world, sandbox)
    for number in (1, 2, 1):
        world.clock.advance(1)
        await world.manager.images.rollback(a_request(), sandbox.id, number)

    assert (await upgrade(world, sandbox)).status is G.ACTIVE


async def test_a_plan_says_what_would_be_done_and_does_nothing(world: ManagerWorld, mirror: Mirror) -> None:
    odd = a_package(M.PIP, "odd", "1;x")
    sandbox = await given(world, RG, odd, files={TOOL: b"by curl"})
    before = dict(world.units.rows.generations)

    plan = await world.manager.images.plan_upgrade(a_caller(), sandbox.id, timeout=SOON)

    assert (plan.needed, plan.old_base, plan.new_base) == (True, BASE, NEW_BASE)
    assert [(one.package.key.name, one.action) for one in plan.packages] == [
        ("ripgrep", ReplayAction.INSTALL),
        ("odd", ReplayAction.IMPOSSIBLE),
    ]
    assert [(one.reason, list(one.paths)) for one in plan.left_out] == [("by_hand", [TOOL.decode()])]
    assert (mirror.sandboxes, world.units.rows.generations) == ([], before)
    with pytest.raises(SandboxNotFoundError):
        await world.manager.images.plan_upgrade(a_caller(client="other"), sandbox.id, timeout=SOON)


async def test_files_with_names_that_are_no_text_are_told_of_as_text(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG, files={b"opt/\xff": b"by hand"})

    plan = await world.manager.images.plan_upgrade(a_caller(), sandbox.id, timeout=SOON)
    ended = await came_to(world, await begun(world, sandbox))

    assert [list(one.paths) for one in plan.left_out] == [["opt/\\xff"]]
    assert ended.failure is not None
    assert "opt/\\xff" in ended.failure.message
    assert ended.failure.message.encode()


async def test_a_sandbox_that_is_started_meanwhile_ends_the_upgrade_and_runs_from_what_it_had(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    mirror.hanging = asyncio.Event()
    flying = await begun(world, sandbox)
    await eventually(lambda: len(mirror.sandboxes) == 1)

    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    ended = await came_to(world, flying)
    assert ended.failure is not None
    assert ended.failure.reason == CommitOvertakenError.reason
    assert world.row(sandbox.id).image == sandbox.image
    assert nothing_is_left(world)


async def test_an_upgrade_can_be_cancelled_and_another_one_waits_for_it(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    mirror.hanging = asyncio.Event()
    flying = await begun(world, sandbox)
    await eventually(lambda: len(mirror.sandboxes) == 1)
    with pytest.raises(CommitInProgressError):
        await upgrade(world, sandbox)

    cancelled = await world.manager.images.cancel(a_request(), sandbox.id, flying.number, timeout=SOON)

    with pytest.raises(CommitCancelledError):
        raise_failure(cancelled.generation)
    assert nothing_is_left(world)
    mirror.hanging = None
    assert (await upgrade(world, sandbox)).status is G.ACTIVE


async def test_a_repeated_request_is_answered_with_the_same_upgrade(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    request = a_request()
    first = await world.manager.images.upgrade(request, sandbox.id, FAIL, timeout=SOON)

    world.running.error = UnavailableError("The cluster is away.")
    again = await world.manager.images.upgrade(request, sandbox.id, FAIL, timeout=SOON)

    assert (again.generation.id, len(mirror.sandboxes)) == (first.generation.id, 1)
    other = a_request(request_id=request.request_id, body="another")
    with pytest.raises(RequestIdReusedError):
        await world.manager.images.upgrade(other, sandbox.id, SKIP, timeout=SOON)


async def test_a_template_that_moves_on_meanwhile_ends_the_upgrade(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    # What is started by no image of its own runs from BASE in this world, and the plan was for NEW_BASE.
    world.running.started = BASE

    with pytest.raises(CommitOvertakenError):
        await upgrade(world, sandbox)

    assert nothing_is_left(world)


@pytest.mark.parametrize("step", ["upgrade.after_start", "upgrade.after_replay", "commit.after_push"])
async def test_a_service_that_dies_at_a_step_is_followed_by_one_that_ends_with_one_image(
    world: ManagerWorld, mirror: Mirror, step: str
) -> None:
    sandbox = await given(world, RG)
    with arming(f"{step}=error"), suppress(FailpointError):
        flying = await begun(world, sandbox)
        assert world.core.commits is not None
        commits = world.core.commits
        await eventually(lambda: not commits.busy)
    world.crash()
    core, _ = world.replica("second")

    assert core.commits is not None
    await core.commits.finish_left_over()
    ended = await core.commits.wait(flying.id, timeout=SOON)

    assert (ended.status, world.row(sandbox.id).image) == (G.ACTIVE, ended.image)
    assert nothing_is_left(world)


async def test_a_build_sandbox_that_a_crash_left_is_found_and_destroyed_and_no_other(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    made = await upgrade(world, sandbox)
    other = await world.given_active()
    for name in (build_sandbox(made.id), SandboxId("sbx-of-somebody")):
        world.backend.files.add(name)
    assert world.core.commits is not None
    assert world.core.commits.bases is not None

    assert await world.core.commits.bases.sweep() == 1

    assert world.backend.files == {sandbox.id, other.id, SandboxId("sbx-of-somebody")}


@pytest.mark.parametrize("trigger", [CommitTrigger.REQUEST, CommitTrigger.UPGRADE])
async def test_an_upgrade_behind_many_commits_is_somebodys_still_and_counts(
    world: ManagerWorld, mirror: Mirror, trigger: CommitTrigger
) -> None:
    sandboxes = []
    for _ in range(AT_ONCE + 1):
        world.running.present = BASE
        sandboxes.append(await given(world, RG))
    world.clock.advance(QUIET.total_seconds())
    mirror.hanging = hanging = asyncio.Event()
    *_, flying = [await begun(world, one) for one in sandboxes[1:]]
    await eventually(lambda: build_sandbox(flying.id) in world.backend.files)
    rows = world.units.rows.generations
    for number in range(PAGE):  # of other sandboxes, and all before these
        name = GenerationId(f"gen-0{number:025}")
        rows[name] = replace(flying, id=name, sandbox=SandboxId(f"sbx-{number}"), trigger=trigger)

    orphans = await world.manager.recovery.inspect()
    begun_by_policy = await automatic(world).once()

    assert (orphans.sandboxes, begun_by_policy) == (frozenset(), 0)
    hanging.set()


async def test_a_hanging_command_is_ended_and_told(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    mirror.hanging = asyncio.Event()
    assert world.core.commits is not None
    assert world.core.commits.bases is not None
    world.core.commits.bases.replay.command_timeout = timedelta(milliseconds=30)

    with pytest.raises(ReplayIncompleteError, match="took longer"):
        await upgrade(world, sandbox)


def automatic(world: ManagerWorld, policy: ReplayPolicy = FAIL) -> AutoUpgrades:
    assert world.core.commits is not None
    return AutoUpgrades(
        units=world.units,
        commits=world.core.commits,
        duties=FakeDuties(world.duties, replica="first"),
        policy=policy,
        clock=world.clock,
        ids=world.ids,
    )


async def ended(world: ManagerWorld) -> list[tuple[str, GenerationStatus]]:
    """The upgrades of all sandboxes, when none is in flight."""

    def all_over() -> bool:
        return not any(one.status.in_flight for one in world.units.rows.generations.values())

    await eventually(all_over)
    rows = world.units.rows.generations.values()
    return [(one.sandbox, one.status) for one in rows if one.trigger is CommitTrigger.UPGRADE]


async def test_by_policy_a_sandbox_that_rests_for_a_while_is_upgraded_by_itself_and_once(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    policy = automatic(world)
    assert await policy.once() == 0, "it rests since a moment"
    world.clock.advance(QUIET.total_seconds())

    assert await policy.once() == 1

    assert await ended(world) == [(sandbox.id, G.ACTIVE)]
    assert await policy.once() == 0


async def test_by_policy_what_failed_for_good_is_not_tried_again_until_the_base_is_another(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    world.clock.advance(2 * RETRY.total_seconds())
    del mirror.versions["ripgrep"]
    policy = automatic(world)
    await policy.once()
    assert await ended(world) == [(sandbox.id, G.FAILED)]
    world.clock.advance(2 * RETRY.total_seconds())

    assert await policy.once() == 0
    world.running.present = replace(BASE, digest=f"sha256:{'d' * 64}")
    assert await policy.once() == 1
    await ended(world)


async def test_by_policy_what_failed_for_good_is_tried_again_with_another_image(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    world.clock.advance(2 * RETRY.total_seconds())
    versions = mirror.versions.pop("ripgrep")
    policy = automatic(world)
    await policy.once()
    assert await ended(world) == [(sandbox.id, G.FAILED)]
    mirror.versions["ripgrep"] = versions
    world.running.present = BASE
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    world.builder.roots[sandbox.id] = "with what was seen to"
    await world.manager.images.commit(a_request(), sandbox.id, timeout=SOON)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    known(world, sandbox.id, RG)
    world.running.present = NEW_BASE
    world.clock.advance(QUIET.total_seconds())

    assert await policy.once() == 1
    assert (sandbox.id, G.ACTIVE) in await ended(world)


async def test_by_policy_what_could_not_be_known_is_tried_again_when_the_sandbox_has_lived_since(
    world: ManagerWorld, mirror: Mirror
) -> None:
    sandbox = await given(world, RG)
    record = world.units.rows.package_records[sandbox.id]
    world.units.rows.package_records[sandbox.id] = replace(record, complete=False)
    world.clock.advance(2 * RETRY.total_seconds())
    policy = automatic(world)
    await policy.once()
    assert await ended(world) == [(sandbox.id, G.FAILED)]
    assert await policy.once() == 0
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    known(world, sandbox.id, RG)
    world.clock.advance(QUIET.total_seconds())

    assert await policy.once() == 1
    assert (sandbox.id, G.ACTIVE) in await ended(world)


async def test_by_policy_one_sandbox_whose_image_has_no_row_keeps_no_other_from_it(
    world: ManagerWorld, mirror: Mirror
) -> None:
    broken = await given(world, RG)
    world.running.present = BASE
    sandbox = await given(world, RG)
    assert broken.id < sandbox.id
    assert broken.image is not None
    del world.units.rows.generations[broken.image.generation]
    world.clock.advance(QUIET.total_seconds())

    assert await automatic(world).once() == 1
    assert await ended(world) == [(sandbox.id, G.ACTIVE)]


async def test_by_policy_what_failed_by_weather_is_tried_again_later(world: ManagerWorld, mirror: Mirror) -> None:
    await given(world, RG)
    world.clock.advance(QUIET.total_seconds())
    world.probe.error = UnavailableError("No node has room.")
    policy = automatic(world)
    await policy.once()
    await ended(world)
    world.probe.error = None

    assert await policy.once() == 0
    world.clock.advance(RETRY.total_seconds())
    assert await policy.once() == 1
    assert {status for _, status in await ended(world)} == {G.FAILED, G.ACTIVE}


async def test_by_policy_a_rollback_from_an_upgrade_stands(world: ManagerWorld, mirror: Mirror) -> None:
    sandbox = await given(world, RG)
    await upgrade(world, sandbox)
    await world.manager.images.rollback(a_request(), sandbox.id, 1)
    world.clock.advance(2 * RETRY.total_seconds())

    assert await automatic(world).once() == 0


async def test_by_policy_few_go_on_at_once_and_all_come_to_it(world: ManagerWorld, mirror: Mirror) -> None:
    sandboxes = []
    for _ in range(5):
        world.running.present = BASE
        sandboxes.append(await given(world, RG))
    world.clock.advance(QUIET.total_seconds())
    policy = automatic(world)
    mirror.hanging = asyncio.Event()
    assert [await policy.once(), await policy.once()] == [2, 0]
    mirror.hanging.set()
    await ended(world)

    for _ in range(4):
        await policy.once()
        await ended(world)

    assert sorted(await ended(world)) == sorted((one.id, G.ACTIVE) for one in sandboxes)
