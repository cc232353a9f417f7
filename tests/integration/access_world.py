"""A whole `serve` on a real PostgreSQL, with things of three people of two clients in it: who may reach which?

Nothing is started in the sandboxes: they are terminated rows, so that a call that is let through ends with a known
answer and changes nothing.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict, MessageToJson
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from sandboxd.api.grpc.permissions import PERMISSIONS, Scope
from sandboxd.bootstrap.rooms import Rooms, build_rooms
from sandboxd.bootstrap.serve import _background
from sandboxd.manager.once import PLATFORM
from sandboxd.manager.ports import RequestRecord
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.backup_errors import BackupStorageFullError
from sandboxd.model.budget import TOKENS, BudgetId, BudgetPeriod, BudgetTarget
from sandboxd.model.caller import Role
from sandboxd.model.events import SessionEvent, SessionOpened
from sandboxd.model.ids import ClientId, RequestId, SandboxId, SessionId
from sandboxd.model.image import CommitTrigger, Generation, GenerationId, GenerationStatus, ImageContent
from sandboxd.model.image_names import user_repository
from sandboxd.model.session import Session
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.persistence.budgets import PostgresBudgetRepository
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.settings import load_settings
from sandboxd.stream.ports import Command
from tests.contract.postgres_worlds import PostgresLedgerWorld
from tests.contract.usage_world import NOON, a_call, a_settlement, an_id, an_identity
from tests.issuers import AUDIENCE, ISSUER, TokenIssuer, key_set

_CURSOR = re.compile(r'"cursor": "[0-9.]*"')
"""A place in time, which is another one in each answer."""
OWN, NEIGHBOURS, FOREIGN, ABSENT = "own", "the neighbour's", "another client's", "nobody's"
TARGETS = (OWN, NEIGHBOURS, FOREIGN, ABSENT)
CLIENT, OTHER_CLIENT = "acme-inc", "other-inc"
ADA, BOB, EVE = "ada-l", "bob-n", "eve-s"
TAKEN = "request-that-was-used-before"
"""A used request id of the client, and of the platform: a new request with it shows that it may, and makes nothing."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Whose things a call asks for."""

    client: str
    freelancer: str
    sandbox: str
    session: str
    """Of this call alone."""
    budget: str
    """Of the sandbox."""
    pool: str
    """Of the client; without members."""
    request_id: str

    def without_names(self, shown: str) -> str:
        """What was answered, with this target's names taken out: what is left must not tell targets apart."""
        # A client's name may begin with a freelancer's: the longer one first.
        for name in (self.session, self.budget, self.pool, self.sandbox, self.request_id, self.client, self.freelancer):
            shown = shown.replace(name, "X")
        return _CURSOR.sub('"cursor": "X"', shown)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls: a token, and metadata beside it."""

    name: str
    role: Role
    claims: Mapping[str, Any]
    metadata: tuple[tuple[str, str], ...] = ()


UNTOLD = ("INTERNAL", "")
"""What grpc.aio's client makes of a refusal that overtakes its own first write. Ours has always a reason."""
CALLERS = (
    Caller(name="platform", role=Role.PLATFORM, claims={"sub": "svc", "client": CLIENT}),
    Caller(
        name="platform by metadata",
        role=Role.PLATFORM,
        claims={"sub": "svc", "client": None},
        metadata=(("x-sandboxd-client", CLIENT),),
    ),
    Caller(name="client admin", role=Role.CLIENT_ADMIN, claims={"sub": "boss", "client": CLIENT}),
    Caller(name="freelancer", role=Role.FREELANCER, claims={"sub": ADA, "client": CLIENT}),
    Caller(name="auditor", role=Role.AUDITOR, claims={"sub": "watcher", "client": CLIENT}),
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a call ended, and all that it said."""

    code: grpc.StatusCode
    reason: str
    shown: str

    @property
    def outcome(self) -> tuple[str, str]:
        return self.code.name, self.reason


class AccessWorld:
    def __init__(
        self, *, rooms: Rooms, channel: grpc.aio.Channel, issuer: TokenIssuer, things: Mapping[str, SandboxIdentity]
    ) -> None:
        self._rooms = rooms
        self._channel = channel
        self._issuer = issuer
        self._things = things
        self._sessions = PostgresSessions(rooms.database)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of the service."""
        return self._rooms.seen.registry

    async def target(self, name: str) -> Target:
        """The things of somebody, with a session that no other call has seen."""
        request_id = an_id("req")
        if name == ABSENT:
            return Target(
                client="nobody-inc",
                freelancer="nobody",
                sandbox=an_id("sbx"),
                session=an_id("ses"),
                budget=an_id("bdg"),
                pool=an_id("pol"),
                request_id=request_id,
            )
        of = self._things[name]
        session = SessionId(an_id("ses"))
        row = Session(
            id=session,
            sandbox=of.sandbox,
            client=of.client,
            freelancer=of.freelancer,
            title=f"title of {session}",
            create_time=NOON,
            update_time=NOON,
        )
        opened = SessionEvent(
            session=session, sequence=1, turn=None, event_time=NOON, body=SessionOpened(title=f"title of {session}")
        )
        command = Command(
            client=of.client, request_id=RequestId(an_id("req")), body_hash=b"a hash of the opening", session=session
        )
        await self._sessions.create(row, opened=opened, command=command)
        return Target(
            client=of.client,
            freelancer=of.freelancer,
            sandbox=of.sandbox,
            session=session,
            budget=await self._budget(of),
            pool=await self._pool(of),
            request_id=request_id,
        )

    async def _pool(self, of: SandboxIdentity) -> str:
        # There is one for a client and tier: it gets a new name, also where an earlier call has begun to delete it.
        statement = """
            INSERT INTO pools
            VALUES (:pool, :client, 'default', 'premium', 0, 0, 0, 3600, 3600, false, :at, :at, :at, 1)
            ON CONFLICT (client, template, tier) DO UPDATE SET id = excluded.id, deleting = false, version = 1
        """
        pool = an_id("pol")
        async with self._rooms.database.begin() as connection:
            await connection.execute(text(statement), {"pool": pool, "client": of.client, "at": NOON})
        return pool

    async def _budget(self, of: SandboxIdentity) -> str:
        target = BudgetTarget(client=of.client, sandbox=of.sandbox, period=BudgetPeriod.DAY, unit=TOKENS)
        async with self._rooms.database.begin() as connection:
            made = await PostgresBudgetRepository(connection).put(
                target, limit=10**9, thresholds=(80,), new=BudgetId(an_id("bdg")), at=NOON
            )
        return made.id

    async def ask(self, method: str, request: Message, caller: Caller | None, *, until: str = "") -> Answer:
        """Make a call of any kind.

        Args:
            method: Full name.
            request: The only request, or the first one of a stream.
            caller: None shows no token at all.
            until: Of a stream that does not end by itself: read until the answer has this word in it.
        """
        metadata: tuple[tuple[str, str], ...] = ()
        if caller is not None:
            metadata = (("authorization", f"Bearer {self._token(caller)}"), *caller.metadata)
        answer = await self._ask_once(method, request, metadata, until=until)
        if answer.outcome == UNTOLD:
            answer = await self._ask_once(method, request, metadata, until=until)
        return answer

    async def _ask_once(
        self, method: str, request: Message, metadata: tuple[tuple[str, str], ...], *, until: str
    ) -> Answer:
        call = self._call(method, request, metadata)
        shown = ""
        try:
            if hasattr(call, "read"):
                if hasattr(call, "write"):
                    await call.write(request)
                while (message := await call.read()) is not grpc.aio.EOF:
                    shown += _text(message)
                    if until and until in shown:
                        break
                call.cancel()
            else:
                shown = _text(await call)
        except grpc.aio.AioRpcError as error:
            return _refusal(error)
        return Answer(code=grpc.StatusCode.OK, reason="", shown=shown)

    def _call(self, method: str, request: Message, metadata: tuple[tuple[str, str], ...]) -> Any:
        service, name = method.split("/")
        found = request.DESCRIPTOR.file.pool.FindServiceByName(service).methods_by_name[name]
        output: Any = found.output_type  # typed as one of two implementations
        decode = GetMessageClass(output).FromString
        kinds: dict[tuple[bool, bool], Any] = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, True): self._channel.stream_stream,
        }
        kind = kinds[(found.client_streaming, found.server_streaming)]
        stub = kind(f"/{method}", request_serializer=lambda one: one.SerializeToString(), response_deserializer=decode)
        return stub(*([] if found.client_streaming else [request]), metadata=metadata, timeout=60)

    def _token(self, caller: Caller) -> str:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "role": caller.role.value} | dict(
            caller.claims
        )
        return self._issuer.sign({name: value for name, value in claims.items() if value is not None})


