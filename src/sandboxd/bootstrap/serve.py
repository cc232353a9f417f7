"""The role `serve`: API, stream and manager in one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.api.grpc.server import ApiServer, ServerLimits
from sandboxd.api.web.operations import Check, OperationsServer
from sandboxd.backends.signing import Ed25519Signer
from sandboxd.bootstrap.audit import AuditRoom, make_audit, warn_of_bypass
from sandboxd.bootstrap.callers import Callers, listen, make_callers, web_tls
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.observing import Observation
from sandboxd.bootstrap.operating import ReplicaDoors, make_administration
from sandboxd.bootstrap.peers import PeerRoom
from sandboxd.bootstrap.places import make_connector, make_local_backend
from sandboxd.bootstrap.schema import wait_for_schema
from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.bootstrap.stopping import stop_signals, unless_stopped
from sandboxd.gateway.key_files import ensure_token_keys
from sandboxd.gateway.key_hashes import HmacKeyHashes, ensure_secret
from sandboxd.gateway.key_store import DirectoryKeyStore
from sandboxd.gateway.tokens import SandboxTokenSigner
from sandboxd.manager.accounting import make_accounting
from sandboxd.manager.erasing import Eraser
from sandboxd.manager.sandboxes import ManagerCore, ManagerTools, SandboxManager
from sandboxd.manager.tenancy import make_tenancy
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.manager.turn_quotas import AccountTurnQuotas
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.monitor.own_deeds import AuditedDeeds
from sandboxd.monitor.sweep import OrphanSweep
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.ledger import PostgresTurnLedger, PostgresUsageLedger
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.prices import PostgresPriceBookStore
from sandboxd.persistence.replicas import PostgresReplicas
from sandboxd.persistence.resources import PostgresResourceLedger
from sandboxd.persistence.retention import forget_commands, forget_notices
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.texts import PostgresKeptTexts
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.settings import Settings, SettingsError, redact, unknown_variables
from sandboxd.stream.billing import TurnBills
from sandboxd.stream.custody import Custody
from sandboxd.stream.desk import ErrandDesk
from sandboxd.stream.dialect import DialectName
from sandboxd.stream.feed import EventFeed
from sandboxd.stream.group_commit import GroupCommit
from sandboxd.stream.hints import EventHints
from sandboxd.stream.hub import StreamHub
from sandboxd.stream.launch import CliLauncher
from sandboxd.stream.owner import Services
from sandboxd.stream.ports import Wakeups
from sandboxd.stream.routing import ErrandRouter
from sandboxd.stream.sessions import SessionDirectory
from sandboxd.stream.suspension import Suspensions
from sandboxd.stream.text_care import TextCare

log = structlog.get_logger("sandboxd.bootstrap")

MIN_GRACE: Final = timedelta(seconds=1)
_HINT_RETRY_SECONDS: Final = 1.0
RETENTION_SECONDS: Final = 3600.0
"""How often request ids of streams that are older than their 30 days are forgotten."""
RETENTION_BATCH: Final = 1000


async def serve(settings: Settings) -> None:
    """Run until a signal says stop, then hand everything over within the grace.

    Raises:
        SettingsError: Something that this role needs is missing.
        UnavailableError: The database cannot be used.
        OSError: An address is taken.
    """
    if settings.database_url is None:
        raise SettingsError("The settings cannot be used:\n  SANDBOXD_DATABASE_URL: serve needs a PostgreSQL")
    with stop_signals() as stop:
        log.info("role.settings", **redact(settings))
        if unknown := unknown_variables(os.environ):
            log.warning("role.unknown_settings", names=unknown)
        await _run(settings, settings.database_url.get_secret_value(), stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What one replica is made of."""

    seen: Observation
    presence: ReplicaPresence
    peers: PeerRoom
    database: Database
    commit: GroupCommit
    bills: TurnBills
    launcher: CliLauncher
    hints: EventHints
    custody: Custody
    suspensions: Suspensions
    eraser: Eraser
    hub: StreamHub
    manager: SandboxManager
    audit: AuditRoom
    api: ApiServer
    callers: Callers
    web: OperationsServer
    texts: TextCare


async def _run(settings: Settings, url: str, stop: asyncio.Event) -> None:
    rooms = build_rooms(settings, url)
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(asyncio.to_thread, rooms.seen.send_traces)
        cleanup.push_async_callback(rooms.database.close)
        # Bind first: a taken port is known at once, and not after the database was awaited.
        listen(rooms.api, settings)
        web_port = await rooms.web.start(settings.web_listen, tls=web_tls(settings))
        cleanup.push_async_callback(rooms.web.stop)
        rooms.presence.address = rooms.peers.listen()
        if not await unless_stopped(stop, wait_for_schema(url)):
            return
        await warn_of_bypass(rooms.database)
        if warning := rooms.manager.backend().warning:
            log.warning("backend.warning", backend=rooms.manager.backend().name, warning=warning)
        running = asyncio.create_task(_background(rooms), name="rooms")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        holding = asyncio.create_task(rooms.presence.wait_held(), name="presence-held")
        try:
            await asyncio.wait({running, stopping, holding}, return_when=asyncio.FIRST_COMPLETED)
            if holding.done() and not stop.is_set():
                await rooms.peers.server.start()
                await rooms.api.start()
                rooms.web.set_ready(ready=True)
                log.info("role.serving", grpc=settings.grpc_listen, web_port=web_port, replica=settings.replica)
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done() and not running.cancelled() and (failure := running.exception()):
                log.error("role.room_failed", exc_info=failure)  # before the hand-over, which may take its time
                raise failure
        finally:
            await _drain(rooms, grace=settings.drain_grace)
            for task in (running, stopping, holding):
                task.cancel()
            await asyncio.gather(running, stopping, holding, return_exceptions=True)
    log.info("role.stopped")


