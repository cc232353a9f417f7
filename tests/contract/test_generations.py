"""What the rows of generations promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

import pytest

from sandboxd.manager.image_ports import CommitInProgressError, ImageNotFoundError
from sandboxd.model.errors import ConflictError, ErrorKind, InvalidRequestError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.image import (
    CommitPhase,
    CommitProgress,
    CommitTrigger,
    Failure,
    Generation,
    GenerationId,
    GenerationStatus,
    ImageContent,
    LeftOutPaths,
)
from sandboxd.model.replay import ReplayPolicy
from tests.contract.units_world import NOON, UnitsWorld, an_id, given_sandbox

CLIENT, FREELANCER = ClientId("acme"), FreelancerId("ada")
INCARNATION = IncarnationId("inc-1")
G = GenerationStatus
_numbers = count(1)


def minutes(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


async def given(world: UnitsWorld, *, freelancer: str = FREELANCER) -> SandboxId:
    return (await given_sandbox(world, freelancer=FreelancerId(freelancer))).id


def a_generation(
    sandbox: SandboxId, *, freelancer: str = FREELANCER, at: datetime = NOON, request_id: str | None = None
) -> Generation:
    return Generation(
        id=GenerationId(an_id("gen")),
        sandbox=sandbox,
        client=CLIENT,
        freelancer=FreelancerId(freelancer),
        number=1,
        incarnation=INCARNATION,
        trigger=CommitTrigger.REQUEST,
        request_id=None if request_id is None else RequestId(request_id),
        repository="acme/gemini-cli-user-ada",
        create_time=at,
        update_time=at,
    )


async def begin(world: UnitsWorld, generation: Generation) -> Generation:
    async with world.units.begin() as work:
        begun = await work.generations.begin(generation)
        await work.commit()
    return begun


async def save(world: UnitsWorld, *generations: Generation) -> None:
    async with world.units.begin() as work:
        for generation in generations:
            await work.generations.save(generation)
        await work.commit()


async def get(world: UnitsWorld, generation: Generation) -> Generation:
    async with world.units.begin() as work:
        return await work.generations.get(generation.id)


async def made(
    world: UnitsWorld,
    sandbox: SandboxId,
    status: GenerationStatus,
    *,
    at: datetime = NOON,
    trigger: CommitTrigger = CommitTrigger.REQUEST,
) -> Generation:
    """One that came so far, in all its steps."""
    generation = await begin(world, replace(a_generation(sandbox, at=at), trigger=trigger))
    content = ImageContent(digest=f"sha256:{generation.number:064}")
    built = replace(generation, content=content, registry="registry.test", capture_time=at)
    ways = {
        G.BUILDING: (),
        G.DISCARDED: (G.DISCARDED,),
        G.FAILED: (G.FAILED,),
        G.PUSHED: (G.PUSHED,),
        G.VERIFIED: (G.PUSHED, G.VERIFIED),
        G.ACTIVE: (G.PUSHED, G.VERIFIED, G.ACTIVE),
        G.SUPERSEDED: (G.PUSHED, G.VERIFIED, G.ACTIVE, G.SUPERSEDED),
    }
    for step in ways[status]:
        built = built.enter(step, at=at)
        if step is G.FAILED:
            built = replace(
                built, failure=Failure(kind=ErrorKind.WRONG_STATE, reason="IMAGE_BROKEN", message="It does not boot.")
            )
        await save(world, built)
    return built if ways[status] else generation


async def test_everything_of_a_generation_is_kept(world: UnitsWorld) -> None:
    begun = await begin(world, a_generation(await given(world), request_id="request-1"))
    content = ImageContent(
        digest="sha256:1",
        layer_digest="sha256:2",
        diff_id="sha256:3",
        raw_bytes=5_000_000_000,
        compressed_bytes=2_000_000_000,
        image_bytes=3_000_000_000,
        layers=4,
        entries=300_000,
        largest=(("usr/lib/a\udcff\x00b", 9_000_000_000),),
        left_out=(LeftOutPaths(reason="secret", count=12, paths=("root/.netrc", "é")),),
    )
    changed = replace(
        begun.enter(G.PUSHED, at=minutes(1)),
        registry="registry.test:5000",
        base="registry.test:5000/base@sha256:0",
        parent=GenerationId("gen-parent"),
        given_up=IncarnationId("inc-0"),
        content=content,
        seconds={"capture": 1.5},
        attempts=2,
        capture_time=NOON,
    )

    await save(world, changed)

    assert await get(world, begun) == changed


@pytest.mark.parametrize("policy", ReplayPolicy)
async def test_an_upgrade_of_a_base_is_kept_with_its_policy_and_its_phase(
    world: UnitsWorld, policy: ReplayPolicy
) -> None:
    wanted = a_generation(await given(world))
    upgrade = replace(
        wanted,
        trigger=CommitTrigger.UPGRADE,
        replay_policy=policy,
        progress=CommitProgress(phase=CommitPhase.REPLAY, entries=3),
    )

    begun = await begin(world, upgrade)

    assert await get(world, begun) == replace(upgrade, number=begun.number)


async def test_a_failure_is_kept(world: UnitsWorld) -> None:
    begun = await begin(world, a_generation(await given(world)))
    failed = begun.fail(
        Failure(
            kind=ErrorKind.WRONG_STATE,
            reason="IMAGE_TOO_LARGE",
            message="Too large: usr/a\x00b.",
            metadata={"path": "usr/a\x00b"},
        ),
        at=minutes(1),
    )

    await save(world, failed)

    assert await get(world, begun) == failed


async def test_numbers_grow_for_each_freelancer(world: UnitsWorld) -> None:
    first, second = await given(world), await given(world)
    other = await given(world, freelancer="bob")

    numbers = [
        (await begin(world, a_generation(first))).number,
        (await begin(world, a_generation(second))).number,
        (await begin(world, a_generation(other, freelancer="bob"))).number,
    ]

    assert numbers == [1, 2, 1]


async def test_commits_at_once_of_one_freelancer_get_numbers_of_their_own(world: UnitsWorld) -> None:
    sandboxes = [await given(world) for _ in range(6)]

    begun = await asyncio.gather(*(begin(world, a_generation(sandbox)) for sandbox in sandboxes))

    assert sorted(one.number for one in begun) == [1, 2, 3, 4, 5, 6]


async def test_a_sandbox_has_one_commit_in_flight(world: UnitsWorld) -> None:
    sandbox = await given(world)
    first = await begin(world, a_generation(sandbox))

    for status in (None, G.PUSHED, G.VERIFIED):
        if status is not None:
            content = ImageContent(digest="sha256:1")
            first = replace(first.enter(status, at=NOON), content=content, registry="registry.test")
            await save(world, first)
        with pytest.raises(CommitInProgressError) as refused:
            await begin(world, a_generation(sandbox))
        assert refused.value.metadata == {"sandbox": sandbox, "image": "g000001"}

    await save(world, first.fail(Failure(kind=ErrorKind.WRONG_STATE, reason="X", message="x"), at=NOON))
    assert (await begin(world, a_generation(sandbox))).number == 2


async def test_of_commits_at_once_of_one_sandbox_one_begins(world: UnitsWorld) -> None:
    sandbox = await given(world)

    found = await asyncio.gather(*(begin(world, a_generation(sandbox)) for _ in range(5)), return_exceptions=True)

    assert sum(isinstance(one, Generation) for one in found) == 1
    assert sum(isinstance(one, CommitInProgressError) for one in found) == 4


async def test_a_change_of_an_older_version_is_refused(world: UnitsWorld) -> None:
    begun = await begin(world, a_generation(await given(world)))
    await save(world, replace(begun, version=2))

    with pytest.raises(ConflictError):
        await save(world, replace(begun, version=2))


async def test_progress_and_the_wish_to_end_change_nothing_else(world: UnitsWorld) -> None:
    begun = await begin(world, a_generation(await given(world)))
    progress = CommitProgress(phase=CommitPhase.PUSH, entries=10, bytes=20, total_bytes=30)

    async with world.units.begin() as work:
        await work.generations.note_progress(begun.id, progress, at=minutes(1))
        await work.generations.cancel(begun.id)
        await work.commit()
    await save(world, replace(begun, attempts=2, version=2))  # which knew nothing of either

    found = await get(world, begun)
    assert (found.progress, found.cancelled, found.attempts, found.version) == (progress, True, 2, 2)


async def test_what_has_ended_makes_no_progress_and_cannot_be_cancelled(world: UnitsWorld) -> None:
    ended = await made(world, await given(world), G.ACTIVE)

    async with world.units.begin() as work:
        await work.generations.note_progress(ended.id, CommitProgress(entries=99), at=minutes(1))
        await work.generations.cancel(ended.id)
        await work.commit()

    assert await get(world, ended) == ended


async def test_a_generation_is_found_by_number_and_by_request(world: UnitsWorld) -> None:
    sandbox, other = await given(world), await given(world)
    begun = await begin(world, a_generation(sandbox, request_id="request-1"))

    async with world.units.begin() as work:
        assert await work.generations.numbered(sandbox, begun.number) == begun
        assert await work.generations.asked_for(CLIENT, RequestId("request-1")) == begun
        assert await work.generations.asked_for(CLIENT, RequestId("request-2")) is None
        assert await work.generations.asked_for(ClientId("other"), RequestId("request-1")) is None
        assert await work.generations.in_flight(sandbox) == begun
        assert await work.generations.in_flight(other) is None
        with pytest.raises(ImageNotFoundError):
            await work.generations.numbered(other, begun.number)
        with pytest.raises(ImageNotFoundError):
            await work.generations.get(GenerationId("gen-nothing"))


async def test_images_are_listed_newest_first_in_pages(world: UnitsWorld) -> None:
    sandbox = await given(world)
    statuses = (G.SUPERSEDED, G.FAILED, G.DISCARDED, G.ACTIVE, G.BUILDING)
    all_of_them = [await made(world, sandbox, status, at=minutes(n)) for n, status in enumerate(statuses)]
    await made(world, await given(world), G.ACTIVE)

    async def listed(*, everything: bool, size: int) -> list[int]:
        numbers, token = list[int](), ""
        while True:
            async with world.units.begin() as work:
                page = await work.generations.list(sandbox, everything=everything, page_size=size, page_token=token)
            numbers.extend(one.number for one in page.items)
            token = page.next_token
            if not token:
                return numbers

    assert await listed(everything=True, size=2) == [one.number for one in reversed(all_of_them)]
    assert await listed(everything=False, size=100) == [5, 4, 1]
    async with world.units.begin() as work:
        with pytest.raises(InvalidRequestError):
            await work.generations.list(sandbox, everything=True, page_size=2, page_token="nonsense")


async def test_what_is_saved_is_told_by_the_last_capture_that_counts(world: UnitsWorld) -> None:
    sandbox = await given(world)

    async def saved(incarnation: IncarnationId = INCARNATION) -> datetime | None:
        async with world.units.begin() as work:
            return await work.generations.saved_time(sandbox, incarnation)

    assert await saved() is None
    await made(world, sandbox, G.FAILED, at=minutes(1))
    await made(world, sandbox, G.DISCARDED, at=minutes(2))  # a dry run
    assert await saved() is None
    await made(world, sandbox, G.SUPERSEDED, at=minutes(3))
    assert await saved() == minutes(3)
    unchanged = replace(await begin(world, a_generation(sandbox, at=minutes(4))), unchanged=True)
    await save(world, replace(unchanged.enter(G.DISCARDED, at=minutes(5)), capture_time=minutes(4)))
    assert await saved() == minutes(4)
    assert await saved(IncarnationId("inc-2")) is None
    upgrade = replace(a_generation(sandbox, at=minutes(6)), trigger=CommitTrigger.UPGRADE)
    ended = replace(await begin(world, upgrade), unchanged=True, capture_time=minutes(6))
    await save(world, ended.enter(G.DISCARDED, at=minutes(7)))
    assert await saved() == minutes(4), "it has captured another root file system"


async def test_a_life_goes_on_from_what_was_active_last_and_not_rolled_back_to_in_it(world: UnitsWorld) -> None:
    sandbox = await given(world)

    async def followed(incarnation: IncarnationId = INCARNATION) -> GenerationId | None:
        async with world.units.begin() as work:
            found = await work.generations.followed(sandbox, incarnation)
        return None if found is None else found.id

    await made(world, await given(world), G.ACTIVE, at=minutes(9))
    await made(world, sandbox, G.FAILED, at=minutes(9))
    assert await followed() is None
    first, second = [await made(world, sandbox, G.SUPERSEDED, at=minutes(at)) for at in (1, 2)]
    assert await followed() == second.id
    back = replace(first.enter(G.ACTIVE, at=minutes(3)), given_up=INCARNATION)
    await save(world, back)
    assert (await followed(), await followed(IncarnationId("inc-2"))) == (second.id, first.id)
    await save(world, back.enter(G.SUPERSEDED, at=minutes(4)))
    upgrade = await made(world, sandbox, G.ACTIVE, at=minutes(4), trigger=CommitTrigger.UPGRADE)
    assert (await followed(), await followed(IncarnationId("inc-2"))) == (second.id, upgrade.id)


async def test_an_image_of_another_sandbox_is_taken_on_in_one_go(world: UnitsWorld) -> None:
    first = await made(world, await given(world), G.ACTIVE, at=minutes(1))
    other = await given(world)
    taken = replace(
        a_generation(other, at=minutes(2)),
        trigger=CommitTrigger.RESTORE,
        content=first.content,
        registry=first.registry,
    )

    async with world.units.begin() as work:
        one = await work.generations.begin(taken)
        for status in (G.PUSHED, G.VERIFIED, G.ACTIVE):
            one = one.enter(status, at=minutes(2))
            await work.generations.save(one)
        await work.commit()

    assert one.number > first.number
    assert await get(world, one) == one
    assert one.reference == first.reference


async def test_the_fallback_is_what_was_active_last(world: UnitsWorld) -> None:
    sandbox = await given(world)

    async def fallback() -> Generation | None:
        async with world.units.begin() as work:
            return await work.generations.fallback(sandbox)

    assert await fallback() is None
    first = await made(world, sandbox, G.SUPERSEDED, at=minutes(1))
    second = await made(world, sandbox, G.SUPERSEDED, at=minutes(2))
    await made(world, sandbox, G.ACTIVE, at=minutes(3))
    lost = await begin(world, a_generation(sandbox, at=minutes(4)))
    lost = replace(lost, content=ImageContent(digest="sha256:9"), registry="registry.test")
    for step in (G.PUSHED, G.SUPERSEDED):  # it lost a race, and never was active
        lost = lost.enter(step, at=minutes(5))
        await save(world, lost)

    assert await fallback() == second
    await save(
        world, second.fail(Failure(kind=ErrorKind.WRONG_STATE, reason="IMAGE_BROKEN", message="x"), at=minutes(6))
    )
    assert await fallback() == first


async def test_the_newest_of_a_repository_is_of_any_of_its_sandboxes(world: UnitsWorld) -> None:
    one, other = await given(world), await given(world)
    await made(world, one, G.ACTIVE, at=minutes(1))
    later = await made(world, other, G.ACTIVE, at=minutes(2))

    async with world.units.begin() as work:
        assert await work.generations.newest(CLIENT, FREELANCER) == later
        assert await work.generations.newest(CLIENT, FreelancerId("bob")) is None


async def test_what_is_to_be_finished_is_found_by_id(world: UnitsWorld) -> None:
    flying = [await made(world, await given(world), status) for status in (G.BUILDING, G.PUSHED, G.VERIFIED)]
    active = await made(world, await given(world), G.ACTIVE)
    told = await made(world, await given(world), G.ACTIVE)
    await save(world, replace(told, told_time=NOON, version=told.version + 1))

    async with world.units.begin() as work:
        assert await work.generations.unfinished(limit=10) == flying
        assert await work.generations.unfinished(limit=1) == flying[:1]
        assert await work.generations.unfinished(limit=10, after=flying[0].id) == flying[1:]
        assert await work.generations.unfinished(limit=10, trigger=CommitTrigger.REQUEST) == flying
        assert await work.generations.unfinished(limit=10, trigger=CommitTrigger.UPGRADE) == []
        assert await work.generations.untold(limit=10) == [active]
        assert await work.generations.untold(limit=10, after=active.id) == []


async def test_what_left_no_image_is_forgotten_after_a_while(world: UnitsWorld) -> None:
    sandbox = await given(world)
    kept = [await made(world, sandbox, status, at=minutes(n)) for n, status in enumerate((G.SUPERSEDED, G.ACTIVE))]
    pushed = replace(await begin(world, a_generation(sandbox)), content=ImageContent(digest="sha256:7"))
    pushed = replace(pushed.enter(G.PUSHED, at=NOON), registry="registry.test")
    await save(world, pushed)
    pushed = pushed.fail(Failure(kind=ErrorKind.WRONG_STATE, reason="IMAGE_BROKEN", message="x"), at=NOON)
    await save(world, pushed)
    await made(world, sandbox, G.FAILED)
    await made(world, sandbox, G.DISCARDED)
    recent = await made(world, sandbox, G.FAILED, at=minutes(10))
    flying = await made(world, sandbox, G.BUILDING)

    async with world.units.begin() as work:
        forgotten = await work.generations.forget(before=minutes(5), limit=10)
        await work.commit()
    async with world.units.begin() as work:
        left = await work.generations.list(sandbox, everything=True, page_size=20, page_token="")

    assert forgotten == 2
    assert {one.id for one in left.items} == {one.id for one in (*kept, pushed, recent, flying)}


async def test_a_sandbox_keeps_what_its_next_start_takes(world: UnitsWorld) -> None:
    sandbox = await given(world)
    active = await made(world, sandbox, G.ACTIVE)

    async with world.units.begin() as work:
        found = await work.sandboxes.get(sandbox, for_update=True)
        assert found.image is None
        await work.sandboxes.save(replace(found, image=active.image, version=found.version + 1))
        await work.commit()

    async with world.units.begin() as work:
        assert (await work.sandboxes.get(sandbox)).image == active.image


async def test_every_freelancer_is_an_owner_page_by_page(world: UnitsWorld) -> None:
    for freelancer in ("eve", "ada", "bob"):
        await given(world, freelancer=freelancer)

    async with world.units.begin() as work:
        first = await work.generations.owners(limit=2)
        second = await work.generations.owners(limit=2, after=first[-1])

    assert [*first, *second] == [(CLIENT, FreelancerId(one)) for one in ("ada", "bob", "eve")]


async def test_of_a_repository_there_is_what_has_an_image_and_what_is_asked_for_by_number(world: UnitsWorld) -> None:
    sandbox, other = await given(world), await given(world, freelancer="eve")
    discarded, failed = await made(world, sandbox, G.DISCARDED), await made(world, sandbox, G.FAILED)
    superseded = await made(world, sandbox, G.SUPERSEDED)
    active = await made(world, await given(world), G.ACTIVE)
    await begin(world, a_generation(other, freelancer="eve"))
    flying = await made(world, sandbox, G.BUILDING)

    async with world.units.begin() as work:
        held = await work.generations.of_owner(CLIENT, FREELANCER)
        more = await work.generations.of_owner(CLIENT, FREELANCER, numbers=[discarded.number, failed.number, 99])

    assert [one.id for one in held] == [superseded.id, active.id, flying.id]
    assert [one.id for one in more] == [discarded.id, failed.id, superseded.id, active.id, flying.id]


async def test_no_commit_begins_in_a_repository_that_is_held(world: UnitsWorld) -> None:
    sandbox = await given(world)

    async with world.units.begin() as work:
        await work.generations.hold_owner(CLIENT, FREELANCER)
        commit = asyncio.create_task(begin(world, a_generation(sandbox)))
        await asyncio.sleep(0.2)
        assert not commit.done()
        assert await work.generations.of_owner(CLIENT, FREELANCER) == []
        await work.commit()

    assert (await commit).number == 1
