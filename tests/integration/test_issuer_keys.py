"""Keys that an issuer publishes at a URL: rotation, weather, and forgers who name keys that nobody has."""

import asyncio
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from typing_extensions import override

from sandboxd.api.callers.claims import ClaimRules
from sandboxd.api.callers.key_set import KeySetError
from sandboxd.api.callers.key_url import MAX_WAITING, KeyTiming, UrlKeys
from sandboxd.api.callers.tokens import BearerTokens
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.model.caller import Role
from sandboxd.model.errors import SandboxdError
from tests.certificates import Authority
from tests.eventually import eventually
from tests.issuers import AUDIENCE, ISSUER, TokenIssuer, key_set

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = KeyTiming(
    refresh=timedelta(hours=1),
    retry=timedelta(seconds=0.05),
    unknown=timedelta(seconds=0.05),
    timeout=timedelta(seconds=0.5),
    patience=timedelta(seconds=5),
)
"""Quick where a test waits for something to happen, and slow where it must not."""


class Publisher:
    """An issuer's web server."""

    def __init__(self, *issuers: TokenIssuer) -> None:
        self.body = key_set(*[issuer.jwk for issuer in issuers])
        self.fetches = 0
        self.answer: Answer = self.publish
        self.url = ""

    async def publish(self, _: web.Request) -> web.StreamResponse:
        return web.Response(body=self.body)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        return await self.answer(request)

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/{anything:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/keys"
        try:
            yield
        finally:
            await runner.cleanup()


class Clock(SystemClock):
    """The machine's time, moved."""

    moved = 0.0

    @override
    def monotonic(self) -> float:
        return super().monotonic() + self.moved


class Checker:
    """BearerTokens with keys from a URL."""

    def __init__(self, url: str, *, timing: KeyTiming = QUICK, authority: Path | None = None) -> None:
        self.registry, self.clock = CollectorRegistry(), Clock()
        self.keys = UrlKeys(
            url, registry=self.registry, timing=timing, authority=authority, monotonic=self.clock.monotonic
        )
        rules = ClaimRules(issuer=ISSUER, audience=AUDIENCE)
        self.tokens = BearerTokens(keys=self.keys, rules=rules, clock=self.clock)

    async def role(self, token: str) -> Role:
        return (await self.tokens.check(f"Bearer {token}")).caller.role

    async def reason(self, token: str) -> str:
        try:
            await self.role(token)
        except SandboxdError as error:
            return error.reason
        return ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keys.run())
        try:
            yield
            assert not task.done(), "the fetching ended"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def a_checker(publisher: Publisher, *, timing: KeyTiming = QUICK) -> AsyncIterator[Checker]:
    async with publisher.serving():
        checker = Checker(publisher.url, timing=timing)
        async with checker.running():
            yield checker


def a_token(issuer: TokenIssuer, **headers: object) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": time.time() + 600,
        "sub": "svc",
        "client": "acme",
        "role": "platform",
    }
    return issuer.sign(claims, **headers)


def reason(checker: Checker, token: str, expected: str) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await checker.reason(token) == expected

    return check


async def test_the_first_call_waits_for_the_first_fetch() -> None:
    issuer = TokenIssuer()
    async with a_checker(Publisher(issuer)) as checker:
        assert await checker.role(a_token(issuer)) is Role.PLATFORM
        assert checker.registry.get_sample_value("sandboxd_issuer_key_fetches_total", {"result": "ok"}) == 1
        age = checker.registry.get_sample_value("sandboxd_issuer_keys_age_seconds")
        assert age is not None
        assert 0 <= age < 60


@pytest.mark.parametrize("algorithm", ["EdDSA", "RS256", "ES256"])
async def test_a_new_key_is_found_when_a_token_names_it_and_a_withdrawn_one_is_gone(algorithm: str) -> None:
    old, new = TokenIssuer(key_id="old"), TokenIssuer(key_id="new", algorithm=algorithm)
    publisher = Publisher(old)
    async with a_checker(publisher) as checker:
        assert await checker.role(a_token(old)) is Role.PLATFORM

        publisher.body = key_set(old.jwk, new.jwk)
        await eventually(reason(checker, a_token(new), ""))
        assert await checker.reason(a_token(old)) == ""

        publisher.body = key_set(new.jwk)

        async def gone() -> bool:
            await checker.reason(a_token(new, kid="nobody's"))  # makes us ask again
            return await checker.reason(a_token(old)) == "TOKEN_KEY_UNKNOWN"

        await eventually(gone)
        assert await checker.reason(a_token(new)) == ""


async def test_keys_are_refreshed_in_the_background() -> None:
    old, new = TokenIssuer(), TokenIssuer()
    publisher = Publisher(old)
    async with a_checker(publisher, timing=replace(QUICK, refresh=timedelta(seconds=0.05))) as checker:
        assert await checker.reason(a_token(old)) == ""

        publisher.body = key_set(new.jwk)  # the same name for another key: no token can say so

        await eventually(reason(checker, a_token(new), ""))
        assert await checker.reason(a_token(old)) == "TOKEN_INVALID"


async def test_a_flood_of_forged_kids_asks_the_issuer_now_and_then() -> None:
    issuer = TokenIssuer()
    publisher = Publisher(issuer)
    async with a_checker(publisher, timing=replace(QUICK, unknown=timedelta(seconds=30))) as checker:
        assert await checker.reason(a_token(issuer)) == ""
        checker.clock.moved += 31

        reasons = await asyncio.gather(*[checker.reason(a_token(issuer, kid=f"k{n}")) for n in range(500)])

        # Those who come first wait for one fetch; the rest is turned away, or told what that fetch said.
        assert set(reasons) <= {"TOKEN_KEY_UNKNOWN", "KEYS_UNAVAILABLE"}
        assert publisher.fetches == 2
        for number in range(200):
            assert await checker.reason(a_token(issuer, kid=f"later{number}")) == "TOKEN_KEY_UNKNOWN"
        assert publisher.fetches == 2
        assert await checker.reason(a_token(issuer)) == ""


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


