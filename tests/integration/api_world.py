"""A real gRPC server on a free port with fakes behind it, and a client that holds a good token."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from sandboxd.api.callers.certificates import PlatformCertificates
from sandboxd.api.callers.claims import ClaimRules
from sandboxd.api.callers.door import Door
from sandboxd.api.callers.key_set import FileKeys
from sandboxd.api.callers.tokens import BearerTokens
from sandboxd.api.grpc.ports import Standing
from sandboxd.api.grpc.server import ApiServer, ServerLimits
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.manager.accounting import make_accounting
from sandboxd.manager.packages import Packages
from sandboxd.manager.tenancy import make_tenancy
from sandboxd.model.trace import NO_TRACES, Tracer
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_ports import AuditTrail
from sandboxd.tls.files import TlsFiles
from sandboxd.v1 import (
    audit_pb2_grpc,
    budget_pb2_grpc,
    client_pb2_grpc,
    key_pb2_grpc,
    price_pb2_grpc,
    sandbox_pb2_grpc,
    session_pb2_grpc,
    stream_pb2,
    usage_pb2_grpc,
)
from tests.fakes.administration import FakeInstallation
from tests.fakes.api import FakeDirectory, FakeHub, FakeManager
from tests.fakes.audit import FakeAuditTrail, a_desk
from tests.fakes.erasures import FakeKeyHashes, FakeKeyStore, FakeSigner
from tests.fakes.manager import FakeIds, FakeUnits, FakeWakeups
from tests.fakes.packages import FakePackageSource
from tests.fakes.usage import FakeResourceLedger, FakeUsageLedger
from tests.manager_world import ManagerWorld

ISSUER, AUDIENCE = "https://issuer.test", "sandboxd"


class Issuer:
    """Somebody who signs tokens, and the JWKS file that says so."""

    def __init__(self, path: Path, *, key_id: str = "one") -> None:
        self.key = Ed25519PrivateKey.generate()
        self.key_id = key_id
        public = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = public
        x = base64.urlsafe_b64encode(public).decode().rstrip("=")
        path.write_text(json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": key_id, "x": x, "alg": "EdDSA"}]}))

    def token(self, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 300,
            "sub": "boss",
            "client": "acme",
            "role": "client_admin",
        } | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key, algorithm="EdDSA", headers={"kid": self.key_id} | (headers or {}))


@dataclass(kw_only=True)
class World:
    server: ApiServer
    port: int
    tls_port: int
    channel: grpc.aio.Channel
    issuer: Issuer
    registry: CollectorRegistry
    manager: FakeManager
    hub: FakeHub
    directory: FakeDirectory
    ledger: FakeUsageLedger
    installation: FakeInstallation
    units: FakeUnits
    wakeups: FakeWakeups
    trail: FakeAuditTrail
    core: ManagerWorld
    """The sandboxes that deletions end; those of the API are the fake manager's."""
    key_store: FakeKeyStore
    token: str
    sandboxes: Any = field(init=False)
    sessions: Any = field(init=False)
    usage: Any = field(init=False)
    clients: Any = field(init=False)
    keys: Any = field(init=False)
    budgets: Any = field(init=False)
    prices: Any = field(init=False)
    audit: Any = field(init=False)

    def __post_init__(self) -> None:
        self.sandboxes = sandbox_pb2_grpc.SandboxServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.keys = key_pb2_grpc.KeyServiceStub(self.channel)
        self.clients = client_pb2_grpc.ClientServiceStub(self.channel)
        self.budgets = budget_pb2_grpc.BudgetServiceStub(self.channel)
        self.prices = price_pb2_grpc.PriceServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self.channel)

    def metadata(self, **changes: Any) -> tuple[tuple[str, str], ...]:
        token = self.issuer.token(**changes) if changes else self.token
        return (("authorization", f"Bearer {token}"),)

    def stream(self, **changes: Any) -> Any:
        return self.sandboxes.Stream(metadata=self.metadata(**changes))


