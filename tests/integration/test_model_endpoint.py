"""The sandbox's model endpoint in front of a gateway: what travels, what does not, and what a broken end does."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from sandboxd.agent.model_endpoint import ModelEndpoint
from sandboxd.model.errors import InvalidRequestError
from tests.contract.agent_process import Authority
from tests.eventually import eventually

SESSION = "ses-" + "0" * 26
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Gateway:
    """A gateway that notes what reaches it."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    peers: set[object] = field(default_factory=set)
    answer: Answer | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        if self.answer is not None:
            return await self.answer(request)
        body = await request.content.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers, body))
        return web.json_response({"ok": len(body)}, headers={"x-from": "gateway"})


@contextlib.asynccontextmanager
async def _running(gateway: Gateway, tls: ssl.SSLContext | None = None) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", gateway.serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    gateway.url = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}/base"
    try:
        yield gateway
    finally:
        await runner.cleanup()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with _running(Gateway()) as running:
        yield running


@pytest.fixture
async def endpoint(gateway: Gateway) -> AsyncIterator[ModelEndpoint]:
    endpoint = ModelEndpoint()
    await endpoint.start(0)
    _set(endpoint, gateway.url)
    yield endpoint
    await endpoint.close()


@pytest.fixture
async def cli() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


def _set(endpoint: ModelEndpoint, url: str, *, token: str = "sandbox-token", ca: bytes = b"") -> None:
    endpoint.set_target(base_url=url, token=token, expire_time=None, ca_pem=ca)


def _url(endpoint: ModelEndpoint, path: str = "/v1beta/models/m:generateContent") -> str:
    return f"http://127.0.0.1:{endpoint.port}{path}"


