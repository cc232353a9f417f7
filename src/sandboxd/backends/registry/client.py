"""`Registry` on the OCI distribution API, as docker-registry, Harbor and the clouds' registries speak it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
from typing_extensions import override
from yarl import URL

from sandboxd.backends.registry.access import RegistryAccess, RegistryAccount, scopes_of
from sandboxd.backends.registry.attachments import SUBJECT_HEADER, enlist, find, remove
from sandboxd.backends.registry.noting import SessionNote
from sandboxd.backends.registry.transport import (
    ATTEMPTS,
    ERROR_BYTES,
    Answer,
    Call,
    Transport,
    finishing,
    open_session,
    pause,
    within,
)
from sandboxd.backends.registry.uploads import (
    STUCK,
    Content,
    ContentGoneError,
    KeptContent,
    PassingContent,
    Upload,
    location_of,
)
from sandboxd.images.registry import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MANIFEST_BYTES,
    NO_COMMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Manifest,
    Registry,
    Sent,
    UploadStuckError,
)
from sandboxd.images.upload_notes import UploadNotes
from sandboxd.model.errors import NotFoundError, SandboxdError, UnavailableError
from sandboxd.model.image import GenerationId
from sandboxd.model.image_errors import RegistryKeepsError

_ACCEPT: Final = f"{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_INDEX}"
CHUNK_BYTES: Final = 8 << 20
"""Of an upload at a time."""
_READ: Final = 256 << 10
_CANCEL_SECONDS: Final = 10.0
_ASK_TIMEOUT: Final = timedelta(seconds=60)
_TAGS_BYTES: Final = 4 << 20
_PAGES: Final = 1000
_NEXT: Final = re.compile(r'<([^>]+)>\s*;.*\brel="?next"?')


class OciRegistry(Registry):
    """One registry by its address; use it as a context, or close it."""

    def __init__(
        self,
        address: str,
        *,
        plain: bool = False,
        authority: Path | None = None,
        account: RegistryAccount | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        uploads: UploadNotes | None = None,
    ) -> None:
        """Keep how it is reached.

        Args:
            address: Host and port.
            plain: Speak HTTP without TLS.
            authority: PEM file of the authorities that may vouch for it; else the system's.
            account: Who we are; None where it asks nobody.
            chunk_bytes: Of an upload at a time, which is held in memory.
            uploads: Where it is noted which uploads are open; None: nowhere.
        """
        self._base = URL(f"{'http' if plain else 'https'}://{address}")
        self._authority = authority
        self._access = RegistryAccess(self._base, account)
        self._chunk = chunk_bytes
        self._uploads = uploads
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Use it for a block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up its connections."""
        if self._http is not None:
            await self._http.close()

    @override
    async def manifest(self, repository: str, reference: str, *, timeout: timedelta) -> Manifest:
        async with within(timeout, f"manifest {reference}"):
            call = self._call("GET", repository, f"manifests/{reference}", headers={"Accept": _ACCEPT})
            answer = await self._ask(call, 200, limit=MANIFEST_BYTES)
        if len(answer.content) > MANIFEST_BYTES:
            raise UnavailableError(f"The manifest {reference} is longer than {MANIFEST_BYTES} bytes.")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        found = Manifest(media_type=media_type, content=answer.content)
        if ":" in reference and found.digest != reference:
            raise UnavailableError(f"The registry gives other content for {reference}.", digest=reference)
        return found

    @override
    async def blob(self, repository: str, digest: str, *, size: int, timeout: timedelta) -> AsyncGenerator[bytes, None]:
        hashed, count = hashlib.sha256(), 0
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout.total_seconds()
        call = self._call("GET", repository, f"blobs/{digest}")
        transport = self._transport()
        async with AsyncExitStack() as stack:
            async with within(timeout, f"blob {digest}"):
                answer = await transport.opened(stack, call)
            if answer.status == 404:
                raise NotFoundError(f"The registry has no blob {digest}.", digest=digest)
            if answer.status != 200:
                raise UnavailableError(f"The registry answers {answer.status} for blob {digest}.", digest=digest)
            while True:
                async with within(timedelta(seconds=end - loop.time()), f"blob {digest}"):
                    piece = await answer.content.read(_READ)
                if not piece:
                    break
                count += len(piece)
                if count > size:
                    break
                hashed.update(piece)
                yield piece
        if count != size or f"sha256:{hashed.hexdigest()}" != digest:
            raise UnavailableError(f"The registry gives other content for blob {digest}.", digest=digest)

    @override
    async def has_blob(self, repository: str, digest: str, *, timeout: timedelta) -> bool:
        async with within(timeout, f"blob {digest}"):
            answer = await self._ask(self._call("HEAD", repository, f"blobs/{digest}"), 200, 404)
            if answer.status == 404 or answer.headers.get("Content-Length") == "0":
                return answer.status == 200
            byte = self._call("GET", repository, f"blobs/{digest}", headers={"Range": "bytes=0-0"})
            return await self._transport().gives(byte)

    @override
    async def mount(self, repository: str, digest: str, *, source: str, timeout: timedelta) -> bool:
        scopes = scopes_of(repository, write=True, source=source)
        url = self._url(repository, "blobs/uploads/").update_query({"mount": digest, "from": source})
        async with within(timeout, f"mount of {digest}"):
            call = Call(method="POST", url=url, scopes=scopes, body=b"")
            opened = await self._opened(self._mounted(call))
            if opened is not None:  # refused, and an upload was opened instead, which nobody wants
                try:
                    await opened.cancel()
                except BaseException:
                    await self._take_back(opened)
                    raise
        return opened is None

    async def _mounted(self, call: Call) -> Upload | None:
        answer = await self._ask(call, 201, 202)
        if answer.status == 201:
            return None
        return Upload(self._transport(), location_of(answer), scopes=call.scopes, chunk=self._chunk)

    @override
    async def copy(
        self,
        repository: str,
        digest: str,
        *,
        size: int,
        source: str,
        timeout: timedelta,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        async def once() -> bool:
            async with aclosing(self.blob(source, digest, size=size, timeout=timeout)) as pieces:
                content = PassingContent(pieces, size=size)
                await content.begin()
                return await self._upload_once(repository, content, digest, commit=commit)

        async with within(timeout, f"copy of {digest}"):
            await self._upload(repository, digest, once)

    @override
    async def upload(
        self,
        repository: str,
        content: Path | bytes,
        *,
        digest: str,
        timeout: timedelta,
        sent: Sent | None = None,
        commit: GenerationId = NO_COMMIT,
    ) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        kept = KeptContent(source=content, size=size)
        async with within(timeout, f"upload of {digest}"):
            await self._upload(
                repository, digest, lambda: self._upload_once(repository, kept, digest, sent, commit=commit)
            )

    @override
    async def cancel_upload(self, repository: str, location: str, *, timeout: timedelta) -> None:
        async with within(timeout, f"end of an upload to {repository}"):
            if not await self._session(repository, location).cancel():
                raise UploadStuckError

    @override
    async def find_upload(self, repository: str, location: str, *, timeout: timedelta) -> int | None:
        async with within(timeout, f"look at an upload to {repository}"):
            return await self._session(repository, location).find()

    def _session(self, repository: str, location: str) -> Upload:
        """A session that somebody has opened."""
        scopes = scopes_of(repository, write=True)
        return Upload(self._transport(), URL(location, encoded=True), scopes=scopes, chunk=self._chunk)

    async def _upload(self, repository: str, digest: str, once: Callable[[], Awaitable[bool]]) -> None:
        """Upload in as many sessions as it takes."""
        failure = UnavailableError("The registry forgets uploads. Try again.", digest=digest)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if await once():
                    return
            except ContentGoneError as error:
                failure = error
            # The session is gone. Closed, where only the answer to the last request was lost; else thrown away, as
            # docker-registry does with one whose answer to a chunk was lost.
            if await self.has_blob(repository, digest, timeout=_ASK_TIMEOUT):
                return
            await pause(attempt)
        raise failure

    async def _upload_once(
        self,
        repository: str,
        content: Content,
        digest: str,
        sent: Sent | None = None,
        *,
        commit: GenerationId = NO_COMMIT,
    ) -> bool:
        """Upload in one session; False where the registry does not know it any more."""
        url, scopes = self._url(repository, "blobs/uploads/"), scopes_of(repository, write=True)
        session = await self._opened(Upload.begin(self._transport(), url, scopes=scopes, chunk=self._chunk))
        assert session is not None
        note = SessionNote(self._uploads, repository=repository, commit=commit)
        try:
            await note.begun(session.location, total_bytes=content.size)
            await session.send(content, digest=digest, sent=sent, moved=note.moved)
        except NotFoundError as error:
            if error.metadata.get("code") != STUCK:
                await note.ended()
            return False
        except BaseException:
            if await self._take_back(session):
                await note.ended()
            raise
        await note.ended()
        return True

    @override
    async def push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> None:
        await self._push(repository, reference, manifest, timeout=timeout)

    async def _push(self, repository: str, reference: str, manifest: Manifest, *, timeout: timedelta) -> Answer:
        async with within(timeout, f"push of {reference}"):
            path = f"manifests/{reference}"
            headers = {"Content-Type": manifest.media_type}
            call = self._call("PUT", repository, path, headers=headers, body=manifest.content)
            answer = await self._ask(call, 201)
            told = answer.headers.get("Docker-Content-Digest", manifest.digest)
            there = await self.manifest(repository, reference, timeout=timeout)
        if told != manifest.digest or there.content != manifest.content:
            raise UnavailableError(f"The registry keeps other content as {reference}.", reference=reference)
        return answer

    @override
    async def tags(self, repository: str, *, timeout: timedelta) -> Sequence[str]:
        found: list[str] = []
        url = self._url(repository, "tags/list")
        async with within(timeout, "list of tags"):
            for _ in range(_PAGES):
                call = Call(method="GET", url=url, scopes=scopes_of(repository, write=False))
                answer = await self._ask(call, 200, 404, limit=_TAGS_BYTES)
                if answer.status == 404:
                    return []
                found += _tags_in(answer.content)
                more = _NEXT.search(answer.headers.get("Link", ""))
                if more is None:
                    return found
                url = url.join(URL(more[1], encoded=True))
        raise UnavailableError(f"The registry's list of tags does not end after {_PAGES} pages.")

    @override
    async def delete(self, repository: str, digest: str, *, timeout: timedelta) -> None:
        async with within(timeout, f"deletion of {digest}"):
            call = self._call("DELETE", repository, f"manifests/{digest}")
            answer = await self._ask(call, 202, 404, 405)
        if answer.status == 405:
            raise RegistryKeepsError(
                "The registry deletes nothing. Switch its storage.delete.enabled on.", digest=digest
            )

    @override
    async def attach(self, repository: str, tag: str, manifest: Manifest, *, timeout: timedelta) -> None:
        async with within(timeout, f"attachment of {tag}"):
            answer = await self._push(repository, tag, manifest, timeout=timeout)
            if SUBJECT_HEADER not in answer.headers:
                await enlist(self, repository, manifest, timeout=timeout)

    @override
    async def attached(self, repository: str, subject: str, *, timeout: timedelta) -> Sequence[Manifest]:
        async with within(timeout, f"list of what is attached to {subject}"):
            return await find(self, repository, subject, ask=self._referrers, timeout=timeout)

    @override
    async def detach(self, repository: str, subject: str, *, timeout: timedelta) -> int:
        async with within(timeout, f"deletion of what is attached to {subject}"):
            return await remove(self, repository, subject, ask=self._referrers, timeout=timeout)

    async def _referrers(self, repository: str, subject: str) -> Answer:
        call = self._call("GET", repository, f"referrers/{subject}", headers={"Accept": OCI_INDEX})
        return await self._ask(call, 200, 404, limit=MANIFEST_BYTES)

    async def _opened(self, opening: Coroutine[Any, Any, Upload | None]) -> Upload | None:
        """Wait for an upload to be opened; who is cancelled meanwhile takes back what the answer then names."""
        task: asyncio.Task[Upload | None] | None = None
        try:
            async with finishing(opening) as task:
                return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task is not None and task.done() and not task.cancelled() and task.exception() is None:
                session = task.result()
                if session is not None:
                    await self._take_back(session)
            raise

    async def _take_back(self, session: Upload) -> bool:
        """Cancel an upload, also while our own task is being cancelled; True where that is certain."""
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                return await session.cancel()
        except (TimeoutError, SandboxdError):
            return False

    def _url(self, repository: str, path: str) -> URL:
        return self._base.joinpath("v2", repository, path)

    def _call(
        self,
        method: str,
        repository: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Call:
        scopes = scopes_of(repository, write=method in {"PUT", "DELETE"})
        return Call(method=method, url=self._url(repository, path), scopes=scopes, headers=headers or {}, body=body)

    async def _ask(self, call: Call, *expected: int, limit: int = ERROR_BYTES) -> Answer:
        """Exchange. A registry that says by another status that something is not there says it here."""
        return await self._transport().ask(call, *expected, limit=limit)

    def _transport(self) -> Transport:
        if self._http is None:
            self._http = open_session(self._authority)
        return Transport(self._http, self._base, self._access)


def _tags_in(content: bytes) -> list[str]:
    try:
        return [str(tag) for tag in json.loads(content).get("tags") or []]
    except (ValueError, AttributeError, TypeError) as error:
        raise UnavailableError("The registry's list of tags cannot be read.") from error
