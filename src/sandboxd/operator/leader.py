"""Who of several operators is the active one: a Lease in sandboxd's namespace.

Clocks are not compared: a candidate waits until it has seen no renewal for the whole duration by its own clock. The
leader stops writing well before that, by its own clock, counted from before its last renewal was sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.cluster import INSTANCE_LABEL, OPERATOR_MANAGER
from sandboxd.model.sources import Clock
from sandboxd.operator.kinds import Kind

RENEWALS: Final = 5
"""A leader renews so many times in a duration."""
REQUEST_SHARE: Final = 0.4
"""Share of the duration that one request may take: a slow API server is no reason to give up before the fence."""
FENCED_SHARE: Final = 0.6
"""Share of the duration after which a leader that could not renew stops writing."""

log = structlog.get_logger(__name__)


class NotLeaderError(Exception):
    """This operator may not write: it does not hold the Lease, or is not sure to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """Where the Lease is, and how long it lasts."""

    namespace: str
    instance: str
    identity: str
    duration: timedelta

    @property
    def name(self) -> str:
        """Name of the Lease."""
        return f"sandboxd-operator-{self.instance}"


class Leadership:
    """Stands for election for as long as `run` runs."""

    def __init__(
        self, api: KubeApi, settings: LeaseSettings, *, clock: Clock, changed: Callable[[bool], None] = lambda _: None
    ) -> None:
        """Say where, and who is told when the leadership comes or goes."""
        self._api = api
        self._settings = settings
        self._clock = clock
        self._changed = changed
        self._path = Kind.LEASE.path(settings.namespace, settings.name)
        self._until = float("-inf")
        self._leading = False
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0

    @property
    def leads(self) -> bool:
        """True while this operator is sure to be the only one that writes."""
        return self._leading and self._clock.monotonic() < self._until

    def check(self) -> None:
        """Call before each write.

        Raises:
            NotLeaderError: It must not be done.
        """
        if not self.leads:
            raise NotLeaderError("this operator does not hold the lease")

    async def run(self) -> None:
        """Stand for election until cancelled; then give the Lease up, so that another need not wait."""
        step = self._settings.duration.total_seconds() / RENEWALS
        try:
            while True:
                await self._try(self._settings.duration * REQUEST_SHARE)
                if self._leading and not self.leads:
                    self._lose()
                await asyncio.sleep(step)
        finally:
            if self._leading:
                await self._release()

    async def _try(self, timeout: timedelta) -> None:
        began = self._clock.monotonic()
        try:
            try:
                lease = await self._api.get(self._path, timeout=timeout)
            except KubeNotFoundError:
                await self._api.create(
                    Kind.LEASE.within(self._settings.namespace),
                    self._lease(transitions=0),
                    field_manager=OPERATOR_MANAGER,
                    timeout=timeout,
                )
                self._win(began)
                return
            spec: dict[str, Any] = lease.get("spec", {})  # Any: JSON
            ours = spec.get("holderIdentity") == self._settings.identity
            if ours or self._is_free(spec):
                transitions = int(spec.get("leaseTransitions") or 0) + (0 if ours else 1)
                body = self._lease(transitions=transitions, version=lease["metadata"]["resourceVersion"])
                if ours:
                    body["spec"]["acquireTime"] = spec.get("acquireTime")
                await self._api.replace(self._path, body, field_manager=OPERATOR_MANAGER, timeout=timeout)
                self._win(began)
            elif self._leading:
                self._lose()
        except KubeConflictError:
            return  # somebody else was quicker; the next round tells who
        except KubeError as error:
            log.warning("operator.lease_unreachable", error=error.message)

    def _is_free(self, spec: dict[str, Any]) -> bool:
        holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
        if not holder:
            return True
        now = self._clock.monotonic()
        if self._seen != (holder, renewed):
            self._seen, self._seen_at = (holder, renewed), now
        return now - self._seen_at > float(spec.get("leaseDurationSeconds") or 0)

    def _win(self, began: float) -> None:
        self._until = began + self._settings.duration.total_seconds() * FENCED_SHARE
        if not self._leading:
            self._leading = True
            log.info("operator.leading", identity=self._settings.identity)
            self._changed(True)

    def _lose(self) -> None:
        self._leading = False
        self._until = float("-inf")
        log.warning("operator.lease_lost", identity=self._settings.identity)
        self._changed(False)

    async def _release(self) -> None:
        self._leading = False
        self._until = float("-inf")
        self._changed(False)
        try:
            lease = await self._api.get(self._path, timeout=timedelta(seconds=2))
            if lease.get("spec", {}).get("holderIdentity") == self._settings.identity:
                lease["spec"]["holderIdentity"] = ""
                await self._api.replace(self._path, lease, field_manager=OPERATOR_MANAGER, timeout=timedelta(seconds=2))
        except KubeError as error:
            log.warning("operator.lease_not_released", error=error.message)

    def _lease(self, *, transitions: int, version: str = "") -> Json:
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        metadata: Json = {
            "name": self._settings.name,
            "namespace": self._settings.namespace,
            "labels": {INSTANCE_LABEL: self._settings.instance},
        }
        if version:
            metadata["resourceVersion"] = version
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._settings.identity,
                "leaseDurationSeconds": max(1, round(self._settings.duration.total_seconds())),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
