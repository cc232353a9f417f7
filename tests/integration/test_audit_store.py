"""The audit on a real PostgreSQL: what nobody can do to it, how few transactions it takes, and that it fails closed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import make_url

from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.model.audit import AuditKind
from sandboxd.model.audit_chain import ChainVerifier, Finding
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.monitor.audit_ports import OK, AuditFilter, AuditRecord, AuditUnavailableError, Deed, Outcome
from sandboxd.monitor.audit_trail import GroupedAuditTrail
from sandboxd.monitor.audit_writer import AuditMetrics
from sandboxd.persistence.audit_reading import PostgresAuditReader
from sandboxd.persistence.audit_store import PostgresAuditStore
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine, plain_url
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.roles import bypasses, ensure_application_role
from tests.contract.postgres_worlds import insert_sandbox
from tests.eventually import eventually

ACME = ClientId("acme")
WAIT = timedelta(seconds=30)


def a_deed(*, client: str = "acme", action: str = "SandboxService/Create", **changes: Any) -> Deed:
    return Deed(
        **{
            "client": ClientId(client),
            "role": "client_admin",
            "action": action,
            "actor": "boss",
            "peer": "10.1.2.3",
            "request_id": "request-1",
            "freelancer": FreelancerId("ada"),
            "texts": {"details": '{"display_name":"Ada"}'},
        }
        | changes
    )


@asynccontextmanager
async def a_trail(database: Database, *, replica: str = "one") -> AsyncIterator[GroupedAuditTrail]:
    clock = SystemClock()
    trail = GroupedAuditTrail(
        PostgresAuditStore(database),
        clock=clock,
        ids=RandomIds(clock),
        replica=replica,
        metrics=AuditMetrics(CollectorRegistry()),
    )
    running = asyncio.create_task(trail.run())
    try:
        yield trail
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def a_life(url: str, replica: str) -> AsyncIterator[None]:
    presence = ReplicaPresence(DatabaseSettings(url=url), replica=replica)
    running = asyncio.create_task(presence.run())
    async with asyncio.timeout(20):
        await presence.wait_held()
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def verified(database: Database, chain: str = "acme") -> list[Finding]:
    """What is wrong with a chain, with its row's idea of the end."""
    reader = PostgresAuditReader(database)
    verifier = ChainVerifier(chain=ClientId(chain), check=lambda *_: None)
    end = await reader.head(ClientId(chain))
    while records := await reader.records(ClientId(chain), AuditFilter(), after=verifier.last, limit=1000):
        for record in records:
            verifier.feed(record.entry, record.texts)
    verifier.expect_end(end.sequence, end.hash)
    return list(verifier.finish())


async def fill(database: Database, *, intents: int) -> None:
    async with a_trail(database) as trail:
        for _ in range(intents):
            trail.conclude(await trail.intend(a_deed(), timeout=WAIT), OK)
        await trail.settle(timeout=WAIT)


@pytest.fixture
async def application(postgres_url: str) -> AsyncIterator[Database]:
    """A pool of the application's role, on the same fresh database."""
    assert await ensure_application_role(postgres_url) is None
    owner = await asyncpg.connect(plain_url(postgres_url))
    await owner.execute("ALTER ROLE sandboxd_app LOGIN")
    await owner.close()
    url = make_url(postgres_url).set(username="sandboxd_app").render_as_string(hide_password=False)
    made = Database(make_engine(DatabaseSettings(url=url, application_name="application")))
    yield made
    await made.close()


FORBIDDEN_DEEDS = (
    "UPDATE audit_entries SET role = 'platform'",
    "UPDATE audit_entries SET role = 'platform' WHERE false",
    "DELETE FROM audit_entries WHERE sequence = 1",
    "TRUNCATE audit_entries",
    "UPDATE audit_heads SET sequence = 9",
    "DELETE FROM audit_heads",
    "TRUNCATE audit_heads",
    "DELETE FROM audit_chains",
    "TRUNCATE audit_chains",
    "UPDATE audit_texts SET value = 'x'",
    "TRUNCATE audit_texts",
    "UPDATE audit_chains SET head_sequence = 1",
    "TRUNCATE audit_entries, audit_texts CASCADE",
)


