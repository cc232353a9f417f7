"""What this service needs of the Kubernetes API, as a port: `KubeClient` is it, and a fake in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Final, Protocol

Json = dict[str, Any]
"""An object of the API. Any: it is JSON."""

MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"


class KubeApi(Protocol):
    """Requests to the API server.

    Raises (every method):
        KubeError: It was refused, or there is no answer; the subclass says which.
    """

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None) -> Json:
        """Read an object or a list."""
        ...

    async def text(self, path: str, *, query: Mapping[str, str], timeout: timedelta | None = None) -> str:
        """Read what is no object: a container's log. Bytes that are no UTF-8 are replaced."""
        ...

    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        """Make an object.

        Raises:
            KubeConflictError: It is there (`AlreadyExists`).
        """
        ...

    async def patch(
        self,
        path: str,
        body: object,
        *,
        kind: str = MERGE_PATCH,
        field_manager: str = "",
        force: bool = False,
        timeout: timedelta | None = None,
    ) -> Json:
        """Change an object. With `metadata.resourceVersion` in the body only that version is changed.

        Raises:
            KubeConflictError: It has another version.
        """
        ...

    async def replace(
        self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
    ) -> Json:
        """Write an object whole; its `metadata.resourceVersion` must be the present one."""
        ...

    async def delete(
        self,
        path: str,
        *,
        uid: str = "",
        resource_version: str = "",
        grace: timedelta | None = None,
        propagation: str = "",
        timeout: timedelta | None = None,
    ) -> Json:
        """Delete an object; with `uid` only that very one."""
        ...

    def stream(
        self, path: str, *, query: Mapping[str, str], silence: timedelta
    ) -> AbstractAsyncContextManager[AsyncIterator[Json]]:
        """Read an answer that goes on, one JSON object a line: a watch. It ends after `silence` without a word."""
        ...