async def drip(request: web.Request) -> web.StreamResponse:
    """A good beginning, and then a byte now and then, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"keys": [')
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def flood(request: web.Request) -> web.StreamResponse:
    """100 MB."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b" " * (1 << 20))
    return response


async def bomb(_: web.Request) -> web.StreamResponse:
    """100 MB, compressed."""
    return web.Response(body=gzip.compress(b" " * (100 << 20), 1), headers={"content-encoding": "gzip"})


def answering(**fields: object) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(**fields)  # type: ignore[arg-type]  # test sugar

    return answer


WEATHER: dict[str, Answer] = {
    "hangs": never,
    "drips": drip,
    "sends 100 MB": flood,
    "sends a bomb": bomb,
    "breaks": answering(status=500),
    "is gone": answering(status=404),
    "sends elsewhere": answering(status=302, headers={"location": "http://127.0.0.1:1/keys"}),
    "sends nothing": answering(body=b""),
    "sends HTML": answering(body=b"<html>sign in</html>", content_type="text/html"),
    "sends no keys": answering(body=b'{"keys": []}'),
    "sends secrets": answering(body=key_set({"kid": "one", "kty": "oct", "k": "c2VjcmV0"})),
    "sends brackets": answering(body=b"[" * 200_000),
}


@pytest.mark.parametrize("weather", WEATHER)
async def test_an_issuer_in_bad_weather_leaves_the_last_keys_good_and_is_not_taken_for_a_forgers_word(
    weather: str,
) -> None:
    old, new = TokenIssuer(key_id="old"), TokenIssuer(key_id="new")
    publisher = Publisher(old)
    async with a_checker(publisher) as checker:
        assert await checker.reason(a_token(old)) == ""

        publisher.answer = WEATHER[weather]
        # Nobody can tell whether the issuer has such a key: not the caller's fault, and worth another try.
        await eventually(reason(checker, a_token(new), "KEYS_UNAVAILABLE"), within=20)
        assert await checker.reason(a_token(old)) == ""

        publisher.answer = publisher.publish
        publisher.body = key_set(old.jwk, new.jwk)
        await eventually(reason(checker, a_token(new), ""), within=20)


async def test_an_issuer_that_is_away_at_the_start_is_found_later() -> None:
    issuer = TokenIssuer()
    publisher = Publisher(issuer)
    publisher.answer = answering(status=503)
    async with a_checker(publisher) as checker:
        await eventually(reason(checker, a_token(issuer), "KEYS_UNAVAILABLE"))

        publisher.answer = publisher.publish

        await eventually(reason(checker, a_token(issuer), ""))


async def test_keys_are_not_trusted_for_ever_without_their_issuer() -> None:
    issuer = TokenIssuer()
    publisher = Publisher(issuer)
    async with a_checker(publisher) as checker:
        token = a_token(issuer)
        assert await checker.reason(token) == ""
        publisher.answer = answering(status=503)

        checker.clock.moved += 23 * 3600
        assert await checker.reason(token) == ""
        checker.clock.moved += 2 * 3600
        assert await checker.reason(token) == "KEYS_UNAVAILABLE"

        publisher.answer = publisher.publish
        await eventually(reason(checker, token, ""))


async def test_who_waits_for_a_hanging_issuer_is_bounded_in_time_and_number() -> None:
    issuer = TokenIssuer()
    publisher = Publisher(issuer)
    timing = replace(QUICK, timeout=timedelta(seconds=30), patience=timedelta(seconds=0.5))
    async with a_checker(publisher, timing=timing) as checker:
        assert await checker.reason(a_token(issuer)) == ""
        publisher.answer = never
        checker.clock.moved += 1

        tasks = [asyncio.create_task(checker.reason(a_token(issuer, kid=f"k{n}"))) for n in range(MAX_WAITING + 200)]
        _done, waiting = await asyncio.wait(tasks, timeout=0.2)
        assert len(waiting) <= MAX_WAITING
        assert await checker.reason(a_token(issuer)) == ""
        assert {await task for task in tasks} == {"KEYS_UNAVAILABLE"}


async def test_the_issuer_must_prove_who_it_is(tmp_path: Path) -> None:
    issuer, authority = TokenIssuer(), Authority()
    publisher = Publisher(issuer)
    files = authority.issue("127.0.0.1").write(tmp_path, "issuer")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    async with publisher.serving(context):
        trusting = Checker(publisher.url, authority=authority.write(tmp_path))
        async with trusting.running():
            assert await trusting.reason(a_token(issuer)) == ""
        stranger = Checker(publisher.url)
        async with stranger.running():
            assert await stranger.reason(a_token(issuer)) == "KEYS_UNAVAILABLE"


def test_an_authority_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not PEM")

    with pytest.raises(KeySetError, match=r"ca\.pem"):
        UrlKeys("https://issuer.test/keys", registry=CollectorRegistry(), authority=tmp_path / "ca.pem")


async def test_an_issuer_learns_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password canary\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    seen: list[str] = []
    issuer = TokenIssuer()
    publisher = Publisher(issuer)

    async def look(request: web.Request) -> web.StreamResponse:
        seen.extend(request.headers)
        return await publisher.publish(request)

    publisher.answer = look
    async with a_checker(publisher) as checker:
        assert await checker.reason(a_token(issuer)) == ""

    assert {name.lower() for name in seen} == {"host", "accept", "accept-encoding", "user-agent"}