def reached(method: str, caller: Caller, target: str) -> bool:
    """Whether the target is something that this caller can see, by the scope of the RPC."""
    match PERMISSIONS[method].scope:
        case Scope.OWN:
            return target == OWN or (target == NEIGHBOURS and caller.role is not Role.FREELANCER)
        case Scope.CLIENT:
            return target in {OWN, NEIGHBOURS}
        case Scope.PLATFORM:
            return target in {OWN, NEIGHBOURS} or (target == FOREIGN and caller.role is Role.PLATFORM)


@asynccontextmanager
async def an_access_world(folder: Path, postgres_url: str) -> AsyncIterator[AccessWorld]:
    issuer = TokenIssuer()
    keys, cli = folder / "keys.json", folder / "cli"
    keys.write_bytes(key_set(issuer.jwk))
    cli.touch()
    settings = load_settings(
        data_dir=folder / "data",
        database_url=postgres_url,
        jwt_keys_file=keys,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        node=cli,
        gemini_cli=cli,
    )
    rooms = build_rooms(settings, postgres_url)
    port = rooms.api.listen("127.0.0.1:0", tls=None)
    rooms.presence.address = "127.0.0.1:1"  # so that it is in the list of replicas
    try:
        things = {
            OWN: await _given_things(rooms, client=CLIENT, freelancer=ADA),
            NEIGHBOURS: await _given_things(rooms, client=CLIENT, freelancer=BOB),
            FOREIGN: await _given_things(rooms, client=OTHER_CLIENT, freelancer=EVE),
        }
        await _given_taken_request(rooms)
        running = asyncio.create_task(_background(rooms), name="rooms")
        async with asyncio.timeout(30):
            await rooms.presence.wait_held()
        await rooms.api.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield AccessWorld(rooms=rooms, channel=channel, issuer=issuer, things=things)
        await rooms.api.stop()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    finally:
        await rooms.database.close()


