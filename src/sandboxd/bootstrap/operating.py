"""What operators reach of one replica: its doors, its sweeps and its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from typing_extensions import override

from sandboxd import __version__
from sandboxd.api.web.operations import OperationsServer
from sandboxd.bootstrap.image_care import ImageCareRoom, sweep_images
from sandboxd.bootstrap.observing import Observation
from sandboxd.manager.administration import Administration, Doors, Sweep, Swept
from sandboxd.manager.push_holding import PushHolding
from sandboxd.manager.recovery import Recovery
from sandboxd.manager.sweep import Sweep as LifecycleSweep
from sandboxd.model.sources import Clock
from sandboxd.monitor.sweep import OrphanSweep
from sandboxd.persistence.engine import Database
from sandboxd.persistence.installation import PostgresInstallation
from sandboxd.persistence.retention import forget_commands
from sandboxd.stream.custody import Custody

BATCH: Final = 1000


class Entrance(Protocol):
    """The gRPC server, as its doors see it."""

    async def pause(self) -> None:
        """Refuse new streams and end the open ones."""
        ...

    async def resume(self) -> None:
        """Take streams again."""
        ...


class ReplicaDoors(Doors):
    """Closes and opens a replica."""

    def __init__(self, *, web: OperationsServer, custody: Custody) -> None:
        self._web = web
        self._custody = custody
        self.entrance: Entrance | None = None
        """Set once the server is made, which knows the administration that knows these doors."""

    @override
    async def close(self) -> int:
        self._web.set_ready(ready=False)
        if self.entrance is not None:
            await self.entrance.pause()
        held = self._custody.owned
        await self._custody.drain()
        return held

    @override
    async def open(self) -> None:
        self._custody.undrain()
        if self.entrance is not None:
            await self.entrance.resume()
        self._web.set_ready(ready=True)


def make_administration(
    *,
    database: Database,
    doors: ReplicaDoors,
    seen: Observation,
    recovery: Recovery,
    usage: OrphanSweep,
    lifecycle: LifecycleSweep,
    images: ImageCareRoom | None,
    pushes: PushHolding,
    replica: str,
    clock: Clock,
) -> Administration:
    """Join what operators ask for with what does it."""
    return Administration(
        installation=PostgresInstallation(database),
        doors=doors,
        sweeps=_sweeps(database, recovery, usage, lifecycle, images),
        rehearsals={
            Sweep.LIFECYCLE: lambda: _rehearse(lifecycle),
            Sweep.IMAGES: lambda: sweep_images(images, dry_run=True),
        },
        pushes=pushes,
        figures=lambda: seen.figures(replica=replica, version=__version__),
        clock=clock,
    )


def _sweeps(
    database: Database,
    recovery: Recovery,
    usage: OrphanSweep,
    lifecycle: LifecycleSweep,
    images: ImageCareRoom | None,
) -> Mapping[Sweep, Callable[[], Awaitable[Swept]]]:
    async def recover() -> Swept:
        return Swept(done=await recovery.finish_left_over())

    async def inspect() -> Swept:
        found = await recovery.inspect()
        kinds = {
            "sandbox_unknown": found.sandboxes,
            "incarnation_unknown": found.incarnations,
            "files_missing": found.missing,
        }
        return Swept(names=[f"{kind} {name}" for kind, names in kinds.items() for name in sorted(names)])

    async def settle() -> Swept:
        done = 0
        while changed := await usage.run():
            done += changed
        return Swept(done=done)

    async def forget() -> Swept:
        done = 0
        while (forgotten := await forget_commands(database, limit=BATCH)) == BATCH:
            done += forgotten
        return Swept(done=done + forgotten)

    async def rest() -> Swept:
        report = await lifecycle.run(everything=True)
        return Swept(done=report.announced + report.taken)

    return {
        Sweep.RECOVERY: recover,
        Sweep.ORPHANS: inspect,
        Sweep.USAGE: settle,
        Sweep.RETENTION: forget,
        Sweep.LIFECYCLE: rest,
        Sweep.IMAGES: lambda: sweep_images(images),
    }


async def _rehearse(lifecycle: LifecycleSweep) -> Swept:
    return Swept(plans=(await lifecycle.run(dry_run=True)).plans)