async def test_neither_the_owner_nor_the_application_can_change_what_is_on_record(
    database: Database, application: Database
) -> None:
    await fill(database, intents=2)

    for statement in FORBIDDEN_DEEDS:
        for pool, setting in ((database, "replica"), (database, "origin"), (application, "")):
            async with pool.raw() as connection:
                if setting:  # `replica` turns ordinary triggers off
                    await connection.execute(f"SET session_replication_role = {setting}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement)

    assert await verified(database) == []


async def test_the_application_cannot_take_the_protection_away(application: Database) -> None:
    for statement in (
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "DROP TABLE audit_entries CASCADE",
        "DROP TRIGGER audit_entries_refuse_change ON audit_entries",
        "CREATE OR REPLACE FUNCTION sandboxd_refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "SET session_replication_role = replica",
        "UPDATE alembic_version SET version_num = '0001'",
        "CREATE TABLE mine (id int)",
    ):
        async with application.raw() as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_the_application_can_do_its_work(application: Database) -> None:
    await fill(application, intents=2)
    await insert_sandbox(application, SandboxId("sbx-1"), client="acme", freelancer="ada")

    assert await verified(application) == []
    assert await bypasses(application) == ""


async def test_tables_of_later_migrations_are_the_applications_too(database: Database, application: Database) -> None:
    async with database.raw() as connection:
        await connection.execute("CREATE TABLE later (id int)")

    async with application.raw() as connection:
        await connection.execute("INSERT INTO later VALUES (1)")

        assert await connection.fetchval("SELECT count(*) FROM later") == 1


async def test_a_role_that_could_get_around_the_protection_is_told(database: Database) -> None:
    assert await bypasses(database) == "it is a superuser"


async def test_an_owner_who_may_not_make_roles_is_told_what_to_do(postgres_url: str) -> None:
    owner = await asyncpg.connect(plain_url(postgres_url))
    await owner.execute("DROP ROLE IF EXISTS modest")
    await owner.execute("CREATE ROLE modest LOGIN")
    await owner.close()
    modest = make_url(postgres_url).set(username="modest").render_as_string(hide_password=False)

    problem = await ensure_application_role(modest, role="somebody")

    assert problem is not None
    assert "CREATE ROLE somebody NOLOGIN" in problem.message


async def transactions(database: Database) -> int:
    """Transactions that have changed something so far."""
    async with database.raw() as connection:
        return int(await connection.fetchval("SELECT pg_current_xact_id()::text::bigint"))


async def test_200_mutations_of_one_client_at_once_take_a_few_transactions(database: Database) -> None:
    async with a_trail(database) as trail:
        await trail.intend(a_deed(), timeout=WAIT)
        before = await transactions(database)

        async def mutate() -> None:
            trail.conclude(await trail.intend(a_deed(), timeout=WAIT), OK)

        await asyncio.gather(*(mutate() for _ in range(200)))
        await trail.settle(timeout=WAIT)
        taken = await transactions(database) - before - 1

    assert taken <= 12  # 400 entries
    assert await verified(database) == []


async def test_two_replicas_write_one_chain_without_a_gap(database: Database) -> None:
    async with a_trail(database, replica="one") as one, a_trail(database, replica="two") as two:

        async def mutate(trail: GroupedAuditTrail) -> None:
            trail.conclude(await trail.intend(a_deed(), timeout=WAIT), OK)

        await asyncio.gather(*(mutate(trail) for _ in range(50) for trail in (one, two)))
        await asyncio.gather(one.settle(timeout=WAIT), two.settle(timeout=WAIT))

    assert (await PostgresAuditReader(database).head(ACME)).sequence == 200
    assert await verified(database) == []


@pytest.mark.parametrize("lock", ["LOCK TABLE audit_entries", "LOCK TABLE audit_chains"])
async def test_a_call_is_refused_while_the_audit_is_locked(database: Database, postgres_url: str, lock: str) -> None:
    await fill(database, intents=1)
    locker = await asyncpg.connect(plain_url(postgres_url))

    async with a_trail(database) as trail:
        async with locker.transaction():
            await locker.execute(lock)
            with pytest.raises(AuditUnavailableError):
                await trail.intend(a_deed(), timeout=timedelta(seconds=0.2))
        intent = await trail.intend(a_deed(), timeout=WAIT)
        trail.conclude(intent, OK)
        await trail.settle(timeout=WAIT)
        await trail.settle(timeout=WAIT)  # what was told of a late intent waits, too
    await locker.close()

    records = await PostgresAuditReader(database).records(ACME, AuditFilter(), after=2, limit=10)
    outcomes = {record.entry.intent: record.entry.reason for record in records if record.entry.intent}
    assert {record.entry.sequence for record in records if record.entry.kind is AuditKind.INTENT} == {*outcomes}
    assert outcomes[intent.sequence] == ""
    assert await verified(database) == []


async def test_a_chain_that_another_session_holds_does_not_hold_up_others(
    database: Database, postgres_url: str
) -> None:
    await fill(database, intents=1)
    frozen = await asyncpg.connect(plain_url(postgres_url))

    async with a_trail(database) as trail:
        async with frozen.transaction():
            await frozen.execute("SELECT * FROM audit_chains WHERE chain = 'acme' FOR UPDATE")
            mine = asyncio.create_task(trail.intend(a_deed(), timeout=WAIT))
            others = [await trail.intend(a_deed(client="other"), timeout=WAIT) for _ in range(3)]
            held_up = not mine.done()
        found = await mine
    await frozen.close()

    assert [intent.sequence for intent in others] == [1, 2, 3]
    assert held_up
    assert found.sequence == 3


async def test_connections_that_are_cut_at_any_moment_lose_and_double_no_entry(
    database: Database, postgres_url: str
) -> None:
    chance = random.Random(1)
    cutter = await asyncpg.connect(plain_url(postgres_url))
    done = 0
    async with a_trail(database) as trail:

        async def mutate() -> None:
            nonlocal done
            with contextlib.suppress(AuditUnavailableError):
                trail.conclude(await trail.intend(a_deed(), timeout=WAIT), OK)
                done += 1

        async def cut() -> None:
            for _ in range(25):
                await asyncio.sleep(chance.uniform(0, 0.03))
                await cutter.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tests'"
                    " AND datname = current_database()"
                )

        cutting = asyncio.create_task(cut())
        while not cutting.done():
            await asyncio.gather(*(mutate() for _ in range(5)))
        await trail.settle(timeout=WAIT)
    await cutter.close()

    records: list[AuditRecord] = []
    while page := await PostgresAuditReader(database).records(ACME, AuditFilter(), after=len(records), limit=1000):
        records += page
    outcomes = [record.entry for record in records if record.entry.kind is AuditKind.OUTCOME]
    assert len([entry for entry in outcomes if entry.code == "OK"]) == done
    assert len({entry.intent for entry in outcomes}) == len(outcomes) == len(records) / 2
    assert await verified(database) == []


