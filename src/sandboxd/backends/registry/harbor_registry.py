"""`Registry` on Harbor: OCI distribution, and what Harbor does otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from typing_extensions import override

from sandboxd.backends.registry.access import RegistryAccount
from sandboxd.backends.registry.client import CHUNK_BYTES, OciRegistry
from sandboxd.backends.registry.harbor_api import HarborApi
from sandboxd.backends.registry.transport import ERROR_BYTES, Answer, Call
from sandboxd.images.upload_notes import UploadNotes
from sandboxd.model.errors import NotFoundError, UnavailableError

_REFUSED: Final = frozenset({"401", "403"})


class HarborRegistry(OciRegistry):
    """One Harbor by its address.

    What is in a project that does not exist it refuses, as to an account that has no rights. But a client that has
    never committed anything has no project, and one that was erased has none any more: nothing is there.
    """

    def __init__(
        self,
        address: str,
        *,
        api: HarborApi,
        plain: bool = False,
        authority: Path | None = None,
        account: RegistryAccount | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        uploads: UploadNotes | None = None,
    ) -> None:
        """Keep how it is reached; `api` is its own one, which others close."""
        super().__init__(
            address, plain=plain, authority=authority, account=account, chunk_bytes=chunk_bytes, uploads=uploads
        )
        self._api = api

    @override
    async def _ask(self, call: Call, *expected: int, limit: int = ERROR_BYTES) -> Answer:
        try:
            return await super()._ask(call, *expected, limit=limit)
        except UnavailableError as error:
            project = call.url.parts[2]  # after `/` and `v2`
            if error.metadata.get("status") not in _REFUSED or await self._api.has_project(project):
                raise
            if 404 in expected:
                return Answer(status=404, headers={}, url=call.url)
            raise NotFoundError(f"Harbor has no project {project}.", project=project) from error
