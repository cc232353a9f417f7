"""How long a start is waited for: its own time, and beyond it the time in which its node really pulls an image.

A node may need minutes to unpack an image of half a million files, and a start that gives up meanwhile helps nobody:
the next one waits for the same. Whether it pulls is told by the kubelet's events alone; a pod's status is silent on it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import SandboxObjects
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.kubeapi.errors import KubeError
from sandboxd.kubeapi.ports import Json
from sandboxd.manager.backend_port import Told, untold
from sandboxd.model.cluster_status import ConditionType, Reason
from sandboxd.model.sources import Clock

PULL_TIMEOUT: Final = timedelta(minutes=15)
"""By how much a start may take longer at most because images are pulled."""
LOOK_EVERY: Final = timedelta(seconds=10)
AFTERWARDS: Final = timedelta(seconds=30)
"""What a start has left, at the least, when its node was last seen pulling."""
EVENTS_TIMEOUT: Final = timedelta(seconds=5)
_NAMED: Final = re.compile(r'image "(?P<image>[^"]+)"')

log = structlog.get_logger(__name__)


def is_pulling(events: Sequence[Json]) -> bool:
    """Tell from the events of a pod whether an image of it is being pulled: begun, and neither done nor failed since.

    Their times are whole seconds. Of two of one second the end counts: what takes no second is nothing to wait for.
    """
    began, ended = dict[str, str](), dict[str, str]()
    for event in events:
        named = _NAMED.search(str(event.get("message", "")))
        if named is None:
            continue
        at = str(event.get("lastTimestamp") or event.get("eventTime") or "")
        of = began if event.get("reason") == "Pulling" else ended
        of[named["image"]] = max(of.get(named["image"], ""), at)
    return any(at > ended.get(image, "") for image, at in began.items())


class PullPatience:
    """The deadline of one start, which moves on while an image is pulled for it."""

    def __init__(
        self,
        *,
        objects: SandboxObjects,
        mirror: Mirror,
        clock: Clock,
        deadline: float,
        told: Told = untold,
        look_every: timedelta = LOOK_EVERY,
        timeout: timedelta = PULL_TIMEOUT,
    ) -> None:
        self._objects = objects
        self._mirror = mirror
        self._clock = clock
        self._told = told
        self._look_every = look_every
        self._last = deadline + timeout.total_seconds()
        self.deadline = deadline
        """By the monotonic clock."""
        self.pulling = False
        """Whether an image was being pulled when that was last looked at."""

    @property
    def left(self) -> float:
        """Seconds until the deadline as it is now."""
        return max(0.0, self.deadline - self._clock.monotonic())

    async def follow(self, placed: Placed) -> None:
        """Look until the container runs, or this is cancelled."""
        while True:
            await asyncio.sleep(self._look_every.total_seconds())
            seen = self._mirror.get(placed.sandbox)
            if seen is None or seen.uid != placed.uid:
                return
            if _started(seen):
                self.pulling = False
                return
            if await self._is_pulling(seen) and not self.pulling:
                self.pulling = True
                log.info("cluster.start_waits_for_image", sandbox=placed.sandbox, image=placed.spec.image)
                await self._told()
            if self.pulling:
                wanted = self._clock.monotonic() + AFTERWARDS.total_seconds()
                self.deadline = min(self._last, max(self.deadline, wanted))

    async def _is_pulling(self, seen: Placed) -> bool:
        if seen.status.reason is not Reason.STARTING:  # a trouble, which has a patience of its own
            self.pulling = False
            return False
        try:
            found = is_pulling(await self._objects.events(seen, timeout=EVENTS_TIMEOUT))
        except KubeError as error:  # what was true a moment ago still is: an API server that is away pulls nothing
            log.info("cluster.events_unread", sandbox=seen.sandbox, error=error.message)
            return self.pulling
        self.pulling = self.pulling and found
        return found


def _started(placed: Placed) -> bool:
    condition = placed.status.find(ConditionType.AGENT_STARTED)
    return condition is not None and condition.status is True
