"""The way between replicas over real gRPC and TLS: who is let in, and how errands and errors arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import pytest

from sandboxd.api.grpc.peers.client import GrpcPeers
from sandboxd.api.grpc.peers.identity import PeerIdentity
from sandboxd.api.grpc.peers.server import PeerServer
from sandboxd.backends.certificates import REPLICA_NAME, CertificateAuthority, Identity
from sandboxd.bootstrap.peers import told_address
from sandboxd.internal.v1 import replica_pb2 as pb
from sandboxd.internal.v1 import replica_pb2_grpc
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import (
    AgentUnavailableError,
    ExhaustedError,
    FieldViolation,
    InvalidRequestError,
    QuotaViolation,
    RequestIdReusedError,
    SandboxdError,
    SandboxPausedError,
    SessionNotFoundError,
    TurnInProgressError,
    WrongStateError,
)
from sandboxd.model.ids import ClientId, IncarnationId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.session import Attachment, PromptInput
from sandboxd.stream.desk import ErrandDesk
from sandboxd.stream.errands import (
    AnswerPermission,
    CancelTurn,
    Close,
    Errand,
    ForgetSession,
    Order,
    SetMode,
    SetModel,
    StartTurn,
    Vanished,
    Wish,
)
from sandboxd.stream.moves import MovedError, OwnedElsewhereError, PeerUnavailableError, StoppingError
from sandboxd.stream.opening import Accepted
from sandboxd.stream.ports import Holder
from tests.fakes.manager import FakeClock

SANDBOX, SESSION = SandboxId("sbx-1"), SessionId("ses-1")
CALLER = Caller(client=ClientId("acme"), subject="ada", role=Role.FREELANCER)
SECOND = timedelta(seconds=1)
PATIENT = timedelta(seconds=10)


def an_order(deed: object) -> Order:
    return Order(
        caller=CALLER,
        sandbox=SANDBOX,
        session=SESSION,
        request_id=RequestId("request-1"),
        body_hash=b"\x00" * 32,
        traceparent="00-0123456789abcdef0123456789abcdef-0123456789abcdef-01",
        deed=deed,  # type: ignore[arg-type]  # test sugar
    )


ERRANDS: list[Errand] = [
    an_order(
        StartTurn(
            prompt=PromptInput(
                text="hällo\x00", attachments=[Attachment(name="a.png", mime_type="image/png", data=b"\xff")]
            )
        )
    ),
    an_order(AnswerPermission(permission="p", option="")),
    an_order(CancelTurn()),
    an_order(SetMode(mode="yolo")),
    an_order(SetModel(model="")),
    an_order(ForgetSession()),
    Wish(caller=CALLER, sandbox=SANDBOX, session=SESSION),
    Vanished(sandbox=SANDBOX, session=SESSION),
    Close(sandbox=SANDBOX, reason="PAUSED", timeout=timedelta(seconds=2.5)),
]


@dataclass(kw_only=True)
class FakeDesk:
    """Takes errands and ends them as the test says."""

    taken: list[tuple[Errand, bool]] = field(default_factory=list)
    answer: Callable[[], Accepted] = lambda: Accepted(repeated=False)
    hanging: asyncio.Event | None = None
    ended: int = 0

    async def run(self, errand: Errand, *, acquire: bool) -> Accepted:
        self.taken.append((errand, acquire))
        try:
            if self.hanging is not None:
                await self.hanging.wait()
        finally:
            self.ended += 1
        return self.answer()


@dataclass(kw_only=True)
class Pair:
    """A replica that listens, and one that asks it."""

    authority: CertificateAuthority
    desk: FakeDesk = field(default_factory=FakeDesk)
    port: int = 0

    def identity(self, issued: Identity) -> PeerIdentity:
        return PeerIdentity(
            certificate=issued.certificate, key=issued.key, authority=self.authority.certificate, name=REPLICA_NAME
        )

    @property
    def peer(self) -> Holder:
        return Holder(replica="two", address=f"127.0.0.1:{self.port}")

    @asynccontextmanager
    async def peers(self, issued: Identity | None = None) -> AsyncIterator[GrpcPeers]:
        peers = GrpcPeers(self.identity(issued or self.authority.issue_replica()))
        try:
            yield peers
        finally:
            await peers.close()

    async def ask(self, errand: Errand, *, acquire: bool = False, timeout: timedelta = PATIENT) -> Accepted:
        async with self.peers() as peers:
            return await peers.ask(self.peer, errand, acquire=acquire, timeout=timeout)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(authority=CertificateAuthority.open(tmp_path, clock=FakeClock()))
    identity = made.identity(made.authority.issue_replica())
    server = PeerServer(desk=cast("ErrandDesk", made.desk), replica="two", identity=identity)
    made.port = server.listen("127.0.0.1:0")
    await server.start()
    yield made
    await server.stop()


@pytest.mark.parametrize("errand", ERRANDS, ids=lambda errand: type(getattr(errand, "deed", errand)).__name__)
async def test_an_errand_arrives_as_it_was_given(pair: Pair, errand: Errand) -> None:
    pair.desk.answer = lambda: Accepted(repeated=True, turn=TurnId("trn-1"))

    accepted = await pair.ask(errand, acquire=True)

    assert accepted == Accepted(repeated=True, turn=TurnId("trn-1"))
    [(taken, acquire)] = pair.desk.taken
    assert acquire
    assert repr(taken).replace("(Attachment", "[Attachment").replace(",))", "])") == repr(errand)


async def test_the_largest_prompt_goes_through(pair: Pair) -> None:
    data = [Attachment(name=f"{n}", mime_type="image/png", data=b"x" * (7 << 20)) for n in range(2)]

    await pair.ask(an_order(StartTurn(prompt=PromptInput(text="t" * (1 << 20), attachments=data))))

    assert len(pair.desk.taken) == 1


class FutureError(WrongStateError):
    """A reason that this version does not know."""

    reason = "OF_A_NEWER_VERSION"


@pytest.mark.parametrize(
    "raised",
    [
        TurnInProgressError("ses-1", turn="trn-9"),
        SessionNotFoundError("ses-1"),
        SandboxPausedError("sbx-1"),
        RequestIdReusedError("request-1"),
        AgentUnavailableError("The agent is away.", retry_after=SECOND, host="x"),
        InvalidRequestError("No.", violations=[FieldViolation(field="f", description="d")]),
        ExhaustedError(
            "Full.", violations=[QuotaViolation(subject="clients/a", description="5")], retry_after=SECOND, limit="5"
        ),
        FutureError("Not now.", sandbox="sbx-1"),
    ],
    ids=lambda error: error.reason,
)
async def test_errors_come_back_with_kind_reason_facts_and_advice(pair: Pair, raised: SandboxdError) -> None:
    def answer() -> Accepted:
        raise raised

    pair.desk.answer = answer

    with pytest.raises(SandboxdError) as caught:
        await pair.ask(ERRANDS[0])

    error = caught.value
    assert (error.kind, error.reason, error.message) == (raised.kind, raised.reason, raised.message)
    assert (error.metadata, error.retry_after) == (raised.metadata, raised.retry_after)
    assert getattr(error, "violations", None) == getattr(raised, "violations", None)
    assert isinstance(error, type(raised).__mro__[1])


async def test_a_bug_over_there_says_nothing_of_its_insides(pair: Pair) -> None:
    def answer() -> Accepted:
        raise KeyError("secret")

    pair.desk.answer = answer

    with pytest.raises(SandboxdError) as caught:
        await pair.ask(ERRANDS[0])

    assert caught.value.reason == "INTERNAL"
    assert "secret" not in str(caught.value)
    assert "error_id" in caught.value.metadata


@pytest.mark.parametrize("raised", [OwnedElsewhereError(SANDBOX), MovedError(SANDBOX), StoppingError()])
async def test_whoever_is_not_the_owner_says_only_that(pair: Pair, raised: SandboxdError) -> None:
    def answer() -> Accepted:
        raise raised

    pair.desk.answer = answer

    with pytest.raises(OwnedElsewhereError):
        await pair.ask(ERRANDS[0])


async def test_another_life_at_the_same_address_does_nothing(pair: Pair) -> None:
    async with pair.peers() as peers:
        with pytest.raises(OwnedElsewhereError):
            await peers.ask(Holder(replica="one", address=pair.peer.address), ERRANDS[0], acquire=True, timeout=PATIENT)

    assert pair.desk.taken == []


async def test_a_replica_that_does_not_answer_in_time_is_unavailable_and_told_to_stop(pair: Pair) -> None:
    pair.desk.hanging = asyncio.Event()

    async with asyncio.timeout(30):
        while not pair.desk.taken:  # on a busy machine the time may be over before the connection is made
            with pytest.raises(PeerUnavailableError):
                await pair.ask(ERRANDS[0], timeout=timedelta(seconds=0.5))
        while pair.desk.ended < len(pair.desk.taken):
            await asyncio.sleep(0.01)


async def test_an_address_where_nobody_listens_is_unavailable_at_once(pair: Pair) -> None:
    async with pair.peers() as peers, asyncio.timeout(5):
        with pytest.raises(PeerUnavailableError):
            await peers.ask(
                Holder(replica="two", address="127.0.0.1:9"), ERRANDS[0], acquire=False, timeout=timedelta(seconds=60)
            )


async def test_an_agents_certificate_opens_nothing(pair: Pair) -> None:
    """Its authority is the right one, its name and its use are not."""
    async with pair.peers(pair.authority.issue_agent(IncarnationId("inc-1"))) as peers:
        with pytest.raises(SandboxdError):
            await peers.ask(pair.peer, ERRANDS[0], acquire=True, timeout=PATIENT)

    assert pair.desk.taken == []


async def test_the_services_certificate_for_agents_opens_nothing_either(pair: Pair) -> None:
    async with pair.peers(pair.authority.issue_service()) as peers:
        with pytest.raises(SandboxdError) as caught:
            await peers.ask(pair.peer, ERRANDS[0], acquire=True, timeout=PATIENT)

    assert caught.value.reason == "PEER_REFUSED"
    assert pair.desk.taken == []


async def test_a_replicas_name_from_another_authority_opens_nothing(pair: Pair, tmp_path: Path) -> None:
    stranger = CertificateAuthority.open(tmp_path / "other", clock=FakeClock())
    async with pair.peers(stranger.issue_replica()) as peers:
        with pytest.raises(PeerUnavailableError):
            await peers.ask(pair.peer, ERRANDS[0], acquire=True, timeout=PATIENT)

    assert pair.desk.taken == []


async def test_a_caller_without_a_certificate_does_not_get_in(pair: Pair) -> None:
    credentials = grpc.ssl_channel_credentials(root_certificates=pair.authority.certificate)
    options = (("grpc.ssl_target_name_override", REPLICA_NAME),)
    for channel in (
        grpc.aio.secure_channel(pair.peer.address, credentials, options=options),
        grpc.aio.insecure_channel(pair.peer.address),
    ):
        stub: replica_pb2_grpc.ReplicaServiceAsyncStub = replica_pb2_grpc.ReplicaServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.RunErrand(pb.RunErrandRequest(replica="two", sandbox="sbx-1"), timeout=3)
        await channel.close()

    assert pair.desk.taken == []


async def test_a_server_that_is_no_replica_is_not_told_anything(pair: Pair) -> None:
    """An agent that listens at a replica's old address gets no command: its name is another one."""
    heard = FakeDesk()
    agent = pair.authority.issue_agent(IncarnationId("inc-1"))
    server = PeerServer(desk=cast("ErrandDesk", heard), replica="two", identity=pair.identity(agent))
    port = server.listen("127.0.0.1:0")
    await server.start()

    async with pair.peers() as peers:
        with pytest.raises(PeerUnavailableError):
            await peers.ask(
                Holder(replica="two", address=f"127.0.0.1:{port}"), ERRANDS[0], acquire=False, timeout=PATIENT
            )

    await server.stop()
    assert heard.taken == []


