"""Deleting clients and freelancers on a real PostgreSQL: nothing is left, the proof says so, a crash loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from sandboxd.backends.signing import Ed25519Signer
from sandboxd.images.registry import OCI_MANIFEST, Manifest
from sandboxd.manager.backup_tools import BackupTools, volumes_of
from sandboxd.manager.commit_steps import ImageTools
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.lifecycle_metrics import LifecycleMetrics
from sandboxd.manager.metrics import ManagerMetrics
from sandboxd.manager.ports import UnitsOfWork
from sandboxd.manager.sandboxes import ManagerCore, SandboxManager
from sandboxd.manager.tenancy import Tenancy, make_tenancy
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.manager.tools import ManagerTools
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.caller import Caller, Request, Role
from sandboxd.model.client import AccountState, ClientPolicy
from sandboxd.model.client_errors import (
    AccountExistsError,
    AccountStateError,
    ClientNotFoundError,
    ErasureNotFoundError,
)
from sandboxd.model.erasure import Erasure
from sandboxd.model.errors import DeadlineError, ForbiddenError, RequestIdReusedError, UnavailableError
from sandboxd.model.events import SessionEvent, SessionOpened
from sandboxd.model.failpoints import FailpointError, arming
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, ImageContent
from sandboxd.model.image_names import user_repository
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.session import Session, TurnState
from sandboxd.persistence.engine import Database
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.stream.ports import Command
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import a_call, a_settlement, an_id, an_identity
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.baselines import FakeBaselines
from tests.fakes.erasures import FakeKeyHashes, FakeKeyStore
from tests.fakes.image_projects import FakeImageProjects
from tests.fakes.images import FakeImageBuilder, FakeImageProbe, FakeRunningImages
from tests.fakes.lifecycle import FakeDuties
from tests.fakes.manager import FakeBackend, FakeClock, FakeConversations, FakeIds, FakeTokens, FakeWakeups
from tests.fakes.packages import FakePackageSource
from tests.fakes.registry import FakeRegistry
from tests.fakes.volume_backups import FakeVolumeBackups

ACME, OTHER = ClientId("acme_1%"), ClientId("acmeX1y")
"""The first would match the second where it is taken for a pattern."""
ADA, BOB = FreelancerId("ada"), FreelancerId("bob")
SECRET = "a very personal word"
SOON = timedelta(seconds=30)
_numbers = count(1)


class ErasureWorld:
    """A service over a real database: its lives share the world, and end when a test says so."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.units: UnitsOfWork = PostgresUnitsOfWork(database)
        self.backend = FakeBackend(FakeAgentConnector())
        self.registry = FakeRegistry()
        self.projects = FakeImageProjects()
        self.images = ImageTools(
            builder=FakeImageBuilder(self.registry),
            probe=FakeImageProbe(),
            running=FakeRunningImages(self.backend),
            registry=self.registry,
            baselines=FakeBaselines(),
            repository_of=user_repository,
            projects=self.projects,
        )
        self.volumes = FakeVolumeBackups()
        self.key_store = FakeKeyStore()
        self.key = Ed25519PrivateKey.generate()
        self.lives = 0
        self.asked_for: list[tuple[ClientId, FreelancerId | None]] = []
        """Whose texts the audit was asked to remove."""
        self.tenancy, self.manager = self.new_life()

    def new_life(self) -> tuple[Tenancy, SandboxManager]:
        self.lives += 1
        tools = ManagerTools(
            units=self.units,
            backend=self.backend,
            connector=self.backend.connector,
            wakeups=FakeWakeups(),
            tokens=FakeTokens(self.clock),
            model_endpoint=ModelEndpointTarget(base_url="http://gateway.test"),
            metrics=ManagerMetrics(CollectorRegistry()),
            clock=self.clock,
            ids=FakeIds(self.clock),
            replica=f"life-{self.lives}",
            duties=FakeDuties({}, replica=f"life-{self.lives}"),
            images=self.images,
            backups=BackupTools(volumes=self.volumes),
            lifecycle_metrics=LifecycleMetrics(CollectorRegistry()),
            packages=FakePackageSource(),
        )
        core = ManagerCore(tools)
        self.manager = SandboxManager(core=core, conversations=FakeConversations())
        self.tenancy = make_tenancy(
            core=core,
            manager=self.manager,
            signer=Ed25519Signer(self.key, key_id="the-key"),
            key_store=self.key_store,
            key_hashes=FakeKeyHashes(),
            remove_texts=self.remove_texts,
        )
        return self.tenancy, self.manager

    async def remove_texts(self, client: ClientId, freelancer: FreelancerId | None) -> int:
        self.asked_for.append((client, freelancer))
        return 3

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The eraser runs, as it does in a service."""
        task = asyncio.create_task(self.tenancy.eraser.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def given_things(self, client: ClientId, freelancer: FreelancerId) -> Sandbox:
        """An active sandbox with a session, a turn, events, requests, and a call in the ledger."""
        caller = Caller(client=client, subject=freelancer, role=Role.FREELANCER)
        sandbox = await self.manager.create(
            Request(caller=caller, request_id=RequestId(an_id("req")), body_hash=b"1"),
            NewSandbox(display_name=SECRET, labels={"secret": SECRET}),
            timeout=SOON,
        )
        session = SessionId(an_id("ses"))
        row = Session(
            id=session,
            sandbox=sandbox.id,
            client=client,
            freelancer=freelancer,
            title=SECRET,
            create_time=self.clock.now(),
            update_time=self.clock.now(),
        )
        opened = SessionEvent(
            session=session, sequence=1, turn=None, event_time=self.clock.now(), body=SessionOpened(title=SECRET)
        )
        command = Command(client=client, request_id=RequestId(an_id("req")), body_hash=b"1", session=session)
        await PostgresSessions(self.database).create(row, opened=opened, command=command)
        ledger = PostgresLedgerWorld(database=self.database)
        await ledger.given_turn(TurnId(an_id("trn")), session=session, state=TurnState.COMPLETED)
        await self.execute("UPDATE turns SET prompt = :secret WHERE session = :session", secret=SECRET, session=session)
        assert sandbox.incarnation is not None
        identity = replace(
            an_identity(client=client, freelancer=freelancer), sandbox=sandbox.id, incarnation=sandbox.incarnation
        )
        call = a_call(identity)
        await ledger.ledger.open_call(call)
        await ledger.ledger.settle_call(call.id, a_settlement())
        generation = Generation(
            id=GenerationId(an_id("gen")),
            sandbox=sandbox.id,
            client=client,
            freelancer=freelancer,
            number=1,
            incarnation=sandbox.incarnation,
            trigger=CommitTrigger.REQUEST,
            repository="a/b",
            content=ImageContent(digest="", largest=((f"home/{SECRET}", 1),)),
            create_time=self.clock.now(),
            update_time=self.clock.now(),
        )
        backup = BackupSet(
            id=BackupSetId(an_id("bak")),
            sandbox=sandbox.id,
            client=client,
            freelancer=freelancer,
            take_time=self.clock.now(),
            spec={"template": SECRET},
            create_time=self.clock.now(),
            update_time=self.clock.now(),
        )
        image = Manifest(media_type=OCI_MANIFEST, content=f"{client} {freelancer}".encode())
        for tag in (image.digest, "g000001", "latest"):
            await self.registry.push(user_repository(client, freelancer), tag, image, timeout=SOON)
        async with self.units.begin() as work:
            await work.generations.begin(generation)
            await work.backup_sets.begin(backup)
            await work.backup_sets.save(backup.fail(BackupStorageFullError("There was no room."), at=self.clock.now()))
            await work.commit()
        self.volumes.given(sandbox.id, home={b"secret": b"1"}, workspace={})
        await self.volumes.take(backup.id, volumes_of(sandbox), timeout=SOON, progress=lambda _: None)
        await self.execute(
            "UPDATE sandboxes SET image_generation = '1', image_number = 1, image_reference = :secret WHERE id = :id",
            secret=SECRET,
            id=sandbox.id,
        )
        return sandbox

    async def execute(self, statement: str, **values: object) -> None:
        async with self.database.begin() as connection:
            await connection.execute(text(statement), values)

    async def dump(self) -> str:
        """Everything that the database holds, as text."""
        async with self.database.raw() as connection:
            names = [
                row[0] for row in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ]
            rows = [str(dict(row)) for name in names for row in await connection.fetch(f'SELECT * FROM "{name}"')]
        return "\n".join(rows)

    async def number(self, table: str, **where: str) -> int:
        conditions = " AND ".join(f"{name} = :{name}" for name in where) or "true"
        async with self.database.begin() as connection:
            found: int = (
                await connection.execute(text(f"SELECT count(*) FROM {table} WHERE {conditions}"), where)
            ).scalar_one()
        return found


@pytest.fixture
def world(database: Database) -> ErasureWorld:
    return ErasureWorld(database)


def a_request(request_id: str = "", *, role: Role = Role.PLATFORM, client: str = "") -> Request:
    return Request(
        caller=Caller(client=ClientId(client), subject="boss", role=role),
        request_id=RequestId(request_id or f"request-{next(_numbers)}"),
        body_hash=b"the body",
    )


def items(erasure: Erasure) -> dict[str, tuple[int, int, int]]:
    return {kind: (item.found, item.erased, item.kept) for kind, item in erasure.items.items()}


async def test_nothing_of_a_deleted_client_is_left_but_what_the_proof_says(world: ErasureWorld) -> None:
    ada, bob = await world.given_things(ACME, ADA), await world.given_things(ACME, BOB)
    theirs = await world.given_things(OTHER, ADA)
    await world.tenancy.keys.set(a_request(), ACME, "key-of-acme")
    await world.tenancy.keys.set(a_request(), OTHER, "key-of-other")
    world.projects.there = {ACME: 1, OTHER: 1}

    async with world.running():
        client, erasure = await world.tenancy.erasures.delete_client(a_request(), ACME, etag="", timeout=SOON)

    found = items(erasure)
    assert (client.state, client.delete_time) == (AccountState.DELETED, erasure.end_time)
    assert found["files"] == (4, 4, 0)
    assert found["file_bytes"] == (200, 200, 0)
    assert found["sessions"] == found["turns"] == found["events"] == found["image_generations"] == (2, 2, 0)
    assert found["backup_sets"] == (2, 2, 0)
    assert found["images"] == (2, 2, 0)
    assert (world.volumes.destroyed, {one.client for one in world.volumes.kept.values()}) == ({ACME}, {OTHER})
    assert {name for name, there in world.registry.manifests.items() if there} == {user_repository(OTHER, ADA)}
    assert set(world.projects.there) == {OTHER}
    assert found["freelancer_names"] == (2, 2, 0)
    assert found["api_keys"] == (1, 1, 0)
    assert found["usage_events"] == found["sandbox_records"] == (2, 0, 2)
    assert found["audit_texts"] == (3, 3, 0)
    assert world.asked_for == [(ACME, None)]
    assert "law of billing" in erasure.items["usage_events"].why
    assert world.backend.files == {theirs.id}
    assert world.backend.kept == set()
    assert set(world.key_store.keys) == {OTHER}
    for name in ("sessions", "turns"):
        assert await world.number(name) == 1, name
    assert await world.number("usage_events", client=ACME) == 2
    # The other client, whose name is alike, lost nothing; of the deleted one no word is left.
    dump = await world.dump()
    assert dump.count(SECRET) > 0
    await world.execute("DELETE FROM request_ids WHERE client = :client", client=OTHER)
    await world.execute("UPDATE sandboxes SET display_name = '', labels = '{}' WHERE id = :id", id=theirs.id)
    await world.execute("UPDATE sandboxes SET image_reference = '' WHERE id = :id", id=theirs.id)
    await world.execute("DELETE FROM image_generations WHERE client = :client", client=OTHER)
    await world.execute("DELETE FROM backup_sets WHERE client = :client", client=OTHER)
    await world.execute("UPDATE sessions SET title = ''")
    await world.execute("UPDATE turns SET prompt = ''")
    await world.execute("DELETE FROM events")
    assert SECRET not in await world.dump()
    assert {ada.id, bob.id} <= {SandboxId(row) for row in (await sandbox_ids(world))}


async def sandbox_ids(world: ErasureWorld) -> list[str]:
    async with world.database.raw() as connection:
        return [row[0] for row in await connection.fetch("SELECT id FROM sandboxes")]


async def test_the_proof_is_signed_and_no_word_of_it_can_be_changed(world: ErasureWorld) -> None:
    await world.given_things(ACME, ADA)
    async with world.running():
        _, erasure = await world.tenancy.erasures.delete_client(a_request(), ACME, etag="", timeout=SOON)
    kept = await world.tenancy.erasures.get(a_request().caller, ACME, erasure.id)

    assert kept == erasure
    assert erasure.signature is not None
    key = load_pem_public_key(erasure.signature.public_key.encode())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(erasure.signature.signature, erasure.document)
    with pytest.raises(InvalidSignature):
        key.verify(erasure.signature.signature, erasure.document.replace(b'"erased":2', b'"erased":3'))
    document = json.loads(erasure.document)
    assert (document["account"], document["erasure"]) == (f"clients/{ACME}", erasure.name)
    assert {item["kind"] for item in document["items"]} == set(erasure.items)
    assert all(item["found"] == item["erased"] + item["kept"] for item in document["items"])


async def test_a_deleted_freelancer_takes_nothing_of_its_colleagues_along(world: ErasureWorld) -> None:
    await world.given_things(ACME, ADA)
    bobs = await world.given_things(ACME, BOB)
    world.projects.there = {ACME: 1}
    admin = Caller(client=ACME, subject="boss", role=Role.CLIENT_ADMIN)

    async with world.running():
        freelancer, erasure = await world.tenancy.erasures.delete_freelancer(
            a_request(role=Role.CLIENT_ADMIN, client=ACME), ACME, ADA, etag="", timeout=SOON
        )

    assert freelancer.state is AccountState.DELETED
    assert items(erasure)["sessions"] == (1, 1, 0)
    assert world.backend.files == {bobs.id}
    assert world.projects.removed_repositories == [user_repository(ACME, ADA)]
    assert set(world.projects.there) == {ACME}
    assert ({one.sandbox for one in world.volumes.kept.values()}, world.volumes.destroyed) == ({bobs.id}, set())
    assert await world.number("sessions", freelancer=BOB) == await world.number("sessions") == 1
    assert await world.number("request_ids", subject=ADA) == 0
    assert await world.number("request_ids", subject=BOB) == 1
    assert (await world.tenancy.freelancers.get(admin, ACME, BOB)).state is AccountState.ACTIVE
    with pytest.raises(ErasureNotFoundError):
        await world.tenancy.erasures.get(replace(admin, client=OTHER), ACME, erasure.id)
    with pytest.raises(ForbiddenError):
        await world.given_things(ACME, ADA)


async def test_what_is_deleted_is_refused_from_the_first_moment_and_never_made_again(world: ErasureWorld) -> None:
    await world.given_things(ACME, ADA)
    with pytest.raises(DeadlineError):  # nobody erases
        await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=timedelta(0))

    with pytest.raises(ForbiddenError):
        await world.given_things(ACME, BOB)
    with pytest.raises(AccountStateError):
        await world.tenancy.erasures.delete_client(a_request(), ACME, etag="", timeout=SOON)
    async with world.running():
        await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=SOON)
    with pytest.raises(AccountStateError):
        await world.tenancy.erasures.delete_client(a_request(), ACME, etag="", timeout=SOON)
    with pytest.raises(AccountExistsError):
        await world.tenancy.clients.create(
            a_request(), ACME, display_name="", policy=ClientPolicy(), encode=lambda _: b""
        )


async def test_the_same_deletion_twice_is_one_with_one_proof(world: ErasureWorld) -> None:
    await world.given_things(ACME, ADA)

    async with world.running():
        answers = await asyncio.gather(
            *(
                world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=SOON)
                for _ in range(3)
            )
        )
        later = await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=SOON)
        another = replace(a_request("the-deletion"), body_hash=b"another body")
        with pytest.raises(RequestIdReusedError):
            await world.tenancy.erasures.delete_client(another, ACME, etag="", timeout=SOON)

    assert len({erasure.document for _, erasure in (*answers, later)}) == 1
    assert await world.number("erasures") == 1


@pytest.mark.parametrize(
    "place",
    [
        "erasure.after_terminate",
        "erasure.before_files",
        "erasure.after_files",
        "erasure.after_batch",
        "erasure.before_keys",
        "erasure.before_proof",
        "erasure.after_proof",
    ],
)
async def test_a_service_that_dies_in_a_deletion_is_followed_by_one_that_finishes_it_and_counts_nothing_twice(
    world: ErasureWorld, place: str
) -> None:
    await world.given_things(ACME, ADA)
    await world.given_things(ACME, BOB)
    with pytest.raises(DeadlineError):
        await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=timedelta(0))
    with arming(f"{place}=error"), pytest.raises(FailpointError):
        await world.tenancy.eraser.finish_left_over()

    world.new_life()
    async with world.running():
        _, erasure = await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=SOON)

    found = items(erasure)
    assert found["files"] == (4, 4, 0)
    assert found["sessions"] == found["turns"] == found["events"] == (2, 2, 0)
    assert found["sandbox_texts"] == (2, 2, 0)
    assert await world.number("erasures") == 1


async def test_a_store_that_is_away_delays_a_deletion_and_does_not_end_it(world: ErasureWorld) -> None:
    await world.given_things(ACME, ADA)
    await world.tenancy.keys.set(a_request(), ACME, "key-of-acme")
    world.key_store.error = UnavailableError("The store is away.")
    with pytest.raises(DeadlineError):
        await world.tenancy.erasures.delete_client(a_request("the-deletion"), ACME, etag="", timeout=timedelta(0))
    finished = await world.tenancy.eraser.finish_left_over()
    at_once = await world.tenancy.eraser.finish_left_over()

    world.key_store.error = None
    world.clock.advance(60)
    later = await world.tenancy.eraser.finish_left_over()

    assert (finished, at_once, later) == (0, 0, 1)
    assert world.key_store.keys == {}


async def test_a_client_that_is_not_there_is_not_deleted(world: ErasureWorld) -> None:
    with pytest.raises(ClientNotFoundError):
        await world.tenancy.erasures.delete_client(a_request("an-id"), ACME, etag="", timeout=SOON)

    assert await world.number("erasures") == await world.number("request_ids") == 0
