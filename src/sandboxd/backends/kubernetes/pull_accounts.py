"""Keeps the clients' accounts to pull images with as entries of one Secret of sandboxd's own namespace.

An entry is what a Secret of the type `kubernetes.io/dockerconfigjson` holds: the operator copies it into the client's
namespace, and `serve` may touch no Secret there.
"""

from __future__ import annotations

import base64
import json

from typing_extensions import override

from sandboxd.backends.kubernetes.secret_entries import Entries, SecretEntries, encoded
from sandboxd.images.projects import PullAccount, PullAccounts
from sandboxd.kubeapi.ports import KubeApi
from sandboxd.model.api_key import key_entry_name
from sandboxd.model.ids import ClientId


class SecretPullAccounts(PullAccounts):
    """Accounts in a Secret."""

    def __init__(self, api: KubeApi, *, namespace: str, secret: str, registry: str) -> None:
        """Keep where they are; `registry` is how nodes call what they pull from."""
        self._entries = SecretEntries(api, namespace=namespace, secret=secret, holds="accounts to pull images with")
        self._registry = registry

    @override
    async def get(self, client: ClientId) -> PullAccount | None:
        text = (await self._entries.read()).get(key_entry_name(client))
        try:
            found = json.loads(base64.b64decode(text or ""))["auths"][self._registry]
            return PullAccount(name=str(found["username"]), password=str(found["password"]))
        except (ValueError, KeyError, TypeError):
            return None

    @override
    async def put(self, client: ClientId, account: PullAccount) -> None:
        both = base64.b64encode(f"{account.name}:{account.password}".encode()).decode()
        auth = {"username": account.name, "password": account.password, "auth": both}
        entry = encoded(json.dumps({"auths": {self._registry: auth}}))

        def change(entries: Entries) -> None:
            entries[key_entry_name(client)] = entry

        await self._entries.change(change)

    @override
    async def remove(self, client: ClientId) -> None:
        def change(entries: Entries) -> None:
            entries.pop(key_entry_name(client), None)

        await self._entries.change(change)
