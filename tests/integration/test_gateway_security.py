"""What must never happen at the gateway: another upstream, a leaked key, a token of somebody else, unbounded work."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sandboxd.gateway.config import GatewayLimits
from sandboxd.gateway.policy import ModelPolicy, StaticModelPolicies
from sandboxd.gateway.tokens import AUDIENCE, ISSUER
from sandboxd.model.ids import IncarnationId
from sandboxd.model.usage import ModelMethod, UsageState
from tests.contract.usage_world import an_identity
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import CANARY, MODEL, GatewayWorld, config_for, error_of, texts

BODY = b'{"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}'


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini(key=CANARY) as fake:
        yield fake


@pytest.fixture
async def world(fake: FakeGemini, tmp_path: Path) -> AsyncIterator[GatewayWorld]:
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path)).running() as world:
        yield world


async def raw(world: GatewayWorld, data: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes as they are and return all that comes back until the gateway closes."""
    url = urlsplit(world.gateway.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(data)
        await writer.drain()
        if half_close:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


# --- only one upstream, only by its allowed methods


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/healthz",
        "/metrics",
        "/v1beta/models",
        f"/v1beta/models/{MODEL}",
        f"/v1beta/models/{MODEL}:embedContent",
        f"/v1beta/models/{MODEL}:batchGenerateContent",
        f"/v1beta/models/{MODEL}:generateContent/",
        f"/v1beta/models/{MODEL}:generateContent/../../files",
        f"/v1beta/models/{MODEL}:generateContent%2f..%2ffiles",
        f"/v1beta/models/{MODEL}:generateContent%3fkey=x",
        f"/v1beta/models/{MODEL}%3AgenerateContent",
        f"/v1beta/models/{MODEL}:generateContent#fragment",
        f"/v1beta/models/../models/{MODEL}:generateContent",
        f"/v1beta/models/..%2f..%2fv1%2fmodels%2f{MODEL}:generateContent",
        "/v1beta/models/..:generateContent",
        "/v1beta/models/gemini@evil.example:generateContent",
        "/v1beta/models/gemini-2.5-flash:8080:generateContent",
        f"//evil.example/v1beta/models/{MODEL}:generateContent",
        f"/v1beta//models/{MODEL}:generateContent",
        f"/v1/models/{MODEL}:generateContent",
        "/v1beta/files",
        "/upload/v1beta/files",
        "/v1beta/cachedContents",
        f"/v1beta/tunedModels/{MODEL}:generateContent",
        f"http://evil.example/v1beta/models/{MODEL}:generateContent",
        f"http://169.254.169.254/v1beta/models/{MODEL}:generateContent",
        f"/v1beta/models/{MODEL}:GENERATECONTENT",
        f"/v1beta/models/{MODEL}\u0661:generateContent",
    ],
)
async def test_no_other_address_reaches_the_upstream(world: GatewayWorld, target: str) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.token()}\r\nContent-Length: {len(BODY)}"

    answer = await raw(world, head.encode() + b"\r\nConnection: close\r\n\r\n" + BODY)

    assert answer.split(b" ")[1] in {b"400", b"404"}
    assert world.fake.requests == []
    assert world.rows == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "CONNECT", "TRACE"])
async def test_no_other_http_method_reaches_the_upstream(world: GatewayWorld, method: str) -> None:
    head = f"{method} /v1beta/models/{MODEL}:generateContent HTTP/1.1\r\nHost: x\r\n"

    answer = await raw(world, f"{head}Authorization: Bearer {world.token()}\r\nConnection: close\r\n\r\n".encode())

    assert answer.split(b" ")[1] in {b"400", b"404"}
    assert world.fake.requests == []


async def test_nothing_of_the_request_but_model_method_and_body_goes_upstream(world: GatewayWorld) -> None:
    hostile = {
        "x-goog-api-key": "sbxd-placeholder",
        "x-goog-user-project": "evil",
        "x-http-method-override": "DELETE",
        "x-goog-api-client": "client",
        "x-gemini-api-privileged-user-id": "uuid",
        "x-forwarded-host": "evil.example",
        "host": "evil.example",
        "cookie": "a=b",
        "proxy-authorization": "Basic eDp5",
        "user-agent": "GeminiCLI",
    }
    method = "streamGenerateContent?alt=sse&key=stolen&$httpHeaders=x-evil:1&upload=1&alt=json"

    status, _ = await world.ask("hello", method=method, headers=hostile)

    [upstream] = await world.received()
    headers = {name.lower(): value for name, value in upstream["headers"].items()}
    assert status == 200
    assert upstream["path"] == f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
    assert set(headers) == {
        "host", "x-goog-api-key", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
    }  # fmt: skip
    assert (headers["x-goog-api-key"], headers["accept-encoding"]) == (CANARY, "identity")
    assert headers["host"] == urlsplit(world.fake.url).netloc
    assert "bearer" not in json.dumps(upstream["headers"]).lower()


