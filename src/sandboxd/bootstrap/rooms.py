"""What one replica of `serve` is made of: every room, joined. Nothing here connects, listens or runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sandboxd.agent.package_client import GrpcPackageSource
from sandboxd.agent.rootfs_client import GrpcRootfsCapture
from sandboxd.api.grpc.server import ApiServer, ServerLimits
from sandboxd.api.web.operations import Check, OperationsServer
from sandboxd.backends.signing import Ed25519Signer
from sandboxd.bootstrap.abandoned import make_abandoned_care
from sandboxd.bootstrap.audit import AuditRoom, make_audit
from sandboxd.bootstrap.backups import backup_tools
from sandboxd.bootstrap.callers import Callers, make_callers
from sandboxd.bootstrap.image_care import ImageCareRoom, make_image_care
from sandboxd.bootstrap.images import ImageRoom, image_room, image_tools
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.observing import Observation
from sandboxd.bootstrap.operating import ReplicaDoors, make_administration
from sandboxd.bootstrap.peers import PeerRoom
from sandboxd.bootstrap.places import Placement, make_connector, make_key_store, make_placement
from sandboxd.bootstrap.sources import RandomIds, SystemClock
from sandboxd.gateway.key_files import ensure_token_keys
from sandboxd.gateway.key_hashes import HmacKeyHashes, ensure_secret
from sandboxd.gateway.tokens import SandboxTokenSigner
from sandboxd.manager.abandoned import AbandonedCare
from sandboxd.manager.accounting import make_accounting
from sandboxd.manager.erasing import Eraser
from sandboxd.manager.packages import Packages
from sandboxd.manager.push_holding import PushHolding
from sandboxd.manager.sandboxes import ManagerCore, SandboxManager
from sandboxd.manager.tenancy import make_tenancy
from sandboxd.manager.tokens import ModelEndpointTarget
from sandboxd.manager.tools import ManagerTools
from sandboxd.manager.turn_quotas import AccountTurnQuotas
from sandboxd.monitor.own_deeds import AuditedDeeds
from sandboxd.monitor.sweep import OrphanSweep
from sandboxd.persistence.duties import PostgresDuties
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.journal import PostgresJournal
from sandboxd.persistence.ledger import PostgresTurnLedger, PostgresUsageLedger
from sandboxd.persistence.presence import ReplicaPresence
from sandboxd.persistence.prices import PostgresPriceBookStore
from sandboxd.persistence.push_holds import PostgresPushHolds
from sandboxd.persistence.replicas import PostgresReplicas
from sandboxd.persistence.resources import PostgresResourceLedger
from sandboxd.persistence.sessions import PostgresSessions
from sandboxd.persistence.texts import PostgresKeptTexts
from sandboxd.persistence.unit_of_work import PostgresUnitsOfWork
from sandboxd.persistence.uploads import PostgresUploadNotes
from sandboxd.settings import Settings
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
from sandboxd.stream.routing import ErrandRouter
from sandboxd.stream.sessions import SessionDirectory
from sandboxd.stream.suspension import Suspensions
from sandboxd.stream.text_care import TextCare


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What one replica is made of."""

    seen: Observation
    placement: Placement
    kept: ImageRoom | None
    """What images are built with; None where nothing is kept."""
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
    image_care: ImageCareRoom | None
    """Removes kept images that are needed no more, where there are any."""
    abandoned: AbandonedCare
    """Tells of what nobody needs any more, and removes what goes by itself."""