def build_rooms(settings: Settings, url: str) -> Rooms:
    """Make every object of one replica; nothing connects or listens yet."""
    clock = SystemClock()
    ids = RandomIds(clock)
    seen = Observation.of(settings)
    keys = KeyFiles(home=settings.home)
    # A new name for every life: the lock of an earlier life says nothing about this one.
    replica = f"{settings.replica}.{ids.new('rep')[-10:]}"
    database_settings = DatabaseSettings(
        url=url, application_name=f"sandboxd serve {settings.replica}"[:63], pool_size=settings.database_pool_size
    )
    database = Database(make_engine(database_settings))
    presence = ReplicaPresence(database_settings, replica=replica)
    authority, connector = make_connector(settings, clock, tracer=seen.tracer)
    signing_key, key_id = ensure_token_keys(
        private_file=keys.sandbox_token_key, public_directory=keys.sandbox_token_public
    )
    journal = PostgresJournal(database)
    sessions = PostgresSessions(database)
    ledger = PostgresUsageLedger(database)
    audit = make_audit(settings, database, clock=clock, ids=ids, replica=replica, registry=seen.registry)
    core = ManagerCore(
        ManagerTools(
            units=PostgresUnitsOfWork(database),
            backend=make_local_backend(settings, authority=authority, connector=connector, clock=clock),
            connector=connector,
            wakeups=presence,
            tokens=SandboxTokenSigner(key=signing_key, key_id=key_id, clock=clock),
            model_endpoint=_model_endpoint(settings),
            metrics=seen.manager,
            clock=clock,
            ids=ids,
            explicit_registration=settings.registration == "explicit",
            replica=replica,
            lease=settings.lease,
            tracer=seen.tracer,
            deeds=AuditedDeeds(audit.trail),
        )
    )
    commit = GroupCommit(journal, appended=seen.stream.appended)
    bills = TurnBills(PostgresTurnLedger(ledger), clock)
    dialect = DialectName(settings.cli_dialect)
    launcher = CliLauncher(connector=connector, sandboxes=core.use, journal=journal, dialect=dialect)
    feed = EventFeed(journal)
    hints = EventHints(feed=feed, journal=journal, wakeups=presence, replica=replica)
    services = Services(
        journal=journal,
        sessions=sessions,
        sandboxes=core.use,
        commit=commit,
        feed=feed,
        hints=hints,
        bills=bills,
        launcher=launcher,
        clock=clock,
        ids=ids,
        tracer=seen.tracer,
        metrics=seen.stream,
    )
    custody = Custody(services, replica=replica, lease=settings.lease, wakeups=presence)
    desk = ErrandDesk(services, custody)
    peers = PeerRoom(settings, authority=authority, desk=desk, replica=replica)
    router = ErrandRouter(
        desk=desk,
        custody=custody,
        replica=replica,
        replicas=PostgresReplicas(database),
        peers=peers.client,
        lease=settings.lease,
        metrics=seen.stream,
    )
    turn_quotas = AccountTurnQuotas(units=core.tools.units, accounts=core.accounts)
    hub = StreamHub(services, custody, router, turn_quotas=turn_quotas)
    seen.look_at(database=database, custody=custody, feed=services.feed, commit=commit, connector=connector)
    manager = SandboxManager(core=core, conversations=hub)
    proof_key, proof_key_id = ensure_token_keys(private_file=keys.proof_key, public_directory=keys.proof_public)
    tenancy = make_tenancy(
        core=core,
        manager=manager,
        signer=Ed25519Signer(proof_key, key_id=proof_key_id),
        key_store=DirectoryKeyStore(settings.gemini_keys_dir or keys.gemini_keys),
        key_hashes=HmacKeyHashes(ensure_secret(keys.key_hash_secret)),
        remove_texts=audit.trail.erase,
    )
    callers = make_callers(settings, keys, clock=clock, registry=seen.registry)
    web = OperationsServer(registry=seen.registry, checks={"database": _database_check(database)})
    doors = ReplicaDoors(web=web, custody=custody)
    api = ApiServer(
        manager=manager,
        administration=make_administration(
            database=database,
            doors=doors,
            seen=seen,
            recovery=manager.recovery,
            usage=OrphanSweep(ledger=ledger, prices=PostgresPriceBookStore(database), clock=clock),
            replica=replica,
            clock=clock,
        ),
        hub=hub,
        sessions=SessionDirectory(services, hub, router),
        ledger=ledger,
        accounting=make_accounting(
            units=core.tools.units,
            ledger=ledger,
            resources=PostgresResourceLedger(database),
            wakeups=presence,
            clock=clock,
            ids=ids,
        ),
        callers=callers.door,
        registry=seen.registry,
        trail=audit.trail,
        audit=audit.desk,
        backend=manager.backend().name,
        limits=ServerLimits(
            default_deadline=settings.default_deadline,
            max_concurrent_rpcs=settings.max_concurrent_rpcs,
            expired_grace=settings.token_grace,
            write_within=timedelta(seconds=settings.stream_write_seconds),
            max_streams=settings.max_streams,
            max_streams_per_client=settings.max_streams_per_client,
        ),
        reflect=settings.reflection,
        tenancy=tenancy,
        tracer=seen.tracer,
    )
    doors.entrance = api
    return Rooms(
        seen=seen,
        presence=presence,
        peers=peers,
        database=database,
        commit=commit,
        bills=bills,
        launcher=launcher,
        hints=hints,
        custody=custody,
        suspensions=Suspensions(custody=custody, standings=core.accounts),
        eraser=tenancy.eraser,
        hub=hub,
        manager=manager,
        audit=audit,
        api=api,
        callers=callers,
        web=web,
        texts=TextCare(texts=PostgresKeptTexts(database), feed=services.feed, wakeups=presence),
    )


