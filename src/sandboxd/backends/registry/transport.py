"""One exchange with a registry: authorised, repeated where that is safe, and its failures put into our words."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from yarl import URL

from sandboxd.backends.registry.access import RegistryAccess
from sandboxd.model.errors import DeadlineError, ExhaustedError, NotFoundError, SandboxdError, UnavailableError

T = TypeVar("T")

ATTEMPTS: Final = 5
FINISHING_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})
ERROR_BYTES: Final = 4096
"""Of an answer that is no content, so many are read."""
_FULL: Final = ("quota", "exceed the configured upper limit")
"""Words of refusals where a quota is spent; the second ones are Harbor's, which calls it DENIED."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is asked for."""

    method: str
    url: URL
    scopes: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


@asynccontextmanager
async def within(timeout: timedelta, what: str) -> AsyncIterator[None]:
    """Bound a block, and call the end of its time by our name.

    Raises:
        DeadlineError: The time is over.
    """
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            yield
    except TimeoutError as error:
        raise DeadlineError(f"The registry did not finish in time: {what}.", what=what) from error


@asynccontextmanager
async def finishing(exchange: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Run an exchange whose answer is needed to take its effect back, for the block that waits for it.

    Whoever is cancelled in the block waits `FINISHING_SECONDS` longer: of an upload nobody else knows the address, and
    docker-registry closes none whose last chunk's answer was not read.
    """
    task = asyncio.create_task(exchange, name="registry exchange")
    try:
        yield task
    finally:
        if not task.done():
            await asyncio.wait([task], timeout=FINISHING_SECONDS)
            task.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # whoever was cancelled does not want to hear of it


def open_session(authority: Path | None) -> aiohttp.ClientSession:
    """Make what connections are made with. No cookies: with its session Harbor would demand a form's secret, too.

    Args:
        authority: PEM file of the authorities that may vouch for the registry; else the system's.
    """
    trusted = ssl.create_default_context(cafile=str(authority) if authority else None)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trusted),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
        auto_decompress=False,  # digests are of the bytes as they are kept
        trust_env=False,
    )


class Transport:
    """Exchanges with one registry."""

    def __init__(self, http: aiohttp.ClientSession, base: URL, access: RegistryAccess) -> None:
        self._http = http
        self._access = access
        self.base = base

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send once, and once more where the refusal told how to be let in.

        Raises:
            UnavailableError: The connection fails, also while the answer is read.
        """
        try:
            for last in (False, True):
                who = self._access.header(call.url, call.scopes)
                async with self._http.request(
                    call.method,
                    call.url,
                    data=call.body,
                    headers={**call.headers, **who},
                    allow_redirects=call.method in {"GET", "HEAD"},
                ) as answer:
                    challenge = answer.headers.get("WWW-Authenticate", "")
                    if (
                        answer.status == 401
                        and not last
                        and await self._access.learn(self._http, challenge, call.scopes, refused=who)
                    ):
                        continue
                    yield answer
                    return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise UnavailableError(
                f"The registry {self.base.authority} cannot be reached: {type(error).__name__}.",
                registry=self.base.authority,
            ) from error

    async def opened(self, stack: AsyncExitStack, call: Call) -> aiohttp.ClientResponse:
        """Open an answer that `stack` closes, once the registry does not wish to be asked again.

        Raises:
            UnavailableError: The connection failed `ATTEMPTS` times.
        """
        for attempt in range(1, ATTEMPTS):
            async with AsyncExitStack() as own:
                try:
                    answer = await own.enter_async_context(self.open(call))
                except UnavailableError:
                    await pause(attempt)
                    continue
                if answer.status not in _AGAIN:
                    stack.push_async_exit(own.pop_all())
                    return answer
            await pause(attempt, answer.headers.get("Retry-After", ""))
        return await stack.enter_async_context(self.open(call))

    async def ask(self, call: Call, *expected: int, limit: int = ERROR_BYTES) -> Answer:
        """Exchange until the registry gives one of these answers, at most `ATTEMPTS` times.

        Raises:
            NotFoundError: 404, where it is not expected.
            ExhaustedError: It has no room for us; that is not tried again.
            UnavailableError: It does not answer so; the message tells what it says.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self.open(call) as answer:
                    kept = Answer(status=answer.status, headers=answer.headers, url=answer.url)
                    kept.content = await read_up_to(answer, limit)
                    if answer.status in expected:
                        return kept
            except UnavailableError:
                if attempt == ATTEMPTS:
                    raise
                await pause(attempt)
                continue
            if answer.status not in _AGAIN or attempt == ATTEMPTS:
                raise self.failure(call, kept)
            await pause(attempt, kept.headers.get("Retry-After", ""))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def gives(self, call: Call) -> bool:
        """See a byte of what the registry says it has.

        docker-registry with a cache says so of what its garbage collection has removed beside it, until it is started
        again (https://github.com/distribution/distribution/issues/3743); who uploads it anyway has it back.

        Raises:
            UnavailableError: It does not answer.
        """
        opened = False
        try:
            async with AsyncExitStack() as stack:
                answer = await self.opened(stack, call)
                opened = True
                if answer.status in {200, 206}:
                    return bool(await answer.content.read(1))
        except UnavailableError:
            if not opened:
                raise
            return False  # it broke off: there is nothing to give
        if answer.status == 404:
            return False
        raise self.failure(call, Answer(status=answer.status, headers=answer.headers, url=answer.url))

    def failure(self, call: Call, answer: Answer) -> SandboxdError:
        """Put an answer that was not expected into our words."""
        code, said = complaint(answer.content)
        registry, status = self.base.authority, str(answer.status)
        text = f"The registry {self.base.authority} answers {answer.status} to {call.method} {call.url.path}"
        text += f": {code} {said}." if code else "."
        if answer.status == 404:
            return NotFoundError(text, registry=registry, status=status, code=code)
        if answer.status in {413, 507} or (400 <= answer.status < 500 and any(one in said.lower() for one in _FULL)):
            return ExhaustedError(
                f"{text} Delete images or raise the registry's quota.", registry=registry, status=status, code=code
            )
        if answer.status in {401, 403}:
            return UnavailableError(
                f"{text} Look at the registry's account and its rights.", registry=registry, status=status, code=code
            )
        return UnavailableError(text, registry=registry, status=status, code=code)


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer that was read."""

    status: int
    headers: Mapping[str, str]
    url: URL
    content: bytes = b""


async def read_up_to(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read an answer whole, or its first `limit` + 1 bytes."""
    content = bytearray()
    while len(content) <= limit and (more := await answer.content.read(limit + 1 - len(content))):
        content += more
    return bytes(content)


async def pause(attempt: int, wished: str = "") -> None:
    """Wait before the next attempt: longer each time, as long as the registry wishes, never more than 5 s."""
    seconds = float(wished) if wished.isdecimal() else _FIRST_PAUSE * 2**attempt
    await asyncio.sleep(min(seconds, _LONGEST_PAUSE) * random.uniform(0.75, 1.0))  # noqa: S311


def complaint(content: bytes) -> tuple[str, str]:
    """Return the code and the message of an error's body, empty where it has none."""
    try:
        first = json.loads(content)["errors"][0]
        return _plain(first.get("code")), _plain(first.get("message"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return "", ""


def _plain(text: object) -> str:
    return "".join(letter for letter in str(text or "")[:200] if letter.isprintable())
