"""What the sandbox manager needs from outside: the unit of work, the conversations, tokens.

Contract suite: `tests/contract/test_unit_of_work.py`; it is what these docstrings mean where they are unclear. Where
sandboxes are placed is `backend_port`; the agent is reached through `stream.agent_port`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import NewType, Protocol, Self

from sandboxd.manager.account_ports import ClientRepository, FreelancerRepository, QuotaRepository
from sandboxd.manager.backup_ports import BackupSetRepository
from sandboxd.manager.budget_ports import BudgetRepository
from sandboxd.manager.drill_ports import DrillRepository
from sandboxd.manager.erasure_ports import ErasureRepository
from sandboxd.manager.image_ports import GenerationRepository, SbomRepository
from sandboxd.manager.key_ports import KeyRepository
from sandboxd.manager.lifecycle_ports import LookRepository
from sandboxd.manager.package_ports import PackageRepository
from sandboxd.manager.pool_ports import PoolRepository
from sandboxd.manager.price_ports import PriceRepository
from sandboxd.model.errors import ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Incarnation, Sandbox, SandboxState
from sandboxd.model.tokens import SandboxIdentity, SandboxToken

OperationId = NewType("OperationId", str)

REQUEST_KEPT_FOR = timedelta(days=30)
"""How long the outcome of a request is remembered; that of Create as long as its sandbox's row lives."""
MAX_PAGE_SIZE = 1000
"""Most sandboxes of one page; a larger wish is answered with this many."""
DEFAULT_PAGE_SIZE = 50
"""Sandboxes of a page where the caller does not say."""