def build_rooms(settings: Settings, url: str) -> Rooms:
    """Make every object of one replica; nothing connects or listens yet."""
    clock = SystemClock()
    ids = RandomIds(clock)
    seen = Observation.of(settings)
    keys = KeyFiles.of(settings)
    # A new name for every life: the lock of an earlier life says nothing about this one.
    replica = f"{settings.replica}.{ids.new('rep')[-10:]}"
    database_settings = DatabaseSettings(
        url=url, application_name=f"sandboxd serve {settings.replica}"[:63], pool_size=settings.database_pool_size
    )
    database = Database(make_engine(database_settings))
    presence = ReplicaPresence(database_settings, replica=replica)
    authority, connector = make_connector(settings, clock, tracer=seen.tracer)
    placement = make_placement(settings, authority=authority, connector=connector, clock=clock)
    signing_key, key_id = ensure_token_keys(
        private_file=keys.sandbox_token_key, public_directory=keys.sandbox_token_public
    )
    capture = GrpcRootfsCapture(backend=placement.backend, connector=connector)
    uploads, holds = PostgresUploadNotes(database, clock=clock), PostgresPushHolds(database)
    kept = image_room(settings, capture=capture, cluster=placement.cluster, uploads=uploads, holds=holds)
    journal = PostgresJournal(database)
    sessions = PostgresSessions(database)
    ledger = PostgresUsageLedger(database)
    audit = make_audit(settings, database, clock=clock, ids=ids, replica=replica, registry=seen.registry)
    package_source = GrpcPackageSource(connector)
    core = ManagerCore(
        ManagerTools(
            units=PostgresUnitsOfWork(database),
            backend=placement.backend,
            connector=connector,
            wakeups=presence,
            tokens=SandboxTokenSigner(key=signing_key, key_id=key_id, clock=clock),
            model_endpoint=_model_endpoint(settings),
            metrics=seen.manager,
            pool_metrics=seen.pools,
            commit_metrics=seen.commits,
            backups=backup_tools(settings, placement),
            backup_metrics=seen.backups,
            drill_metrics=seen.drills,
            images=image_tools(kept, placement),
            upgrade_bases=settings.base_upgrades,
            starts=settings.start_limits,
            refill=settings.refill_limits,
            pool_members_per_client=settings.pool_members_per_client,
            pool_board=placement.pool_board,
            clock=clock,
            ids=ids,
            explicit_registration=settings.registration == "explicit",
            replica=replica,
            lease=settings.lease,
            tracer=seen.tracer,
            deeds=AuditedDeeds(audit.trail),
            lifecycle=settings.lifecycle,
            duties=PostgresDuties(database, replica=replica),
            lifecycle_metrics=seen.lifecycle,
            sweep_every=timedelta(seconds=settings.sweep_seconds),
            packages=package_source,
            package_metrics=seen.packages,
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
    turn_quotas = AccountTurnQuotas(units=core.tools.units, accounts=core.accounts, replica=replica)
    hub = StreamHub(services, custody, router, turn_quotas=turn_quotas)
    seen.look_at(database=database, custody=custody, feed=services.feed, commit=commit, connector=connector)
    manager = SandboxManager(core=core, conversations=hub)
    proof_key, proof_key_id = ensure_token_keys(private_file=keys.proof_key, public_directory=keys.proof_public)
    tenancy = make_tenancy(
        core=core,
        manager=manager,
        signer=Ed25519Signer(proof_key, key_id=proof_key_id),
        key_store=make_key_store(settings, placement, files=keys),
        key_hashes=HmacKeyHashes(ensure_secret(keys.key_hash_secret)),
        remove_texts=audit.trail.erase,
    )
    callers = make_callers(settings, keys, clock=clock, registry=seen.registry)
    web = OperationsServer(registry=seen.registry, checks={"database": _database_check(database)})
    image_care = make_image_care(settings, core, placement, database=database, seen=seen)
    abandoned = make_abandoned_care(
        settings, core, placement, database=database, images=image_care, uploads=uploads, seen=seen
    )
    doors = ReplicaDoors(web=web, custody=custody)
    api = ApiServer(
        manager=manager,
        administration=make_administration(
            database=database,
            doors=doors,
            seen=seen,
            recovery=manager.recovery,
            lifecycle=manager.sweep,
            images=image_care,
            pushes=PushHolding(holds=holds, clock=clock),
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
            connection_age=timedelta(seconds=settings.connection_age_seconds),
            max_streams=settings.max_streams,
            max_streams_per_client=settings.max_streams_per_client,
        ),
        reflect=settings.reflection,
        tenancy=tenancy,
        images=manager.images,
        abandoned=abandoned,
        backups=manager.backups,
        packages=Packages(units=core.tools.units, source=package_source),
        # Whoever has no address is alone: nobody else would hear more.
        cut_off=lambda: bool(presence.address) and presence.lost_for > settings.lease,
        tracer=seen.tracer,
    )
    doors.entrance = api
    return Rooms(
        seen=seen,
        placement=placement,
        kept=kept,
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
        image_care=image_care,
        abandoned=abandoned,
    )


def _model_endpoint(settings: Settings) -> ModelEndpointTarget:
    certificate = settings.gateway_authority_file
    return ModelEndpointTarget(base_url=settings.gateway_url, ca_pem=certificate.read_bytes() if certificate else b"")


def _database_check(database: Database) -> Check:
    async def check() -> None:
        async with database.raw() as connection:
            await connection.fetchval("SELECT 1")

    return check
