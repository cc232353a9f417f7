"""Clients and freelancers for hot paths: read once, kept for seconds, dropped when a hint says that they changed.

Bounded: the least recently used go first. Readers of the same entry share one read.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, assert_never

import structlog
from typing_extensions import override

from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.accounts import ClientPolicies, Standings
from sandboxd.model.client import AccountState, ClientPolicy, Standing
from sandboxd.model.client_errors import (
    ClientDeletedError,
    ClientSuspendedError,
    ClientUnknownError,
    FreelancerDeletedError,
    FreelancerSuspendedError,
    FreelancerUnknownError,
)
from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import ClientId, FreelancerId
from sandboxd.model.sources import Clock
from sandboxd.stream.ports import Wakeups

TOPIC: Final = "clients"
"""Hints about clients and their freelancers; the payload is the client's id."""
MAX_AGE_SECONDS: Final = 5.0
"""How old an answer may be where the hint of a change was lost."""
MAX_ENTRIES: Final = 10_000
RETRY_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)

_Key = tuple[ClientId, FreelancerId | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    standing: Standing
    read_at: float


class AccountCache(ClientPolicies, Standings):
    """What is known of clients and freelancers. `run` takes in the hints of other processes."""

    def __init__(
        self,
        *,
        units: UnitsOfWork,
        wakeups: Wakeups,
        clock: Clock,
        explicit: bool = False,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """Begin with nothing.

        Args:
            units: Where rows are read.
            wakeups: Where hints come from and go to.
            clock: Measures age.
            explicit: True where clients and freelancers must be made before they act.
            max_entries: Most entries that are kept.
        """
        self._units = units
        self._wakeups = wakeups
        self._clock = clock
        self._explicit = explicit
        self._max_entries = max_entries
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._reads: dict[_Key, asyncio.Task[Standing]] = {}
        self._waiters: defaultdict[ClientId | None, set[asyncio.Event]] = defaultdict(set)

    async def standing(self, client: ClientId, freelancer: FreelancerId | None = None) -> Standing:
        """A client, and one of its freelancers where one is named, at most five seconds old.

        Raises:
            DatabaseUnavailableError: They are not known and PostgreSQL does not answer.
        """
        key = (client, freelancer)
        entry = self._entries.get(key)
        if entry is not None and self._clock.monotonic() - entry.read_at < MAX_AGE_SECONDS:
            self._entries.move_to_end(key)
            return entry.standing
        read = self._reads.get(key)
        if read is None:
            read = asyncio.create_task(self._read(key), name=f"account-{client}")
            self._reads[key] = read
            read.add_done_callback(lambda done: self._read_ended(key, done))
        return await asyncio.shield(read)

    @override
    async def policy(self, client: ClientId) -> ClientPolicy:
        return (await self.standing(client)).policy

    @override
    async def require_active(self, client: ClientId, freelancer: FreelancerId | None) -> None:
        require_active(
            await self.standing(client, freelancer), client=client, freelancer=freelancer, explicit=self._explicit
        )

    @override
    async def wait_for_change(self, client: ClientId | None, *, timeout: timedelta) -> None:
        changed = asyncio.Event()
        self._waiters[client].add(changed)
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiters[client].discard(changed)
            if not self._waiters[client]:
                del self._waiters[client]

    async def announce(self, client: ClientId) -> None:
        """Forget a client that was changed here, and tell the other processes; after the commit."""
        self.forget(client)
        try:
            await self._wakeups.notify(TOPIC, client)
        except UnavailableError as error:
            log.warning("accounts.hint_not_sent", client=client, error=error.message)

    def forget(self, client: ClientId) -> None:
        """Read the client and its freelancers anew at the next question."""
        for key in [key for key in self._entries if key[0] == client]:
            del self._entries[key]
        for key in [key for key in self._reads if key[0] == client]:
            del self._reads[key]  # it may have begun before the change: those who wait get it, nobody after them
        for event in (*self._waiters.get(client, ()), *self._waiters.get(None, ())):
            event.set()

    async def run(self) -> None:
        """Take in the hints of other processes until cancelled."""
        while True:
            try:
                async for client in self._wakeups.listen(TOPIC):
                    self.forget(ClientId(client))
            except UnavailableError as error:
                log.warning("accounts.hints_interrupted", error=error.message)
            await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, key: _Key) -> Standing:
        client, freelancer = key
        read_at = self._clock.monotonic()
        async with self._units.begin() as work:
            standing = Standing(
                client=await work.clients.find(client),
                freelancer=None if freelancer is None else await work.freelancers.find(client, freelancer),
            )
        if self._reads.get(key) is asyncio.current_task():
            self._entries[key] = _Entry(standing=standing, read_at=read_at)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        return standing

    def _read_ended(self, key: _Key, done: asyncio.Task[Standing]) -> None:
        if self._reads.get(key) is done:
            del self._reads[key]
        if not done.cancelled():
            done.exception()  # whoever waits raises it; a reader that nobody waits for any more must not be loud


def require_active(standing: Standing, *, client: ClientId, freelancer: FreelancerId | None, explicit: bool) -> None:
    """Let pass who may act.

    Raises:
        ClientSuspendedError, ClientDeletedError, ClientUnknownError: The client may not.
        FreelancerSuspendedError, FreelancerDeletedError, FreelancerUnknownError: The freelancer may not.
    """
    if standing.client is None:
        if explicit:
            raise ClientUnknownError(client)
    else:
        match standing.client.state:
            case AccountState.ACTIVE:
                pass
            case AccountState.SUSPENDED:
                raise ClientSuspendedError(client)
            case AccountState.DELETING | AccountState.DELETED:
                raise ClientDeletedError(client)
            case other:
                assert_never(other)
    if freelancer is None:
        return
    if standing.freelancer is None:
        if explicit:
            raise FreelancerUnknownError(client, freelancer)
        return
    match standing.freelancer.state:
        case AccountState.ACTIVE:
            pass
        case AccountState.SUSPENDED:
            raise FreelancerSuspendedError(client, freelancer)
        case AccountState.DELETING | AccountState.DELETED:
            raise FreelancerDeletedError(client, freelancer)
        case other:
            assert_never(other)
