"""An agent that tells packages without end, or what cannot be, costs its own sandbox's news and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from typing_extensions import override

from sandboxd.agent.client import GrpcAgentClient, GrpcAgentConnector
from sandboxd.agent.package_client import MAX_ODD, GrpcPackageSource
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.model.errors import InvalidRequestError, NotImplementedYetError
from sandboxd.model.packages import InstalledPackages, PackageChange, PackageNews
from sandboxd.model.sandbox import AgentEndpoint
from tests.certificates import Authority

News = Iterator[pb.WatchPackagesResponse]


def a_package(name: str = "tree") -> pb.Package:
    return pb.Package(manager=pb.PACKAGE_MANAGER_DPKG, name=name, version="1", place=pb.PACKAGE_PLACE_ROOT)


def odd_changes() -> News:
    while True:
        yield pb.WatchPackagesResponse(change=pb.PackageChange(sequence=1, package=a_package("a\x1b[2J")))


def endless_pages() -> News:
    while True:
        yield pb.WatchPackagesResponse(snapshot=pb.PackageSnapshot(packages=[a_package()], more=True))


def few_odd_ones() -> News:
    for _ in range(MAX_ODD):
        yield pb.WatchPackagesResponse(change=pb.PackageChange(sequence=1, package=a_package("a b")))
    kind = pb.PACKAGE_CHANGE_KIND_INSTALLED
    yield pb.WatchPackagesResponse(change=pb.PackageChange(sequence=2, kind=kind, package=a_package()))
    yield pb.WatchPackagesResponse(snapshot=pb.PackageSnapshot(packages=[a_package(), a_package("x" * 300)]))


class Talker:
    """Says what a test gives it."""

    def __init__(self, news: Callable[[], News]) -> None:
        self._news = news
        self.said = 0

    async def watch(self, request: pb.WatchPackagesRequest, context: Any) -> AsyncIterator[pb.WatchPackagesResponse]:
        for one in self._news():
            self.said += 1
            yield one

    @property
    def methods(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        handler = grpc.unary_stream_rpc_method_handler(
            self.watch,
            request_deserializer=pb.WatchPackagesRequest.FromString,
            response_serializer=pb.WatchPackagesResponse.SerializeToString,
        )
        return {"WatchPackages": handler}


class Plain(GrpcAgentConnector):
    """Connects without TLS."""

    def __init__(self) -> None:
        issued = Authority("test").issue("service.test")
        super().__init__(certificate=issued.certificate, key=issued.key, agent_authority=issued.certificate)

    @override
    async def connect(self, endpoint: AgentEndpoint) -> GrpcAgentClient:
        return GrpcAgentClient(grpc.aio.insecure_channel(f"{endpoint.host}:{endpoint.port}"))


@asynccontextmanager
async def talking(talker: Talker | None = None) -> AsyncIterator[AgentEndpoint]:
    server = grpc.aio.server()
    methods = {} if talker is None else talker.methods
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("sandboxd.agent.v1.AgentService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield AgentEndpoint(host="127.0.0.1", port=port, server_name="inc.test")
    finally:
        await server.stop(None)


async def told(endpoint: AgentEndpoint, *, number: int = 99) -> list[PackageNews]:
    heard: list[PackageNews] = []
    async with asyncio.timeout(60), aclosing(GrpcPackageSource(Plain()).watch(endpoint, after=0)) as news:
        async for one in news:
            heard.append(one)
            if len(heard) == number:
                break
    return heard


@pytest.mark.parametrize("news", [odd_changes, endless_pages])
async def test_who_never_says_anything_that_can_be_taken_is_hung_up_on(news: Callable[[], News]) -> None:
    async with talking(Talker(news)) as endpoint:
        with pytest.raises(InvalidRequestError):
            await told(endpoint)


async def test_a_few_words_that_we_do_not_know_are_passed_over() -> None:
    async with talking(Talker(few_odd_ones)) as endpoint:
        change, installed = await told(endpoint, number=2)

    assert isinstance(change, PackageChange)
    assert change.sequence == 2
    assert isinstance(installed, InstalledPackages)
    assert [one.key.name for one in installed.packages] == ["tree"]


async def test_a_slow_reader_slows_down_who_tells_without_end() -> None:
    def endless() -> News:
        sequence = 0
        while True:
            sequence += 1
            change = pb.PackageChange(
                sequence=sequence, kind=pb.PACKAGE_CHANGE_KIND_INSTALLED, package=a_package(f"{sequence:0250}")
            )
            yield pb.WatchPackagesResponse(change=change)

    talker = Talker(endless)
    async with talking(talker) as endpoint, aclosing(GrpcPackageSource(Plain()).watch(endpoint, after=0)) as news:
        await anext(news)
        said = -1
        while said != talker.said:  # until it is held up
            said = talker.said
            await asyncio.sleep(0.5)

        assert talker.said * 300 < 16 << 20  # bytes: what gRPC has room for, and not all that could be said


async def test_an_agent_that_is_older_is_called_so() -> None:
    async with talking() as endpoint:
        with pytest.raises(NotImplementedYetError):
            await told(endpoint)