async def _refused(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    error = (await response.json())["error"]
    assert error["code"] == response.status
    assert error["message"]
    return response.status, error["status"], error["details"][0]["reason"]


async def test_a_request_arrives_whole_below_the_gateways_path(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    url = URL(_url(endpoint, "/v1beta/models/m:streamGenerateContent?alt=sse&x=%2F"), encoded=True)
    async with cli.post(url, data=b"body") as answer:
        assert (answer.status, await answer.json(), answer.headers["x-from"]) == (200, {"ok": 4}, "gateway")

    method, path, headers, body = gateway.requests[0]
    assert (method, path, body) == ("POST", "/base/v1beta/models/m:streamGenerateContent?alt=sse&x=%2F", b"body")
    assert headers["host"] == gateway.url.removeprefix("http://").removesuffix("/base")


async def test_credentials_are_replaced_by_the_sandbox_token(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    carried = {
        "x-goog-api-key": "canary-key",
        "Authorization": "Bearer canary-bearer",
        "X-Gemini-Api-Privileged-User-Id": "canary-user",
        "Cookie": "a=canary-cookie",
        "x-sandboxd-session": "canary-session",
        "user-agent": "GeminiCLI",
    }
    async with cli.post(_url(endpoint, "/v1?key=canary-a&alt=sse&KEY=canary-b&%6bey=canary-c"), headers=carried):
        pass

    _, path, headers, _ = gateway.requests[0]
    assert path == "/base/v1?alt=sse"
    assert headers["authorization"] == "Bearer sandbox-token"
    assert headers["user-agent"] == "GeminiCLI"
    assert "canary" not in repr(gateway.requests)


async def test_the_placeholder_key_names_the_session_and_nothing_else_does(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    for key in (f"sbxd-{SESSION}", f"sbxd-{SESSION}x", "sbxd-none", SESSION):
        async with cli.post(_url(endpoint), headers={"x-goog-api-key": key}):
            pass

    hints = [headers.get("x-sandboxd-session") for _, _, headers, _ in gateway.requests]
    assert hints == [SESSION, None, None, None]


async def test_the_gateway_is_told_how_long_the_agent_took_whatever_the_cli_says(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    async with cli.post(_url(endpoint), headers={"x-sandboxd-agent-elapsed": "86400000000"}):
        pass

    _, _, headers, _ = gateway.requests[0]
    assert 0 <= int(headers["x-sandboxd-agent-elapsed"]) < 60_000_000


async def test_a_stream_arrives_piece_by_piece(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    taken = asyncio.Queue[None]()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
            await taken.get()
        return response

    gateway.answer = stream

    async with cli.post(_url(endpoint), data=b"{}") as answer:
        for number in range(3):
            assert await asyncio.wait_for(answer.content.readuntil(b"\n\n"), 5) == b"data: %d\n\n" % number
            taken.put_nowait(None)
        assert await answer.content.read() == b""


async def test_a_body_of_unknown_length_travels_on_while_it_comes(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    arrived = asyncio.Event()

    async def take(request: web.Request) -> web.StreamResponse:
        first = await request.content.readany()
        arrived.set()
        return web.Response(body=first + await request.content.read())

    gateway.answer = take

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.wait_for(arrived.wait(), 5)
        yield b"second"

    async with cli.post(_url(endpoint), data=body()) as answer:
        assert await answer.read() == b"firstsecond"


async def test_errors_of_the_gateway_pass_through(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    async def refuse(_: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": 429}}, status=429, headers={"retry-after": "7"})

    gateway.answer = refuse

    async with cli.post(_url(endpoint)) as answer:
        assert (answer.status, answer.headers["retry-after"], await answer.json()) == (
            429,
            "7",
            {"error": {"code": 429}},
        )


async def test_connections_are_used_again(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    for _ in range(5):
        async with cli.post(_url(endpoint), data=b"x") as answer:
            await answer.read()

    assert len(gateway.peers) == 1
    await eventually(lambda: endpoint.state.open_requests == 0)
    assert (endpoint.state.requests, endpoint.state.failed_requests) == (5, 0)


async def test_a_new_token_is_used_from_the_next_request_on(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    async with cli.post(_url(endpoint)):
        pass
    _set(endpoint, gateway.url, token="renewed")
    async with cli.post(_url(endpoint)):
        pass

    assert [headers["authorization"] for _, _, headers, _ in gateway.requests] == [
        "Bearer sandbox-token",
        "Bearer renewed",
    ]


async def test_the_gateway_sees_at_once_that_the_cli_went_away(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return response

    gateway.answer = hang
    answer = await cli.post(_url(endpoint), data=b"{}")
    await asyncio.wait_for(begun.wait(), 5)
    assert endpoint.state.open_requests == 1

    answer.close()

    await asyncio.wait_for(ended.wait(), 2)
    await eventually(lambda: endpoint.state.open_requests == 0)


async def test_an_answer_that_breaks_off_is_not_completed(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    async def break_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    gateway.answer = break_off

    async with cli.post(_url(endpoint), data=b"{}") as answer:
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_without_a_gateway_the_answer_is_one_that_passes(cli: aiohttp.ClientSession) -> None:
    endpoint = ModelEndpoint()
    await endpoint.start(0)
    try:
        async with cli.post(_url(endpoint), data=bytes(1 << 20)) as answer:
            assert await _refused(answer) == (503, "UNAVAILABLE", "MODEL_ENDPOINT_NOT_SET")
        _set(endpoint, "http://127.0.0.1:9")
        async with cli.post(_url(endpoint), data=bytes(1 << 20)) as answer:
            assert await _refused(answer) == (503, "UNAVAILABLE", "GATEWAY_UNREACHABLE")
        endpoint.set_target(
            base_url="http://127.0.0.1:9", token="t", expire_time=datetime.now(UTC) - timedelta(seconds=1), ca_pem=b""
        )
        async with cli.post(_url(endpoint)) as answer:
            assert await _refused(answer) == (503, "UNAVAILABLE", "MODEL_TOKEN_EXPIRED")
        assert endpoint.state.failed_requests == 1
    finally:
        await endpoint.close()


async def test_a_gateway_that_comes_back_is_used_again(endpoint: ModelEndpoint, cli: aiohttp.ClientSession) -> None:
    for _ in range(2):
        async with _running(Gateway()) as gateway:
            _set(endpoint, gateway.url)
            async with cli.post(_url(endpoint)) as answer:
                assert answer.status == 200
        async with cli.post(_url(endpoint)) as answer:
            assert (await _refused(answer))[2] == "GATEWAY_UNREACHABLE"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_above_the_limit_is_refused(
    endpoint: ModelEndpoint, cli: aiohttp.ClientSession, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(66):
            yield bytes(1 << 20)

    async with cli.post(_url(endpoint), data=pieces() if chunked else bytes(66 << 20)) as answer:
        assert await _refused(answer) == (413, "INVALID_ARGUMENT", "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Origin": "http://127.0.0.1"}, {"Host": ""}],
)
async def test_web_pages_are_refused(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession, headers: dict[str, str]
) -> None:
    async with cli.post(_url(endpoint), headers=headers, data=b"x") as answer:
        assert await _refused(answer) == (403, "PERMISSION_DENIED", "BROWSER_REFUSED")

    assert gateway.requests == []


async def test_another_host_cannot_be_asked_for_by_the_requests_target(endpoint: ModelEndpoint) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(b"GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\n\r\n")

    status = await asyncio.wait_for(reader.readline(), 5)

    writer.close()
    assert b" 400 " in status


async def test_garbage_ends_its_own_connection_only(endpoint: ModelEndpoint, cli: aiohttp.ClientSession) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(b"\x16\x03\x01 garbage\r\n\r\n" + bytes(1 << 17))

    with contextlib.suppress(ConnectionError):
        assert b"200" not in await asyncio.wait_for(reader.read(), 5)
    writer.close()

    async with cli.post(_url(endpoint)) as answer:
        assert answer.status == 200


async def test_the_next_request_may_be_sent_before_the_answer(gateway: Gateway, endpoint: ModelEndpoint) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    for number in range(3):
        writer.write(b"POST /%d HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx" % number)
    received = b""

    while received.count(b'{"ok": 1}') < 3:
        received += await asyncio.wait_for(reader.read(1 << 16), 5)

    writer.close()
    assert [path for _, path, _, _ in gateway.requests] == ["/base/0", "/base/1", "/base/2"]


async def test_https_needs_the_right_authority(
    endpoint: ModelEndpoint, cli: aiohttp.ClientSession, tmp_path: Path
) -> None:
    authority, stranger = Authority(), Authority()
    identity = authority.issue("localhost")
    (tmp_path / "pem").write_bytes(identity.certificate + identity.key)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "pem")

    async with _running(Gateway(), tls) as gateway:
        _set(endpoint, gateway.url, ca=authority.certificate)
        async with cli.post(_url(endpoint), data=b"x") as answer:
            assert answer.status == 200
        _set(endpoint, gateway.url, ca=stranger.certificate)
        async with cli.post(_url(endpoint), data=b"x") as answer:
            assert (await _refused(answer))[2] == "GATEWAY_UNREACHABLE"

    assert len(gateway.requests) == 1


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "http://user@host/", "http://host/?a=b", "http://host:99999", "http://hö.st"]
)
async def test_a_base_url_that_cannot_be_used_is_refused(endpoint: ModelEndpoint, url: str) -> None:
    before = endpoint.state

    with pytest.raises(InvalidRequestError):
        _set(endpoint, url)
    with pytest.raises(InvalidRequestError):
        _set(endpoint, "http://host", token="line\r\nbreak")

    assert endpoint.state == before


async def test_a_hundred_streams_at_once_keep_their_order(
    gateway: Gateway, endpoint: ModelEndpoint, cli: aiohttp.ClientSession
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        number = await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        for step in range(5):
            await response.write(json.dumps([int(number), step]).encode() + b"\n")
            await asyncio.sleep(0)
        return response

    gateway.answer = stream

    async def ask(number: int) -> list[object]:
        async with cli.post(_url(endpoint), data=str(number).encode()) as answer:
            return [json.loads(line) for line in (await answer.read()).splitlines()]

    answers = await asyncio.gather(*(ask(number) for number in range(100)))

    assert answers == [[[number, step] for step in range(5)] for number in range(100)]