@asynccontextmanager
async def a_world(
    path: Path,
    *,
    limits: ServerLimits | None = None,
    tls: TlsFiles | None = None,
    tracer: Tracer = NO_TRACES,
    standing: Standing | None = None,
    platform_names: Iterable[str] = (),
    audit: tuple[AuditTrail, AuditDesk] | None = None,
) -> AsyncIterator[World]:
    manager = FakeManager()
    hub = FakeHub(manager=manager)
    directory = FakeDirectory(hub=hub)
    ledger = FakeUsageLedger()
    trail = FakeAuditTrail()
    used, desk = audit or (trail, a_desk(trail))
    registry = CollectorRegistry()
    core_world = ManagerWorld(keeps_root=False, commits=True, backups=True)
    units, key_store = core_world.units, FakeKeyStore()
    wakeups = core_world.wakeups
    tenancy = make_tenancy(
        core=core_world.core,
        manager=core_world.manager,
        signer=FakeSigner(),
        key_store=key_store,
        key_hashes=FakeKeyHashes(),
    )
    erasing = asyncio.create_task(tenancy.eraser.run(), name="eraser")
    issuer = Issuer(path / "keys.json")
    installation = FakeInstallation()
    server = ApiServer(
        manager=manager,
        hub=hub,
        sessions=directory,
        ledger=ledger,
        accounting=make_accounting(
            units=units,
            ledger=ledger,
            resources=FakeResourceLedger(),
            wakeups=wakeups,
            clock=SystemClock(),
            ids=FakeIds(units.clock),
        ),
        callers=Door(
            tokens=BearerTokens(
                keys=FileKeys(path / "keys.json"),
                rules=ClaimRules(issuer=ISSUER, audience=AUDIENCE),
                clock=SystemClock(),
            ),
            certificates=PlatformCertificates(names=platform_names, clock=SystemClock()),
        ),
        trail=used,
        audit=desk,
        registry=registry,
        backend="fake",
        limits=limits or ServerLimits(),
        administration=installation.administration(),
        abandoned=installation.abandoned,
        standing=standing,
        tenancy=tenancy,
        images=core_world.manager.images,
        backups=core_world.manager.backups,
        packages=Packages(units=core_world.units, source=FakePackageSource()),
        tracer=tracer,
    )
    port = server.listen("127.0.0.1:0", tls=None)
    tls_port = server.listen("localhost:0", tls=tls) if tls else 0
    try:
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield World(
                server=server,
                port=port,
                tls_port=tls_port,
                channel=channel,
                issuer=issuer,
                registry=registry,
                manager=manager,
                hub=hub,
                directory=directory,
                ledger=ledger,
                installation=installation,
                units=units,
                wakeups=wakeups,
                trail=trail,
                core=core_world,
                key_store=key_store,
                token=issuer.token(),
            )
    finally:  # a server that runs on when its loop is gone hangs whoever frees gRPC's last object, a test later
        erasing.cancel()
        await asyncio.gather(erasing, return_exceptions=True)
        await server.stop()


@dataclass(kw_only=True)
class Refusal:
    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest
    quota: error_details_pb2.QuotaFailure
    retry: error_details_pb2.RetryInfo
    request: error_details_pb2.RequestInfo

    @property
    def reason(self) -> str:
        return str(self.info.reason)

    @property
    def fields(self) -> list[str]:
        return [one.field for one in self.bad_request.field_violations]


async def refused(call: Any) -> Refusal:
    """The error that a call ends with."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
            error = None
        else:
            await call
            error = None
    except grpc.aio.AioRpcError as caught:
        error = caught
    assert error is not None, "the call succeeded"
    return refusal_of(error)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    found: dict[str, Any] = {
        "info": error_details_pb2.ErrorInfo(),
        "bad_request": error_details_pb2.BadRequest(),
        "quota": error_details_pb2.QuotaFailure(),
        "retry": error_details_pb2.RetryInfo(),
        "request": error_details_pb2.RequestInfo(),
    }
    status: status_pb2.Status | None = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what it reads
    for detail in status.details if status else ():
        for message in found.values():
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return Refusal(code=error.code(), message=error.details() or "", **found)


async def next_event(call: Any, kind: str) -> stream_pb2.StreamResponse:
    """The next event of a kind; what comes before it is skipped."""
    while True:
        message = await call.read()
        assert message is not grpc.aio.EOF, f"the stream ended before a {kind}"
        if message.WhichOneof("event") == kind:
            return message  # type: ignore[no-any-return]  # the stub is untyped here


async def rest_of(call: Any) -> list[stream_pb2.StreamResponse]:
    """Everything until the call ends with OK."""
    found = []
    while (message := await call.read()) is not grpc.aio.EOF:
        found.append(message)
    assert await call.code() is grpc.StatusCode.OK
    return found
