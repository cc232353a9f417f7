"""All sandboxes of the installation as the one shared watch shows them, and waiting for one to change.

There is one watch for all of them, and none for each; nothing is polled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import structlog

from sandboxd.backends.kubernetes.objects import ALL_SANDBOXES
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.backends.kubernetes.refusals import ClusterUnavailableError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import INSTANCE_LABEL
from sandboxd.model.ids import SandboxId

SYNC_TIMEOUT: Final = timedelta(seconds=10)
_Answer = TypeVar("_Answer")

log = structlog.get_logger(__name__)


class Mirror:
    """The sandboxes by id. `run` must run beside it."""

    def __init__(self, api: KubeApi, *, instance: str) -> None:
        self._reflector = Reflector(api, ALL_SANDBOXES, label_selector=f"{INSTANCE_LABEL}={instance}")
        self._reflector.listen(self._take)
        self._placed: dict[SandboxId, Placed] = {}
        self._waiting: dict[SandboxId, set[asyncio.Event]] = {}

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        await self._reflector.run()

    def get(self, sandbox: SandboxId) -> Placed | None:
        """A sandbox as it was last seen."""
        return self._placed.get(sandbox)

    async def all(self) -> Sequence[Placed]:
        """All sandboxes.

        Raises:
            ClusterUnavailableError: They are not known, or were known and may have changed since.
        """
        try:
            async with asyncio.timeout(SYNC_TIMEOUT.total_seconds()):
                await self._reflector.wait_synced()
        except TimeoutError:
            pass
        if not self._reflector.synced or self._reflector.problem is not None:
            cause = self._reflector.problem
            raise ClusterUnavailableError(
                "The cluster's sandboxes cannot be listed now: "
                + (cause.message if cause is not None else "the API server has not answered yet."),
                retry_after=timedelta(seconds=2),
            )
        return list(self._placed.values())

    async def wait(
        self, sandbox: SandboxId, look: Callable[[Placed | None], _Answer | None], *, seconds: float
    ) -> _Answer | None:
        """Look at a sandbox at each change until that answers something; None when the time is over."""
        changed = asyncio.Event()
        self._waiting.setdefault(sandbox, set()).add(changed)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    changed.clear()
                    answer = look(self._placed.get(sandbox))
                    if answer is not None:
                        return answer
                    await changed.wait()
        except TimeoutError:
            return None
        finally:
            waiting = self._waiting[sandbox]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[sandbox]

    def _take(self, key: Key, obj: Json | None) -> None:
        sandbox = SandboxId(key[1])
        if obj is None:
            known = self._placed.get(sandbox)
            if known is None or known.namespace != key[0]:
                return
            del self._placed[sandbox]
        else:
            try:
                self._placed[sandbox] = Placed.of(obj)
            except (KeyError, ValueError, TypeError) as error:
                log.warning("cluster.sandbox_unreadable", sandbox=sandbox, error=repr(error))
                return
        for changed in self._waiting.get(sandbox, ()):
            changed.set()
