"""The upload of one blob in chunks: what a cut, a lost answer or a stale offset leaves is asked for and continued."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from yarl import URL

from sandboxd.backends.registry.transport import ATTEMPTS, Answer, Call, Transport, complaint, finishing, pause
from sandboxd.images.registry import Sent, UploadStuckError
from sandboxd.model.errors import SandboxdError, UnavailableError

STUCK: Final = "BLOB_UPLOAD_INVALID"
"""What docker-registry says of a session that is at another offset than its address."""
_RANGE: Final = re.compile(r"(?:bytes=)?0-(\d+)")


class Content(Protocol):
    """What is uploaded."""

    @property
    def size(self) -> int:
        """Bytes of it."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Return a piece, none at the end; one that was returned is asked for again where it did not arrive.

        Raises:
            ContentGoneError: It cannot be read there any more.
        """
        ...


class ContentGoneError(UnavailableError):
    """The bytes that are wanted cannot be had any more: it takes another session, from the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptContent:
    """Bytes that can be read again at any offset."""

    source: Path | bytes
    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Return that piece."""
        if isinstance(self.source, bytes):
            return self.source[offset : offset + length]
        return await asyncio.to_thread(_piece, self.source, offset, length)


class PassingContent:
    """Bytes that come once: the last piece is held until the next one is asked for."""

    def __init__(self, source: AsyncGenerator[bytes, None], *, size: int) -> None:
        self._source = source
        self.size = size
        self._held = b""
        self._start = 0
        self._rest = bytearray()

    async def begin(self) -> None:
        """Read the first bytes, so that a source that has nothing is known before a session is opened."""
        self._rest += await anext(self._source, b"")

    async def read(self, offset: int, length: int) -> bytes:
        """Return the next piece, or what is missing of the last one."""
        end = self._start + len(self._held)
        if offset == end:
            try:
                while len(self._rest) < length and (more := await anext(self._source, b"")):
                    self._rest += more
            except SandboxdError as error:
                raise ContentGoneError(error.message) from error
            self._start, self._held = offset, bytes(self._rest[:length])
            del self._rest[:length]
        elif not self._start <= offset < end:
            raise ContentGoneError("The registry has lost a part of a blob that is copied.")
        return self._held[offset - self._start :]


class Upload:
    """One upload session."""

    def __init__(self, transport: Transport, location: URL, *, scopes: tuple[str, ...], chunk: int) -> None:
        self._transport = transport
        self._scopes = scopes
        self.location = location
        self._chunk = chunk

    @classmethod
    async def begin(cls, transport: Transport, url: URL, *, scopes: tuple[str, ...], chunk: int) -> Upload:
        """Open a session."""
        answer = await transport.ask(_call("POST", url, scopes, b""), 202)
        smallest = answer.headers.get("OCI-Chunk-Min-Length", "")
        chunk = max(chunk, int(smallest)) if smallest.isdecimal() else chunk
        return cls(transport, location_of(answer), scopes=scopes, chunk=chunk)

    async def send(
        self,
        content: Content,
        *,
        digest: str,
        sent: Sent | None = None,
        moved: Callable[[URL, int], Awaitable[None]] | None = None,
    ) -> None:
        """Send everything and close the session with the digest.

        Args:
            content: What.
            digest: Of it.
            sent: Told how many bytes the registry has.
            moved: Told as well, with where the session goes on.

        Raises:
            UnavailableError: It made no progress in several attempts.
        """
        offset = failures = 0
        while offset < content.size:
            piece = await content.read(offset, self._chunk)
            if not piece:
                raise UnavailableError("The layer's file became shorter while it was uploaded.")
            async with finishing(self._patch(piece, offset)) as patching:
                arrived = await asyncio.shield(patching)
            if arrived:
                offset += len(piece)
                failures = 0
                if moved is not None:
                    await moved(self.location, offset)
                if sent is not None:
                    sent(offset)
                continue
            failures += 1
            if failures == ATTEMPTS:
                raise UnavailableError(f"The registry took no more of a blob after {offset} bytes.", offset=str(offset))
            await pause(failures)
            offset = await self._offset()
        closing = self.location.update_query(digest=digest)
        await self._transport.ask(_call("PUT", closing, self._scopes, b""), 201)

    async def cancel(self) -> bool:
        """Close the session without a blob; one that is gone already is no error. False: it is there and stays."""
        answer = await self._transport.ask(_call("DELETE", self.location, self._scopes), 200, 202, 204, 404)
        return answer.status != 404 or not is_elsewhere(answer)

    async def find(self) -> int | None:
        """Say how many bytes the registry has of it, None where the session is gone.

        Raises:
            UploadStuckError: It is there, and nobody knows where it goes on.
        """
        answer = await self._transport.ask(_call("GET", self.location, self._scopes), 204, 404)
        if answer.status != 404:
            return _size(answer)
        if is_elsewhere(answer):
            raise UploadStuckError
        return None

    async def _patch(self, piece: bytes, offset: int) -> bool:
        """Send a chunk; False where it is not known how much of it arrived."""
        headers = {
            "Content-Range": f"{offset}-{offset + len(piece) - 1}",  # without `bytes `: the distribution's own form
            "Content-Type": "application/octet-stream",
        }
        call = _call("PATCH", self.location, self._scopes, piece, headers)
        try:
            async with self._transport.open(call) as answer:
                kept = Answer(status=answer.status, headers=answer.headers, url=answer.url)
                kept.content = await answer.content.read(4096)
        except UnavailableError:
            return False
        if kept.status in {202, 204}:
            self.location = location_of(kept)
            return True
        if kept.status in {416, 429} or (kept.status >= 500 and kept.status != 507):
            return False
        raise self._transport.failure(call, kept)

    async def _offset(self) -> int:
        """Ask how much the registry has."""
        answer = await self._transport.ask(_call("GET", self.location, self._scopes), 204)
        if "Location" in answer.headers:
            self.location = location_of(answer)
        return _size(answer)


def _size(answer: Answer) -> int:
    found = _RANGE.fullmatch(answer.headers.get("Range", ""))
    end = int(found[1]) if found else 0
    return end + 1 if end else 0  # an empty session says 0-0, as one with a single byte does


def is_elsewhere(answer: Answer) -> bool:
    """Tell whether a session that is "not found" is there, at another offset than its address says.

    docker-registry signs the offset into the address. Where a piece was cut it has a part of it, and nobody has an
    address with that offset: neither can it be continued nor closed.
    """
    return complaint(answer.content)[0] == STUCK


def location_of(answer: Answer) -> URL:
    """Return where an upload goes on: absolute, or relative to what was asked.

    Raises:
        UnavailableError: The answer does not say.
    """
    said = answer.headers.get("Location", "")
    if not said:
        raise UnavailableError("The registry opens an upload and does not say where.")
    url = answer.url.join(URL(said, encoded=True))
    if answer.url.scheme == "https" and url.scheme != "https":
        raise UnavailableError("The registry sends an upload on to an address without TLS. Look at its http.host.")
    return url


def _call(
    method: str, url: URL, scopes: tuple[str, ...], body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Call:
    return Call(method=method, url=url, scopes=scopes, body=body, headers=headers or {})


def _piece(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
