"""Keeps the clients' API keys as entries of one Secret, which the gateway alone mounts.

An entry has the name that a file of the local store has (`model/api_key.py`), so the gateway reads the mounted
directory with the same code. Every change is one replacement of the Secret, with the version that was read as its
precondition: all entries of a client change together, or none.

It needs `get` and `update` on that one Secret, by name; the Secret itself is made by the chart. The kubelet carries a
change into running pods within about a minute (its sync period), without a restart.
"""

from __future__ import annotations

import base64
from datetime import datetime

from typing_extensions import override

from sandboxd.backends.kubernetes.secret_entries import Entries, SecretEntries, encoded
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.manager.key_ports import KeyStore
from sandboxd.model.api_key import PREVIOUS, UNTIL, KeyMark, key_entry_name
from sandboxd.model.errors import StaleOwnerError
from sandboxd.model.ids import ClientId


class SecretKeyStore(KeyStore):
    """Keys in a Secret."""

    def __init__(self, api: KubeApi, *, namespace: str, secret: str) -> None:
        self._entries = SecretEntries(api, namespace=namespace, secret=secret, holds="API keys")

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
                entries[f"{name}{UNTIL}"] = encoded(mark.dump())
            entries[name] = encoded(key)

        await self._entries.change(change)

    @override
    async def remove(self, client: ClientId, *, generation: int) -> int:
        name, removed = key_entry_name(client), 0

        def change(entries: Entries) -> None:
            nonlocal removed
            _fence(entries, client, generation)
            removed = sum(entries.pop(entry, None) is not None for entry in (name, f"{name}{PREVIOUS}"))
            entries[f"{name}{UNTIL}"] = encoded(KeyMark(generation=generation).dump())

        await self._entries.change(change)
        return removed


def _fence(entries: Entries, client: ClientId, generation: int) -> int:
    """Answer the generation that is there.

    Raises:
        StaleOwnerError: It is a later one.
    """
    there = KeyMark.load(base64.b64decode(entries.get(f"{key_entry_name(client)}{UNTIL}", ""))).generation
    if there > generation:
        raise StaleOwnerError(f"A later change of the key of client {client} was made.", client=client)
    return there