async def _background(rooms: Rooms) -> None:
    """Everything that runs beside the API. If one part fails, the process ends and is started anew."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rooms.presence.run(), name="presence")
        if rooms.callers.issuer_keys is not None:
            tasks.create_task(rooms.callers.issuer_keys.run(), name="issuer-keys")
        # Before the lock is held this replica must own nothing.
        await rooms.presence.wait_held()
        tasks.create_task(rooms.seen.run(rooms.database), name="observation")
        tasks.create_task(rooms.audit.run(), name="audit")
        tasks.create_task(rooms.commit.run(), name="group-commit")
        tasks.create_task(rooms.hints.run(), name="hints")
        tasks.create_task(rooms.custody.run(), name="custody")
        tasks.create_task(rooms.suspensions.run(), name="suspensions")
        tasks.create_task(rooms.eraser.run(), name="eraser")
        tasks.create_task(rooms.manager.run(), name="manager")
        tasks.create_task(_usage_hints(rooms.presence, rooms.bills), name="usage-hints")
        tasks.create_task(_forget_old_commands(rooms.database), name="retention")
        tasks.create_task(rooms.texts.run(), name="texts")


async def _usage_hints(wakeups: Wakeups, bills: TurnBills) -> None:
    while True:
        try:
            async for sandbox in wakeups.listen("usage"):
                bills.hint(SandboxId(sandbox))
        except UnavailableError as error:
            log.warning("usage.hints_interrupted", error=error.message)
        await asyncio.sleep(_HINT_RETRY_SECONDS)


async def _forget_old_commands(database: Database) -> None:
    while True:
        try:
            while await forget_commands(database, limit=RETENTION_BATCH) == RETENTION_BATCH:
                await asyncio.sleep(0)
            while await forget_notices(database, limit=RETENTION_BATCH) == RETENTION_BATCH:
                await asyncio.sleep(0)
        except UnavailableError as error:
            log.warning("retention.interrupted", error=error.message)
        await asyncio.sleep(RETENTION_SECONDS)


async def _drain(rooms: Rooms, *, grace: timedelta) -> None:
    """Tell callers, then hand over. Turns go on in their sandboxes; whoever comes next continues them."""
    rooms.web.set_ready(ready=False)
    rooms.custody.adopt_no_more()
    deadline = asyncio.get_running_loop().time() + grace.total_seconds()

    def left() -> timedelta:
        return max(MIN_GRACE, timedelta(seconds=deadline - asyncio.get_running_loop().time()))

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "api": lambda: rooms.api.drain(grace=left() * 0.6),
        "manager": lambda: rooms.manager.drain(grace=left() * 0.5),
        "conversations": rooms.hub.drain,
        # Until here: who waits for one of our conversations was answered, or told to look for its next owner.
        "peers": rooms.peers.stop,
        "agents": rooms.launcher.close,
        "audit": lambda: rooms.audit.close(timeout=left()),
    }
    for name, step in steps.items():
        try:
            async with asyncio.timeout(left().total_seconds()):
                await step()
        except Exception:  # the next step must be taken in any case
            log.exception("role.drain_step_failed", step=name)
    rooms.commit.close()


def _model_endpoint(settings: Settings) -> ModelEndpointTarget:
    certificate = settings.gateway_authority_file
    return ModelEndpointTarget(base_url=settings.gateway_url, ca_pem=certificate.read_bytes() if certificate else b"")


def _database_check(database: Database) -> Check:
    async def check() -> None:
        async with database.raw() as connection:
            await connection.fetchval("SELECT 1")

    return check
