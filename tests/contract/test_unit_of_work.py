"""What a unit of work promises, held by the fake and by PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from sandboxd.manager.outcome import record_error
from sandboxd.manager.ports import (
    Operation,
    OperationId,
    RequestOutcome,
    RequestRecord,
    SandboxFilter,
    SandboxOrder,
    UnitOfWork,
)
from sandboxd.model.errors import (
    AlreadyExistsError,
    ConflictError,
    ExhaustedError,
    InvalidRequestError,
    SandboxNotFoundError,
    UnavailableError,
)
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.lifecycle import NEVER, LifecycleOverrides, Limit
from sandboxd.model.sandbox import AgentEndpoint, ApprovalMode, Incarnation, Sandbox, SandboxState, Tier
from tests.contract.units_world import UnitsWorld, an_id

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LEASE = timedelta(seconds=30)
SHORT = timedelta(milliseconds=200)
CLIENT, FREELANCER = ClientId("acme"), FreelancerId("ada")
S = SandboxState


def a_sandbox(
    *,
    client: str = CLIENT,
    freelancer: str = FREELANCER,
    state: SandboxState = S.ACTIVE,
    at: datetime = NOON,
    used: datetime | None = None,
    labels: dict[str, str] | None = None,
) -> Sandbox:
    return Sandbox(
        id=SandboxId(an_id("sbx")),
        client=ClientId(client),
        freelancer=FreelancerId(freelancer),
        labels=labels or {},
        state=state,
        create_time=at,
        update_time=at,
        last_use_time=used or at,
    )


def a_life(sandbox: Sandbox, *, number: int = 1) -> Incarnation:
    return Incarnation(id=IncarnationId(an_id("inc")), sandbox=sandbox.id, number=number, start_time=NOON)


def a_record(sandbox: Sandbox, *, request_id: str = "", expire_time: datetime | None = None) -> RequestRecord:
    return RequestRecord(
        client=sandbox.client,
        request_id=RequestId(request_id or an_id("req")),
        method="Pause",
        subject="ada",
        body_hash=b"\x01" * 32,
        sandbox=sandbox.id,
        create_time=NOON,
        expire_time=expire_time,
    )


def an_operation(replica: str = "first") -> Operation:
    return Operation(id=OperationId(an_id("opr")), replica=replica)


async def given(world: UnitsWorld, *sandboxes: Sandbox) -> None:
    async with world.units.begin() as work:
        for sandbox in sandboxes:
            await work.freelancers.ensure(sandbox.client, sandbox.freelancer, at=NOON)
            await work.sandboxes.add(sandbox)
        await work.commit()


async def read(world: UnitsWorld, sandbox: Sandbox) -> Sandbox:
    async with world.units.begin() as work:
        return await work.sandboxes.get(sandbox.id)


# Transactions.


async def test_a_sandbox_without_a_life_yet_is_made_with_its_request_and_once(world: UnitsWorld) -> None:
    sandbox = a_sandbox(state=S.RESTORING)
    record = replace(a_record(sandbox), method="Create")
    async with world.units.begin() as work:
        await work.freelancers.ensure(CLIENT, FREELANCER, at=NOON)
        assert await work.sandboxes.create(sandbox, None, record)
        await work.commit()

    async with world.units.begin() as work:
        assert not await work.sandboxes.create(a_sandbox(), None, record)
        assert await work.sandboxes.get(sandbox.id) == sandbox
        assert await work.incarnations.current(sandbox.id) is None
        assert await work.requests.get(CLIENT, record.request_id) == record
        with pytest.raises(AlreadyExistsError):
            await work.sandboxes.create(sandbox, None, a_record(sandbox))


async def test_what_was_not_committed_never_was(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    async with world.units.begin() as work:
        await work.freelancers.ensure(sandbox.client, sandbox.freelancer, at=NOON)
        await work.sandboxes.add(sandbox)

    with pytest.raises(SandboxNotFoundError):
        await read(world, sandbox)


async def test_an_error_in_the_block_undoes_it(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)

    async def fail() -> None:
        async with world.units.begin() as work:
            await work.sandboxes.save(replace(sandbox, display_name="x", version=2))
            raise UnavailableError("no")

    with pytest.raises(UnavailableError):
        await fail()
    assert await read(world, sandbox) == sandbox


async def test_a_locked_row_is_waited_for_and_seen_as_it_was_committed(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    locked = asyncio.Event()

    async def first() -> None:
        async with world.units.begin() as work:
            found = await work.sandboxes.get(sandbox.id, for_update=True)
            locked.set()
            await asyncio.sleep(0.05)  # the other one is at the lock by now, or comes after the commit: both are right
            await work.sandboxes.save(replace(found, display_name="first", version=found.version + 1))
            await work.commit()

    async def second() -> Sandbox:
        await locked.wait()
        async with world.units.begin() as work:
            return await work.sandboxes.get(sandbox.id, for_update=True)

    _, seen = await asyncio.gather(first(), second())

    assert seen.display_name == "first"


# Sandboxes.


async def test_a_sandbox_comes_back_as_it_was_written(world: UnitsWorld) -> None:
    sandbox = replace(
        a_sandbox(labels={"team": "blue", "a/b": ""}),
        display_name="Ünï",
        tier=Tier.PREMIUM,
        model="gemini-2.5-pro",
        approval_mode=ApprovalMode.AUTO_EDIT,
        state_reason="because",
        incarnation=IncarnationId(an_id("inc")),
        incarnations=3,
        last_use_time=NOON + timedelta(microseconds=1),
        state_time=NOON - timedelta(microseconds=1),
        lifecycle=LifecycleOverrides(
            hibernate_after=Limit(after=timedelta(minutes=7, microseconds=3)),
            stop_after=NEVER,
            discard_root_changes=False,
        ),
        keep_awake_until=NOON + timedelta(days=1),
    )

    await given(world, sandbox)

    assert await read(world, sandbox) == sandbox


async def test_the_same_sandbox_cannot_be_added_twice(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)

    with pytest.raises(AlreadyExistsError):
        await given(world, sandbox)


async def test_saving_over_another_version_is_a_conflict(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    async with world.units.begin() as work:
        await work.sandboxes.save(sandbox.enter(S.PAUSING, at=NOON))
        await work.commit()

    with pytest.raises(ConflictError):
        async with world.units.begin() as work:
            await work.sandboxes.save(sandbox.enter(S.TERMINATING, at=NOON))
    assert (await read(world, sandbox)).state is S.PAUSING


async def test_a_touch_moves_the_last_use_forward_and_nothing_else(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    later = NOON + timedelta(minutes=1)

    for moment in (later, NOON):
        async with world.units.begin() as work:
            await work.sandboxes.touch(sandbox.id, at=moment)
            await work.sandboxes.touch(SandboxId("sbx-none"), at=moment)
            await work.commit()

    assert await read(world, sandbox) == replace(sandbox, last_use_time=later)


async def test_a_save_does_not_take_the_last_use_back(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    later = NOON + timedelta(minutes=1)
    async with world.units.begin() as work:
        await work.sandboxes.touch(sandbox.id, at=later)
        await work.sandboxes.save(sandbox.enter(S.PAUSING, at=NOON))
        await work.commit()

    assert (await read(world, sandbox)).last_use_time == later


@pytest.mark.parametrize("order", list(SandboxOrder))
async def test_pages_give_every_sandbox_once_and_in_order(world: UnitsWorld, order: SandboxOrder) -> None:
    made = [
        a_sandbox(at=NOON + timedelta(seconds=n // 2), used=NOON + timedelta(minutes=10 - n // 3)) for n in range(7)
    ]
    await given(world, *made, a_sandbox(client="other"))

    ids, token = list[SandboxId](), ""
    for _ in range(10):
        async with world.units.begin() as work:
            page = await work.sandboxes.list(SandboxFilter(client=CLIENT), order=order, page_size=2, page_token=token)
        assert len(page.items) <= 2
        ids += [sandbox.id for sandbox in page.items]
        token = page.next_token
        if not token:
            break

    by_use = "use" in order.value
    expected = sorted(
        made,
        key=lambda sandbox: (sandbox.last_use_time if by_use else sandbox.create_time, sandbox.id),
        reverse="desc" in order.value,
    )
    assert ids == [sandbox.id for sandbox in expected]


async def test_a_list_holds_what_the_filter_means(world: UnitsWorld) -> None:
    mine = a_sandbox(labels={"team": "blue", "x": "y"})
    paused = a_sandbox(state=S.PAUSED, freelancer="bob")
    ended = a_sandbox(state=S.TERMINATED)
    await given(world, mine, paused, ended, a_sandbox(client="other", labels={"team": "blue"}))

    async def found(where: SandboxFilter) -> set[SandboxId]:
        async with world.units.begin() as work:
            page = await work.sandboxes.list(where, order=SandboxOrder.CREATE_TIME, page_size=10, page_token="")
        return {sandbox.id for sandbox in page.items}

    assert await found(SandboxFilter(client=CLIENT)) == {mine.id, paused.id}
    assert await found(SandboxFilter(client=CLIENT, states=frozenset({S.TERMINATED}))) == {ended.id}
    assert await found(SandboxFilter(client=CLIENT, freelancer=FreelancerId("bob"))) == {paused.id}
    assert await found(SandboxFilter(client=CLIENT, labels={"team": "blue"})) == {mine.id}
    assert await found(SandboxFilter(client=CLIENT, labels={"team": "red"})) == set()


@pytest.mark.parametrize("damage", ["nonsense", "another filter", "another order"])
async def test_a_token_of_another_list_is_refused(world: UnitsWorld, damage: str) -> None:
    await given(world, a_sandbox(), a_sandbox())
    where, order = SandboxFilter(client=CLIENT), SandboxOrder.CREATE_TIME
    async with world.units.begin() as work:
        token = (await work.sandboxes.list(where, order=order, page_size=1, page_token="")).next_token
    match damage:
        case "nonsense":
            token = "@@@"
        case "another filter":
            where = replace(where, freelancer=FREELANCER)
        case _:
            order = SandboxOrder.CREATE_TIME_DESC

    with pytest.raises(InvalidRequestError) as refused:
        async with world.units.begin() as work:
            await work.sandboxes.list(where, order=order, page_size=1, page_token=token)
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


async def test_sandboxes_in_states_come_by_id_and_after_an_id(world: UnitsWorld) -> None:
    made = [a_sandbox(state=S.CREATING), a_sandbox(state=S.PAUSING, client="other"), a_sandbox(state=S.CREATING)]
    await given(world, *reversed(made), a_sandbox())
    states = frozenset({S.CREATING, S.PAUSING})

    async with world.units.begin() as work:
        first = await work.sandboxes.in_states(states, limit=2)
        rest = await work.sandboxes.in_states(states, limit=2, after=first[-1].id)

    assert [sandbox.id for sandbox in [*first, *rest]] == [sandbox.id for sandbox in made]


async def test_many_sandboxes_are_found_by_their_ids_at_once(world: UnitsWorld) -> None:
    made = [a_sandbox(), a_sandbox(client="other"), a_sandbox()]
    await given(world, *made)

    async with world.units.begin() as work:
        found = await work.sandboxes.find([made[1].id, SandboxId("sbx-nobody"), made[0].id])
        none = await work.sandboxes.find([])

    assert found == {sandbox.id: sandbox for sandbox in made[:2]}
    assert none == {}


# Incarnations.


async def test_an_incarnation_comes_back_as_it_was_written(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    life = a_life(sandbox)
    await given(world, sandbox)
    ready = replace(
        life,
        endpoint=AgentEndpoint(host="127.0.0.1", port=4711, server_name="a.agent.sandboxd.internal"),
        ready_time=NOON,
    )
    async with world.units.begin() as work:
        await work.incarnations.add(life)
        assert await work.incarnations.get(life.id) == life
        await work.incarnations.save(ready)
        await work.commit()

    async with world.units.begin() as work:
        assert await work.incarnations.get(life.id) == ready
        assert await work.incarnations.current(sandbox.id) == ready
        assert await work.incarnations.get(IncarnationId("inc-none")) is None


async def test_a_sandbox_has_one_living_incarnation(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    first, second = a_life(sandbox), a_life(sandbox, number=2)
    async with world.units.begin() as work:
        await work.incarnations.add(first)
        await work.commit()
    with pytest.raises(ConflictError):
        async with world.units.begin() as work:
            await work.incarnations.add(second)

    async with world.units.begin() as work:
        await work.incarnations.save(replace(first, end_time=NOON, end_reason="PAUSED"))
        await work.incarnations.add(second)
        await work.commit()
    async with world.units.begin() as work:
        assert await work.incarnations.current(sandbox.id) == second


async def test_the_end_of_an_incarnation_is_final(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    life = a_life(sandbox)
    ended = replace(life, end_time=NOON, end_reason="AGENT_LOST")
    async with world.units.begin() as work:
        await work.incarnations.add(life)
        await work.incarnations.save(ended)
        await work.commit()

    async with world.units.begin() as work:
        await work.incarnations.save(replace(life, end_time=NOON + timedelta(hours=1), end_reason="PAUSED"))
        await work.incarnations.save(life)
        await work.commit()

    async with world.units.begin() as work:
        assert await work.incarnations.get(life.id) == ended
        assert await work.incarnations.current(sandbox.id) is None


async def test_living_incarnations_of_all_sandboxes_come_by_id(world: UnitsWorld) -> None:
    sandboxes = [a_sandbox(), a_sandbox(client="other"), a_sandbox()]
    await given(world, *sandboxes)
    lives = [a_life(sandbox) for sandbox in sandboxes]
    async with world.units.begin() as work:
        for life in reversed(lives):
            await work.incarnations.add(life)
        await work.incarnations.save(replace(lives[1], end_time=NOON, end_reason="PAUSED"))
        await work.commit()

    async with world.units.begin() as work:
        first = await work.incarnations.living(limit=1)
        rest = await work.incarnations.living(limit=5, after=first[-1].incarnation.id)

    assert [(life.sandbox.id, life.incarnation) for life in [*first, *rest]] == [
        (sandboxes[0].id, lives[0]),
        (sandboxes[2].id, lives[2]),
    ]


# Requests.


async def test_a_request_is_claimed_once(world: UnitsWorld) -> None:
    sandbox, other = a_sandbox(), a_sandbox(client="other")
    await given(world, sandbox, other)
    record = a_record(sandbox, request_id="request-1", expire_time=NOON + timedelta(days=30))
    async with world.units.begin() as work:
        assert await work.requests.claim(record) is None
        await work.commit()

    async with world.units.begin() as work:
        assert await work.requests.claim(replace(record, body_hash=b"\x02" * 32, method="Resume")) == record
        assert await work.requests.claim(a_record(other, request_id="request-1")) is None


async def test_a_claim_that_was_undone_never_was(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    record = a_record(sandbox)
    async with world.units.begin() as work:
        await work.requests.claim(record)

    async with world.units.begin() as work:
        assert await work.requests.get(record.client, record.request_id) is None
        assert await work.requests.claim(record) is None


async def test_two_claims_at_once_have_one_winner(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    record = a_record(sandbox)

    async def claim() -> RequestRecord | None:
        async with world.units.begin() as work:
            earlier = await work.requests.claim(record)
            await asyncio.sleep(0.02)
            await work.commit()
            return earlier

    answers = await asyncio.gather(claim(), claim(), claim())

    assert answers.count(None) == 1
    assert answers.count(record) == 2


async def test_an_outcome_is_written_once_and_comes_back_whole(world: UnitsWorld) -> None:
    sandbox = replace(a_sandbox(labels={"a": "b"}), terminate_time=NOON)
    await given(world, sandbox)
    good, bad = a_record(sandbox), a_record(sandbox)
    done = RequestOutcome(sandbox=sandbox, kept="/kept/here")
    failed = RequestOutcome(error=record_error(ExhaustedError("Full.", retry_after=timedelta(seconds=30))))
    async with world.units.begin() as work:
        await work.requests.claim(good)
        await work.requests.claim(bad)
        assert await work.requests.in_progress(sandbox.id) == [good, bad]
        await work.requests.finish(good.client, good.request_id, done)
        await work.requests.finish(bad.client, bad.request_id, failed)
        await work.requests.finish(good.client, good.request_id, failed)
        await work.requests.finish(good.client, RequestId("request-none"), failed)
        await work.commit()

    async with world.units.begin() as work:
        assert await work.requests.get(good.client, good.request_id) == replace(good, outcome=done)
        assert await work.requests.get(bad.client, bad.request_id) == replace(bad, outcome=failed)
        assert await work.requests.in_progress(sandbox.id) == []


async def test_an_expired_request_is_forgotten_and_its_id_is_free_again(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    brief, lasting = a_record(sandbox, expire_time=NOON + timedelta(days=1)), a_record(sandbox)
    async with world.units.begin() as work:
        await work.requests.claim(brief)
        await work.requests.claim(lasting)
        await work.commit()
    later = replace(brief, create_time=NOON + timedelta(days=1), expire_time=None)
    async with world.units.begin() as work:
        assert await work.requests.claim(later) is None  # replaced

    async with world.units.begin() as work:
        assert await work.requests.forget_expired(at=NOON + timedelta(hours=23), limit=10) == 0
        assert await work.requests.forget_expired(at=NOON + timedelta(days=1), limit=10) == 1
        await work.commit()
    async with world.units.begin() as work:
        assert await work.requests.get(brief.client, brief.request_id) is None
        assert await work.requests.get(lasting.client, lasting.request_id) == lasting


# Operations.


async def take(work: UnitOfWork, sandbox: Sandbox, operation: Operation, *, lease: timedelta = LEASE) -> bool:
    return await work.operations.take(sandbox.id, operation, lease=lease)


async def test_one_operation_at_a_time_works_on_a_sandbox(world: UnitsWorld) -> None:
    sandbox, other = a_sandbox(), a_sandbox()
    await given(world, sandbox, other)
    await world.given_replica("first")
    first, second = an_operation(), an_operation()
    async with world.units.begin() as work:
        assert await take(work, sandbox, first)
        await work.commit()

    async with world.units.begin() as work:
        assert not await take(work, sandbox, second)
        assert await take(work, sandbox, first)
        assert await take(work, other, second)
        assert await work.operations.holds(sandbox.id, first.id)
        assert not await work.operations.holds(sandbox.id, second.id)
        await work.operations.release(sandbox.id, second.id)
        assert not await take(work, sandbox, second)
        await work.operations.release(sandbox.id, first.id)
        await work.operations.release(sandbox.id, first.id)
        assert await take(work, sandbox, second)


async def test_a_lease_that_ran_out_is_taken_over_and_until_then_still_held(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    for replica in ("first", "second"):
        await world.given_replica(replica)
    first, second = an_operation(), an_operation("second")
    async with world.units.begin() as work:
        await take(work, sandbox, first, lease=SHORT)
        await work.commit()
    await world.pass_time(0.3)

    async with world.units.begin() as work:
        assert await work.operations.holds(sandbox.id, first.id)
        assert await take(work, sandbox, second)
        assert not await work.operations.holds(sandbox.id, first.id)
        await work.commit()
    async with world.units.begin() as work:
        assert await work.operations.renew([first.id, second.id], lease=LEASE) == [second.id]


async def test_a_renewed_lease_does_not_run_out(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    await world.given_replica("first")
    first = an_operation()
    async with world.units.begin() as work:
        await take(work, sandbox, first, lease=SHORT)
        await work.commit()
    async with world.units.begin() as work:
        assert await work.operations.renew([first.id], lease=LEASE) == [first.id]
        await work.commit()
    await world.pass_time(0.3)

    async with world.units.begin() as work:
        assert not await take(work, sandbox, an_operation())


async def test_a_dead_replicas_lease_is_taken_over_at_once(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    for replica in ("first", "second"):
        await world.given_replica(replica)
    async with world.units.begin() as work:
        await take(work, sandbox, an_operation("first"))
        await work.commit()
    second = an_operation("second")
    async with world.units.begin() as work:
        assert not await take(work, sandbox, second)

    await world.kill_replica("first")

    async with world.units.begin() as work:
        assert await take(work, sandbox, second)


async def test_two_operations_at_once_have_one_winner(world: UnitsWorld) -> None:
    sandbox = a_sandbox()
    await given(world, sandbox)
    await world.given_replica("first")

    async def attempt() -> bool:
        async with world.units.begin() as work:
            won = await take(work, sandbox, an_operation())
            await asyncio.sleep(0.02)
            await work.commit()
            return won

    assert sorted(await asyncio.gather(attempt(), attempt(), attempt())) == [False, False, True]
