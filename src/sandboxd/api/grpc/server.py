"""The gRPC server: services, frame, health, reflection, limits, TLS, and the way it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from sandboxd.api.grpc.admin_service import AdminServicer
from sandboxd.api.grpc.admission import Drain, StreamSlots
from sandboxd.api.grpc.audit_service import AuditServicer
from sandboxd.api.grpc.backup_service import BackupServicer
from sandboxd.api.grpc.budget_service import BudgetServicer
from sandboxd.api.grpc.client_service import ClientServicer
from sandboxd.api.grpc.credentials import make_server_credentials
from sandboxd.api.grpc.image_service import ImageServicer
from sandboxd.api.grpc.interceptors.access_log import AccessLogInterceptor
from sandboxd.api.grpc.interceptors.audit import AuditInterceptor, DenialInterceptor
from sandboxd.api.grpc.interceptors.callers import CallerChecker, CallerInterceptor
from sandboxd.api.grpc.interceptors.deadline import DeadlineInterceptor
from sandboxd.api.grpc.interceptors.failures import FailureInterceptor
from sandboxd.api.grpc.interceptors.metrics import MetricsInterceptor
from sandboxd.api.grpc.interceptors.permissions import PermissionInterceptor
from sandboxd.api.grpc.interceptors.traces import TraceInterceptor
from sandboxd.api.grpc.interceptors.validation import ValidationInterceptor
from sandboxd.api.grpc.key_service import KeyServicer
from sandboxd.api.grpc.package_service import PackageServicer
from sandboxd.api.grpc.permissions import without_row
from sandboxd.api.grpc.pool_service import PoolServicer
from sandboxd.api.grpc.ports import SandboxManager, SessionDirectory, Standing, StreamHub
from sandboxd.api.grpc.price_service import PriceServicer
from sandboxd.api.grpc.sandbox_service import SandboxServicer
from sandboxd.api.grpc.session_service import SessionServicer
from sandboxd.api.grpc.stay import AccountStanding, Stay
from sandboxd.api.grpc.stream_call import StreamCalls
from sandboxd.api.grpc.usage_service import UsageServicer
from sandboxd.api.grpc.validation import RequestRules
from sandboxd.manager.abandoned import AbandonedLooks
from sandboxd.manager.accounting import Accounting
from sandboxd.manager.administration import Administration
from sandboxd.manager.backups import Backups
from sandboxd.manager.images import Images
from sandboxd.manager.packages import Packages
from sandboxd.manager.tenancy import Tenancy
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_ports import AuditTrail
from sandboxd.monitor.ports import UsageLedger
from sandboxd.tls.files import TlsFiles
from sandboxd.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    backup_pb2,
    backup_pb2_grpc,
    budget_pb2,
    budget_pb2_grpc,
    client_pb2,
    client_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    key_pb2,
    key_pb2_grpc,
    package_pb2,
    package_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    price_pb2,
    price_pb2_grpc,
    sandbox_pb2,
    sandbox_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)

log = structlog.get_logger("sandboxd.api")

_SERVED: Final = (
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    backup_pb2.DESCRIPTOR.services_by_name["BackupService"],
    client_pb2.DESCRIPTOR.services_by_name["ClientService"],
    image_pb2.DESCRIPTOR.services_by_name["ImageService"],
    key_pb2.DESCRIPTOR.services_by_name["KeyService"],
    budget_pb2.DESCRIPTOR.services_by_name["BudgetService"],
    package_pb2.DESCRIPTOR.services_by_name["PackageService"],
    pool_pb2.DESCRIPTOR.services_by_name["PoolService"],
    price_pb2.DESCRIPTOR.services_by_name["PriceService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
    sandbox_pb2.DESCRIPTOR.services_by_name["SandboxService"],
    session_pb2.DESCRIPTOR.services_by_name["SessionService"],
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
)
SERVICES: Final = tuple(service.full_name for service in _SERVED)
MAX_REQUEST_BYTES: Final = 16 << 20
"""A prompt holds 1 MiB of text and 14 MiB of attachments."""
MAX_RESPONSE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What the server takes on."""

    default_deadline: timedelta = timedelta(seconds=60)
    """Of a unary call whose caller gave none."""
    max_concurrent_rpcs: int = 2000
    """Calls at the same time, streams included; more are refused with RESOURCE_EXHAUSTED."""
    accept_within: timedelta = timedelta(hours=1)
    """How long a call waits until this process takes it up; then gRPC ends it with CANCELLED and no word of ours.
    Its own default is 30 s, which a crowd can reach: grpc.aio takes up one call in a round of its event loop."""
    first_request_within: timedelta = timedelta(seconds=30)
    """How long a stream may wait with its first request."""
    expired_grace: timedelta = timedelta(minutes=5)
    """How long a stream may go on after its caller's token has expired."""
    standing_every: timedelta = timedelta(seconds=5)
    """How often an open stream asks whether its caller is still welcome."""
    write_within: timedelta = timedelta(seconds=60)
    """How long a stream's client may take nothing."""
    connection_age: timedelta = timedelta(minutes=1)
    """After this long, by a tenth more or less, a connection takes no new calls, and those that are open go on. A call
    that is made anew so meets the balancer, which knows replicas that started, and those that are cut off."""
    max_streams: int = 1000
    max_streams_per_client: int = 500


