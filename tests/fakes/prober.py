"""What the operator says of probes, as `serve` sees it: a status for each that is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster_probe import PlacedProbe, ProbeState, ProbeStatus
from sandboxd.model.cluster_status import Reason
from tests.fakes.kube import FakeKube

BOOTED = ProbeStatus(state=ProbeState.BOOTED, reason=Reason.AS_DESIRED.value)


class FakeProber:
    """Takes every probe up as soon as it is written."""

    def __init__(self, kube: FakeKube) -> None:
        self._kube = kube
        self.verdicts: dict[str, ProbeStatus] = {}
        """By image; all others boot."""
        self.down = False
        self.seen: list[Json] = []
        """Every probe that was ever made."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeProber]:
        """Follow probes."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def left(self) -> int:
        """How many are there now."""
        return len(self._kube.all("sandboxprobes"))

    async def say(self, status: ProbeStatus) -> None:
        """Write a status of all that are there."""
        for obj in self._kube.all("sandboxprobes"):
            await self._kube.put("sandboxprobes", {**obj, "status": status.as_mapping()})

    async def remove(self) -> None:
        """Their time is over."""
        for obj in self._kube.all("sandboxprobes"):
            await self._kube.drop("sandboxprobes", obj["metadata"]["namespace"], obj["metadata"]["name"])

    async def _run(self) -> None:
        query = {"resourceVersion": "0"}
        while True:
            path = "/apis/sandboxd.dev/v1alpha1/sandboxprobes"
            async with self._kube.stream(path, query=query, silence=timedelta(1)) as events:
                async for event in events:
                    obj = event["object"]
                    query["resourceVersion"] = obj["metadata"]["resourceVersion"]
                    if event["type"] != "DELETED" and "status" not in obj:
                        await self._take(obj)

    async def _take(self, obj: Json) -> None:
        self.seen.append(obj)
        if not self.down:
            status = self.verdicts.get(PlacedProbe.from_mapping(obj["spec"]).image, BOOTED)
            await self._kube.put("sandboxprobes", {**obj, "status": status.as_mapping()})
