"""What this machine has of sandboxes, needed or not: their directories, and what broken work has put into them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from typing_extensions import override

from sandboxd.backends.local import processes
from sandboxd.backends.local.layout import LEAVING, Layout
from sandboxd.manager.abandoned_ports import AbandonedPlace
from sandboxd.model.abandoned import AbandonedKind, AbandonedReason, Thing
from sandboxd.model.errors import ConflictError, DeadlineError, UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.volumes.ports import STAGING
from sandboxd.volumes.removing import remove_tree

PREFIX = "sbx-"
"""Begins the ids of sandboxes: what has another name in our directories is not ours."""


class LocalDirectories(AbandonedPlace):
    """Looks at the data directory. A directory is known by inode and change time."""

    def __init__(self, *, data: Path) -> None:
        self._layout = Layout(data=data.absolute())

    @property
    @override
    def place(self) -> str:
        return "the data directory"

    @override
    async def look(self, *, timeout: timedelta) -> Sequence[Thing]:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                return await asyncio.to_thread(self._look)
        except OSError as error:
            raise UnavailableError(f"The data directory cannot be read: {error.strerror or error}.") from error
        except TimeoutError as error:
            raise DeadlineError("The data directory was not looked through in time.") from error

    @override
    async def remove(self, thing: Thing, *, timeout: timedelta) -> None:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await asyncio.to_thread(self._remove, thing)
        except OSError as error:
            raise UnavailableError(f"{thing.name} cannot be removed: {error.strerror or error}.") from error
        except TimeoutError as error:
            raise DeadlineError(f"{thing.name} is still being removed.") from error

    def _look(self) -> list[Thing]:
        found = []
        for root in (self._layout.sandboxes, self._layout.kept):
            for place in sorted(root.iterdir()) if root.is_dir() else ():
                if place.name.startswith(LEAVING):
                    found.append(_thing(place, AbandonedKind.LEFTOVER, said=AbandonedReason.EXPIRED))
                elif place.name.startswith(PREFIX) and place.is_dir():
                    sandbox = SandboxId(place.name)
                    found.append(_thing(place, AbandonedKind.VOLUME, sandbox=sandbox))
                    found += [
                        _thing(left, AbandonedKind.LEFTOVER, sandbox=sandbox, said=AbandonedReason.EXPIRED)
                        for volume in (place / "home", place / "workspace")
                        if volume.is_dir()
                        for left in sorted(volume.glob(f"{STAGING}*"))
                    ]
        return found

    def _remove(self, thing: Thing) -> None:
        place = Path(thing.name)
        if _identity(place) != thing.identity:
            return
        agents = processes.find_agents(self._layout)
        if thing.kind is AbandonedKind.VOLUME and any(agent.sandbox == thing.sandbox for agent in agents):
            raise ConflictError(f"An agent runs in {thing.name}.")
        remove_tree(os.fsencode(place))


def _thing(
    place: Path, kind: AbandonedKind, *, sandbox: SandboxId | None = None, said: AbandonedReason | None = None
) -> Thing:
    return Thing(
        kind=kind,
        name=str(place),
        identity=_identity(place),
        size_bytes=_size(place),
        storage="local",
        sandbox=sandbox,
        said=said,
    )


def _identity(place: Path) -> str:
    try:
        status = place.lstat()
    except FileNotFoundError:
        return ""
    return f"{status.st_dev}-{status.st_ino}"


def _size(place: Path) -> int:
    size = 0
    for directory, _, names in os.walk(place):
        for name in names:
            try:
                size += (Path(directory) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return size
