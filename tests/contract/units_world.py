"""What the suite of the unit of work needs to be told about the world around it, and that world in memory.

The PostgreSQL leg gives another `UnitsWorld` through the fixture `postgres_units_world` (tests/contract/conftest.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Protocol

from sandboxd.manager.ports import UnitsOfWork
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId, make_id
from sandboxd.model.sandbox import Sandbox
from tests.fakes.manager import FakeClock, FakeUnits

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
ACME, ADA = ClientId("acme"), FreelancerId("ada")
_numbers = count(1)


class UnitsWorld(Protocol):
    """Units of work, and what others do around them."""

    @property
    def units(self) -> UnitsOfWork: ...

    async def given_replica(self, replica: str) -> None:
        """That replica lives from now on."""

    async def kill_replica(self, replica: str) -> None: ...

    async def pass_time(self, seconds: float) -> None:
        """So much time passes by the database's clock; a real one may have to wait."""


@dataclass(kw_only=True)
class FakeUnitsWorld:
    clock: FakeClock = field(default_factory=FakeClock)
    units: FakeUnits = field(init=False)

    def __post_init__(self) -> None:
        self.units = FakeUnits(self.clock)

    async def given_replica(self, replica: str) -> None:
        self.units.dead_replicas.discard(replica)

    async def kill_replica(self, replica: str) -> None:
        self.units.dead_replicas.add(replica)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


def an_id(prefix: str) -> str:
    """A new one of this kind; those that come later sort behind."""
    return make_id(prefix, at=NOON, entropy=next(_numbers).to_bytes(10, "big"))


async def given_sandbox(world: UnitsWorld, *, client: ClientId = ACME, freelancer: FreelancerId = ADA) -> Sandbox:
    """A sandbox in the world, of a freelancer who is known."""
    sandbox = Sandbox(
        id=SandboxId(an_id("sbx")),
        client=client,
        freelancer=freelancer,
        create_time=NOON,
        update_time=NOON,
        last_use_time=NOON,
    )
    async with world.units.begin() as work:
        await work.freelancers.ensure(sandbox.client, sandbox.freelancer, at=NOON)
        await work.sandboxes.add(sandbox)
        await work.commit()
    return sandbox