async def test_a_header_cannot_be_smuggled_in(world: GatewayWorld) -> None:
    head = f"POST /v1beta/models/{MODEL}:streamGenerateContent?alt=sse%0d%0aX-Evil:1 HTTP/1.1\r\nHost: x\r\n"
    head += f"Authorization: Bearer {world.token()}\r\nX-Sandboxd-Session: ses-x\rX-Evil: 1\r\n"

    answer = await raw(world, f"{head}Content-Length: {len(BODY)}\r\nConnection: close\r\n\r\n".encode() + BODY)

    assert answer.split(b" ")[1] == b"400"
    assert world.fake.requests == []


async def test_a_stream_needs_server_sent_events(world: GatewayWorld) -> None:
    status, body = await world.ask("hello", method="streamGenerateContent")

    assert (status, error_of(body)["details"][0]["reason"]) == (400, "SSE_REQUIRED")


async def test_models_and_methods_are_those_of_the_clients_policy(fake: FakeGemini, tmp_path: Path) -> None:
    policy = ModelPolicy(models=("gemini-2.5-*",), methods=frozenset({ModelMethod.STREAM_GENERATE_CONTENT}))
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
    world.policies = StaticModelPolicies(by_client={world.identity.client: policy})
    async with world.running():
        answers = [
            await world.ask("hello", model="gemini-2.5-pro"),
            await world.ask("hello", model="gemini-3-pro-preview"),
            await world.ask("hello", model="text-bison"),
            await world.ask("hello", method="countTokens"),
        ]

    assert [status for status, _ in answers] == [200, 403, 403, 403]
    assert error_of(answers[1][1])["status"] == "PERMISSION_DENIED"
    assert len(world.rows) == 1


async def test_the_admin_pages_are_on_their_own_port_alone(world: GatewayWorld) -> None:
    async def status_of(page: str) -> int:
        async with world.http.get(f"{world.gateway.admin_url}/{page}") as answer:
            return answer.status

    async def is_ready() -> bool:
        return await status_of("readyz") == 200

    await eventually(is_ready)  # once its meter has asked the ledger
    pages = [await status_of(page) for page in ("healthz", "readyz", "metrics", "v1beta/models")]
    assert pages == [200, 200, 200, 404]


# --- tokens


def forged(world: GatewayWorld, **changes: Any) -> str:
    now = datetime.now(UTC)
    claims: dict[str, object] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": int(now.timestamp()),
        "exp": int((now + timedelta(minutes=5)).timestamp()),
        "jti": "0123456789abcdef",
        "client": world.identity.client,
        "freelancer": world.identity.freelancer,
        "sandbox": world.identity.sandbox,
        "incarnation": world.identity.incarnation,
    }
    claims.update({name: value for name, value in changes.items() if name not in {"key", "algorithm", "kid"}})
    claims = {name: value for name, value in claims.items() if value is not None}
    key, algorithm = changes.get("key", world.signing_key), changes.get("algorithm", "EdDSA")
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": changes.get("kid", "key-1")})


def unsigned(world: GatewayWorld) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = forged(world).split(".")[1]
    return f"{part({'alg': 'none', 'kid': 'key-1', 'typ': 'JWT'})}.{claims}."


async def test_a_token_made_by_hand_like_ours_is_accepted(world: GatewayWorld) -> None:
    status, _ = await world.ask("hello", headers={"authorization": f"Bearer {forged(world)}"})

    assert status == 200


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("another key", {"key": Ed25519PrivateKey.generate()}),
        ("an unknown key id", {"kid": "key-2"}),
        ("a path as key id", {"kid": "../../etc/passwd"}),
        ("another audience", {"aud": "sandboxd-api"}),
        ("no audience", {"aud": None}),
        ("another issuer", {"iss": "somebody"}),
        ("no expiry", {"exp": None}),
        ("an expiry far away", {"exp": 4_000_000_000}),
        ("an expiry that is no number", {"exp": "tomorrow"}),
        ("made in the future", {"iat": 3_999_999_000, "exp": 3_999_999_100}),
        ("no id", {"jti": None}),
        ("no sandbox", {"sandbox": None}),
        ("a sandbox that is no name", {"sandbox": {"a": 1}}),
        ("a client that is no name", {"client": "../x"}),
        ("a shared secret", {"key": "k" * 32, "algorithm": "HS256"}),
        ("rsa", {"key": rsa.generate_private_key(65537, 2048), "algorithm": "RS256"}),
    ],
)
async def test_a_forged_or_foreign_token_is_refused(world: GatewayWorld, name: str, changes: dict[str, Any]) -> None:
    status, body = await world.ask("hello", headers={"authorization": f"Bearer {forged(world, **changes)}"})

    assert (name, status, error_of(body)["status"]) == (name, 401, "UNAUTHENTICATED")
    assert (world.fake.requests, world.rows) == ([], [])


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer x", "Bearer a.b.c", "Basic eDp5", "Bearer " + "a" * 5000, "{canary}"]
)
async def test_what_is_not_a_token_is_refused(world: GatewayWorld, header: str) -> None:
    status, _ = await world.ask("hello", headers={"authorization": header.replace("{canary}", f"Bearer {CANARY}")})

    assert (status, world.fake.requests) == (401, [])


