"""The gate that every write to the registry passes: open, unless somebody holds pushes.

What belongs together passes once: blobs without the manifest that names them are garbage to whoever collects it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from typing_extensions import override

from sandboxd.images.registry import NO_COMMIT, Manifest, Registry, Sent
from sandboxd.manager.cut_short import unless_cut_short
from sandboxd.manager.push_hold_ports import PushHolds, PushId
from sandboxd.model.errors import DeadlineError, SandboxdError, StaleOwnerError
from sandboxd.model.image import GenerationId
from sandboxd.model.push_hold import PushesHeldError

T = TypeVar("T")

LEASE: Final = timedelta(seconds=60)
"""How long a push counts whose process has died, and how long one goes on while the database is away."""
MARGIN: Final = timedelta(seconds=5)
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 10.0
"""Seconds between looks at whether a hold has ended."""

_inside: ContextVar[bool] = ContextVar("sandboxd_push", default=False)

log = structlog.get_logger(__name__)


class PushGate:
    """Lets pushes through, and keeps each on record while it writes."""

    def __init__(
        self,
        holds: PushHolds | None,
        *,
        outlives: timedelta = timedelta(0),
        lease: timedelta = LEASE,
        pause: float = FIRST_PAUSE,
    ) -> None:
        """Keep how pushes are noted.

        Args:
            holds: Where; None where nobody can hold them.
            outlives: How long a commit's push may go on without its process, as builds in pods of their own do.
            lease: Of a push.
            pause: Before the second look at a hold.
        """
        self._holds = holds
        self._outlives = outlives
        self._lease = lease
        self._pause = pause

    async def require_open(self) -> None:
        """Return where nobody holds pushes now.

        Raises:
            PushesHeldError: Somebody does.
        """
        found = None if self._holds is None else await self._holds.present()
        if found is not None and found.running:
            raise PushesHeldError(found)

    async def carried(
        self, work: Callable[[], Coroutine[Any, Any, T]], *, patient: bool, waits: Callable[[], None], name: str
    ) -> T:
        """Carry work out as one push, however long it takes.

        Args:
            work: What pushes. Any: what a coroutine sends and takes is asyncio's.
            patient: Wait for the end of a hold; else it is an error.
            waits: Told when it has to wait.
            name: For the names of tasks.

        Raises:
            PushesHeldError: Pushes are held, and it is not patient.
            StaleOwnerError: The push could not be kept on record: a hold may begin.
            SandboxdError: What the work failed with.
        """
        holds = self._holds
        if holds is None:
            return await work()
        push = await self._admitted(holds, patient=patient, waits=waits)
        entered = _inside.set(True)
        linger = self._outlives and self._lease
        try:
            done = await unless_cut_short(work(), self._keep(holds, push), name=f"{name}-push")
            linger = timedelta(0)
            return done
        finally:
            _inside.reset(entered)
            await asyncio.shield(self._end(holds, push, linger=linger))

    @asynccontextmanager
    async def together(self, *, timeout: timedelta) -> AsyncIterator[None]:
        """Let writes of a moment be one push, and end them after `timeout`.

        Raises:
            PushesHeldError: Pushes are held.
            DeadlineError: The time is over.
        """
        holds = self._holds
        if holds is None or _inside.get():
            yield
            return
        push = PushId(uuid.uuid4().hex)
        await holds.begin_push(push, lease=timeout + MARGIN)
        entered = _inside.set(True)
        scope = asyncio.timeout(timeout.total_seconds())
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError("The registry did not take it in time. Try again.") from error
        finally:
            _inside.reset(entered)
            await asyncio.shield(self._end(holds, push, linger=timedelta(0)))

    async def _admitted(self, holds: PushHolds, *, patient: bool, waits: Callable[[], None]) -> PushId:
        push, pause = PushId(uuid.uuid4().hex), self._pause
        while True:
            try:
                await holds.begin_push(push, lease=max(self._lease, self._outlives))
            except PushesHeldError as held:
                if not patient:
                    raise
                log.info("push.waits", until=held.metadata["until"], holder=held.metadata["holder"])
                waits()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return push

    async def _keep(self, holds: PushHolds, push: PushId) -> SandboxdError:
        """Keep a push on record; answers once it is not, so that it ends before a hold is granted."""
        loop = asyncio.get_running_loop()
        known = loop.time()
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 4)
            asked = loop.time()
            try:
                async with asyncio.timeout(self._lease.total_seconds() / 8):
                    if not await holds.renew_push(push, lease=self._lease):
                        return StaleOwnerError("A push was not kept on record for too long, and was ended.")
                known = asked
            except (SandboxdError, TimeoutError) as error:
                log.warning("push.not_renewed", error=str(error))
            if loop.time() - known > self._lease.total_seconds() / 2:
                return StaleOwnerError("The database is away, and a push cannot be kept on record: it was ended.")

    async def _end(self, holds: PushHolds, push: PushId, *, linger: timedelta) -> None:
        try:
            await holds.end_push(push, linger=linger)
        except SandboxdError as error:  # its lease ends
            log.warning("push.not_ended", error=error.message)


FREE: Final = PushGate(None)
"""Where nobody can hold pushes."""


class GatedRegistry(Registry):
    """A registry whose writes pass the gate, each by itself where nobody has let them pass together."""

    def __init__(self, registry: Registry, gate: PushGate) -> None:
        """Stand before a registry; `inner` is that one, whose writes pass nothing."""
        self.inner = registry
        self._gate = gate

    @override
    async def manifest(self, repository: str, reference: str, *, timeout: timedelta) -> Manifest:
        return await self.inner.manifest(repository, reference, timeout=timeout)

    @override
    def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        return self.inner.blob(repository, digest, size=size, timeout=timeout)

    @override
    async def has_blob(self, repository: str, digest: str, *, timeout: timedelta) -> bool:
        return await self.inner.has_blob(repository, digest, timeout=timeout)

    @override
    async def tags(self, repository: str, *, timeout: timedelta) -> Sequence[str]:
        return await self.inner.tags(repository, timeout=timeout)

    @override
    async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
        return await self.inner.attached(repository, subject, timeout=timeout)

    @override
    async def mount(self, repository: str, digest: str, *, source: str, timeout: timedelta) -> bool:
        async with self._gate.together(timeout=timeout):
            return await self.inner.mount(repository, digest, source=source, timeout=timeout)

    @override
    async def copy(
        self,
        repository: str,
        digest: str,
        *,
        size: int,
        source: str,
        timeout: timedelta,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.copy(repository, digest, size=size, source=source, timeout=timeout, commit=commit)

    @override
    async def upload(
        self,
        repository: str,
        content: Path | bytes,
        *,
        digest: str,
        timeout: timedelta,
        sent: Sent | None = None,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.upload(repository, content, digest=digest, timeout=timeout, sent=sent, commit=commit)

    @override
    async def cancel_upload(self, repository: str, location: str, *, timeout: timedelta) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.cancel_upload(repository, location, timeout=timeout)

    @override
    async def find_upload(self, repository: str, location: str, *, timeout: timedelta) -> int | None:
        return await self.inner.find_upload(repository, location, timeout=timeout)

    @override
    async def push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.push(repository, reference, manifest, timeout=timeout)

    @override
    async def delete(self, repository: str, digest: str, *, timeout: timedelta) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.delete(repository, digest, timeout=timeout)

    @override
    async def attach(self, repository: str, tag: str, manifest: Manifest, *, timeout: timedelta) -> None:
        async with self._gate.together(timeout=timeout):
            await self.inner.attach(repository, tag, manifest, timeout=timeout)

    @override
    async def detach(self, repository: str, subject: str, *, timeout: timedelta) -> int:
        async with self._gate.together(timeout=timeout):
            return await self.inner.detach(repository, subject, timeout=timeout)
