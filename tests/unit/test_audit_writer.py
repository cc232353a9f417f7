"""The audit's group writer and trail: in groups, in order, once, closed when it cannot be written, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from prometheus_client import CollectorRegistry

from sandboxd.model.audit import SYSTEM_CHAIN, AuditEntry, AuditKind, entry_hash, text_digest
from sandboxd.model.ids import ClientId, FreelancerId, make_id
from sandboxd.monitor.audit_ports import ANONYMOUS_ROLE, OK, AuditUnavailableError, Deed, Intent, Outcome
from sandboxd.monitor.audit_trail import GroupedAuditTrail
from sandboxd.monitor.audit_writer import ATTEMPT, AuditMetrics
from sandboxd.monitor.denials import MAX_COUNTERS, SINGLE_ENTRIES, Denials
from tests.eventually import eventually
from tests.fakes.audit import FakeAuditStore

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
WAIT = timedelta(seconds=30)
FORBIDDEN = Outcome(code="PERMISSION_DENIED", reason="ROLE_FORBIDDEN")
UNAUTHENTICATED = Outcome(code="UNAUTHENTICATED", reason="TOKEN_INVALID")
_numbers = count(1)


class StandingClock:
    def now(self) -> datetime:
        return NOON

    def monotonic(self) -> float:
        return 0.0


class NumberedIds:
    def new(self, prefix: str) -> str:
        return make_id(prefix, at=NOON, entropy=next(_numbers).to_bytes(10, "big"))


def a_deed(*, client: str = "acme", action: str = "SandboxService/Create", role: str = "client_admin") -> Deed:
    return Deed(
        client=ClientId(client),
        role=role,
        action=action,
        actor="boss",
        peer="10.1.2.3",
        request_id="request-1",
        freelancer=FreelancerId("ada"),
        texts={"details": '{"display_name":"Ada\'s box"}'},
    )


@asynccontextmanager
async def a_trail(
    store: FakeAuditStore, *, replica: str = "one", attempt: timedelta = ATTEMPT
) -> AsyncIterator[GroupedAuditTrail]:
    trail = GroupedAuditTrail(
        store,
        clock=StandingClock(),
        ids=NumberedIds(),
        replica=replica,
        metrics=AuditMetrics(CollectorRegistry()),
        attempt=attempt,
    )
    store.living.add(replica)
    running = asyncio.create_task(trail.run())
    try:
        yield trail
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def kinds(store: FakeAuditStore, chain: str = "acme") -> list[tuple[AuditKind, str]]:
    return [(entry.kind, entry.code) for entry in store.entries(chain)]


def is_sound(entries: list[AuditEntry]) -> bool:
    hashes = [bytes(32), *(entry.hash for entry in entries)]
    return [entry.sequence for entry in entries] == list(range(1, len(entries) + 1)) and all(
        entry.prev_hash == before and entry_hash(entry) == entry.hash
        for before, entry in zip(hashes, entries, strict=False)
    )


async def test_an_intent_is_durable_before_it_is_answered_and_its_outcome_follows() -> None:
    store = FakeAuditStore()

    async with a_trail(store) as trail:
        intent = await trail.intend(a_deed(), timeout=WAIT)
        before = kinds(store)
        trail.conclude(intent, Outcome(code="OK", target="sandboxes/sbx-1"))
        await trail.settle(timeout=WAIT)

    said, outcome = store.entries()
    assert before == [(AuditKind.INTENT, "")]
    assert (outcome.kind, outcome.intent, outcome.code, outcome.target) == (
        AuditKind.OUTCOME,
        said.sequence,
        "OK",
        "sandboxes/sbx-1",
    )
    assert is_sound([said, outcome])
    assert not store.open


async def test_an_entry_holds_no_text_but_the_digest_of_each_with_its_own_salt() -> None:
    store = FakeAuditStore()

    async with a_trail(store) as trail:
        await trail.intend(a_deed(), timeout=WAIT)

    (entry,) = store.entries()
    kept = {one.text.name: one for one in store.texts[entry.chain, 1]}
    assert {name: one.text.value for name, one in kept.items()} == {
        "actor": "boss",
        "peer": "10.1.2.3",
        "freelancer": "ada",
        "details": '{"display_name":"Ada\'s box"}',
    }
    assert entry.digests == {name: text_digest(one.text.value, salt=one.text.salt) for name, one in kept.items()}
    assert len({one.text.salt for one in kept.values()}) == len(kept)
    assert {name: one.person for name, one in kept.items()} == {
        "actor": "client_admin:boss",
        "peer": "client_admin:boss",
        "freelancer": "ada",
        "details": "ada",
    }


async def test_200_at_once_for_one_client_share_a_few_transactions() -> None:
    store = FakeAuditStore()

    async with a_trail(store) as trail:
        await asyncio.gather(*(trail.intend(a_deed(), timeout=WAIT) for _ in range(200)))

    assert len(store.entries()) == sum(store.groups) == 200
    assert len(store.groups) <= 3
    assert is_sound(store.entries())


async def test_a_call_is_refused_when_the_audit_does_not_answer_in_time() -> None:
    store = FakeAuditStore(gate=asyncio.Event())

    async with a_trail(store) as trail:
        with pytest.raises(AuditUnavailableError):
            await trail.intend(a_deed(), timeout=timedelta(milliseconds=20))


async def test_an_intent_that_was_written_too_late_is_concluded_as_not_run() -> None:
    gate = asyncio.Event()
    store = FakeAuditStore(gate=gate)

    async with a_trail(store) as trail:
        with pytest.raises(AuditUnavailableError):
            await trail.intend(a_deed(), timeout=timedelta(milliseconds=20))
        gate.set()
        await eventually(lambda: len(store.entries()) == 2)

    assert [(entry.kind, entry.reason) for entry in store.entries()] == [
        (AuditKind.INTENT, ""),
        (AuditKind.OUTCOME, "NOT_RUN"),
    ]
    assert not store.open


async def test_a_connection_that_has_gone_silent_holds_its_chain_for_one_attempt_only() -> None:
    gate = asyncio.Event()
    store = FakeAuditStore(gate=gate)

    async with a_trail(store, attempt=timedelta(milliseconds=20)) as trail:
        intent = asyncio.create_task(trail.intend(a_deed(), timeout=WAIT))
        await eventually(lambda: store.begun == 2)  # the first attempt still waits for an answer that never comes
        store.gate = None

        assert (await intent).sequence == 1

    assert [kind for kind, _ in kinds(store)] == [AuditKind.INTENT]
    assert is_sound(store.entries())


async def test_an_intent_that_never_went_out_is_not_written_later() -> None:
    gate = asyncio.Event()
    store = FakeAuditStore(gate=gate)

    async with a_trail(store) as trail:
        first = asyncio.create_task(trail.intend(a_deed(), timeout=WAIT))
        await eventually(lambda: store.begun == 1)  # its transaction is under way: the next one waits behind it
        with pytest.raises(AuditUnavailableError):
            await trail.intend(a_deed(action="SandboxService/Pause"), timeout=timedelta(milliseconds=20))
        gate.set()
        await first
        await trail.settle(timeout=WAIT)

    assert [entry.action for entry in store.entries()] == ["SandboxService/Create"]


async def test_an_outcome_waits_until_the_database_is_back() -> None:
    store = FakeAuditStore()

    async with a_trail(store) as trail:
        intent = await trail.intend(a_deed(), timeout=WAIT)
        store.down = True
        trail.conclude(intent, OK)
        await trail.settle(timeout=timedelta(milliseconds=100))
        without = kinds(store)
        store.down = False
        await trail.settle(timeout=WAIT)

    assert without == [(AuditKind.INTENT, "")]
    assert kinds(store) == [(AuditKind.INTENT, ""), (AuditKind.OUTCOME, "OK")]


async def test_a_lost_answer_does_not_double_an_entry() -> None:
    store = FakeAuditStore(lose_answers=2)

    async with a_trail(store) as trail:
        intents = await asyncio.gather(*(trail.intend(a_deed(), timeout=WAIT) for _ in range(5)))

    assert sorted(intent.sequence for intent in intents) == [1, 2, 3, 4, 5]
    assert len(store.entries()) == 5


async def test_a_chain_that_somebody_holds_does_not_hold_up_the_others() -> None:
    store = FakeAuditStore(busy={ClientId("slow")})

    async with a_trail(store) as trail:
        slow = asyncio.create_task(trail.intend(a_deed(client="slow"), timeout=WAIT))
        quick = [await trail.intend(a_deed(client="quick"), timeout=WAIT) for _ in range(5)]
        waiting = not slow.done()
        store.busy.clear()
        found = await slow

    assert waiting
    assert [intent.sequence for intent in quick] == [1, 2, 3, 4, 5]
    assert found.sequence == 1


async def test_what_cannot_be_stored_is_refused_and_harms_no_other() -> None:
    store = FakeAuditStore(unstorable="SandboxService/Bad")

    async with a_trail(store) as trail:
        results = await asyncio.gather(
            trail.intend(a_deed(), timeout=WAIT),
            trail.intend(a_deed(action="SandboxService/Bad"), timeout=WAIT),
            trail.intend(a_deed(), timeout=WAIT),
            return_exceptions=True,
        )

    assert isinstance(results[1], AuditUnavailableError)
    assert [one.sequence for one in results if isinstance(one, Intent)] == [1, 2]


async def test_open_intents_of_a_dead_replica_are_concluded_as_unknown_once() -> None:
    store = FakeAuditStore()
    async with a_trail(store, replica="dead") as trail:
        await trail.intend(a_deed(), timeout=WAIT)
        store.living.discard("dead")

    async with a_trail(store, replica="one"), a_trail(store, replica="two"):
        await eventually(lambda: len(store.entries()) > 1)
        await asyncio.sleep(0.05)

    _, outcome = store.entries()
    assert (outcome.code, outcome.reason, outcome.intent) == ("UNKNOWN", "REPLICA_LOST", 1)


async def test_closing_writes_what_waits_and_takes_no_new_intents() -> None:
    store = FakeAuditStore()

    async with a_trail(store) as trail:
        intent = await trail.intend(a_deed(), timeout=WAIT)
        trail.conclude(intent, OK)
        trail.deny(a_deed(client="", role=ANONYMOUS_ROLE), UNAUTHENTICATED)
        await trail.close(timeout=WAIT)
        with pytest.raises(AuditUnavailableError):
            await trail.intend(a_deed(), timeout=WAIT)

    assert kinds(store) == [(AuditKind.INTENT, ""), (AuditKind.OUTCOME, "OK")]
    assert kinds(store, "") == [(AuditKind.DENIED, "UNAUTHENTICATED")]


async def test_a_flood_of_refusals_becomes_a_few_entries_that_count_them() -> None:
    store = FakeAuditStore()
    nobody = Deed(client=SYSTEM_CHAIN, role=ANONYMOUS_ROLE, action="SandboxService/List", peer="10.6.6.6")

    async with a_trail(store) as trail:
        for _ in range(10_000):
            trail.deny(nobody, UNAUTHENTICATED)
            trail.deny(a_deed(), FORBIDDEN)
        await trail.settle(timeout=WAIT)

    (anonymous,) = store.entries("")
    assert (anonymous.count, anonymous.since, anonymous.code) == (10_000, NOON, "UNAUTHENTICATED")
    assert len(store.entries()) == SINGLE_ENTRIES + 1
    assert sum(entry.count for entry in store.entries()) == 10_000


def test_counters_are_bounded_however_many_refused_there_are() -> None:
    denials = Denials()

    for number in range(100_000):
        nobody = Deed(client=SYSTEM_CHAIN, role=ANONYMOUS_ROLE, action="x", peer=f"10.0.{number // 256}.{number % 256}")
        denials.count(nobody, UNAUTHENTICATED, at=NOON)
    tallies = denials.flush()

    assert len(tallies) == MAX_COUNTERS
    assert sum(tally.count for tally in tallies) == 100_000
    assert denials.flush() == []