async def _given_things(rooms: Rooms, *, client: str, freelancer: str) -> SandboxIdentity:
    """A terminated sandbox with one call in the ledger and an image that was superseded."""
    world = PostgresLedgerWorld(database=rooms.database)
    identity = an_identity(client=client, freelancer=freelancer)
    await world.given_incarnation(identity)
    call = a_call(identity)
    await world.ledger.open_call(call)
    await world.ledger.settle_call(call.id, a_settlement())
    async with rooms.database.begin() as connection:
        await connection.execute(
            text("UPDATE incarnations SET ready_time = :at WHERE id = :id"),
            {"id": identity.incarnation, "at": NOON - timedelta(hours=1)},
        )
    await world.end_incarnation(identity.incarnation)
    async with rooms.database.begin() as connection:
        await connection.execute(
            text("UPDATE sandboxes SET state = 'TERMINATED' WHERE id = :id"), {"id": identity.sandbox}
        )
    image = Generation(
        id=GenerationId(an_id("gen")),
        sandbox=identity.sandbox,
        client=identity.client,
        freelancer=identity.freelancer,
        number=1,
        incarnation=identity.incarnation,
        trigger=CommitTrigger.REQUEST,
        registry="registry.test",
        repository=user_repository(identity.client, identity.freelancer),
        create_time=NOON,
        update_time=NOON,
    )
    async with PostgresUnitsOfWork(rooms.database).begin() as work:
        image = replace(await work.generations.begin(image), content=ImageContent(digest="sha256:" + "0" * 64))
        for status in (
            GenerationStatus.PUSHED,
            GenerationStatus.VERIFIED,
            GenerationStatus.ACTIVE,
            GenerationStatus.SUPERSEDED,
        ):
            image = image.enter(status, at=NOON)
            await work.generations.save(image)
        backup = BackupSet(
            id=backup_of(identity.sandbox),
            sandbox=identity.sandbox,
            client=identity.client,
            freelancer=identity.freelancer,
            take_time=NOON,
            create_time=NOON,
            update_time=NOON,
        )
        await work.backup_sets.begin(backup)
        await work.backup_sets.save(backup.fail(BackupStorageFullError("There was no room."), at=NOON))
        await work.commit()
    return identity


def backup_of(sandbox: str) -> BackupSetId:
    """The backup of a sandbox, which failed."""
    return BackupSetId(f"bak-{sandbox.partition('-')[2]}")


async def _given_taken_request(rooms: Rooms) -> None:
    async with PostgresUnitsOfWork(rooms.database).begin() as work:
        for namespace in (ClientId(CLIENT), PLATFORM):
            record = RequestRecord(
                client=namespace,
                request_id=RequestId(TAKEN),
                method="Other",
                subject="somebody",
                body_hash=b"of another request",
                sandbox=SandboxId(""),
                create_time=NOON,
            )
            await work.requests.claim(record)
        await work.commit()


def _text(message: Message) -> str:
    return str(MessageToJson(message, indent=None))


def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status.ParseFromString(value)
    shown = MessageToJson(status, indent=None)
    reason = next((str(one["reason"]) for one in _details(status) if "reason" in one), "")
    return Answer(code=error.code(), reason=reason, shown=f"{error.details()} {shown}")


def _details(status: status_pb2.Status) -> list[dict[str, Any]]:
    return [MessageToDict(detail) for detail in status.details]
