"""One Secret of sandboxd's own namespace whose entries `serve` changes, for others to read.

Every change is one replacement of the Secret, with the version that was read as its precondition: all entries change
together, or none. It needs `get` and `update` on that one Secret, by name; the Secret itself is made by the chart.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Final

from sandboxd.kubeapi.client import segment
from sandboxd.kubeapi.errors import KubeConflictError, KubeError, KubeUnavailableError
from sandboxd.kubeapi.ports import Json, KubeApi
from sandboxd.model.cluster import SERVE_MANAGER
from sandboxd.model.errors import UnavailableError

TIMEOUT_SECONDS: Final = 5.0
TRIES: Final = 20
"""How often a change is begun anew because another one came between; each time one of them succeeds."""
MAX_BYTES: Final = 1 << 20
"""Most that a Secret holds (Kubernetes' limit); with 300 bytes a client that is some 3,000 clients."""

Entries = dict[str, str]
"""Of the Secret: values in base64, as the API has them."""


class SecretEntries:
    """The entries of one Secret."""

    def __init__(self, api: KubeApi, *, namespace: str, secret: str, holds: str) -> None:
        """Keep where they are; `holds` says what they are, for messages."""
        self._api = api
        self._name = f"{namespace}/{secret}"
        self._path = f"/api/v1/namespaces/{segment(namespace)}/secrets/{segment(secret)}"
        self._holds = holds

    async def read(self) -> Entries:
        """Return them.

        Raises:
            UnavailableError: They cannot be read now.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                found: Entries = (await self._api.get(self._path)).get("data") or {}
        except KubeError as error:
            raise self._refused(error) from None
        except TimeoutError:
            raise self._away() from None
        return found

    async def change(self, change: Callable[[Entries], None]) -> None:
        """Change them; `change` is called again where another change came between.

        Raises:
            UnavailableError: They cannot be changed now.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                for _ in range(TRIES):
                    if await self._try(change):
                        return
        except KubeError as error:
            raise self._refused(error) from None  # its text may hold what was sent
        except TimeoutError:
            raise self._away() from None
        raise UnavailableError(f"The Secret with the {self._holds} is being changed by many at once. Try again.")

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

    def _away(self) -> UnavailableError:
        return UnavailableError(
            f"The cluster's API does not answer, so the Secret with the {self._holds} cannot be used. Try again."
        )

    def _refused(self, error: KubeError) -> UnavailableError:
        if isinstance(error, KubeUnavailableError):
            return self._away()
        match error.status:
            case 404:
                why = f"The Secret {self._name}, where {self._holds} are kept, does not exist."
            case 403:
                why = f"This service may not change the Secret {self._name}; its role must allow `get` and `update`."
            case 413 | 422:
                why = f"The Secret {self._name} is full: Kubernetes allows {MAX_BYTES >> 20} MiB."
            case _:
                why = f"The Secret {self._name} with the {self._holds} cannot be changed (status {error.status})."
        return UnavailableError(why)


def encoded(text: str) -> str:
    """Return an entry's value."""
    return base64.b64encode(text.encode()).decode()