class SandboxOrder(enum.Enum):
    """How sandboxes are listed; equal moments by id."""

    CREATE_TIME = "create_time"
    CREATE_TIME_DESC = "create_time desc"
    LAST_USE_TIME = "last_use_time"
    LAST_USE_TIME_DESC = "last_use_time desc"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFilter:
    """Which sandboxes are meant: all conditions must hold."""

    client: ClientId
    freelancer: FreelancerId | None = None
    states: frozenset[SandboxState] = frozenset()
    """Any of these; empty for all but TERMINATED."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of these."""

    def matches(self, sandbox: Sandbox) -> bool:
        """Tell whether a sandbox is meant."""
        in_state = sandbox.state in self.states if self.states else sandbox.state is not SandboxState.TERMINATED
        return (
            in_state
            and sandbox.client == self.client
            and self.freelancer in (None, sandbox.freelancer)
            and all(sandbox.labels.get(key) == value for key, value in self.labels.items())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """An error as it is kept for the answer to a repeated request."""

    kind: ErrorKind
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutcome:
    """What a request came to: a sandbox as it was then, an encoded response, or an error."""

    sandbox: Sandbox | None = None
    kept: str = ""
    """Terminate: where the files were kept."""
    response: bytes | None = None
    """The answer as it was sent, of calls that are about no sandbox (`manager/once.py`)."""
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request, as it is remembered. Its key is (client, request_id)."""

    client: ClientId
    request_id: RequestId
    method: str
    subject: str
    body_hash: bytes
    sandbox: SandboxId
    """The sandbox that it is about; of other calls the resource name of what they are about, or nothing."""
    outcome: RequestOutcome | None = None
    """None while it is in progress."""
    create_time: datetime
    expire_time: datetime | None = None
    """When it may be forgotten; None: with the sandbox's row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Work on one sandbox, by one task of one replica. Who holds the lease is the only one who works on it."""

    id: OperationId
    replica: str
    """The replica's id. It is dead when its advisory lock is free (the same lock as for the stream's journal)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """A sandbox with its incarnation that has not ended."""

    sandbox: Sandbox
    incarnation: Incarnation


class SandboxRepository(Protocol):
    """The sandbox rows."""

    async def get(self, sandbox: SandboxId, *, for_update: bool = False) -> Sandbox:
        """One sandbox, whoever owns it; `for_update` locks the row until the end of the unit of work.

        Raises:
            SandboxNotFoundError: There is none.
        """
        ...

    async def add(self, sandbox: Sandbox) -> None:
        """Insert a row; its client and freelancer must be there.

        Raises:
            AlreadyExistsError: The id is taken.
        """
        ...

    async def create(self, sandbox: Sandbox, incarnation: Incarnation | None, record: RequestRecord) -> bool:
        """Insert a sandbox, its first incarnation if it has one yet, and the request that makes it, in one statement.

        False: the request was made before, as `RequestRepository.claim` has it, and nothing was inserted.

        Raises:
            AlreadyExistsError: The id is taken.
        """
        ...

    async def save(self, sandbox: Sandbox) -> None:
        """Write a changed sandbox over the row of version `sandbox.version - 1`; `last_use_time` never goes back.

        Raises:
            ConflictError: The row has another version: somebody else changed it.
        """
        ...

    async def touch(self, sandbox: SandboxId, *, at: datetime) -> None:
        """Move `last_use_time` forward and nothing else: not the version, not the update time. Absent is success."""
        ...

    async def list(
        self, where: SandboxFilter, *, order: SandboxOrder, page_size: int, page_token: str
    ) -> Page[Sandbox]:
        """One page, by keyset: no sandbox is missed or doubled because others come and go.

        Raises:
            InvalidRequestError: The token is not one of a list with this filter and order (violation `page_token`).
        """
        ...

    async def in_states(
        self, states: frozenset[SandboxState], *, limit: int, after: SandboxId | None = None
    ) -> Sequence[Sandbox]:
        """Sandboxes of all clients in any of these states, by id, after an id."""
        ...

    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Sandbox]:
        """Those of the named sandboxes that have a row, whoever owns them: one statement."""
        ...


class IncarnationRepository(Protocol):
    """The incarnation rows. A sandbox has at most one that has not ended."""

    async def add(self, incarnation: Incarnation) -> None:
        """Insert a row.

        Raises:
            ConflictError: The sandbox has another incarnation that has not ended.
        """
        ...

    async def save(self, incarnation: Incarnation) -> None:
        """Write endpoint, ready time, end time and end reason. An end is final: what ended keeps its first end."""
        ...

    async def get(self, incarnation: IncarnationId) -> Incarnation | None:
        """One incarnation, or None."""
        ...

    async def current(self, sandbox: SandboxId) -> Incarnation | None:
        """The one that has not ended, or None."""
        ...

    async def seen(self, incarnations: Sequence[IncarnationId], *, at: datetime) -> None:
        """Note that the backend runs these: one that is later found dead counts as living until then."""
        ...

    async def living(self, *, limit: int, after: IncarnationId | None = None) -> Sequence[Life]:
        """Incarnations of all sandboxes that have not ended, by incarnation id, after an id."""
        ...


class RequestRepository(Protocol):
    """The remembered requests."""

    async def claim(self, record: RequestRecord) -> RequestRecord | None:
        """Insert the record, and answer None; or answer the one that is there.

        Waits for another transaction that has just claimed the same key. A record that has expired is replaced.
        """
        ...

    async def get(self, client: ClientId, request_id: RequestId) -> RequestRecord | None:
        """One record, or None."""
        ...

    async def finish(self, client: ClientId, request_id: RequestId, outcome: RequestOutcome) -> None:
        """Write the outcome, once: a record that has one keeps it. Absent is success."""
        ...

    async def in_progress(self, sandbox: SandboxId) -> Sequence[RequestRecord]:
        """Records about this sandbox without an outcome, oldest first."""
        ...

    async def forget_expired(self, *, at: datetime, limit: int) -> int:
        """Delete records whose expire time has passed; answers how many."""
        ...


class OperationRepository(Protocol):
    """Who works on which sandbox: one row a sandbox, with a lease by the database's clock."""

    async def take(self, sandbox: SandboxId, operation: Operation, *, lease: timedelta) -> bool:
        """Become the one who works on the sandbox; False while another one does.

        The other one is gone when its lease has run out, or its replica is dead. Not re-entrant: another operation of
        the same replica is another one. The operation itself, again, succeeds and prolongs its lease.
        """
        ...

    async def renew(self, operations: Sequence[OperationId], *, lease: timedelta) -> Sequence[OperationId]:
        """Prolong leases; answers those that are still held."""
        ...

    async def holds(self, sandbox: SandboxId, operation: OperationId) -> bool:
        """Tell whether nobody has taken the sandbox over, also where the lease has run out meanwhile."""
        ...

    async def release(self, sandbox: SandboxId, operation: OperationId) -> None:
        """Give the sandbox free, if it is still held. Safe to repeat."""
        ...


class UnitOfWork(Protocol):
    """One transaction. Without `commit` everything is undone at the end; a commit ends it.

    Raises (every method):
        DatabaseUnavailableError: PostgreSQL does not answer; after `commit` nothing is known about the outcome.
        ConflictError: The transaction collided with another one; begin it again (adapters retry where they can).
    """

    @property
    def sandboxes(self) -> SandboxRepository:
        """Sandbox rows."""

    @property
    def incarnations(self) -> IncarnationRepository:
        """Incarnation rows."""

    @property
    def requests(self) -> RequestRepository:
        """Remembered requests."""

    @property
    def operations(self) -> OperationRepository:
        """Who works on which sandbox."""

    @property
    def clients(self) -> ClientRepository:
        """Client rows."""

    @property
    def freelancers(self) -> FreelancerRepository:
        """Freelancer rows."""

    @property
    def budgets(self) -> BudgetRepository:
        """Budgets with what is counted in them."""

    @property
    def prices(self) -> PriceRepository:
        """The price book."""

    @property
    def erasures(self) -> ErasureRepository:
        """Erasures, and what they erase."""

    @property
    def keys(self) -> KeyRepository:
        """What is known of API keys."""

    @property
    def looks(self) -> LookRepository:
        """The sweep's looks at sandboxes."""

    @property
    def pools(self) -> PoolRepository:
        """Warm pools and their members."""

    @property
    def generations(self) -> GenerationRepository:
        """What root file systems were kept as."""

    @property
    def sboms(self) -> SbomRepository:
        """What is known of the packages in images."""

    @property
    def packages(self) -> PackageRepository:
        """What is known of packages."""

    @property
    def backup_sets(self) -> BackupSetRepository:
        """What sandboxes are rebuilt from."""

    @property
    def drills(self) -> DrillRepository:
        """Restores that were tried."""

    @property
    def quotas(self) -> QuotaRepository:
        """What is in use, for quotas."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def commit(self) -> None:
        """Make everything durable."""
        ...


class UnitsOfWork(Protocol):
    """Where units of work come from."""

    def begin(self) -> UnitOfWork:
        """A new unit of work, to be entered once."""
        ...


class Conversations(Protocol):
    """What the manager asks of the stream room before it takes compute away."""

    async def open_turns(self, sandbox: SandboxId) -> int:
        """How many turns of the sandbox are open, in any session, on any replica."""
        ...

    async def close(self, sandbox: SandboxId, *, reason: str, timeout: timedelta, only_idle: bool = False) -> None:
        """End the CLI gracefully; open turns end as interrupted, durably. Nothing open is success.

        With `only_idle` no turn is ended: one that begins while the CLI ends waits for the next CLI.

        Raises:
            OpenTurnsError: With `only_idle`: a turn is open. Nothing was done.
        """
        ...


class ModelTokens(Protocol):
    """Where sandbox tokens come from."""

    def mint(self, identity: SandboxIdentity) -> SandboxToken:
        """A fresh token for that life of that sandbox."""
        ...