async def test_an_unsigned_token_is_refused(world: GatewayWorld) -> None:
    status, body = await world.ask("hello", headers={"authorization": f"Bearer {unsigned(world)}"})

    assert (status, error_of(body)["details"][0]["reason"]) == (401, "TOKEN_INVALID")


async def test_a_token_expires(world: GatewayWorld) -> None:
    token = world.token()
    world.clock.offset = timedelta(minutes=11)

    status, body = await world.ask("hello", headers={"authorization": f"Bearer {token}"})

    assert (status, error_of(body)["details"][0]["reason"]) == (401, "TOKEN_EXPIRED")


async def test_a_token_of_an_ended_incarnation_is_worth_nothing_at_once(world: GatewayWorld) -> None:
    before, _ = await world.ask("hello")
    world.ledger.ended.add(world.identity.incarnation)

    after, body = await world.ask("hello")

    assert (before, after, error_of(body)["details"][0]["reason"]) == (200, 401, "INCARNATION_ENDED")
    assert len(await world.received()) == 1


async def test_a_token_of_a_life_that_never_was_is_refused(world: GatewayWorld) -> None:
    ghost = replace(world.identity, incarnation=IncarnationId(an_identity().incarnation))

    status, _ = await world.ask("hello", headers={"authorization": f"Bearer {world.token(ghost)}"})

    assert (status, world.rows) == (401, [])


async def test_a_verifying_key_that_is_removed_ends_its_tokens(world: GatewayWorld) -> None:
    token = world.token()
    world.verifying_keys.keys.clear()

    status, _ = await world.ask("hello", headers={"authorization": f"Bearer {token}"})

    assert status == 401


async def test_a_spent_budget_stops_the_cli_cleanly(world: GatewayWorld) -> None:
    world.ledger.over_budget.add(world.identity.sandbox)

    status, body = await world.ask("hello")

    assert (status, error_of(body)["details"][0]["reason"]) == (403, "BUDGET_SPENT")
    assert (world.fake.requests, world.rows) == ([], [])


# --- the key


async def test_the_key_is_nowhere_but_in_the_request_upstream(
    world: GatewayWorld, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[bytes] = []
    for prompt in ("text", "leak", "leakerror", "badkey", "reset", "429(times=-1)", "malformed"):
        for method in ("streamGenerateContent?alt=sse", "generateContent"):
            async with world.request(f"fake:{prompt}", method=method) as answer:
                seen += [str(answer.headers).encode(), await answer.read()]
    world.ledger.down = True
    async with world.request("hello") as answer:
        seen += [str(answer.headers).encode(), await answer.read()]
    spool = b"".join(path.read_bytes() for path in world.config.spool_directory.rglob("*") if path.is_file())
    metrics = await world.metrics()

    everywhere = b"".join(seen) + spool + metrics.encode() + caplog.text.encode() + repr(world.rows).encode()
    printed = capsys.readouterr()
    assert len(await world.received(14)) == 14
    assert CANARY.encode() not in everywhere
    assert CANARY not in printed.out + printed.err
    assert "[redacted]" in b"".join(seen).decode()


async def test_a_repeated_key_is_taken_out_although_it_is_cut_in_two(world: GatewayWorld) -> None:
    _, body = await world.ask("fake:leak")

    assert texts(body) == ["it is [redacted]!"]


async def test_the_sandbox_token_is_not_logged(world: GatewayWorld, capsys: pytest.CaptureFixture[str]) -> None:
    token = world.token()
    await world.ask("hello", headers={"authorization": f"Bearer {token}"})
    await world.ask("hello", headers={"authorization": f"Bearer {token}x"})

    printed = capsys.readouterr()

    assert "gateway.call" in printed.out
    assert token not in printed.out + printed.err


async def test_a_client_without_a_key_is_told_so(fake: FakeGemini, tmp_path: Path) -> None:
    world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path))
    world.keys = type("NoKeys", (), {"key_for": lambda *_: None})()
    async with world.running():
        status, body = await world.ask("hello")

    assert (status, error_of(body)["details"][0]["reason"]) == (403, "KEY_MISSING")


