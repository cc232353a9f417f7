"""What removed sandboxes have left on this machine: one directory each, with home and workspace in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from typing_extensions import override

from sandboxd.backends.local.layout import Layout
from sandboxd.manager.release_ports import KeptVolume, KeptVolumes
from sandboxd.model.errors import DeadlineError, UnavailableError
from sandboxd.model.ids import SandboxId

_Found = TypeVar("_Found")


class LocalKeptVolumes(KeptVolumes):
    """Knows a directory by its inode and the moment when it was put where it is."""

    def __init__(self, *, data: Path) -> None:
        self._layout = Layout(data=data.absolute())

    @override
    async def find(self, sandbox: SandboxId, *, timeout: timedelta) -> Sequence[KeptVolume]:
        return await _on_disk(sandbox, timeout, lambda: self._find(sandbox))

    @override
    async def release(self, sandbox: SandboxId, volumes: Sequence[KeptVolume], *, timeout: timedelta) -> None:
        wanted = frozenset(one.identity for one in volumes)
        await _on_disk(sandbox, timeout, lambda: self._layout.release(sandbox, wanted))

    def _find(self, sandbox: SandboxId) -> Sequence[KeptVolume]:
        identity = self._layout.identity_of_kept(sandbox)
        if identity is None or self._layout.sandbox(sandbox).present:
            return []
        _, size = self._layout.measure(sandbox)
        return [KeptVolume(name=str(self._layout.kept / sandbox), identity=identity, size_bytes=size)]


async def _on_disk(sandbox: SandboxId, timeout: timedelta, work: Callable[[], _Found]) -> _Found:
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            return await asyncio.to_thread(work)
    except OSError as error:
        text = f"The kept files of sandbox {sandbox} cannot be worked on: {error.strerror or error} ({error.filename})."
        raise UnavailableError(text, sandbox=sandbox) from error
    except TimeoutError as error:
        raise DeadlineError(f"The kept files of sandbox {sandbox} are still there.", sandbox=sandbox) from error