async def test_what_a_dead_replica_left_open_is_concluded_as_unknown_once(
    database: Database, postgres_url: str
) -> None:
    async with a_life(postgres_url, "dead"), a_trail(database, replica="dead") as trail:
        await trail.intend(a_deed(target="sandboxes/sbx-1"), timeout=WAIT)
        async with a_life(postgres_url, "one"), a_trail(database, replica="one") as one:
            while_it_lives = await one.sweep()

    async with a_life(postgres_url, "one"), a_trail(database, replica="one") as one, a_trail(database) as two:

        async def swept() -> bool:
            await asyncio.gather(one.sweep(), two.sweep())
            return (await PostgresAuditReader(database).head(ACME)).sequence == 2

        await eventually(swept)
        await asyncio.gather(one.sweep(), two.sweep())

    _, outcome = await PostgresAuditReader(database).records(ACME, AuditFilter(), after=0, limit=10)
    assert while_it_lives == 0
    assert (outcome.entry.intent, outcome.entry.code, outcome.entry.reason, outcome.entry.target) == (
        1,
        "UNKNOWN",
        "REPLICA_LOST",
        "sandboxes/sbx-1",
    )
    assert await verified(database) == []


async def test_erasing_a_person_removes_its_texts_and_keeps_the_chain_valid(database: Database) -> None:
    sandbox = SandboxId("sbx-ada")
    await insert_sandbox(database, sandbox, client="acme", freelancer="ada")
    await insert_sandbox(database, SandboxId("sbx-bob"), client="acme", freelancer="bob")
    deeds = (
        a_deed(role="freelancer", actor="ada", freelancer=FreelancerId("ada")),
        a_deed(),  # the admin makes a sandbox for ada
        a_deed(freelancer=None, target="sandboxes/sbx-ada"),  # and renames it, without a word about whose it is
        a_deed(freelancer=None, target="sandboxes/sbx-bob"),
        a_deed(role="freelancer", actor="bob", freelancer=FreelancerId("bob")),
        a_deed(client="other", role="freelancer", actor="ada", freelancer=FreelancerId("ada")),
    )

    async with a_trail(database) as trail:
        for deed in deeds:
            await trail.intend(deed, timeout=WAIT)
        erased = await trail.erase(ACME, FreelancerId("ada"))
        again = await trail.erase(ACME, FreelancerId("ada"))

    reader = PostgresAuditReader(database)
    left = [
        sorted((text.name, text.value) for text in record.texts)
        for record in await reader.records(ACME, AuditFilter(), after=0, limit=10)
    ]
    admin = [("actor", "boss"), ("peer", "10.1.2.3")]
    assert left[:3] == [[], admin, admin]
    assert [len(texts) for texts in left[3:]] == [3, 4]
    assert (erased, again) == (4 + 2 + 1, 0)
    assert await verified(database) == []
    (foreign,) = await reader.records(ClientId("other"), AuditFilter(), after=0, limit=10)
    assert len(foreign.texts) == 4


