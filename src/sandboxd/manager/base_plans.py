"""What an upgrade of a sandbox's base would do: which packages are made again, and what cannot be. Changes nothing.

Which packages there are was noticed by the agent and is in the database; what bases and the image's own layer have is
read from the registry, so nothing has to run for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from sandboxd.images.baseline_file import read_records
from sandboxd.images.ports import Baseline, Baselines, ImageReference, RunningImages
from sandboxd.manager.ports import UnitOfWork, UnitsOfWork
from sandboxd.model.commit_errors import PackagesUnknownError
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.image import LISTED, Generation, LeftOutPaths
from sandboxd.model.image_errors import BaselineDamagedError
from sandboxd.model.package_history import PackageRecord
from sandboxd.model.replay import (
    BasePackages,
    PlannedPackage,
    ReplayAction,
    is_by_hand,
    packages_in,
    plan_packages,
)
from sandboxd.model.rootfs import EntryKind
from sandboxd.model.sandbox import Sandbox

BY_HAND: Final = "by_hand"
"""Reason for a file that no package manager has put where it lies."""
_READS: Final = 3
"""A file of the cache may be let go between being asked for and being read."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What an upgrade would do."""

    new_base: ImageReference
    """What sandboxes without an image of their own start from now."""
    image: Generation | None = None
    """What the sandbox's next start takes; None where that is the base: then there is nothing to upgrade."""
    old_base: ImageReference | None = None
    packages: Sequence[PlannedPackage] = ()
    """What was asked for beyond the old base, in the order to install; empty where nothing is to be upgraded."""
    left_out: Sequence[LeftOutPaths] = ()
    """What would be lost of files."""

    @property
    def needed(self) -> bool:
        """True when the sandbox has an image on another base than the present one."""
        return self.old_base is not None and self.old_base.digest != self.new_base.digest

    @property
    def replayed(self) -> list[PlannedPackage]:
        """What is to be installed."""
        return [one for one in self.packages if one.action is ReplayAction.INSTALL]

    @property
    def lost(self) -> list[str]:
        """What is known before to be lost, in words."""
        impossible = [one.package.key.name for one in self.packages if one.action is ReplayAction.IMPOSSIBLE]
        return [*impossible, *(path for one in self.left_out for path in one.paths)]


@dataclass(slots=True, kw_only=True)
class BasePlans:
    """Makes plans."""

    units: UnitsOfWork
    running: RunningImages
    baselines: Baselines

    async def plan(self, sandbox: Sandbox, *, timeout: timedelta) -> BasePlan:
        """Say what an upgrade of a sandbox's base would do.

        Raises:
            PackagesUnknownError: What is installed in its image is not known, so nothing could be made again.
            ImageUnnamedError: The template names its image by a tag.
            ImageInvalidError: An image is damaged, or not made on the base that its row names.
            UnavailableError: The template's image is not known, or the registry does not answer.
            DeadlineError: The images were not read within `timeout`; what was read so far stays in the cache.
        """
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await self._plan(sandbox, timeout)
        except TimeoutError as error:
            raise DeadlineError(
                f"What an upgrade of sandbox {sandbox.id} would do was not found out in time. Try again: what was "
                "read of images is kept.",
                sandbox=sandbox.id,
            ) from error

    async def _plan(self, sandbox: Sandbox, timeout: timedelta) -> BasePlan:
        new_base = await self.running.base()
        async with self.units.begin() as work:
            active, record = await self._present(work, sandbox)
        if active is None:
            return BasePlan(new_base=new_base)
        try:
            old_base = ImageReference.parse(active.base)
        except ValueError as error:
            raise UnavailableError(f"The base of {active.tag} is not known.", image=active.tag) from error
        plan = BasePlan(new_base=new_base, image=active, old_base=old_base)
        if not plan.needed:
            return plan
        if record is None or not record.complete or active.given_up == record.incarnation:
            raise PackagesUnknownError(
                f"It is not known what is installed in {active.tag} of sandbox {sandbox.id}: the sandbox has not been "
                "looked into as it runs from this image. Start it, wait until its packages are listed, and stop it.",
                sandbox=sandbox.id,
                image=active.tag,
            )
        old, settings = await read_kept(lambda: self.baselines.baseline(old_base, timeout=timeout), _old_base)
        new = await read_kept(lambda: self.baselines.baseline(new_base, timeout=timeout), _new_base)
        by_hand = await read_kept(
            lambda: self.baselines.layer(ImageReference.parse(active.reference), base=old_base, timeout=timeout),
            lambda layer: _by_hand(layer, settings),
        )
        known = [one.package for one in record.known.values()]
        return BasePlan(
            new_base=new_base,
            image=active,
            old_base=old_base,
            packages=plan_packages(known, old=old, new=new),
            left_out=[by_hand] if by_hand.count else [],
        )

    async def _present(self, work: UnitOfWork, sandbox: Sandbox) -> tuple[Generation | None, PackageRecord | None]:
        if sandbox.image is None:
            return None, None
        return await work.generations.get(sandbox.image.generation), await work.packages.get(sandbox.id)


async def read_kept(find: Callable[[], Awaitable[Baseline]], read: Callable[[Baseline], _T]) -> _T:
    """Read a file of the cache in a thread; where it is gone or damaged meanwhile, have it made again.

    Raises:
        BaselineDamagedError: It was so each time.
    """
    for _ in range(_READS - 1):
        with contextlib.suppress(BaselineDamagedError):
            return await asyncio.to_thread(read, await find())
    return await asyncio.to_thread(read, await find())


def some_paths(reason: str, paths: Sequence[bytes]) -> LeftOutPaths:
    """Tell paths for people: how many, and a few of them."""
    shown = tuple(path.decode("utf-8", "backslashreplace") for path in paths[:LISTED])
    return LeftOutPaths(reason=reason, count=len(paths), paths=shown)


def _old_base(base: Baseline) -> tuple[BasePackages, frozenset[bytes]]:
    """What is installed in it, and its settings."""
    paths = [record.entry.path for record in read_records(base.file)]
    return packages_in(paths), frozenset(path for path in paths if path.startswith(b"etc/"))


def _new_base(base: Baseline) -> BasePackages:
    return packages_in(record.entry.path for record in read_records(base.file))


def _by_hand(layer: Baseline, settings: frozenset[bytes]) -> LeftOutPaths:
    found = [
        record.entry.path
        for record in read_records(layer.file)
        if record.entry.kind is not EntryKind.DIRECTORY
        and is_by_hand(record.entry.path, in_old_base=record.entry.path in settings)
    ]
    return some_paths(BY_HAND, found)
