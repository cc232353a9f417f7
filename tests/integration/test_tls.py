"""Certificates: the platform's, which speak for it; and the servers' own, which are renewed while connections live."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import aiohttp
import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from sandboxd.api.grpc.server import ServerLimits
from sandboxd.api.web.operations import OperationsServer
from sandboxd.ctl.advice import advise
from sandboxd.ctl.client import ApiError, connect
from sandboxd.ctl.exits import Exit, of_status
from sandboxd.ctl.target import TlsOptions
from sandboxd.tls.files import TlsFiles
from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc, stream_pb2
from tests.certificates import Authority, Issued
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.fakes.api import a_sandbox
from tests.gateway_world import GatewayWorld, config_for, texts
from tests.integration.api_world import Refusal, World, a_world, next_event, refused

NAMES = ("platform.acme.test", "spiffe://acme.test/platform")
ACME = (("x-sandboxd-client", "acme"),)


class TlsWorld:
    """A server that demands client certificates, and who may have them."""

    def __init__(self, world: World, folder: Path, *, servers: Authority, clients: Authority) -> None:
        self.world = world
        self.folder = folder
        self.servers = servers
        self.clients = clients

    @asynccontextmanager
    async def stub(self, identity: Issued | None, *, trusting: Authority | None = None) -> AsyncIterator[Any]:
        credentials = grpc.ssl_channel_credentials(
            (trusting or self.servers).pem,
            identity.key if identity else None,
            identity.certificate if identity else None,
        )
        async with grpc.aio.secure_channel(f"localhost:{self.world.tls_port}", credentials) as channel:
            yield sandbox_pb2_grpc.SandboxServiceStub(channel)

    async def refusal(self, identity: Issued | None, metadata: tuple[tuple[str, str], ...] = ACME) -> Refusal:
        async with self.stub(identity) as stub:
            return await refused(stub.List(pb.ListRequest(), metadata=metadata, timeout=10))

    async def sandboxes(self, identity: Issued | None, metadata: tuple[tuple[str, str], ...] = ACME) -> list[str]:
        async with self.stub(identity) as stub:
            answer = await stub.List(pb.ListRequest(), metadata=metadata, timeout=10)
        return [sandbox.name for sandbox in answer.sandboxes]


@asynccontextmanager
async def a_tls_world(folder: Path, **more: Any) -> AsyncIterator[TlsWorld]:
    servers, clients = Authority("servers"), Authority("clients")
    files = replace(servers.issue("localhost").write(folder), client_authority=clients.write(folder))
    async with a_world(folder, tls=files, platform_names=NAMES, **more) as world:
        for one in (a_sandbox("sbx-1"), a_sandbox("sbx-2", freelancer="bob"), a_sandbox("sbx-3", client="other")):
            world.manager.sandboxes[one.id] = one
        yield TlsWorld(world, folder, servers=servers, clients=clients)


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[TlsWorld]:
    async with a_tls_world(tmp_path) as made:
        yield made


# ------------------------------------------------------------------------------------------------ who it speaks for


@pytest.mark.parametrize("name", NAMES)
async def test_a_certificate_of_the_platform_acts_for_the_client_that_the_call_names(tls: TlsWorld, name: str) -> None:
    identity = tls.clients.issue("other.test", name)

    assert await tls.sandboxes(identity) == ["sandboxes/sbx-1", "sandboxes/sbx-2"]
    assert await tls.sandboxes(identity, (("x-sandboxd-client", "other"),)) == ["sandboxes/sbx-3"]


async def test_a_common_name_counts_where_there_is_no_other(tls: TlsWorld) -> None:
    assert len(await tls.sandboxes(tls.clients.issue(common_name=NAMES[0]))) == 2

    error = await tls.refusal(tls.clients.issue("other.test", common_name=NAMES[0]))
    assert error.reason == "CERTIFICATE_REFUSED"


@pytest.mark.parametrize("name", ["other.test", "sub.platform.acme.test", "*.acme.test", "spiffe://acme.test/other"])
async def test_a_certificate_with_another_name_speaks_for_nobody(tls: TlsWorld, name: str) -> None:
    error = await tls.refusal(tls.clients.issue(name))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CERTIFICATE_REFUSED")
    assert name in error.info.metadata["names"]


async def test_the_client_that_is_named_must_be_a_name(tls: TlsWorld) -> None:
    identity = tls.clients.issue(NAMES[0])

    missing, twice, bad = [
        await tls.refusal(identity, metadata) for metadata in ((), (*ACME, *ACME), (("x-sandboxd-client", "../x"),))
    ]

    assert (missing.code, missing.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CLIENT_MISSING")
    assert {(one.code, *one.fields) for one in (twice, bad)} == {
        (grpc.StatusCode.INVALID_ARGUMENT, "metadata.x-sandboxd-client")
    }


async def test_a_token_counts_before_the_certificate_of_its_connection(tls: TlsWorld) -> None:
    identity = tls.clients.issue(NAMES[0])
    ada = tls.world.metadata(role="freelancer", sub="ada")

    assert await tls.sandboxes(identity, ada) == ["sandboxes/sbx-1"]
    assert (await tls.refusal(identity, tls.world.metadata(iss="https://other"))).reason == "TOKEN_ISSUER_UNKNOWN"
    assert (await tls.refusal(identity, (("authorization", ""), *ACME))).reason == "TOKEN_MISSING"
    assert (await tls.refusal(identity, (*ada, ("x-sandboxd-client", "other")))).reason == "CLIENT_MISMATCH"
    # A certificate that speaks for nobody carries tokens all the same.
    assert await tls.sandboxes(tls.clients.issue("other.test"), ada) == ["sandboxes/sbx-1"]


async def test_a_certificate_of_a_stranger_or_none_does_not_even_connect(tls: TlsWorld) -> None:
    stranger = Authority("clients").issue(NAMES[0])  # the same name, another key
    expired = tls.clients.issue(NAMES[0], ends=timedelta(hours=-1))

    for identity in (stranger, expired, None):
        assert (await tls.refusal(identity, (*ACME, *tls.world.metadata()))).code is grpc.StatusCode.UNAVAILABLE
    assert len(await tls.sandboxes(tls.clients.issue(NAMES[0]))) == 2


async def test_an_address_without_an_authority_takes_tokens_and_asks_for_no_certificate(tls: TlsWorld) -> None:
    answer = await tls.world.sandboxes.List(pb.ListRequest(), metadata=tls.world.metadata())
    assert len(answer.sandboxes) == 2

    error = await refused(tls.world.sandboxes.List(pb.ListRequest(), metadata=ACME))
    assert error.reason == "TOKEN_MISSING"


async def test_a_connection_does_not_outlive_its_certificate(tmp_path: Path) -> None:
    async with a_tls_world(tmp_path, limits=ServerLimits(expired_grace=timedelta(milliseconds=100))) as tls:
        soon = time.monotonic() + 3
        async with tls.stub(tls.clients.issue(NAMES[0], ends=timedelta(seconds=3))) as stub:
            call = stub.Stream(metadata=ACME)
            await call.write(
                stream_pb2.StreamRequest(request_id="request-1", open=stream_pb2.Open(sandbox="sandboxes/sbx-1"))
            )
            notice = await next_event(call, "notice")
            errors = [await refused(call), await refused(stub.List(pb.ListRequest(), metadata=ACME))]

    assert time.monotonic() >= soon - 1
    assert notice.notice.code == "CERTIFICATE_EXPIRED"
    assert {(one.code, one.reason) for one in errors} == {(grpc.StatusCode.UNAUTHENTICATED, "CERTIFICATE_EXPIRED")}


# ------------------------------------------------------------------------------------------------ sandboxctl


def files_of(tls: TlsWorld, identity: Issued | None = None, **files: Path) -> TlsOptions:
    written = identity.write(tls.folder, "identity") if identity else None
    return TlsOptions(
        **{
            "ca_file": tls.folder / "server-authority.pem",
            "cert_file": written.certificate if written else None,
            "cert_key_file": written.key if written else None,
            **files,
        }
    )


async def asks(
    tls: TlsWorld, options: TlsOptions, *, host: str = "localhost", port: int = 0, token: str = ""
) -> list[str]:
    (tls.folder / "server-authority.pem").write_bytes(tls.servers.pem)
    address = f"https://{host}:{port or tls.world.tls_port}"
    async with connect(address, token=token, tls=options, for_client="acme" if not token else "") as client:
        return [sandbox.name async for sandbox in client.sandboxes()]


async def told(call: Any) -> tuple[str, str, Exit]:
    """What a person is told: the reason, what to do, and the exit code."""
    with pytest.raises(ApiError) as error:
        await asyncio.wait_for(call, timeout=15)  # at once, and not after the patience for a service that is away
    advice = advise(error.value.code.name, error.value.reason, error.value.metadata, address="host:1")
    return error.value.reason, advice, of_status(error.value.code.name)


async def test_sandboxctl_shows_a_certificate_of_the_platform_and_names_the_client(tls: TlsWorld) -> None:
    identity = tls.clients.issue(NAMES[0])
    both = tls.folder / "both.pem"
    both.write_bytes(identity.certificate + identity.key)

    apart = await asks(tls, files_of(tls, identity))
    in_one_file = await asks(tls, files_of(tls, cert_file=both))

    assert apart == in_one_file == ["sandboxes/sbx-1", "sandboxes/sbx-2"]


async def test_sandboxctl_says_what_is_wrong_with_tls_and_what_to_do(tls: TlsWorld) -> None:
    identity, other = tls.clients.issue(NAMES[0]), tls.clients.issue(NAMES[0]).write(tls.folder, "other")
    (tls.folder / "strange.pem").write_bytes(Authority().pem)
    (tls.folder / "empty.pem").touch()
    token = tls.world.token

    untrusted = await told(asks(tls, files_of(tls, identity, ca_file=tls.folder / "strange.pem")))
    wrong_name = await told(asks(tls, files_of(tls, identity), host="127.0.0.1"))
    not_tls = await told(asks(tls, files_of(tls, identity), port=tls.world.port))
    refused_name = await told(asks(tls, files_of(tls, tls.clients.issue("other.test"))))
    unfit = await told(asks(tls, files_of(tls, identity, cert_key_file=other.key)))
    missing = await told(asks(tls, files_of(tls, identity, cert_file=tls.folder / "none.pem")))
    no_authority = await told(asks(tls, files_of(tls, identity, ca_file=tls.folder / "empty.pem")))
    only_key = await told(asks(tls, files_of(tls, cert_key_file=other.key), token=token))

    assert untrusted == ("TLS_NOT_TRUSTED", ANY, Exit.UNAVAILABLE)
    assert "--ca FILE" in untrusted[1]
    assert wrong_name == ("TLS_WRONG_NAME", ANY, Exit.UNAVAILABLE)
    assert not_tls == ("TLS_NOT_SPOKEN", ANY, Exit.UNAVAILABLE)
    assert refused_name == ("CERTIFICATE_REFUSED", ANY, Exit.AUTH)
    for one in (unfit, missing, only_key):
        assert one == ("CERT_FILE_UNUSABLE", ANY, Exit.USAGE)
    assert no_authority == ("CA_FILE_UNUSABLE", ANY, Exit.USAGE)


# ------------------------------------------------------------------------------------------------ renewed while in use


async def test_the_api_uses_a_renewed_certificate_for_new_connections_and_keeps_the_old_ones(tls: TlsWorld) -> None:
    identity, folder = tls.clients.issue(NAMES[0]), tls.folder
    async with tls.stub(identity) as living:
        call = living.Stream(metadata=ACME)
        await call.write(
            stream_pb2.StreamRequest(request_id="request-1", open=stream_pb2.Open(sandbox="sandboxes/sbx-1"))
        )
        await next_event(call, "session_opened")
        # Another authority altogether: who trusts only that one can tell the new certificate from the old.
        renewed = Authority("renewed")
        fresh = renewed.issue("localhost")
        (folder / "server.pem").write_bytes(fresh.certificate[:100])
        assert len(await tls.sandboxes(identity)) == 2
        fresh.write(folder)

        async def reached() -> bool:
            async with tls.stub(identity, trusting=renewed) as stub:
                try:
                    return bool((await stub.List(pb.ListRequest(), metadata=ACME, timeout=5)).sandboxes)
                except grpc.aio.AioRpcError:
                    return False

        assert await eventually(reached, within=20, every=0.2)
        assert (await tls.refusal(identity)).code is grpc.StatusCode.UNAVAILABLE  # trusts the old authority only
        await call.write(stream_pb2.StreamRequest(ping=stream_pb2.Ping(payload="still here")))
        assert (await next_event(call, "pong")).pong.payload == "still here"
        call.cancel()


async def test_the_api_takes_clients_of_a_renewed_authority(tls: TlsWorld) -> None:
    renewed = Authority("renewed")
    identity = renewed.issue(NAMES[0])
    assert (await tls.refusal(identity)).code is grpc.StatusCode.UNAVAILABLE

    renewed.write(tls.folder)

    async def reached() -> bool:
        try:
            return bool(await tls.sandboxes(identity))
        except grpc.aio.AioRpcError:
            return False

    assert await eventually(reached, within=20, every=0.2)
    assert (await tls.refusal(tls.clients.issue(NAMES[0]))).code is grpc.StatusCode.UNAVAILABLE


async def presented(url: str) -> bytes:
    """The certificate that a server shows to a new connection."""
    host, _, port = url.removeprefix("https://").partition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return der


def shows(url: str, issued: Issued) -> Any:
    async def check() -> bool:
        return await presented(url) == ssl.PEM_cert_to_DER_cert(issued.certificate.decode())

    return check


async def test_the_operators_address_uses_a_renewed_certificate(tmp_path: Path) -> None:
    authority = Authority()
    old, new = authority.issue("127.0.0.1"), authority.issue("127.0.0.1")
    server = OperationsServer(registry=CollectorRegistry(), checks={})
    port = await server.start("127.0.0.1:0", tls=old.write(tmp_path))
    url = f"https://127.0.0.1:{port}"
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as living:
            async with living.get(f"{url}/healthz") as answer:
                assert answer.status == 200
            assert await shows(url, old)()

            (tmp_path / "server.key").write_bytes(b"")  # half way
            assert await shows(url, old)()
            new.write(tmp_path)

            assert await eventually(shows(url, new), within=20, every=0.2)
            async with living.get(f"{url}/healthz") as answer:
                assert answer.status == 200
    finally:
        await server.stop()


async def test_the_gateway_uses_a_renewed_certificate_while_an_answer_is_under_way(tmp_path: Path) -> None:
    authority = Authority()
    old, new = authority.issue("127.0.0.1"), authority.issue("127.0.0.1")
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    with FakeGemini() as fake:
        config = config_for(fake, tmp_path, tls=old.write(tmp_path), admin_tls=old.write(tmp_path))
        async with (
            GatewayWorld(fake=fake, config=config).running() as world,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as world.http,
        ):
            assert await shows(world.gateway.url, old)()
            async with world.request("fake:gated hello") as answer:
                new.write(tmp_path)
                for url in (world.gateway.url, world.gateway.admin_url):
                    assert await eventually(shows(url, new), within=20, every=0.2)
                fake.gate.set()
                assert answer.status == 200
                assert texts(await answer.read())


def test_tls_files_know_all_their_files(tmp_path: Path) -> None:
    files = TlsFiles(certificate=tmp_path / "a", key=tmp_path / "b", client_authority=tmp_path / "c")

    assert files.all == (tmp_path / "a", tmp_path / "b", tmp_path / "c")
