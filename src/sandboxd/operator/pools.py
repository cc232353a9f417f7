"""One pass over a `SandboxPool`: count its members, and write down how it is. Nothing is made or ended here.

Members are started and ended by `serve`, one by one, as its database says; so no pool can ever take a member away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sandboxd.kubeapi.ports import Json
from sandboxd.model.cluster_pool import PoolMember, PoolReason, pool_status
from sandboxd.model.cluster_status import ConditionType, PlacedState
from sandboxd.model.sources import Clock
from sandboxd.operator.builders import api_time, resource_event
from sandboxd.operator.kinds import Kind
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.observed import Refusal, is_ours
from sandboxd.operator.writing import Writer

PATIENCE_SECONDS: Final = 5.0
"""What every start may have for a moment is told of when a member has had it for so long."""
WRITE_SECONDS: Final = 1.0
"""How often a pool's status is written at most: one that is filled or claimed from changes with each of its members."""
_TOLD: Final[Mapping[str, bool]] = {
    PoolReason.OFF.value: False,
    PoolReason.IDLE.value: False,
    PoolReason.MEMBERS_PENDING.value: True,
    PoolReason.REPLACING.value: False,
    PoolReason.ALL_CURRENT.value: False,
}
"""Reasons that are worth an Event, and whether it is a warning. That it is full, or being filled, changes with every
claim."""


class PoolKeeper:
    """Level-triggered, as the reconciler of sandboxes."""

    def __init__(
        self,
        *,
        mirrors: Mirrors,
        writer: Writer,
        instance: str,
        clock: Clock,
        reporter: str,
        later: Callable[[WorkKey, float], None],
    ) -> None:
        self._mirrors = mirrors
        self._writer = writer
        self._instance = instance
        self._clock = clock
        self._reporter = reporter
        self._later = later
        self._written: dict[WorkKey, float] = {}
        """When, by the monotonic clock, the status of a pool was written last."""

    async def reconcile(self, key: WorkKey) -> Sequence[Refusal]:
        """Write the status of a pool.

        Raises:
            KubeError: The API server did not answer, or the pool was changed meanwhile.
            NotLeaderError: Another operator leads.
        """
        pool = self._mirrors.get(Kind.POOL, key.namespace, key.pool)
        if pool is None or not is_ours(pool, instance=self._instance) or "deletionTimestamp" in pool["metadata"]:
            self._written.pop(key, None)
            return ()
        wait = self._written.get(key, float("-inf")) + WRITE_SECONDS - self._clock.monotonic()
        if wait > 0:
            self._later(key, wait)
            return ()
        before = pool.get("status") or {}
        status = pool_status(
            pool["spec"],
            list(self._members(key, str(pool["spec"].get("recipe", "")))),
            before,
            claimed=self._mirrors.pools.claimed((key.namespace, key.pool)),
            name=key.pool,
            generation=int(pool["metadata"].get("generation", 0)),
            now=self._now(),
        )
        if status != before:
            version = pool["metadata"]["resourceVersion"]
            await self._writer.patch_status(Kind.POOL, key.namespace, key.pool, status, version)
            self._written[key] = self._clock.monotonic()
            for reason, message in _news(before, status):
                await self._tell(pool, reason, message)
        return ()

    def _members(self, key: WorkKey, recipe: str) -> Iterator[PoolMember]:
        for name in sorted(self._mirrors.pools.waiting((key.namespace, key.pool))):
            obj = self._mirrors.get(Kind.SANDBOX, key.namespace, name)
            if obj is None:
                continue
            status = obj.get("status") or {}
            ready = any(
                one["type"] == ConditionType.READY.value and one["status"] == "True"
                for one in status.get("conditions", ())
            )
            yield PoolMember(
                ready=ready and status.get("state") == PlacedState.RUNNING.value,
                current=not recipe or obj["spec"].get("recipe", "") == recipe,
                trouble=self._trouble(key, obj, status),
            )

    def _trouble(self, key: WorkKey, obj: Json, status: Mapping[str, Any]) -> str:
        if status.get("state") not in (PlacedState.PENDING.value, PlacedState.FAILED.value):
            return ""
        age = (self._clock.now() - _moment(obj["metadata"]["creationTimestamp"])).total_seconds()
        if age < PATIENCE_SECONDS:
            self._later(key, PATIENCE_SECONDS - age + 0.1)
            return ""
        parts = (obj["metadata"]["name"], status.get("reason", ""), status.get("message", ""))
        return ": ".join(part for part in parts if part)

    async def _tell(self, pool: Json, reason: str, message: str) -> None:
        metadata = pool["metadata"]
        await self._writer.post_event(
            resource_event(
                metadata["name"],
                kind="SandboxPool",
                namespace=metadata["namespace"],
                uid=metadata["uid"],
                reason=reason,
                message=message,
                warning=_TOLD[reason],
                time=self._now(),
                reporter=self._reporter,
            )
        )

    def _now(self) -> str:
        return api_time(self._clock.now())


def _news(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Reasons that were not there before, with their messages."""
    known = {one["type"]: one["reason"] for one in before.get("conditions", ())}
    for one in after["conditions"]:
        said = known.get(one["type"], PoolReason.ALL_CURRENT.value)
        if one["reason"] in _TOLD and one["reason"] != said:
            yield one["reason"], one["message"] or "All members are made from what is the template now."


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