async def test_an_errand_of_a_newer_version_is_refused_and_not_misunderstood(pair: Pair) -> None:
    identity = pair.identity(pair.authority.issue_replica())
    credentials = grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)
    options = (("grpc.ssl_target_name_override", REPLICA_NAME),)
    async with grpc.aio.secure_channel(pair.peer.address, credentials, options=options) as channel:
        stub: replica_pb2_grpc.ReplicaServiceAsyncStub = replica_pb2_grpc.ReplicaServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.RunErrand(pb.RunErrandRequest(replica="two", sandbox="sbx-1"), timeout=3)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert pair.desk.taken == []


@pytest.mark.parametrize(
    ("listen", "told", "address"),
    [
        ("127.0.0.1:0", "", "127.0.0.1:7"),
        ("[::1]:0", "", "[::1]:7"),
        ("0.0.0.0:0", "10.0.0.5", "10.0.0.5:7"),
        ("0.0.0.0:0", "replica-0.sandboxd:0", "replica-0.sandboxd:7"),
        ("0.0.0.0:50052", "replica-0.sandboxd:443", "replica-0.sandboxd:443"),
        ("[::]:0", "[fd00::1]", "[fd00::1]:7"),
    ],
)
def test_the_address_that_is_told(listen: str, told: str, address: str) -> None:
    assert told_address(listen, told=told, port=7) == address
