"""The life of a commit: what it comes to, that it is done once, and that nothing unproven ever becomes active."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest

from sandboxd.manager.captured_lives import LIFE_LOOKS
from sandboxd.manager.image_ports import CommitInProgressError, ImageNotFoundError
from sandboxd.manager.image_views import raise_failure
from sandboxd.manager.images import Images
from sandboxd.manager.packages import SandboxNotRunningError
from sandboxd.manager.sandboxes import ManagerCore
from sandboxd.model.caller import Role
from sandboxd.model.commit_errors import (
    CommitAbandonedError,
    CommitCancelledError,
    CommitEndedError,
    CommitOvertakenError,
    CommitsOffError,
    ImageNotRunningError,
    ImageUnusableError,
)
from sandboxd.model.errors import (
    AgentUnavailableError,
    DeadlineError,
    RequestIdReusedError,
    SandboxNotFoundError,
    UnavailableError,
)
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image import CommitPhase, Generation, GenerationStatus
from sandboxd.model.image_errors import (
    CaptureRunningError,
    CaptureUnsupportedError,
    ImageBrokenError,
    ImageTooLargeError,
)
from sandboxd.model.sandbox import TIER_RESOURCES, Sandbox, SandboxState, Tier
from tests.eventually import eventually
from tests.fakes.images import BASE
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

G = GenerationStatus
REPOSITORY = "acme/gemini-cli-user-ada"
STEPS = [
    "commit.after_commit",
    "commit.after_build",
    "commit.after_push",
    "commit.after_probe",
    "commit.after_verify",
    "commit.after_activate",
    "commit.after_backend",
    "commit.after_tag",
]


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(keeps_root=False, commits=True)


def images(world: ManagerWorld) -> Images:
    return world.manager.images


async def commit(world: ManagerWorld, sandbox: Sandbox, root: str | None = None, **wish: bool) -> Generation:
    if root is not None:
        world.builder.roots[sandbox.id] = root
    return (await images(world).commit(a_request(), sandbox.id, timeout=SOON, **wish)).generation


def rows(world: ManagerWorld) -> list[Generation]:
    return sorted(world.units.rows.generations.values(), key=lambda row: row.number)


def latest(world: ManagerWorld) -> str:
    return world.registry.manifests[REPOSITORY]["latest"].digest


async def test_a_commit_is_pushed_booted_and_then_active(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    made = await commit(world, sandbox, "with ripgrep")

    assert (made.status, made.tag, made.base) == (G.ACTIVE, "g000001", str(BASE))
    assert world.row(sandbox.id).image == made.image
    assert [str(image) for image in world.probe.probed] == [made.reference]
    assert world.backend.next_images[sandbox.id] == made.reference
    assert made.content is not None
    assert latest(world) == made.content.digest == world.registry.manifests[REPOSITORY]["g000001"].digest
    assert set(made.seconds) == {"capture", "push", "verify", "probe", "activate"}
    assert made.content.left_out[0].reason == "secret"
    assert [row.told_time for row in rows(world)] == [world.clock.now()]
    await eventually(lambda: world.units.rows.leases == {})


async def test_a_commit_does_not_count_as_use_and_does_not_move_the_state(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.clock.advance(60)

    await commit(world, sandbox, "with ripgrep")

    row = world.row(sandbox.id)
    assert (row.state, row.last_use_time, row.state_time) == (sandbox.state, sandbox.last_use_time, sandbox.state_time)


async def test_a_hibernated_sandbox_is_committed_as_it_lies(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await world.manager.hibernate(sandbox.id, timeout=SOON)

    made = await commit(world, sandbox, "with ripgrep")

    assert made.status is G.ACTIVE
    assert world.row(sandbox.id).state is SandboxState.HIBERNATED
    assert world.backend.agent(sandbox.id).frozen


async def test_the_next_commit_lies_on_the_base_and_takes_the_place_of_the_first(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "with ripgrep")

    second = await commit(world, sandbox, "with ripgrep and tree")

    order = world.builder.orders[-1]
    assert (order.base, str(order.previous)) == (BASE, first.reference)
    assert (second.number, second.parent, second.status) == (2, first.id, G.ACTIVE)
    assert [row.status for row in rows(world)] == [G.SUPERSEDED, G.ACTIVE]
    assert second.content is not None
    assert latest(world) == second.content.digest


async def test_the_next_start_takes_what_was_committed_and_commits_on_the_same_base(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "with ripgrep")
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    second = await commit(world, sandbox, "with ripgrep and tree")

    assert resumed.incarnation is not None
    assert world.backend.images[resumed.incarnation] == first.reference
    assert world.builder.orders[-1].base == BASE
    assert second.status is G.ACTIVE


async def test_where_nothing_has_changed_there_is_no_push_and_no_new_generation(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    never = await commit(world, sandbox)
    first = await commit(world, sandbox, "with ripgrep")

    again = await commit(world, sandbox)

    assert (never.status, never.unchanged) == (again.status, again.unchanged) == (G.DISCARDED, True)
    assert world.row(sandbox.id).image == first.image
    assert "g000003" not in world.registry.manifests[REPOSITORY]
    listed = await images(world).list(a_caller(), sandbox.id, everything=False, page_size=0, page_token="")
    assert [one.generation.tag for one in listed.items] == ["g000002"]


async def test_a_dry_run_counts_and_changes_nothing(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    counted = await commit(world, sandbox, "with ripgrep", dry_run=True)

    assert (counted.status, counted.unchanged) == (G.DISCARDED, False)
    assert counted.content is not None
    assert (counted.content.raw_bytes, counted.content.digest) == (len("with ripgrep"), "")
    assert world.row(sandbox.id).image is None
    assert REPOSITORY not in world.registry.manifests
    assert world.probe.probed == []


async def test_a_candidate_that_does_not_boot_never_becomes_active(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "with ripgrep")
    world.probe.error = ImageBrokenError("It does not boot: /bin/sh is not there.", step="shell")

    with pytest.raises(ImageBrokenError) as refused:
        await commit(world, sandbox, "without libc")

    assert refused.value.metadata == {"step": "shell"}
    assert [row.status for row in rows(world)] == [G.ACTIVE, G.FAILED]
    assert world.row(sandbox.id).image == first.image
    assert world.backend.next_images[sandbox.id] == first.reference
    assert first.content is not None
    assert latest(world) == first.content.digest


async def test_a_commit_that_fails_says_why_to_whoever_asks_again(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.error = ImageTooLargeError("Too large: usr/share.", path="usr/share")
    request = a_request()

    for _ in range(2):
        with pytest.raises(ImageTooLargeError) as refused:
            await images(world).commit(request, sandbox.id, timeout=SOON)
        assert (refused.value.message, refused.value.metadata) == ("Too large: usr/share.", {"path": "usr/share"})
        world.builder.error = None

    (row,) = rows(world)
    assert (row.status, row.failure and row.failure.reason) == (G.FAILED, "IMAGE_TOO_LARGE")
    assert (await commit(world, sandbox, "less")).status is G.ACTIVE


async def test_the_limit_is_that_of_the_tier(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    await commit(world, sandbox, "x")

    assert world.builder.orders[0].limits.raw_bytes == TIER_RESOURCES[Tier.BASIC].storage_bytes


async def test_the_same_request_is_one_commit(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = "with ripgrep"
    request = a_request()

    first, second = await asyncio.gather(*(images(world).commit(request, sandbox.id, timeout=SOON) for _ in range(2)))
    third = await images(world).commit(request, sandbox.id, timeout=SOON)

    assert first == second == third
    assert len(world.builder.orders) == 1
    with pytest.raises(RequestIdReusedError):
        await images(world).commit(a_request(request_id=request.request_id, body="another"), sandbox.id, timeout=SOON)


async def test_a_second_commit_is_refused_while_one_is_in_flight(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    begun = await commit(world, sandbox, "with ripgrep", wait=False)

    with pytest.raises(CommitInProgressError) as refused:
        await commit(world, sandbox)

    assert refused.value.metadata["image"] == begun.tag == "g000001"
    assert begun.status is G.BUILDING
    world.builder.hanging.set()
    await eventually(lambda: rows(world)[0].told_time is not None)


async def test_a_caller_that_waits_no_longer_does_not_end_a_commit(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = "with ripgrep"
    world.builder.hanging = asyncio.Event()
    request = a_request()

    with pytest.raises(DeadlineError, match="goes on"):
        await images(world).commit(request, sandbox.id, timeout=NOW)
    world.builder.hanging.set()

    assert (await images(world).commit(request, sandbox.id, timeout=SOON)).generation.status is G.ACTIVE


async def test_progress_can_be_followed_to_the_end(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging, world.probe.hanging = asyncio.Event(), asyncio.Event()
    begun = await commit(world, sandbox, "with ripgrep", wait=False)
    seen = list[Generation]()

    async def follow() -> None:
        async for one in images(world).watch(a_caller(), sandbox.id, begun.number):
            seen.append(one.generation)

    following = asyncio.create_task(follow())
    await eventually(lambda: any(one.progress.entries == 10 for one in seen))
    world.builder.hanging.set()
    await eventually(lambda: any(one.progress.phase is CommitPhase.PROBE for one in seen))
    world.probe.hanging.set()
    await asyncio.wait_for(following, 5)

    assert seen[0].status is G.BUILDING
    assert seen[-1].status is G.ACTIVE
    phases = [one.progress.phase for one in seen]
    assert CommitPhase.CAPTURE not in phases[phases.index(CommitPhase.PROBE) :], "it never goes back"


@pytest.mark.parametrize("part", ["builder", "probe"])
async def test_a_cancelled_commit_ends_and_what_was_active_stays(world: ManagerWorld, part: str) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "with ripgrep")
    hanging = asyncio.Event()
    if part == "builder":
        world.builder.hanging = hanging
    else:
        world.probe.hanging = hanging
    begun = await commit(world, sandbox, "with more", wait=False)

    request = a_request()

    cancelled, again = [
        (await images(world).cancel(request, sandbox.id, begun.number, timeout=SOON)).generation for _ in range(2)
    ]

    assert cancelled == again
    assert cancelled.status is G.FAILED
    assert cancelled.failure is not None
    assert cancelled.failure.reason == CommitCancelledError.reason
    assert world.builder.cancelled == (part == "builder")
    assert world.row(sandbox.id).image == first.image
    for ended in (first, begun):
        with pytest.raises(CommitEndedError):
            await images(world).cancel(a_request(), sandbox.id, ended.number, timeout=SOON)


async def test_another_replica_can_cancel_a_commit(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    begun = await commit(world, sandbox, "with ripgrep", wait=False)
    _, second = world.replica("second")

    ended = await second.images.cancel(a_request(), sandbox.id, begun.number, timeout=SOON)

    assert ended.generation.status is G.FAILED


async def test_a_life_that_ends_meanwhile_fails_its_commit(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    begun = await commit(world, sandbox, "with ripgrep", wait=False)
    await eventually(lambda: bool(world.builder.orders))
    other = IncarnationId("inc-another")
    world.units.rows.sandboxes[sandbox.id] = replace(world.row(sandbox.id), incarnation=other)
    world.builder.hanging.set()

    await eventually(lambda: not rows(world)[0].status.in_flight)

    assert rows(world)[0].status is G.SUPERSEDED
    assert world.row(sandbox.id).image is None
    with pytest.raises(CommitOvertakenError):
        raise_failure(rows(world)[0])
    assert begun.incarnation != other


async def test_a_life_that_is_lost_under_the_capture_fails_its_commit_and_what_is_lost_is_told(
    world: ManagerWorld,
) -> None:
    sandbox = await world.given_active()
    life = sandbox.incarnation
    assert life is not None
    looks = list[int]()

    def look() -> None:  # the backend hears of it some seconds after the agent has gone
        looks.append(1)
        if len(looks) == LIFE_LOOKS - 1:
            world.backend.kill(sandbox.id, life)

    def goes() -> None:
        world.builder.error = AgentUnavailableError("The agent has gone.")
        world.backend.observed = look

    world.builder.looked = goes

    with pytest.raises(CommitOvertakenError, match=r"What was installed or changed outside home .* is lost"):
        await commit(world, sandbox, "with ripgrep")

    assert [row.status for row in rows(world)] == [G.FAILED]
    assert "is lost" in world.row(sandbox.id).state_reason


async def test_an_agent_that_is_away_while_its_life_goes_on_is_told_as_that(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.error = AgentUnavailableError("The agent does not answer.")

    with pytest.raises(AgentUnavailableError):
        await commit(world, sandbox, "with ripgrep")

    world.builder.error = None
    assert (await commit(world, sandbox, "with ripgrep")).status is G.ACTIVE


@pytest.mark.parametrize("step", STEPS)
async def test_another_replica_goes_on_after_a_crash_at_any_step(world: ManagerWorld, step: str) -> None:
    sandbox = await world.given_active()
    world.builder.roots[sandbox.id] = "with ripgrep"
    request = a_request()
    with arming(f"{step}=error"):
        await images(world).commit(request, sandbox.id, wait=False, timeout=NOW)
        await eventually(lambda: not _busy(world.core))
    world.crash()
    core, second = world.replica("second")
    assert core.commits is not None

    world.clock.advance(10)  # telling waits a little after a failure
    await core.commits.finish_left_over()
    await eventually(lambda: rows(world)[0].told_time is not None)
    answered = (await second.images.commit(request, sandbox.id, timeout=SOON)).generation

    assert answered.status is G.ACTIVE
    assert answered.content is not None
    assert world.row(sandbox.id).image == answered.image
    assert world.backend.next_images[sandbox.id] == answered.reference
    assert latest(world) == answered.content.digest
    assert len(rows(world)) == 1
    assert len(world.builder.orders) == (2 if step == "commit.after_build" else 1)
    await eventually(lambda: world.units.rows.leases == {})
    assert await core.commits.finish_left_over() == 0


@pytest.mark.parametrize(("busy", "status"), [(9, G.ACTIVE), (10, G.FAILED)])
async def test_an_agent_that_reads_for_a_dead_replica_is_waited_for(
    world: ManagerWorld, busy: int, status: GenerationStatus
) -> None:
    sandbox = await world.given_active()
    world.builder.busy = busy

    with suppress(CaptureRunningError):
        await commit(world, sandbox, "with ripgrep")

    assert [row.status for row in rows(world)] == [status]


async def test_a_crash_before_anything_is_written_leaves_nothing(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    request = a_request()
    world.builder.roots[sandbox.id] = "with ripgrep"

    with arming("commit.before_commit=error"), pytest.raises(FailpointError):
        await images(world).commit(request, sandbox.id, timeout=SOON)

    assert rows(world) == []
    assert (await images(world).commit(request, sandbox.id, timeout=SOON)).generation.status is G.ACTIVE


async def test_a_live_commit_of_another_replica_is_left_alone(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    await commit(world, sandbox, "with ripgrep", wait=False)
    core, _ = world.replica("second")
    assert core.commits is not None

    assert await core.commits.finish_left_over() == 0

    world.clock.advance(60)  # and its lease runs out: the first stands still
    assert await core.commits.finish_left_over() == 1
    assert world.core.commits is not None
    await world.core.commits.tasks.renew()
    world.builder.hanging.set()
    await eventually(lambda: rows(world)[0].told_time is not None)
    assert [row.status for row in rows(world)] == [G.ACTIVE]


async def test_a_commit_that_breaks_off_again_and_again_is_given_up(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    request = a_request()
    assert world.core.commits is not None
    with arming("commit.after_build=error"):
        await images(world).commit(request, sandbox.id, wait=False, timeout=NOW)
        for _ in range(3):
            await eventually(lambda: not _busy(world.core))
            await world.core.commits.finish_left_over()

    with pytest.raises(CommitAbandonedError):
        await images(world).commit(request, sandbox.id, timeout=SOON)


async def test_a_commit_whose_life_has_ended_is_not_gone_on_with(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    request = a_request()
    with arming("commit.after_commit=error"):
        await images(world).commit(request, sandbox.id, wait=False, timeout=NOW)
        await eventually(lambda: not _busy(world.core))
    assert sandbox.incarnation is not None
    world.backend.kill(sandbox.id, sandbox.incarnation)
    await world.core.losses.check(sandbox.id, sandbox.incarnation)
    assert world.core.commits is not None

    await world.core.commits.finish_left_over()

    with pytest.raises(CommitOvertakenError):
        await images(world).commit(request, sandbox.id, timeout=SOON)


async def test_what_could_not_be_told_is_told_later(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.running.error = UnavailableError("The API server does not answer.")
    made = await commit(world, sandbox, "with ripgrep")
    assert world.core.commits is not None
    assert (made.status, made.told_time) == (G.ACTIVE, None)
    assert "latest" not in world.registry.manifests[REPOSITORY]

    world.running.error = None
    assert await world.core.commits.telling.tell_untold() == 0  # patience
    world.clock.advance(5)
    assert await world.core.commits.telling.tell_untold() == 1

    assert made.content is not None
    assert latest(world) == made.content.digest
    assert await world.core.commits.telling.tell_untold() == 0


async def test_leases_are_kept_while_an_image_is_told_for_long(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.running.hanging = asyncio.Event()
    await commit(world, sandbox, "with ripgrep", wait=False)
    await eventually(lambda: rows(world)[0].status is G.ACTIVE)
    assert world.core.commits is not None

    await world.core.commits.tasks.renew()
    world.running.hanging.set()

    await eventually(lambda: rows(world)[0].told_time is not None)


async def test_latest_names_what_became_active_last_of_all_sandboxes(world: ManagerWorld) -> None:
    one, other = await world.given_active(), await world.given_active()
    await commit(world, one, "one")
    world.clock.advance(1)
    second = await commit(world, other, "other")
    assert world.core.commits is not None

    row = rows(world)[0]
    world.units.rows.generations[row.id] = replace(row, told_time=None)
    await world.core.commits.telling.tell_untold()

    assert second.content is not None
    assert latest(world) == second.content.digest
    assert rows(world)[0].told_time is not None


async def test_who_tells_late_has_what_is_active_by_then_told_again(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "one")
    second = await commit(world, sandbox, "two")
    assert world.core.commits is not None

    assert not await world.core.commits.telling.tell(first)  # as a replica that stood still meanwhile
    assert world.backend.next_images[sandbox.id] == first.reference
    assert await world.core.commits.telling.tell_untold() == 1

    assert world.backend.next_images[sandbox.id] == second.reference
    assert second.content is not None
    assert latest(world) == second.content.digest


async def test_a_rollback_lets_the_next_start_take_an_older_one(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    first = await commit(world, sandbox, "with ripgrep")
    await commit(world, sandbox, "with a mistake")
    request = a_request()

    active, again = [(await images(world).rollback(request, sandbox.id, 1)).generation for _ in range(2)]

    assert (active.id, active.status, again.id) == (first.id, G.ACTIVE, first.id)
    assert [row.status for row in rows(world)] == [G.ACTIVE, G.SUPERSEDED]
    assert world.row(sandbox.id).image == first.image
    assert world.backend.next_images[sandbox.id] == first.reference
    assert first.content is not None
    assert latest(world) == first.content.digest


async def test_what_runs_when_it_is_rolled_back_is_not_committed_over_it(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await commit(world, sandbox, "with ripgrep")
    await commit(world, sandbox, "with a mistake")
    await images(world).rollback(a_request(), sandbox.id, 1)

    with pytest.raises(ImageNotRunningError):
        await commit(world, sandbox, "with a mistake and more")

    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    assert (await commit(world, sandbox, "with ripgrep and tree")).status is G.ACTIVE


async def test_only_what_was_booted_can_be_rolled_back_to(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await commit(world, sandbox, "with ripgrep")
    world.probe.error = ImageBrokenError("It does not boot.")
    with pytest.raises(ImageBrokenError):
        await commit(world, sandbox, "without libc")

    with pytest.raises(ImageUnusableError):
        await images(world).rollback(a_request(), sandbox.id, 2)
    with pytest.raises(ImageNotFoundError):
        await images(world).rollback(a_request(), sandbox.id, 9)


async def test_nothing_is_rolled_back_under_a_commit(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await commit(world, sandbox, "with ripgrep")
    world.builder.hanging = asyncio.Event()
    await commit(world, sandbox, "more", wait=False)

    with pytest.raises(CommitInProgressError):
        await images(world).rollback(a_request(), sandbox.id, 1)

    await world.manager.drain(grace=NOW)


async def test_another_clients_images_do_not_exist(world: ManagerWorld) -> None:
    sandbox = await world.given_active(a_caller(subject="ada", role=Role.FREELANCER))
    await commit(world, sandbox, "with ripgrep")
    strangers = [a_caller(client="other"), a_caller(subject="bob", role=Role.FREELANCER)]

    for stranger in strangers:
        with pytest.raises(SandboxNotFoundError):
            await images(world).commit(a_request(stranger), sandbox.id, timeout=SOON)
        with pytest.raises(SandboxNotFoundError):
            await images(world).get(stranger, sandbox.id, 1)
        with pytest.raises(SandboxNotFoundError):
            await images(world).list(stranger, sandbox.id, everything=True, page_size=0, page_token="")
        with pytest.raises(SandboxNotFoundError):
            await images(world).rollback(a_request(stranger), sandbox.id, 1)
        with pytest.raises(SandboxNotFoundError):
            await images(world).cancel(a_request(stranger), sandbox.id, 1, timeout=SOON)


@pytest.mark.parametrize("state", ["paused", "terminated"])
async def test_what_has_no_root_file_system_is_not_committed(world: ManagerWorld, state: str) -> None:
    sandbox = await world.given_active()
    await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    if state == "terminated":
        await world.manager.terminate(a_request(), sandbox.id, timeout=SOON)

    with pytest.raises(SandboxNotRunningError):
        await commit(world, sandbox)


@pytest.mark.parametrize(("keeps_root", "error"), [(True, CaptureUnsupportedError), (False, CommitsOffError)])
async def test_where_nothing_is_committed_every_call_says_why(keeps_root: bool, error: type[Exception]) -> None:
    world = ManagerWorld(keeps_root=keeps_root, commits=False)
    sandbox = await world.given_active()

    with pytest.raises(error):
        await commit(world, sandbox)
    with pytest.raises(SandboxNotFoundError):
        await images(world).commit(a_request(), SandboxId("sbx-nothing"), timeout=SOON)


async def test_a_going_replica_leaves_its_commit_to_the_next(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.builder.hanging = asyncio.Event()
    await commit(world, sandbox, "with ripgrep", wait=False)

    await world.manager.drain(grace=NOW)

    assert rows(world)[0].status is G.BUILDING
    await eventually(lambda: world.units.rows.leases == {})
    world.builder.hanging.set()
    core, _ = world.replica("second")
    assert core.commits is not None
    assert await core.commits.finish_left_over() == 1
    await eventually(lambda: rows(world)[0].status is G.ACTIVE)


def _busy(core: ManagerCore) -> bool:
    assert core.commits is not None
    return core.commits.busy


async def test_what_comes_near_its_limit_is_said_before_it_is_refused(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    made = await commit(world, sandbox, "with ripgrep")
    limit = TIER_RESOURCES[Tier.BASIC].storage_bytes
    assert made.content is not None

    for part, said in ((0.79, False), (0.8, True), (1, True)):
        content = replace(made.content, raw_bytes=int(limit * part))
        world.units.rows.generations[made.id] = replace(made, content=content)
        shown = await images(world).get(a_caller(), sandbox.id, 1)
        assert any("bytes (" in warning and "usr/bin/root" in warning for warning in shown.warnings) == said
        assert any("keys or tokens" in warning for warning in shown.warnings)
