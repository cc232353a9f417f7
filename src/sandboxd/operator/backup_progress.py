"""How far the pod of a `SandboxBackup` is, from the end of its log.

The pod has no token and nobody reaches it: the kubelet is asked, over the API server, for some lines at a time. What a
line says is believed as far as it counts something, and never goes back.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.kubeapi.errors import KubeError
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.backup import BackupSetProgress
from sandboxd.model.cluster_backup import (
    BACKUP_CONTAINER,
    NEEDS_VOLUMES,
    PROGRESS_EVENT,
    BackupState,
    BackupWorkStatus,
    progress_from_mapping,
)
from sandboxd.model.sources import Clock
from sandboxd.operator.backing_up import BackupWorld
from sandboxd.operator.backup_shape import pod_name
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import WorkKey

LOOK_EVERY: Final = timedelta(seconds=2)
"""Between two looks at one pod, and so between two writes of its progress."""
LOOK_LATER: Final = timedelta(seconds=15)
"""After one that was not answered."""
LOOK_TIMEOUT: Final = timedelta(seconds=3)
"""A worker of the operator waits for it."""
TAIL: Final = {"container": BACKUP_CONTAINER, "tailLines": "10", "limitBytes": "16384"}

log = structlog.get_logger(__name__)


class BackupProgressReader:
    """Looks at pods that work, each from time to time. What it remembers is gone with the work."""

    def __init__(self, api: KubeApi, *, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._next: dict[WorkKey, float] = {}
        """When, by the clock, each may be looked at again."""

    def forget(self, key: WorkKey) -> None:
        """There is nothing to look at any more."""
        self._next.pop(key, None)

    async def read(
        self, key: WorkKey, world: BackupWorld, status: BackupWorkStatus
    ) -> tuple[BackupWorkStatus, float | None]:
        """Answer the status with how far its pod is, and in how many seconds to look again; None: not at all."""
        if status.state is not BackupState.RUNNING or world.work.action not in NEEDS_VOLUMES:
            self.forget(key)
            return status, None
        now = self._clock.monotonic()
        left = self._next.get(key, now) - now
        if left > 0:
            return status, left
        path = f"{Kind.POD.path(key.namespace, pod_name(key.backup, world.attempt))}/log"
        try:
            said = last_progress(await self._api.text(path, query=TAIL, timeout=LOOK_TIMEOUT))
            wait = LOOK_EVERY.total_seconds()
        except KubeError as error:
            log.info("operator.backup_log_unread", namespace=key.namespace, backup=key.backup, error=error.message)
            said, wait = None, LOOK_LATER.total_seconds()
        self._next[key] = self._clock.monotonic() + wait
        return (status if said is None else replace(status, progress=said.after(status.progress))), wait


def last_progress(text: str) -> BackupSetProgress | None:
    """What the last line says that tells of progress; None where none does."""
    for line in reversed(text.splitlines()):
        with suppress(KeyError, TypeError, ValueError):
            said = json.loads(line)
            if said["event"] == PROGRESS_EVENT:
                return progress_from_mapping(said)
    return None
