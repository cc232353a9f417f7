"""Requests to the Kubernetes API, on raw JSON.

The library's typed models are not used: decoding them was more than half of a hub's processor time at 2,000 servers
(KubeSpawner's experience).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import aiohttp
from typing_extensions import override

from sandboxd.kubeapi.access import Access, KubeConfigError, load_access
from sandboxd.kubeapi.errors import KubeError, KubeUnavailableError, error_of
from sandboxd.kubeapi.ports import MERGE_PATCH, Json, KubeApi

DEFAULT_TIMEOUT: Final = timedelta(seconds=10)
CONNECTIONS: Final = 64
LONGEST_LINE: Final = 1 << 22
"""Longest line of a watch: etcd keeps objects up to 1.5 MiB."""


class KubeClient(KubeApi):
    """One session with the API server. Close it with `close`, or use it as a context."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """Say where the configuration is; see `load_access`. It is read, and connected, by the first request."""
        self._kubeconfig = kubeconfig
        self._session: aiohttp.ClientSession | None = None
        self._access: Access | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> Self:
        """Read the configuration now, to be told at once when it is not usable.

        Raises:
            KubeConfigError: It cannot be used.
        """
        async with self._opening:
            if self._session is None:
                self._access = await load_access(self._kubeconfig)
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self._access.ssl),
                    read_bufsize=LONGEST_LINE,
                )
        return self

    async def __aenter__(self) -> Self:
        """Use it for a block."""
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Let go of every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @override
    async def get(self, path: str, *, query: Mapping[str, str] | None = None, timeout: timedelta | None = None) -> Json:
        return await self.request("GET", path, query=query, timeout=timeout)

    @override
    async def text(self, path: str, *, query: Mapping[str, str], timeout: timedelta | None = None) -> str:
        payload = await self._send("GET", path, query=query, timeout=timeout, accept="*/*")
        return payload.decode("utf-8", "replace")

    @override
    async def create(self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None) -> Json:
        query = {"fieldManager": field_manager} if field_manager else None
        return await self.request("POST", path, query=query, body=body, timeout=timeout)

    @override
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
        query = {"fieldManager": field_manager} if field_manager else {}
        if force:
            query["force"] = "true"
        return await self.request("PATCH", path, query=query, body=body, content_type=kind, timeout=timeout)

    @override
    async def replace(
        self, path: str, body: Json, *, field_manager: str = "", timeout: timedelta | None = None
    ) -> Json:
        query = {"fieldManager": field_manager} if field_manager else None
        return await self.request("PUT", path, query=query, body=body, timeout=timeout)

    @override
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
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if given := {name: value for name, value in preconditions.items() if value}:
            options["preconditions"] = given
        if grace is not None:
            options["gracePeriodSeconds"] = int(grace.total_seconds())
        if propagation:
            options["propagationPolicy"] = propagation
        return await self.request("DELETE", path, body=options, timeout=timeout)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: timedelta | None = None,
    ) -> Json:
        """Send one request and read the answer.

        Raises:
            KubeError: It was refused, or there is no answer; the subclass says which.
        """
        answer: Json = json.loads(
            await self._send(method, path, query=query, body=body, content_type=content_type, timeout=timeout)
        )
        return answer

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: timedelta | None = None,
        accept: str = "application/json",
    ) -> bytes:
        seconds = (timeout or DEFAULT_TIMEOUT).total_seconds()
        session, access = await self._ready()
        try:
            async with (
                asyncio.timeout(seconds),
                session.request(
                    method,
                    access.host + path,
                    params=query,
                    data=None if body is None else json.dumps(body, separators=(",", ":")),
                    headers=await _headers(access, None if body is None else content_type, accept=accept),
                ) as response,
            ):
                payload = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered(method, path, error) from error
        if response.status >= 400:
            raise _refusal(response.status, payload)
        return payload

    @override
    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, str], silence: timedelta
    ) -> AsyncIterator[AsyncIterator[Json]]:
        """Read an answer that goes on, one JSON object a line: a watch.

        Args:
            path: The collection.
            query: Its parameters.
            silence: A stream that says nothing for so long is ended, as its peer may be gone.

        Raises:
            KubeError: It was refused, or ended by the network.
        """
        session, access = await self._ready()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence.total_seconds())
        try:
            async with session.get(
                access.host + path, params=query, headers=await _headers(access, None), timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise _refusal(response.status, await response.read())
                yield _lines(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered("WATCH", path, error) from error

    async def _ready(self) -> tuple[aiohttp.ClientSession, Access]:
        if self._session is None:
            try:
                await self.open()
            except KubeConfigError as error:
                raise KubeUnavailableError(str(error)) from error
        assert self._session is not None
        assert self._access is not None
        return self._session, self._access


async def _headers(access: Access, content_type: str | None, *, accept: str = "application/json") -> dict[str, str]:
    headers = {"Accept": accept, "User-Agent": "sandboxd", **await access.headers()}
    if content_type is not None:
        headers["Content-Type"] = content_type
    return headers


def segment(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    async for line in response.content:
        if line.strip():
            yield json.loads(line)


def _refusal(status: int, payload: bytes) -> KubeError:
    try:
        content: Json = json.loads(payload)
        reason, message = str(content.get("reason", "")), str(content.get("message", ""))
    except ValueError:
        reason, message = "", payload[:500].decode("utf-8", "replace")
    return error_of(status, reason, message or f"the API server answered with status {status}")


def _unanswered(method: str, path: str, error: Exception) -> KubeUnavailableError:
    cause = "it did not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return KubeUnavailableError(f"{method} {path}: {cause}")
