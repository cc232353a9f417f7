"""What removed sandboxes have left in the cluster: their claims, each with the volume that it is bound to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final

from typing_extensions import override

from sandboxd.backends.kubernetes.objects import SandboxObjects
from sandboxd.backends.kubernetes.refusals import translated
from sandboxd.kubeapi.errors import KubeError
from sandboxd.kubeapi.ports import Json
from sandboxd.manager.release_ports import KeptVolume, KeptVolumes
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import SandboxId
from sandboxd.model.quantity import parse_quantity
from sandboxd.model.sources import Clock
from sandboxd.model.volume_release import VolumesStayError

POLL_SECONDS: Final = 0.1
"""Claims and volumes have no watch here: releases are rare."""


class KubernetesKeptVolumes(KeptVolumes):
    """Deletes claims by their uid; the storage driver destroys what their volumes have."""

    def __init__(self, objects: SandboxObjects, *, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock

    @override
    async def find(self, sandbox: SandboxId, *, timeout: timedelta) -> Sequence[KeptVolume]:
        async with self._asking(sandbox, timeout):
            if await self._objects.search(sandbox) is not None:
                return []
            return [await self._kept(claim) for claim in await self._objects.claims(sandbox)]

    @override
    async def release(self, sandbox: SandboxId, volumes: Sequence[KeptVolume], *, timeout: timedelta) -> None:
        wanted = {one.identity for one in volumes}
        async with self._asking(sandbox, timeout):
            claims = [one for one in await self._objects.claims(sandbox) if one["metadata"]["uid"] in wanted]
            for stays in [kept.hindrance for one in claims if (kept := await self._kept(one)).hindrance]:
                raise VolumesStayError(stays, sandbox=sandbox)
            for claim in claims:
                await self._objects.delete_claim(claim)
            while await self._left(sandbox, claims):
                await asyncio.sleep(POLL_SECONDS)

    async def _kept(self, claim: Json) -> KeptVolume:
        meta, bound = claim["metadata"], str(claim["spec"].get("volumeName") or "")
        volume = await self._objects.volume(bound) if bound else None
        hindrance = ""
        if volume is not None and volume["spec"].get("persistentVolumeReclaimPolicy") == "Retain":
            hindrance = (
                f"The volume {bound} of claim {meta['namespace']}/{meta['name']} would keep its files: its reclaim "
                "policy is Retain. Set it to Delete."
            )
        capacity = (claim.get("status") or {}).get("capacity") or {}
        return KeptVolume(
            name=f"{meta['namespace']}/{meta['name']}",
            identity=str(meta["uid"]),
            size_bytes=int(parse_quantity(str(capacity["storage"]))) if "storage" in capacity else None,
            hindrance=hindrance,
        )

    async def _left(self, sandbox: SandboxId, claims: Sequence[Json]) -> bool:
        gone = {one["metadata"]["uid"] for one in claims}
        if any(one["metadata"]["uid"] in gone for one in await self._objects.claims(sandbox)):
            return True
        for claim in claims:
            volume = await self._objects.volume(str(claim["spec"].get("volumeName") or "-"))
            if volume is not None and ((volume["spec"].get("claimRef") or {}).get("uid")) in gone:
                return True
        return False

    @asynccontextmanager
    async def _asking(self, sandbox: SandboxId, timeout: timedelta) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                yield
        except KubeError as error:
            raise translated(error, f"The volumes of sandbox {sandbox} cannot be released", sandbox=sandbox) from error
        except TimeoutError as error:
            raise DeadlineError(
                f"The volumes of sandbox {sandbox} are still there: look at its claims, their finalizers and the "
                f"storage driver (kubectl get pvc,pv -A | grep {sandbox}).",
                sandbox=sandbox,
            ) from error
