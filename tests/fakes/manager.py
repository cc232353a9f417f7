"""Everything the manager needs from outside, in memory, with the weather that the real ones have.

One `FakeStore` stands for the database: units of work on it are serialised, copy what they change, and replace it when
they commit. tests/contract/test_unit_of_work.py and test_backend.py hold the fakes to what the real ones do.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from types import TracebackType
from typing import Self

from typing_extensions import override

from sandboxd.manager.account_ports import ClientRepository, FreelancerRepository, QuotaRepository
from sandboxd.manager.backend_port import (
    Backend,
    BackendDescription,
    FilesSize,
    Observation,
    RunningIncarnation,
    SandboxSpec,
    Told,
    untold,
)
from sandboxd.manager.backup_ports import BackupSetRepository
from sandboxd.manager.budget_ports import BudgetRepository
from sandboxd.manager.drill_ports import DrillRepository
from sandboxd.manager.erasure_ports import ErasureRepository
from sandboxd.manager.image_ports import GenerationRepository, SbomRepository
from sandboxd.manager.key_ports import KeyRepository
from sandboxd.manager.lifecycle_ports import Look, LookRepository
from sandboxd.manager.package_ports import PackageRepository
from sandboxd.manager.pool_ports import PoolRepository
from sandboxd.manager.ports import (
    Conversations,
    IncarnationRepository,
    Life,
    ModelTokens,
    Operation,
    OperationId,
    OperationRepository,
    RequestOutcome,
    RequestRecord,
    RequestRepository,
    SandboxFilter,
    SandboxOrder,
    SandboxRepository,
    UnitOfWork,
    UnitsOfWork,
)
from sandboxd.manager.price_ports import PriceRepository
from sandboxd.model.api_key import ApiKey
from sandboxd.model.backup import BackupSet, BackupSetId
from sandboxd.model.budget import Budget, BudgetId
from sandboxd.model.client import Client, Freelancer
from sandboxd.model.drill import Drill, DrillId
from sandboxd.model.erasure import Erasure, ErasureId
from sandboxd.model.errors import (
    AlreadyExistsError,
    ConflictError,
    DatabaseUnavailableError,
    FieldViolation,
    InvalidRequestError,
    OpenTurnsError,
    SandboxdError,
    SandboxNotFoundError,
    UnavailableError,
)
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId, make_id
from sandboxd.model.image import Generation, GenerationId
from sandboxd.model.image_errors import ImageBrokenError
from sandboxd.model.image_sbom import ImageSbom
from sandboxd.model.package_history import KeptChange, PackageRecord
from sandboxd.model.paging import Page
from sandboxd.model.pool import Member, Pool, PoolId
from sandboxd.model.pricing import Price
from sandboxd.model.sandbox import AgentEndpoint, Incarnation, Sandbox, SandboxState, Tier
from sandboxd.model.sources import Clock, IdSource
from sandboxd.model.startup import StartReport
from sandboxd.model.tokens import SANDBOX_TOKEN_LIFETIME, SandboxIdentity, SandboxToken
from sandboxd.stream.ports import CliPlace, Wakeups
from tests.fakes.accounting import FakeBudgetRepository, FakePriceRepository
from tests.fakes.accounts import FakeClientRepository, FakeFreelancerRepository, FakePlace, FakeQuotaRepository
from tests.fakes.agent import FakeAgent, FakeAgentConnector
from tests.fakes.backup_sets import FakeBackupSetRepository
from tests.fakes.drills import FakeDrillRepository
from tests.fakes.erasures import FakeErasureRepository, FakeKeyRepository
from tests.fakes.generations import FakeGenerationRepository
from tests.fakes.lifecycle import FakeLookRepository
from tests.fakes.packages import FakePackageRepository, FakeTurn
from tests.fakes.pools import FakePoolRepository
from tests.fakes.sboms import FakeSbomRepository

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class FakeClock(Clock):
    """Stands still until it is moved."""

    def __init__(self, at: datetime = NOON) -> None:
        self._now = at
        self._passed = 0.0

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._passed += seconds

    def step(self, seconds: float) -> None:
        """Somebody sets the clock: no time passes."""
        self._now += timedelta(seconds=seconds)

    @override
    def now(self) -> datetime:
        return self._now

    @override
    def monotonic(self) -> float:
        return self._passed


class FakeIds(IdSource):
    """Ids that grow."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = count(1)

    @override
    def new(self, prefix: str) -> str:
        return make_id(prefix, at=self._clock.now(), entropy=next(self._numbers).to_bytes(10, "big"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    operation: Operation
    until: datetime


@dataclass(kw_only=True)
class _Rows:
    sandboxes: dict[SandboxId, Sandbox] = field(default_factory=dict)
    incarnations: dict[IncarnationId, Incarnation] = field(default_factory=dict)
    requests: dict[tuple[ClientId, RequestId], RequestRecord] = field(default_factory=dict)
    leases: dict[SandboxId, _Lease] = field(default_factory=dict)
    clients: dict[ClientId, Client] = field(default_factory=dict)
    freelancers: dict[tuple[ClientId, FreelancerId], Freelancer] = field(default_factory=dict)
    seen: dict[IncarnationId, datetime] = field(default_factory=dict)
    budgets: dict[BudgetId, Budget] = field(default_factory=dict)
    prices: dict[str, Price] = field(default_factory=dict)
    erasures: dict[ErasureId, Erasure] = field(default_factory=dict)
    keys: dict[ClientId, ApiKey] = field(default_factory=dict)
    open_turns: list[FakePlace] = field(default_factory=list)
    places: dict[tuple[ClientId, RequestId], FakePlace] = field(default_factory=dict)
    looks: dict[SandboxId, Look] = field(default_factory=dict)
    look_times: dict[SandboxId, datetime] = field(default_factory=dict)
    pools: dict[PoolId, Pool] = field(default_factory=dict)
    members: dict[SandboxId, Member] = field(default_factory=dict)
    duties: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    generations: dict[GenerationId, Generation] = field(default_factory=dict)
    sboms: dict[GenerationId, ImageSbom] = field(default_factory=dict)
    backup_sets: dict[BackupSetId, BackupSet] = field(default_factory=dict)
    drills: dict[DrillId, Drill] = field(default_factory=dict)
    package_records: dict[SandboxId, PackageRecord] = field(default_factory=dict)
    package_changes: dict[SandboxId, list[KeptChange]] = field(default_factory=dict)
    package_turns: list[FakeTurn] = field(default_factory=list)

    def copy(self) -> _Rows:
        return _Rows(
            sandboxes=dict(self.sandboxes),
            incarnations=dict(self.incarnations),
            requests=dict(self.requests),
            leases=dict(self.leases),
            clients=dict(self.clients),
            freelancers=dict(self.freelancers),
            seen=dict(self.seen),
            budgets=dict(self.budgets),
            prices=dict(self.prices),
            erasures=dict(self.erasures),
            keys=dict(self.keys),
            open_turns=list(self.open_turns),
            places=dict(self.places),
            looks=dict(self.looks),
            look_times=dict(self.look_times),
            pools=dict(self.pools),
            members=dict(self.members),
            duties=dict(self.duties),
            generations=dict(self.generations),
            sboms=dict(self.sboms),
            backup_sets=dict(self.backup_sets),
            drills=dict(self.drills),
            package_records=dict(self.package_records),
            package_changes=dict(self.package_changes),
            package_turns=list(self.package_turns),
        )


class FakeUnits(UnitsOfWork):
    """The database, and the weather around it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows = _Rows()
        self.writing = asyncio.Lock()
        self.dead_replicas: set[str] = set()
        self.down = False
        self.answers_lost = 0
        """So many commits are made, and then fail as if the answer had been lost."""
        self.begun = 0
        """Transactions so far."""

    @override
    def begin(self) -> FakeUnitOfWork:
        self.begun += 1
        return FakeUnitOfWork(self)


class FakeUnitOfWork(UnitOfWork):
    """One transaction on a `FakeUnits`. Writers wait for each other as if every row were one."""

    def __init__(self, units: FakeUnits) -> None:
        self.units = units
        self._mine: _Rows | None = None
        self._sandboxes = _Sandboxes(self)
        self._incarnations = _Incarnations(self)
        self._requests = _Requests(self)
        self._operations = _Operations(self)
        self._clients = FakeClientRepository(self)
        self._freelancers = FakeFreelancerRepository(self)
        self._budgets = FakeBudgetRepository(self)
        self._prices = FakePriceRepository(self)
        self._quotas = FakeQuotaRepository(self)
        self._pools = FakePoolRepository(self)
        self._erasures = FakeErasureRepository(self)
        self._keys = FakeKeyRepository(self)
        self._looks = FakeLookRepository(self)
        self._generations = FakeGenerationRepository(self)
        self._packages = FakePackageRepository(self)
        self._sboms = FakeSbomRepository(self)
        self._backup_sets = FakeBackupSetRepository(self)
        self._drills = FakeDrillRepository(self)

    @property
    @override
    def sandboxes(self) -> SandboxRepository:
        return self._sandboxes

    @property
    @override
    def incarnations(self) -> IncarnationRepository:
        return self._incarnations

    @property
    @override
    def requests(self) -> RequestRepository:
        return self._requests

    @property
    @override
    def operations(self) -> OperationRepository:
        return self._operations

    @property
    @override
    def clients(self) -> ClientRepository:
        return self._clients

    @property
    @override
    def freelancers(self) -> FreelancerRepository:
        return self._freelancers

    @property
    @override
    def budgets(self) -> BudgetRepository:
        return self._budgets

    @property
    @override
    def prices(self) -> PriceRepository:
        return self._prices

    @property
    @override
    def erasures(self) -> ErasureRepository:
        return self._erasures

    @property
    @override
    def keys(self) -> KeyRepository:
        return self._keys

    @property
    @override
    def looks(self) -> LookRepository:
        return self._looks

    @property
    @override
    def pools(self) -> PoolRepository:
        return self._pools

    @property
    @override
    def generations(self) -> GenerationRepository:
        return self._generations

    @property
    @override
    def sboms(self) -> SbomRepository:
        return self._sboms

    @property
    @override
    def backup_sets(self) -> BackupSetRepository:
        return self._backup_sets

    @property
    @override
    def drills(self) -> DrillRepository:
        return self._drills

    @property
    @override
    def packages(self) -> PackageRepository:
        return self._packages

    @property
    @override
    def quotas(self) -> QuotaRepository:
        return self._quotas

    def now(self) -> datetime:
        return self.units.clock.now()

    def lives(self, replica: str) -> bool:
        return replica not in self.units.dead_replicas

    @override
    async def __aenter__(self) -> Self:
        return self

    @override
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @override
    async def commit(self) -> None:
        self._weather()
        if self._mine is not None:
            self.units.rows = self._mine
        self._end()
        if self.units.answers_lost:
            self.units.answers_lost -= 1
            raise DatabaseUnavailableError("The database does not answer. Try again.")

    async def write(self) -> _Rows:
        await asyncio.sleep(0)
        if self._mine is None:
            await self.units.writing.acquire()
            self._mine = self.units.rows.copy()
        self._weather()
        return self._mine

    async def read(self) -> _Rows:
        await asyncio.sleep(0)
        self._weather()
        return self._mine or self.units.rows

    def _weather(self) -> None:
        if self.units.down:
            raise DatabaseUnavailableError("The database does not answer. Try again.")

    def _end(self) -> None:
        if self._mine is not None:
            self._mine = None
            self.units.writing.release()


@dataclass
class _Repository:
    work: FakeUnitOfWork


class _Sandboxes(_Repository, SandboxRepository):
    @override
    async def get(self, sandbox: SandboxId, *, for_update: bool = False) -> Sandbox:
        rows = await (self.work.write() if for_update else self.work.read())
        found = rows.sandboxes.get(sandbox)
        if found is None:
            raise SandboxNotFoundError(sandbox)
        return found

    @override
    async def add(self, sandbox: Sandbox) -> None:
        rows = await self.work.write()
        assert (sandbox.client, sandbox.freelancer) in rows.freelancers, "no such freelancer"
        if sandbox.id in rows.sandboxes:
            raise AlreadyExistsError(f"Sandbox {sandbox.id} is already there.")
        rows.sandboxes[sandbox.id] = sandbox
        rows.look_times[sandbox.id] = sandbox.update_time

    @override
    async def create(self, sandbox: Sandbox, incarnation: Incarnation | None, record: RequestRecord) -> bool:
        if await self.work.requests.claim(record) is not None:
            return False
        await self.add(sandbox)
        if incarnation is not None:
            await self.work.incarnations.add(incarnation)
        return True

    @override
    async def save(self, sandbox: Sandbox) -> None:
        rows = await self.work.write()
        before = rows.sandboxes.get(sandbox.id)
        if before is None or before.version != sandbox.version - 1:
            raise ConflictError(f"Sandbox {sandbox.id} was changed by somebody else.")
        last = max(before.last_use_time, sandbox.last_use_time)
        rows.sandboxes[sandbox.id] = replace(
            sandbox,
            last_use_time=last,
            dirty_since=before.dirty_since,
            unsaved_packages=before.unsaved_packages,
        )
        rows.look_times[sandbox.id] = sandbox.update_time

    @override
    async def touch(self, sandbox: SandboxId, *, at: datetime) -> None:
        rows = await self.work.write()
        found = rows.sandboxes.get(sandbox)
        if found is not None and found.last_use_time < at:
            rows.sandboxes[sandbox] = replace(found, last_use_time=at)

    @override
    async def list(
        self, where: SandboxFilter, *, order: SandboxOrder, page_size: int, page_token: str
    ) -> Page[Sandbox]:
        rows = await self.work.read()
        by_use = order in (SandboxOrder.LAST_USE_TIME, SandboxOrder.LAST_USE_TIME_DESC)
        falling = order in (SandboxOrder.CREATE_TIME_DESC, SandboxOrder.LAST_USE_TIME_DESC)

        def key(sandbox: Sandbox) -> tuple[datetime, str]:
            return (sandbox.last_use_time if by_use else sandbox.create_time, sandbox.id)

        found = sorted(filter(where.matches, rows.sandboxes.values()), key=key, reverse=falling)
        if page_token:
            last = _read_token(page_token, where, order)
            found = [s for s in found if (key(s) < last if falling else key(s) > last)]
        page = found[:page_size]
        more = len(found) > page_size
        return Page(items=page, next_token=_make_token(key(page[-1]), where, order) if more else "")

    @override
    async def in_states(
        self, states: frozenset[SandboxState], *, limit: int, after: SandboxId | None = None
    ) -> Sequence[Sandbox]:
        rows = await self.work.read()
        return [
            rows.sandboxes[k] for k in sorted(rows.sandboxes) if rows.sandboxes[k].state in states and k > (after or "")
        ][:limit]

    @override
    async def find(self, sandboxes: Collection[SandboxId]) -> Mapping[SandboxId, Sandbox]:
        rows = await self.work.read()
        return {name: rows.sandboxes[name] for name in sandboxes if name in rows.sandboxes}


class _Incarnations(_Repository, IncarnationRepository):
    @override
    async def add(self, incarnation: Incarnation) -> None:
        rows = await self.work.write()
        if any(r.sandbox == incarnation.sandbox and r.end_time is None for r in rows.incarnations.values()):
            raise ConflictError(f"Sandbox {incarnation.sandbox} has another incarnation.")
        rows.incarnations[incarnation.id] = incarnation

    @override
    async def save(self, incarnation: Incarnation) -> None:
        rows = await self.work.write()
        before = rows.incarnations[incarnation.id]
        if before.end_time is not None:
            incarnation = replace(incarnation, end_time=before.end_time, end_reason=before.end_reason)
        rows.incarnations[incarnation.id] = incarnation

    @override
    async def get(self, incarnation: IncarnationId) -> Incarnation | None:
        return (await self.work.read()).incarnations.get(incarnation)

    @override
    async def current(self, sandbox: SandboxId) -> Incarnation | None:
        rows = await self.work.read()
        return next((r for r in rows.incarnations.values() if r.sandbox == sandbox and r.end_time is None), None)

    @override
    async def seen(self, incarnations: Sequence[IncarnationId], *, at: datetime) -> None:
        rows = await self.work.write()
        rows.seen.update(dict.fromkeys(incarnations, at))

    @override
    async def living(self, *, limit: int, after: IncarnationId | None = None) -> Sequence[Life]:
        rows = await self.work.read()
        found = sorted((r for r in rows.incarnations.values() if r.end_time is None), key=lambda r: r.id)
        return [Life(sandbox=rows.sandboxes[r.sandbox], incarnation=r) for r in found if r.id > (after or "")][:limit]


class _Requests(_Repository, RequestRepository):
    @override
    async def claim(self, record: RequestRecord) -> RequestRecord | None:
        rows = await self.work.write()
        key = (record.client, record.request_id)
        before = rows.requests.get(key)
        expired = before is not None and before.expire_time is not None and before.expire_time <= record.create_time
        if before is not None and not expired:
            return before
        rows.requests[key] = record
        return None

    @override
    async def get(self, client: ClientId, request_id: RequestId) -> RequestRecord | None:
        return (await self.work.read()).requests.get((client, request_id))

    @override
    async def finish(self, client: ClientId, request_id: RequestId, outcome: RequestOutcome) -> None:
        rows = await self.work.write()
        before = rows.requests.get((client, request_id))
        if before is not None and before.outcome is None:
            rows.requests[client, request_id] = replace(before, outcome=outcome)

    @override
    async def in_progress(self, sandbox: SandboxId) -> Sequence[RequestRecord]:
        rows = await self.work.read()
        found = [r for r in rows.requests.values() if r.sandbox == sandbox and r.outcome is None]
        return sorted(found, key=lambda record: record.create_time)

    @override
    async def forget_expired(self, *, at: datetime, limit: int) -> int:
        rows = await self.work.write()
        old = [k for k, r in rows.requests.items() if r.expire_time is not None and r.expire_time <= at][:limit]
        for key in old:
            del rows.requests[key]
        return len(old)


class _Operations(_Repository, OperationRepository):
    @override
    async def take(self, sandbox: SandboxId, operation: Operation, *, lease: timedelta) -> bool:
        rows = await self.work.write()
        held, now = rows.leases.get(sandbox), self.work.units.clock.now()
        if (
            held is not None
            and held.operation.id != operation.id
            and held.until > now
            and held.operation.replica not in self.work.units.dead_replicas
        ):
            return False
        rows.leases[sandbox] = _Lease(operation=operation, until=now + lease)
        return True

    @override
    async def renew(self, operations: Sequence[OperationId], *, lease: timedelta) -> Sequence[OperationId]:
        rows = await self.work.write()
        held = {k: v for k, v in rows.leases.items() if v.operation.id in operations}
        for sandbox, entry in held.items():
            rows.leases[sandbox] = replace(entry, until=self.work.units.clock.now() + lease)
        return [entry.operation.id for entry in held.values()]

    @override
    async def holds(self, sandbox: SandboxId, operation: OperationId) -> bool:
        held = (await self.work.read()).leases.get(sandbox)
        return held is not None and held.operation.id == operation

    @override
    async def release(self, sandbox: SandboxId, operation: OperationId) -> None:
        rows = await self.work.write()
        held = rows.leases.get(sandbox)
        if held is not None and held.operation.id == operation:
            del rows.leases[sandbox]


def _make_token(last: tuple[datetime, str], where: SandboxFilter, order: SandboxOrder) -> str:
    content = [last[0].isoformat(), last[1], repr(where), order.value]
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode()


def _read_token(token: str, where: SandboxFilter, order: SandboxOrder) -> tuple[datetime, str]:
    with contextlib.suppress(ValueError):
        moment, last, of, by = json.loads(base64.urlsafe_b64decode(token))
        if (of, by) == (repr(where), order.value):
            return datetime.fromisoformat(moment), last
    violation = FieldViolation(field="page_token", description="must be the token of a page of the same list")
    raise InvalidRequestError("The page token is not one of this list.", violations=[violation])


class FakeBackend(Backend):
    """Places sandboxes nowhere. Its agents are fakes that a `FakeAgentConnector` finds."""

    def __init__(self, connector: FakeAgentConnector | None = None) -> None:
        self.connector = connector or FakeAgentConnector()
        self.running: dict[SandboxId, dict[IncarnationId, AgentEndpoint]] = {}
        self.files: set[SandboxId] = set()
        self.kept: set[SandboxId] = set()
        self.owners: dict[SandboxId, FreelancerId] = {}
        """Whose each sandbox is, as the world was told last."""
        self.recipe = "one"
        self.starts = 0
        """How many agents were started, ever."""
        self.error: SandboxdError | None = None
        """What every change of the world fails with."""
        self.start_error: SandboxdError | None = None
        """What a start alone fails with."""
        self.pull: asyncio.Event | None = None
        """While set, starts say that they wait for an image, and wait for it."""
        self.on_erase: Callable[[SandboxId], object] = lambda _: None
        """What else goes with a sandbox."""
        self.hanging: asyncio.Event | None = None
        """While set, every change of the world waits for it."""
        self.keeps_root = True
        self.tiers: dict[SandboxId, Tier] = {}
        """What each was last asked to have."""
        self.shrunk: set[SandboxId] = set()
        """Those that were asked to take as little as they can."""
        self.images: dict[IncarnationId, str] = {}
        """What each life was started from; empty is the base."""
        self.next_images: dict[SandboxId, str] = {}
        """What each was told to start from next."""
        self.broken_images: set[str] = set()
        """What does not boot."""
        self.on_start: Callable[[SandboxSpec, AgentEndpoint, FakeAgent], None] = lambda _spec, _endpoint, _agent: None
        """Called with each agent that starts."""
        self.observed: Callable[[], None] = lambda: None
        """Called when somebody asks what is there of one."""
        self._ports = count(10_001)

    @override
    def describe(self) -> BackendDescription:
        return BackendDescription(
            name="fake",
            isolates=False,
            keeps_root=self.keeps_root,
            warning="Nothing is real.",
            recipe=self.recipe,
        )

    @override
    async def start(
        self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta, pulling: Told = untold
    ) -> AgentEndpoint:
        await self._weather()
        if self.start_error is not None:
            raise self.start_error
        if self.pull is not None:
            await pulling()
            await self.pull.wait()
        if spec.image in self.broken_images:
            raise ImageBrokenError(f"{spec.image} does not boot.", image=spec.image)
        self.owners[spec.sandbox] = spec.freelancer
        lives = self.running.setdefault(spec.sandbox, {})
        self.files.add(spec.sandbox)
        self.tiers[spec.sandbox] = spec.tier
        self.shrunk.discard(spec.sandbox)
        for other in [life for life in lives if life != incarnation]:
            self.kill(spec.sandbox, other)
        if incarnation not in lives:
            endpoint = AgentEndpoint(host="127.0.0.1", port=next(self._ports), server_name=f"{incarnation}.test")
            lives[incarnation] = endpoint
            self.images[incarnation] = spec.image
            self.next_images[spec.sandbox] = spec.image
            agent = FakeAgent(sandbox=spec.sandbox, incarnation=incarnation)
            self.connector.agents[_address(endpoint)] = agent
            self.starts += 1
            self.on_start(spec, endpoint, agent)
        return lives[incarnation]

    @override
    async def adopt(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._weather()
        if incarnation in self.running.get(spec.sandbox, {}):
            self.owners[spec.sandbox] = spec.freelancer

    @override
    def startup(self, incarnation: IncarnationId) -> StartReport | None:
        return None

    @override
    async def stop(
        self, sandbox: SandboxId, incarnation: IncarnationId, *, grace: timedelta, timeout: timedelta
    ) -> None:
        await self._weather()
        self.kill(sandbox, incarnation)

    @override
    async def resize(self, spec: SandboxSpec, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._weather()
        if incarnation in self.running.get(spec.sandbox, {}):
            self.tiers[spec.sandbox] = spec.tier

    @override
    async def shrink(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._weather()
        if incarnation in self.running.get(sandbox, {}):
            self.shrunk.add(sandbox)

    @override
    async def grow(self, sandbox: SandboxId, incarnation: IncarnationId, *, timeout: timedelta) -> None:
        await self._weather()
        if incarnation in self.running.get(sandbox, {}):
            self.shrunk.discard(sandbox)

    @override
    async def remove(self, sandbox: SandboxId, *, timeout: timedelta) -> str:
        await self._weather()
        for incarnation in list(self.running.get(sandbox, {})):
            self.kill(sandbox, incarnation)
        if sandbox in self.files:
            self.files.discard(sandbox)
            self.kept.add(sandbox)
        return f"/kept/{sandbox}" if sandbox in self.kept else ""

    @override
    async def measure(self, sandbox: SandboxId, *, timeout: timedelta) -> FilesSize:
        there = sandbox in self.files | self.kept
        return FilesSize(files=2 if there else 0, size_bytes=100 if there else 0)

    @override
    async def erase(self, sandbox: SandboxId, *, timeout: timedelta) -> None:
        await self.remove(sandbox, timeout=timeout)
        self.kept.discard(sandbox)
        self.on_erase(sandbox)

    @override
    async def observe(self, sandbox: SandboxId) -> Observation:
        self.observed()
        running = [RunningIncarnation(incarnation=i, endpoint=e) for i, e in self.running.get(sandbox, {}).items()]
        return Observation(
            sandbox=sandbox,
            present=sandbox in self.files,
            tier=self.tiers.get(sandbox),
            shrunk=sandbox in self.shrunk,
            running=running,
        )

    @override
    async def list(self) -> Sequence[Observation]:
        alive = {sandbox for sandbox, lives in self.running.items() if lives}
        return [await self.observe(sandbox) for sandbox in sorted(self.files | alive)]

    @override
    async def place(self, sandbox: SandboxId, incarnation: IncarnationId) -> CliPlace:
        if incarnation not in self.running.get(sandbox, {}):
            raise UnavailableError(f"Sandbox {sandbox} is not running.")
        return CliPlace(
            node="/node",
            entry="/gemini.js",
            home=f"/{sandbox}/home",
            workspace=f"/{sandbox}/workspace",
            settings=f"/{sandbox}/settings.json",
            model_endpoint="http://127.0.0.1:1",
            path="/bin",
        )

    def kill(self, sandbox: SandboxId, incarnation: IncarnationId) -> None:
        """The agent dies; also what a test does to it."""
        endpoint = self.running.get(sandbox, {}).pop(incarnation, None)
        if endpoint is not None:
            self.connector.agents[_address(endpoint)].die()

    def agent(self, sandbox: SandboxId) -> FakeAgent:
        """The agent of the one running incarnation."""
        (endpoint,) = self.running[sandbox].values()
        return self.connector.agents[_address(endpoint)]

    async def _weather(self) -> None:
        await asyncio.sleep(0)
        if self.hanging is not None:
            await self.hanging.wait()
        if self.error is not None:
            raise self.error


def _address(endpoint: AgentEndpoint) -> str:
    return f"{endpoint.host}:{endpoint.port}"


class FakeConversations(Conversations):
    """Turns that are open, and what became of the closing."""

    def __init__(self) -> None:
        self.turns: dict[SandboxId, int] = {}
        self.closed: list[tuple[SandboxId, str]] = []
        self.error: SandboxdError | None = None

    @override
    async def open_turns(self, sandbox: SandboxId) -> int:
        return self.turns.get(sandbox, 0)

    @override
    async def close(self, sandbox: SandboxId, *, reason: str, timeout: timedelta, only_idle: bool = False) -> None:
        if self.error is not None:
            raise self.error
        if only_idle and self.turns.get(sandbox):
            raise OpenTurnsError(sandbox, turns=self.turns[sandbox])
        self.closed.append((sandbox, reason))
        self.turns.pop(sandbox, None)


class FakeTokens(ModelTokens):
    """Tokens that say what they are."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._numbers = count(1)

    @override
    def mint(self, identity: SandboxIdentity) -> SandboxToken:
        text = f"token-{next(self._numbers)}-{identity.incarnation}"
        return SandboxToken(text=text, expire_time=self._clock.now() + SANDBOX_TOKEN_LIFETIME)


class FakeWakeups(Wakeups):
    """Hints between the replicas of one test."""

    def __init__(self) -> None:
        self._queues: dict[str, list[asyncio.Queue[str]]] = {}

    @override
    async def listen(self, topic: str) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._queues.setdefault(topic, []).append(queue)
        while True:
            yield await queue.get()

    @override
    async def notify(self, topic: str, payload: str) -> None:
        for queue in self._queues.get(topic, []):
            queue.put_nowait(payload)
