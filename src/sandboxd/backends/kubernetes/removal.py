"""Takes sandboxes from their place, and destroys what is left of them where that was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from sandboxd.backends.kubernetes.mirror import Mirror
from sandboxd.backends.kubernetes.objects import SandboxObjects
from sandboxd.backends.kubernetes.placed import Placed
from sandboxd.backends.kubernetes.refusals import PlacementError
from sandboxd.kubeapi.ports import Json
from sandboxd.model.errors import DeadlineError
from sandboxd.model.ids import SandboxId
from sandboxd.model.sources import Clock

POLL_SECONDS: Final = 0.1
"""Claims and volumes have no watch here: erasing is rare."""


class Removal:
    """Removes and erases."""

    def __init__(self, *, objects: SandboxObjects, mirror: Mirror, clock: Clock) -> None:
        self._objects = objects
        self._mirror = mirror
        self._clock = clock

    async def remove(self, placed: Placed, *, kept: bool, deadline: float) -> None:
        """Delete a resource, and wait until its compute is gone and it with it.

        Raises:
            KubeError: The API refused, or does not answer.
            DeadlineError: It is still there.
        """
        if placed.spec.kept is not kept and not placed.leaving:
            placed = await self._objects.change(placed, {"kept": kept})
        if not placed.leaving:
            await self._objects.delete(placed)
        await self.until_gone(placed, deadline=deadline)

    async def until_gone(self, placed: Placed, *, deadline: float) -> None:
        """Wait until a resource that is being deleted is no more.

        Raises:
            KubeError: The API refused, or does not answer.
            DeadlineError: It is still there.
        """

        def look(seen: Placed | None) -> bool | None:
            return True if seen is None or seen.uid != placed.uid else None

        while True:
            left = max(0.0, deadline - self._clock.monotonic())
            gone = await self._mirror.wait(placed.sandbox, look, seconds=left)
            # Asked for: the mirror may not know yet what was made a moment ago.
            found = await self._objects.get(placed.namespace, placed.sandbox)
            if found is None or found.uid != placed.uid:
                return
            if gone is None:
                raise DeadlineError(
                    f"Sandbox {placed.sandbox} is still in the cluster: its pod has not ended, or the operator does "
                    f"not run (kubectl get sandbox,pod -n {placed.namespace}).",
                    sandbox=placed.sandbox,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def where_kept(self, sandbox: SandboxId) -> str:
        """Say where the files of a removed sandbox are; empty where there are none."""
        claims = await self._objects.claims(sandbox)
        if not claims:
            return ""
        names = ", ".join(str(claim["metadata"]["name"]) for claim in claims)
        return f"persistent volume claims {names} in namespace {claims[0]['metadata']['namespace']}"

    async def destroy_claims(self, sandbox: SandboxId, *, deadline: float) -> None:
        """Delete the claims and wait until their volumes are gone.

        Raises:
            PlacementError: A volume's files stay, because its storage class says so.
            DeadlineError: They are still there.
        """
        claims = await self._objects.claims(sandbox)
        volumes = [name for claim in claims if (name := str(claim["spec"].get("volumeName") or ""))]
        await self._refuse_retained(sandbox, volumes)
        for claim in claims:
            await self._objects.delete_claim(claim)
        while await self._objects.claims(sandbox) or await self._existing(volumes):
            if self._clock.monotonic() >= deadline:
                raise DeadlineError(
                    f"Files of sandbox {sandbox} are still being destroyed: look at its claims and volumes "
                    f"({', '.join(volumes) or 'unbound'}).",
                    sandbox=sandbox,
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _refuse_retained(self, sandbox: SandboxId, volumes: Sequence[str]) -> None:
        for volume in await self._existing(volumes):
            if volume["spec"].get("persistentVolumeReclaimPolicy") == "Retain":
                name = str(volume["metadata"]["name"])
                raise PlacementError(
                    f"Volume {name} of sandbox {sandbox} would keep its files: its reclaim policy is Retain. Set it to "
                    "Delete, and repeat.",
                    sandbox=sandbox,
                    volume=name,
                )

    async def _existing(self, volumes: Sequence[str]) -> Sequence[Json]:
        found = [await self._objects.volume(name) for name in volumes]
        return [volume for volume in found if volume is not None]
