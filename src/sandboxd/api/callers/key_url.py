"""The keys of an issuer that publishes them at a URL: fetched in the background, and again when a token names another.

Whoever forges tokens can name any key: asking the issuer is therefore rare, one at a time, bounded in time and size.
While the issuer is away the last good keys stay good, for a while. Time is monotonic: a stepped clock changes nothing.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, NoReturn

import aiohttp
import structlog
from jwt import PyJWK
from prometheus_client import CollectorRegistry, Counter, Gauge
from typing_extensions import override

from sandboxd.api.callers.key_set import MAX_KEY_SET_BYTES, Keys, KeySet, KeySetError, parse_key_set
from sandboxd.api.callers.proof import KeysUnavailableError, TokenKeyUnknownError

log = structlog.get_logger("sandboxd.api")

MAX_WAITING: Final = 64
"""Calls that may wait for the issuer's answer at the same time; the rest is refused at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTiming:
    """How often the issuer is asked, and for how long it may be away."""

    refresh: timedelta = timedelta(minutes=5)
    """Between two fetches that nobody asked for; so long a withdrawn key may stay good."""
    retry: timedelta = timedelta(seconds=10)
    """After a fetch that failed."""
    unknown: timedelta = timedelta(seconds=3)
    """Least time between two fetches because of an unknown key."""
    timeout: timedelta = timedelta(seconds=5)
    """Of one fetch, from the name's resolution to the last byte."""
    patience: timedelta = timedelta(seconds=2)
    """Longest wait of one call for such a fetch."""
    trusted: timedelta = timedelta(hours=24)
    """How long keys stay good while the issuer does not answer."""


class UrlKeys(Keys):
    """Keys from a URL. Its `run` is somebody's task."""

    def __init__(
        self,
        url: str,
        *,
        registry: CollectorRegistry,
        authority: Path | None = None,
        timing: KeyTiming | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is fetched yet.

        Args:
            url: Where the JWKS is; `https`, or `http` on this machine.
            registry: Where the metrics are registered.
            authority: PEM certificates to trust instead of the system's.
            timing: How often and how long.
            monotonic: Seconds that never go back.

        Raises:
            KeySetError: The authority's file cannot be used.
        """
        self._url = url
        self._timing = timing or KeyTiming()
        self._monotonic = monotonic
        self._tls = _trust(authority)
        self._set: KeySet | None = None
        self._fetched = 0.0
        """When the present keys came."""
        self._asked = float("-inf")
        """When the last fetch ended, good or bad."""
        self._failing = False
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        """Of the next fetch to end; replaced each time."""
        self._waiting = 0
        self._fetches = Counter(
            "sandboxd_issuer_key_fetches_total", "Fetches of the issuer's keys.", ["result"], registry=registry
        )
        for result in ("ok", "failed"):
            self._fetches.labels(result)
        Gauge(
            "sandboxd_issuer_keys_age_seconds",
            "Since the issuer's keys were last fetched; -1 for never.",
            registry=registry,
        ).set_function(lambda: self._monotonic() - self._fetched if self._set else -1)

    @override
    def find(self, key_id: str | None) -> PyJWK | None:
        """Return the key of an id, as far as it is known and may still be trusted."""
        found = self._set
        if found is None or self._monotonic() - self._fetched > self._timing.trusted.total_seconds():
            return None
        return found.find(key_id)

    @override
    async def renew(self) -> None:
        """Ask the issuer, unless it was asked a moment ago.

        Raises:
            KeysUnavailableError: It does not say, or too many wait for its answer.
            TokenKeyUnknownError: It has just said what it had to say.
        """
        rest = self._asked + self._timing.unknown.total_seconds() - self._monotonic()
        if rest > 0:
            self._check_answer(retry_after=timedelta(seconds=rest))
            raise TokenKeyUnknownError(retry_after=timedelta(seconds=rest))
        if self._waiting >= MAX_WAITING:
            raise KeysUnavailableError(retry_after=self._timing.patience)
        answered = self._answered
        self._wanted.set()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timing.patience.total_seconds()):
                await answered.wait()
        except TimeoutError as error:
            raise KeysUnavailableError(retry_after=self._timing.patience) from error
        finally:
            self._waiting -= 1
        self._check_answer(retry_after=self._timing.unknown)

    def _check_answer(self, *, retry_after: timedelta) -> None:
        if self._failing:
            raise KeysUnavailableError(retry_after=retry_after)

    async def run(self) -> NoReturn:
        """Fetch the keys now and then, and when somebody wants them."""
        session_timeout = aiohttp.ClientTimeout(total=self._timing.timeout.total_seconds())
        # No proxy and no .netrc of the environment: nothing of ours goes along, and nobody stands in between.
        async with aiohttp.ClientSession(timeout=session_timeout, trust_env=False, auto_decompress=False) as session:
            while True:
                await self._fetch(session)
                self._wanted.clear()  # also what was wanted meanwhile has its answer
                answered, self._answered = self._answered, asyncio.Event()
                answered.set()
                pause = self._timing.retry if self._failing else self._timing.refresh
                try:
                    async with asyncio.timeout(pause.total_seconds()):
                        await self._wanted.wait()
                except TimeoutError:
                    continue

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        try:
            found = parse_key_set(await self._read(session))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeySetError) as error:
            self._fetches.labels("failed").inc()
            if not self._failing:  # one line for each time that it goes away
                log.warning("callers.keys_unavailable", url=self._url, error=str(error) or type(error).__name__)
            self._failing = True
        else:
            self._fetches.labels("ok").inc()
            if self._set is None or self._failing or set(found.keys) != set(self._set.keys):
                log.info("callers.keys_fetched", url=self._url, keys=sorted(found.keys), left_out=dict(found.left_out))
            self._failing = False
            self._set, self._fetched = _keeping(self._set, found), self._monotonic()
        self._asked = self._monotonic()

    async def _read(self, session: aiohttp.ClientSession) -> bytes:
        headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
        async with session.get(self._url, headers=headers, allow_redirects=False, ssl=self._tls) as response:
            if response.status != 200:
                raise KeySetError(f"the issuer answered {response.status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise KeySetError("the issuer compressed its answer, unasked")
            text = bytearray()
            async for piece in response.content.iter_any():
                text += piece
                if len(text) > MAX_KEY_SET_BYTES:
                    response.close()  # whatever more it wants to say
                    raise KeySetError(f"the issuer's answer is larger than {MAX_KEY_SET_BYTES >> 10} KiB")
            return bytes(text)


def _keeping(old: KeySet | None, new: KeySet) -> KeySet:
    """Take the new set, with the old objects where the keys are the same: who remembers a check by its key goes on."""
    if old is None:
        return new
    keys = {
        name: known if (known := old.keys.get(name)) is not None and _same(known, key) else key
        for name, key in new.keys.items()
    }
    return KeySet(keys=keys, left_out=new.left_out)


def _same(one: PyJWK, other: PyJWK) -> bool:
    return one.algorithm_name == other.algorithm_name and bool(one.key == other.key)


def _trust(authority: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise KeySetError(f"the certificates in {authority} cannot be read") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
