"""What the ledger's contract suite needs to be told about the world around a ledger, and that world in memory.

An adapter's leg gives another `LedgerWorld` through the fixture `postgres_ledger_world` (tests/contract/conftest.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Protocol

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, SessionId, TurnId, make_id
from sandboxd.model.money import Money
from sandboxd.model.session import TurnState
from sandboxd.model.tokens import SandboxIdentity
from sandboxd.model.usage import (
    CallError,
    GatewayId,
    ModelMethod,
    Reservation,
    TokenCounts,
    UsageEventId,
    UsageState,
)
from sandboxd.monitor.ports import CallStart, PriceBookStore, Settlement, UsageLedger
from tests.fakes.usage import FakePriceBookStore, FakeSession, FakeUsageLedger

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
_numbers = count(1)


class LedgerWorld(Protocol):
    """Things that other rooms write and a ledger reads."""

    ledger: UsageLedger
    prices: PriceBookStore

    async def given_incarnation(self, identity: SandboxIdentity) -> None:
        """A living incarnation, with its client, freelancer and sandbox."""

    async def end_incarnation(self, incarnation: IncarnationId) -> None: ...

    async def suspend(self, identity: SandboxIdentity, *, freelancer: bool) -> None:
        """The client is suspended, or only its freelancer."""

    async def given_session(self, session: SessionId, *, of: SandboxIdentity, deleted: bool = False) -> None: ...

    async def given_turn(self, turn: TurnId, *, session: SessionId, state: TurnState, traceparent: str = "") -> None:
        """The session's open turn, in that state; COMPLETED: its last turn, and none is open."""


@dataclass(kw_only=True)
class FakeLedgerWorld:
    ledger: UsageLedger = field(init=False)
    prices: PriceBookStore = field(default_factory=FakePriceBookStore)
    _ledger: FakeUsageLedger = field(default_factory=FakeUsageLedger)

    def __post_init__(self) -> None:
        self.ledger = self._ledger

    async def given_incarnation(self, identity: SandboxIdentity) -> None:
        self._ledger.incarnations[identity.incarnation] = identity

    async def end_incarnation(self, incarnation: IncarnationId) -> None:
        self._ledger.ended.add(incarnation)

    async def suspend(self, identity: SandboxIdentity, *, freelancer: bool) -> None:
        self._ledger.suspended.add(identity.freelancer if freelancer else identity.client)

    async def given_session(self, session: SessionId, *, of: SandboxIdentity, deleted: bool = False) -> None:
        self._ledger.sessions[session] = FakeSession(sandbox=of.sandbox, deleted=deleted)

    async def given_turn(self, turn: TurnId, *, session: SessionId, state: TurnState, traceparent: str = "") -> None:
        self._ledger.sessions[session].turn = turn
        self._ledger.sessions[session].traceparent = traceparent
        self._ledger.sessions[session].turn_state = state


def an_id(prefix: str, *, at: datetime = NOON) -> str:
    return make_id(prefix, at=at, entropy=next(_numbers).to_bytes(10, "big"))


def an_identity(*, client: str | None = None, freelancer: str | None = None) -> SandboxIdentity:
    number = next(_numbers)
    return SandboxIdentity(
        client=ClientId(client or f"client-{number}"),
        freelancer=FreelancerId(freelancer or f"freelancer-{number}"),
        sandbox=SandboxId(an_id("sbx")),
        incarnation=IncarnationId(an_id("inc")),
    )


def a_session() -> SessionId:
    return SessionId(an_id("ses"))


def a_turn() -> TurnId:
    return TurnId(an_id("trn"))


def a_gateway() -> GatewayId:
    return GatewayId(f"gateway-{next(_numbers)}")


def a_call(
    identity: SandboxIdentity,
    *,
    gateway: GatewayId | None = None,
    session_hint: SessionId | None = None,
    model: str = "gemini-2.5-flash",
    method: ModelMethod = ModelMethod.STREAM_GENERATE_CONTENT,
    start_time: datetime = NOON,
) -> CallStart:
    return CallStart(
        id=UsageEventId(an_id("use", at=start_time)),
        gateway=gateway or GatewayId("gateway-of-the-tests"),
        identity=identity,
        session_hint=session_hint,
        method=method,
        model=model,
        reserved=Reservation(prompt_tokens=1000, output_tokens=8192),
        start_time=start_time,
    )


SOME_TOKENS = TokenCounts(prompt=130, cached=64, output=9, thoughts=33, tool_use=17, total=189)
SOME_COST = Money(micros=1234, currency="USD")


def a_settlement(
    *,
    state: UsageState = UsageState.SETTLED,
    tokens: TokenCounts = SOME_TOKENS,
    cost: Money | None = SOME_COST,
    price_id: str | None = "price-1",
    error_reason: CallError | None = None,
    http_status: int | None = 200,
) -> Settlement:
    return Settlement(
        state=state,
        tokens=tokens,
        model_version="gemini-2.5-flash-001",
        http_status=http_status,
        finish_reason="STOP",
        block_reason=None,
        cost=cost,
        price_id=price_id,
        first_byte_time=NOON + timedelta(milliseconds=120),
        end_time=NOON + timedelta(seconds=2),
        error_reason=error_reason,
    )
