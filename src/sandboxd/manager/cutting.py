"""A reading of volumes that goes on after the moment that it is of: a storage cuts at once, and is ready much later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from sandboxd.volumes.ports import TakenVolumes, VolumesProgress

Begin = Callable[[Callable[[VolumesProgress], None]], Coroutine[Any, Any, TakenVolumes]]
"""Begins a reading that tells its progress. Any: what a coroutine sends and takes is asyncio's."""


class Cutting:
    """One reading. Whoever leaves it before its end cancels it."""

    def __init__(self, begin: Begin, *, progress: Callable[[VolumesProgress], None], name: str) -> None:
        self._begin = begin
        self._progress = progress
        self._name = name
        self._cut = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Begin it; nothing is awaited here."""
        self._task = asyncio.create_task(self._begin(self._told), name=self._name)
        self._task.add_done_callback(lambda _: self._cut.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See that nothing of it runs here."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def cut(self) -> None:
        """Wait until nothing that is written from now on comes into it. Raises what it failed with before that."""
        await self._cut.wait()
        if self._task.done():
            self._task.result()

    async def taken(self) -> TakenVolumes:
        """Wait for its end. Raises what it failed with."""
        return await self._task

    def _told(self, said: VolumesProgress) -> None:
        if said.cut:
            self._cut.set()
        else:
            self._progress(said)