async def test_erasing_a_client_removes_all_texts_but_who_of_the_platform_acted(database: Database) -> None:
    deeds = (
        a_deed(role="freelancer", actor="platform", freelancer=FreelancerId("platform")),  # a name like a role
        a_deed(role="client_admin", actor="boss"),
        a_deed(role="auditor", actor="eve", freelancer=None),
        a_deed(role="platform", actor="operator"),
        a_deed(client="other", role="client_admin", actor="boss"),
    )

    async with a_trail(database) as trail:
        for deed in deeds:
            await trail.intend(deed, timeout=WAIT)
        await trail.erase(ACME, None)
        again = await trail.erase(ACME, None)

    reader = PostgresAuditReader(database)
    left = [
        sorted((text.name, text.value) for text in record.texts)
        for record in await reader.records(ACME, AuditFilter(), after=0, limit=10)
    ]
    assert left == [[], [], [], [("actor", "operator"), ("peer", "10.1.2.3")]]
    assert again == 0
    assert await verified(database) == []
    (foreign,) = await reader.records(ClientId("other"), AuditFilter(), after=0, limit=10)
    assert len(foreign.texts) == 4


async def test_entries_are_found_by_who_what_and_when(database: Database) -> None:
    async with a_trail(database) as trail:
        made = await trail.intend(a_deed(target="sandboxes/sbx-1"), timeout=WAIT)
        trail.conclude(made, OK)
        await trail.settle(timeout=WAIT)
        await trail.intend(
            a_deed(action="SandboxService/Stream.prompt", actor="ada", target="sandboxes/sbx-1/sessions/ses-1"),
            timeout=WAIT,
        )
        trail.deny(a_deed(action="SandboxService/Pause", target="sandboxes/sbx-10"), Outcome(code="NOT_FOUND"))
        await trail.settle(timeout=WAIT)
    reader = PostgresAuditReader(database)

    async def found(where: AuditFilter, *, newest_first: bool = False) -> list[int]:
        records = await reader.records(ACME, where, after=0, limit=10, newest_first=newest_first)
        return [record.entry.sequence for record in records]

    assert await found(AuditFilter()) == [1, 2, 3, 4]
    assert await found(AuditFilter(), newest_first=True) == [4, 3, 2, 1]
    assert await found(AuditFilter(actor="boss")) == [1, 2, 4]
    assert await found(AuditFilter(action="SandboxService")) == [1, 2, 3, 4]
    assert await found(AuditFilter(action="SandboxService/Stream")) == [3]
    assert await found(AuditFilter(target="sandboxes/sbx-1")) == [1, 2, 3]
    assert await found(AuditFilter(kinds=frozenset({AuditKind.DENIED}))) == [4]
    assert await found(AuditFilter(codes=frozenset({"OK"}))) == [2]
    assert await found(AuditFilter(request_id="request-2")) == []
    assert await found(AuditFilter(end_time=SystemClock().now() - timedelta(hours=1))) == []