class ApiServer:
    """One gRPC server with all services."""

    def __init__(
        self,
        *,
        manager: SandboxManager,
        hub: StreamHub,
        sessions: SessionDirectory,
        ledger: UsageLedger,
        accounting: Accounting,
        callers: CallerChecker,
        trail: AuditTrail,
        audit: AuditDesk,
        registry: CollectorRegistry,
        backend: str,
        limits: ServerLimits,
        reflect: bool = True,
        tenancy: Tenancy,
        administration: Administration,
        abandoned: AbandonedLooks,
        packages: Packages,
        images: Images,
        backups: Backups,
        standing: Standing | None = None,
        cut_off: Callable[[], bool] = lambda: False,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        if missing := without_row(_SERVED):
            raise TypeError(f"RPCs without a row in the permission table: {', '.join(missing)}")
        standing = standing or AccountStanding(tenancy.accounts)
        stay = Stay(standing=standing, grace=limits.expired_grace, look_every=limits.standing_every, cut_off=cut_off)
        rules = RequestRules()
        self._drain = Drain()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            # From outside to inside. The log sees how every call ended, and the metrics count the refused ones too.
            interceptors=[
                AccessLogInterceptor(),
                MetricsInterceptor(registry=registry),
                FailureInterceptor(),
                DenialInterceptor(trail=trail),
                DeadlineInterceptor(default=limits.default_deadline),
                CallerInterceptor(callers=callers),
                TraceInterceptor(tracer=tracer),
                PermissionInterceptor(standing=standing),
                ValidationInterceptor(rules=rules),
                AuditInterceptor(trail=trail),
            ],
            options=_options(limits),
            maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        )
        slots = StreamSlots(total=limits.max_streams, per_client=limits.max_streams_per_client)
        streams = StreamCalls(
            hub=hub,
            sessions=sessions,
            rules=rules,
            manager=manager,
            slots=slots,
            drain=self._drain,
            stay=stay,
            trail=trail,
            first_within=limits.first_request_within,
            write_within=limits.write_within,
            tracer=tracer,
        )
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(
            SandboxServicer(
                manager=manager,
                images=images,
                streams=streams,
                slots=slots,
                drain=self._drain,
                stay=stay,
                backend=backend,
            ),
            self._server,
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(sessions=sessions), self._server)
        client_pb2_grpc.add_ClientServiceServicer_to_server(ClientServicer(tenancy=tenancy), self._server)
        key_pb2_grpc.add_KeyServiceServicer_to_server(
            KeyServicer(keys=tenancy.keys, hashes=tenancy.key_hashes), self._server
        )
        usage_pb2_grpc.add_UsageServiceServicer_to_server(
            UsageServicer(
                ledger=ledger,
                watch=accounting.watch,
                resources=accounting.resources,
                slots=slots,
                drain=self._drain,
                stay=stay,
                write_within=limits.write_within,
            ),
            self._server,
        )
        budget_pb2_grpc.add_BudgetServiceServicer_to_server(BudgetServicer(budgets=accounting.budgets), self._server)
        audit_pb2_grpc.add_AuditServiceServicer_to_server(
            AuditServicer(desk=audit, slots=slots, drain=self._drain, write_within=limits.write_within), self._server
        )
        image_pb2_grpc.add_ImageServiceServicer_to_server(
            ImageServicer(images=images, slots=slots, drain=self._drain, stay=stay, write_within=limits.write_within),
            self._server,
        )
        backup_pb2_grpc.add_BackupServiceServicer_to_server(
            BackupServicer(
                backups=backups, slots=slots, drain=self._drain, stay=stay, write_within=limits.write_within
            ),
            self._server,
        )
        package_pb2_grpc.add_PackageServiceServicer_to_server(PackageServicer(packages=packages), self._server)
        pool_pb2_grpc.add_PoolServiceServicer_to_server(PoolServicer(pools=tenancy.pools), self._server)
        price_pb2_grpc.add_PriceServiceServicer_to_server(PriceServicer(pricing=accounting.pricing), self._server)
        admin = AdminServicer(administration=administration, abandoned=abandoned)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflect:
            reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    def listen(self, address: str, *, tls: TlsFiles | None) -> int:
        """Bind an address and return its port.

        Raises:
            OSError: The address is taken, or not ours.
            TlsFilesError: The certificate cannot be used.
        """
        try:
            if tls is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, make_server_credentials(tls))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: it is taken, or not an address of this machine") from error

    async def start(self) -> None:
        """Begin to serve; health says SERVING from now on."""
        await self._server.start()
        await self.set_healthy(healthy=True)

    async def set_healthy(self, *, healthy: bool) -> None:
        """Say for every service, and for the server as a whole, whether it serves."""
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def drain(self, *, grace: timedelta) -> None:
        """Take nothing new on, tell the streams, and let unary calls finish within the grace."""
        await self._health.enter_graceful_shutdown()
        self._drain.begin()
        await self._server.stop(grace.total_seconds())

    async def pause(self) -> None:
        """Refuse new streams and end the open ones; other calls are still answered."""
        await self.set_healthy(healthy=False)
        self._drain.begin()

    async def resume(self) -> None:
        """Take streams again."""
        self._drain.cease()
        await self.set_healthy(healthy=True)

    async def stop(self) -> None:
        """End at once."""
        await self._server.stop(0)

    async def wait(self) -> None:
        """Wait until the server has ended."""
        await self._server.wait_for_termination()


def _options(limits: ServerLimits) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.server_max_unrequested_time_in_server", int(limits.accept_within.total_seconds())),
        ("grpc.max_connection_age_ms", int(limits.connection_age.total_seconds() * 1000)),
        # Two servers on one port must fail, not share its connections at random.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", MAX_RESPONSE_BYTES),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.max_concurrent_streams", 1000),
        # Streams are quiet while a person thinks: find dead peers, and let clients keep middleboxes awake.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 5),
    )
