"""Carries each client's account to pull its images with from sandboxd's own namespace into the client's.

`serve` makes the accounts, and may touch no Secret of a client's namespace; the operator makes no account.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import structlog

from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeNotFoundError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.api_key import key_entry_name
from sandboxd.model.cluster import INSTANCE_LABEL, OPERATOR_MANAGER, Mode
from sandboxd.model.ids import ClientId
from sandboxd.model.sources import Clock
from sandboxd.operator.builders import MANAGED_BY
from sandboxd.operator.kinds import Kind
from sandboxd.operator.leader import Leadership
from sandboxd.operator.mirrors import Mirrors, WorkKey
from sandboxd.operator.observed import is_ours
from sandboxd.operator.writing import TIMEOUT

PULL_SECRET: Final = "sandboxd-image-pulls"  # noqa: S105  the name of a Secret
"""In each client's namespace; pods that are made from an image of their own pull with it."""
FRESH_SECONDS: Final = 10.0
"""So long what was read of the accounts is believed."""
KEPT_SECONDS: Final = 300.0
"""So long a namespace is believed to have what was written into it."""
_ENTRY: Final = ".dockerconfigjson"
_TYPE: Final = "kubernetes.io/dockerconfigjson"

log = structlog.get_logger(__name__)


class PullSecrets:
    """Those of one installation. Level-triggered: called before each pod that may need one."""

    def __init__(
        self,
        api: KubeApi,
        *,
        mirrors: Mirrors,
        leadership: Leadership,
        instance: str,
        namespace: str,
        source: str,
        clock: Clock,
    ) -> None:
        """Take what it works with; `source` is the Secret of `namespace` with an entry for each client."""
        self._api = api
        self._mirrors = mirrors
        self._leadership = leadership
        self._instance = instance
        self._source = Kind.SECRET.path(namespace, source)
        self._clock = clock
        self._entries: Mapping[str, str] = {}
        self._read_at = -FRESH_SECONDS
        self._written: dict[str, tuple[str, float]] = {}
        """By namespace: what was written there last, hashed, and when."""

    async def prepare(self, key: WorkKey) -> None:
        """Do that before a pass that may make a pod of an image of a sandbox's own. Else as `furnish`."""
        name = key.sandbox
        if key.probe:
            probe = self._mirrors.get(Kind.PROBE, key.namespace, key.probe)
            name = "" if probe is None else str(probe["spec"].get("sandbox", ""))
        sandbox = self._mirrors.get(Kind.SANDBOX, key.namespace, name) if name else None
        if sandbox is None or not is_ours(sandbox, instance=self._instance):
            return
        spec = sandbox["spec"]
        if key.probe or (spec.get("image") and spec.get("mode") != Mode.STOPPED.value):
            try:
                await self.furnish(key.namespace, ClientId(str(spec.get("client", ""))))
            except (KubeUnavailableError, KubeConflictError):
                raise
            except KubeError as error:  # a node may have the image: nobody's start ends by this
                log.warning("operator.image_pulls_refused", namespace=key.namespace, error=error.message)

    async def furnish(self, namespace: str, client: ClientId) -> None:
        """See that the client's namespace has its account; where the client has none there is nothing to do.

        Raises:
            KubeError: The API server did not answer, or refused.
            NotLeaderError: Another operator leads.
        """
        entry = await self._entry(client)
        if not entry:
            return
        mark, now = hashlib.sha256(entry.encode()).hexdigest(), self._clock.monotonic()
        written, at = self._written.get(namespace, ("", now))
        if written == mark and now - at < KEPT_SECONDS:
            return
        await self._write(namespace, entry)
        self._written[namespace] = (mark, now)

    async def _entry(self, client: ClientId) -> str:
        name, now = key_entry_name(client), self._clock.monotonic()
        if name not in self._entries or now - self._read_at >= FRESH_SECONDS:
            try:
                found = await self._api.get(self._source, timeout=TIMEOUT)
            except KubeNotFoundError:
                log.warning("operator.image_pulls_missing", secret=self._source)
                found = {}
            self._entries, self._read_at = found.get("data") or {}, now
        return self._entries.get(name, "")

    async def _write(self, namespace: str, entry: str) -> None:
        self._leadership.check()
        wanted = self._secret(namespace, entry)
        try:
            await self._api.create(
                Kind.SECRET.within(namespace), wanted, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT
            )
        except KubeConflictError:
            path = Kind.SECRET.path(namespace, PULL_SECRET)
            there = await self._api.get(path, timeout=TIMEOUT)
            if not is_ours(there, instance=self._instance):
                log.warning("operator.image_pulls_foreign", namespace=namespace, secret=PULL_SECRET)
                return
            if (there.get("data") or {}) == wanted["data"]:
                return
            version = there["metadata"]["resourceVersion"]
            wanted["metadata"]["resourceVersion"] = version
            await self._api.replace(path, wanted, field_manager=OPERATOR_MANAGER, timeout=TIMEOUT)
        log.info("operator.image_pulls_written", namespace=namespace)

    def _secret(self, namespace: str, entry: str) -> Json:
        labels = {INSTANCE_LABEL: self._instance, MANAGED_BY: OPERATOR_MANAGER}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": _TYPE,
            "metadata": {"name": PULL_SECRET, "namespace": namespace, "labels": labels},
            "data": {_ENTRY: entry},
        }
