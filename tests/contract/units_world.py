"""What the suite of the unit of work needs to be told about the world around it, and that world in memory.

The PostgreSQL leg gives another `UnitsWorld` through the fixture `postgres_units_world` (tests/contract/conftest.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sandboxd.manager.ports import UnitsOfWork
from tests.fakes.manager import FakeClock, FakeUnits


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
