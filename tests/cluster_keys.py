"""A Secret for API keys in a namespace of its own, on a real cluster."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxd.backends.kubernetes.key_store import SecretKeyStore
from sandboxd.kubeapi.client import KubeClient


@dataclass(kw_only=True)
class SecretWorld:
    """The store, and what the gateway would find mounted."""

    api: KubeClient
    namespace: str
    secret: str

    @property
    def store(self) -> SecretKeyStore:
        return SecretKeyStore(self.api, namespace=self.namespace, secret=self.secret)

    async def entries(self) -> Mapping[str, str]:
        found = await self.api.get(f"/api/v1/namespaces/{self.namespace}/secrets/{self.secret}")
        return {name: base64.b64decode(value).decode() for name, value in (found.get("data") or {}).items()}