# --- bounds


@pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b'"text"', b"null", b"[" * 100_000, b"x" * 2_000_000])
async def test_a_body_that_is_no_json_object_is_not_forwarded(world: GatewayWorld, body: bytes) -> None:
    async with world.http.post(
        f"{world.gateway.url}/v1beta/models/{MODEL}:generateContent",
        data=body,
        headers={"authorization": f"Bearer {world.token()}"},
    ) as answer:
        assert (answer.status, error_of(await answer.read())["status"]) == (400, "INVALID_ARGUMENT")
    assert (world.fake.requests, world.rows) == ([], [])


async def test_a_body_beyond_the_limit_is_refused_with_and_without_a_length(fake: FakeGemini, tmp_path: Path) -> None:
    limits = GatewayLimits(request_bytes=1 << 20)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 16)

    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path, limits=limits)).running() as world:
        for data in (b"x" * (2 << 20), pieces()):
            try:
                async with world.http.post(
                    f"{world.gateway.url}/v1beta/models/{MODEL}:generateContent",
                    data=data,
                    headers={"authorization": f"Bearer {world.token()}"},
                ) as answer:
                    assert (answer.status, error_of(await answer.read())["status"]) == (400, "INVALID_ARGUMENT")
            except aiohttp.ClientConnectionError:
                pass  # the gateway may close while we still send; what counts is below

    assert (world.fake.requests, world.rows) == ([], [])


async def test_a_compressed_request_is_refused(world: GatewayWorld) -> None:
    status, _ = await world.ask("hello", headers={"content-encoding": "gzip"})

    assert (status, world.fake.requests) == (400, [])


async def test_bodies_that_are_held_together_are_bounded(fake: FakeGemini, tmp_path: Path) -> None:
    limits = GatewayLimits(held_request_bytes=3 << 20)
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path, limits=limits)).running() as world:
        unanswered = asyncio.create_task(world.ask("fake:silent" + " " * (2 << 20)))
        await eventually(lambda: world.rows)
        refused, body = await world.ask("x" * (2 << 20))
        unanswered.cancel()
        await world.settled()
        async with world.request("fake:hang" + " " * (2 << 20)) as answering:
            served, _ = await world.ask("x" * (2 << 20))

    assert (refused, error_of(body)["details"][0]["reason"]) == (503, "GATEWAY_BUSY")
    assert (answering.status, served) == (200, 200)


async def test_one_sandbox_cannot_take_all_places(fake: FakeGemini, tmp_path: Path) -> None:
    limits = GatewayLimits(calls_per_sandbox=2)
    async with GatewayWorld(fake=fake, config=config_for(fake, tmp_path, limits=limits)).running() as world:
        other = an_identity()
        world.ledger.incarnations[other.incarnation] = other
        running = [asyncio.create_task(world.ask("fake:gated")) for _ in range(2)]
        await eventually(lambda: len(world.rows) == 2)

        refused, body = await world.ask("hello")
        neighbour, _ = await world.ask("hello", headers={"authorization": f"Bearer {world.token(other)}"})
        world.fake.gate.set()
        await asyncio.gather(*running)

    assert (refused, error_of(body)["status"], neighbour) == (429, "RESOURCE_EXHAUSTED", 200)


async def test_ten_thousand_garbage_requests_leave_no_trace_but_a_count(world: GatewayWorld) -> None:
    post = f"POST /v1beta/models/{MODEL}:generateContent HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
        b"GET / HTTP/9.9\r\n\r\n",
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Content-Length: 9\r\n\r\n{garbage}",
        b"A" * 20_000,
        b"POST / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"\r\n\r\n\r\n",
        post + b"Authorization: Bearer a.b.c\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ]
    process = psutil.Process()
    await asyncio.gather(*(raw(world, garbage[number % len(garbage)], half_close=True) for number in range(200)))
    before = process.memory_info().rss

    for _ in range(98):
        await asyncio.gather(*(raw(world, garbage[number % len(garbage)], half_close=True) for number in range(100)))

    status, _ = await world.ask("hello")
    grown = process.memory_info().rss - before
    assert (status, len(world.rows), len(await world.received())) == (200, 1, 1)
    assert world.rows[0].state is UsageState.SETTLED
    assert grown < 40 << 20
    assert "HTTP_INVALID" in await world.metrics()
