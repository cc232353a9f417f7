"""Keeps the clients' API keys as entries of one Secret, which the gateway alone mounts.

An entry has the name that a file of the local store has (`model/api_key.py`), so the gateway reads the mounted
directory with the same code. Every change is one replacement of the Secret, with the version that was read as its
precondition: all entries of a client change together, or none.

It needs `get` and `update` on that one Secret, by name; the Secret itself is made by the chart. The kubelet carries a
change into running pods within about a minute (its sync period), without a restart.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from datetime import datetime
from typing import Final

from typing_extensions import override

from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.manager.key_ports import KeyStore
from sandboxd.model.api_key import PREVIOUS, UNTIL, KeyMark, key_entry_name
from sandboxd.model.cluster import SERVE_MANAGER
from sandboxd.model.errors import StaleOwnerError, UnavailableError
from sandboxd.model.ids import ClientId

TIMEOUT_SECONDS: Final = 5.0
TRIES: Final = 20
"""How often a change is begun anew because another one came between; each time one of them succeeds."""
MAX_BYTES: Final = 1 << 20
"""Most that a Secret holds (Kubernetes' limit); with 300 bytes a client that is some 3,000 clients."""

_AWAY: Final = "The cluster's API does not answer, so the key store cannot be written. Try again."

Entries = dict[str, str]
"""Of the Secret: values in base 64, as the API has them."""


class SecretKeyStore(KeyStore):
    """Keys in a Secret."""

    def __init__(self, api: KubeApi, *, namespace: str, secret: str) -> None:
        self._api = api
        self._name = f"{namespace}/{secret}"
        self._path = f"/api/v1/namespaces/{segment(namespace)}/secrets/{segment(secret)}"

    @override
    async def put(
        self, client: ClientId, key: str, *, generation: int, keep_previous_until: datetime | None = None
    ) -> None:
        name = key_entry_name(client)

        def change(entries: Entries) -> None:
            # The same change again after a crash: the entry may hold the new key already, and must not be taken for
            # the previous one.
            if _fence(entries, client, generation) != generation:
                former = entries.pop(name, None)
                entries.pop(f"{name}{PREVIOUS}", None)
                if keep_previous_until is not None and former is not None:
                    entries[f"{name}{PREVIOUS}"] = former
                mark = KeyMark(generation=generation, until=keep_previous_until)
                entries[f"{name}{UNTIL}"] = _encoded(mark.dump())
            entries[name] = _encoded(key)

        await self._change(change)

    @override
    async def remove(self, client: ClientId, *, generation: int) -> int:
        name, removed = key_entry_name(client), 0

        def change(entries: Entries) -> None:
            nonlocal removed
            _fence(entries, client, generation)
            removed = sum(entries.pop(entry, None) is not None for entry in (name, f"{name}{PREVIOUS}"))
            entries[f"{name}{UNTIL}"] = _encoded(KeyMark(generation=generation).dump())

        await self._change(change)
        return removed

    async def _change(self, change: Callable[[Entries], None]) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                for _ in range(TRIES):
                    if await self._try(change):
                        return
        except KubeError as error:
            raise self._refused(error) from None  # its text may hold what was sent
        except TimeoutError:
            raise UnavailableError(_AWAY) from None
        raise UnavailableError("The key store is being changed by many at once. Try again.")

    async def _try(self, change: Callable[[Entries], None]) -> bool:
        found: Json = await self._api.get(self._path)
        before: Entries = found.get("data") or {}
        entries = dict(before)
        change(entries)
        if entries == before:
            return True
        try:
            # With the version that was read: the API refuses it if another change came between.
            await self._api.replace(self._path, {**found, "data": entries}, field_manager=SERVE_MANAGER)
        except KubeConflictError:
            return False
        return True

    def _refused(self, error: KubeError) -> UnavailableError:
        if isinstance(error, KubeUnavailableError):
            return UnavailableError(_AWAY)
        match error.status:
            case 404:
                why = f"The Secret {self._name}, where API keys are kept, does not exist."
            case 403:
                why = f"This service may not change the Secret {self._name}; its role must allow `get` and `update`."
            case 413 | 422:
                why = f"The Secret {self._name} is full: Kubernetes allows {MAX_BYTES >> 20} MiB."
            case _:
                why = f"The Secret {self._name} with the API keys cannot be changed (status {error.status})."
        return UnavailableError(why)


def _fence(entries: Entries, client: ClientId, generation: int) -> int:
    """Answer the generation that is there.

    Raises:
        StaleOwnerError: It is a later one.
    """
    there = KeyMark.load(base64.b64decode(entries.get(f"{key_entry_name(client)}{UNTIL}", ""))).generation
    if there > generation:
        raise StaleOwnerError(f"A later change of the key of client {client} was made.", client=client)
    return there


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
