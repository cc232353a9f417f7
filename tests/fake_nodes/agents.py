"""One process that answers as the agent of every fake pod: `python -m tests.fake_nodes.agents --kubeconfig FILE`.

It listens at all addresses. The address that was called says which pod is meant, and the certificate is the one that
the operator put into that sandbox's Secret; callers prove themselves as they do to a real agent. Behind TLS one gRPC
server answers for all, with agents of memory; it knows the called address by the port of the connection handed on.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from typing_extensions import override

from sandboxd.agent import codec
from sandboxd.agent.v1 import agent_pb2 as pb
from sandboxd.agent.v1 import agent_pb2_grpc
from sandboxd.backends.certificates import SERVICE_NAME, agent_name
from sandboxd.kubeapi.client import KubeClient
from sandboxd.kubeapi.reflector import Key, Reflector
from sandboxd.model.cluster import AGENT_PORT, INCARNATION_ANNOTATION, SANDBOX_LABEL
from sandboxd.model.ids import IncarnationId
from sandboxd.model.processes import ProcessId
from sandboxd.operator.builders import AGENT_SECRET_TYPE
from sandboxd.operator.kinds import Kind
from tests.fakes.agent import FakeAgent, FakeIo

KNOWN_WITHIN: Final = 5.0
"""Seconds until a pod whose address was called must be known here, too."""
PIECE: Final = 1 << 16
Json = Mapping[str, Any]
"""An object of the API. Any: JSON."""
Context = grpc.aio.ServicerContext[Any, Any]


class Directory:
    """Which incarnation is at which address, and its identity: as the cluster has it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._contexts: dict[str, ssl.SSLContext] = {}
        """By the DNS name of the certificate."""
        self._pods: dict[str, tuple[str, str]] = {}
        """Sandbox and incarnation by address."""
        self._changed = asyncio.Event()

    def take_secret(self, _: Key, secret: Json | None) -> None:
        """Take the identity of an incarnation."""
        if secret is None:
            return
        name = agent_name(IncarnationId(secret["metadata"]["annotations"][INCARNATION_ANNOTATION]))
        data = {file: base64.b64decode(content) for file, content in secret["data"].items()}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=data["ca.crt"].decode())
        files = [self._home / f"{os.getpid()}.{file}" for file in ("tls.crt", "tls.key")]
        for file in files:
            file.write_bytes(data[file.name.partition(".")[2]])
        context.load_cert_chain(files[0], files[1])
        self._contexts[name] = context

    def take_pod(self, key: Key, pod: Json | None) -> None:
        """Take note of where an incarnation is."""
        if pod is None:
            gone = [address for address, (sandbox, _) in self._pods.items() if f"{sandbox}-0" == key[1]]
            for address in gone:
                del self._pods[address]
        elif (address := pod.get("status", {}).get("podIP")) and pod["status"].get("phase") == "Running":
            metadata = pod["metadata"]
            self._pods[address] = (metadata["labels"][SANDBOX_LABEL], metadata["annotations"][INCARNATION_ANNOTATION])
            self._changed.set()
            self._changed = asyncio.Event()

    def choose(self, handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        """Take the certificate of the incarnation that is wanted; whether it lives where it was called, `at` tells."""
        if name not in self._contexts:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        handshake.context = self._contexts[name]
        return None

    def of(self, incarnation: str) -> ssl.SSLContext | None:
        """What an incarnation proves itself with."""
        return self._contexts.get(agent_name(IncarnationId(incarnation)))

    async def at(self, address: str) -> tuple[str, str] | None:
        """Sandbox and incarnation of the pod at an address; None where there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_WITHIN):
                while address not in self._pods:
                    await self._changed.wait()
        return self._pods.get(address)


class Agents(agent_pb2_grpc.AgentServiceServicer):
    """The agents' contract, as far as a service without conversations asks for it; the rest is UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.called: dict[int, tuple[str, str]] = {}
        """Sandbox and incarnation by the port that a connection was handed on from."""
        self._agents: dict[str, FakeAgent] = {}

    def _agent(self, context: Context) -> FakeAgent:
        sandbox, incarnation = self.called[int(context.peer().rpartition(":")[2])]
        if incarnation not in self._agents:
            made = self._agents[incarnation] = FakeAgent(sandbox=sandbox, incarnation=incarnation)
            made.programs["/bin/true"] = _true
        return self._agents[incarnation]

    @override
    async def GetAgent(self, request: pb.GetAgentRequest, context: Context) -> pb.GetAgentResponse:
        told = await self._agent(context).describe()
        return pb.GetAgentResponse(
            version=told.version,
            api_level=told.api_level,
            sandbox=told.sandbox,
            incarnation=told.incarnation,
            start_time=codec.time_to(told.start_time),
            model_port=told.model_port,
            home=told.home,
            workspace=told.workspace,
            pid=told.pid,
        )

    @override
    async def SetModelEndpoint(
        self, request: pb.SetModelEndpointRequest, context: Context
    ) -> pb.SetModelEndpointResponse:
        port = await self._agent(context).set_model_endpoint(base_url=request.base_url, token=request.token)
        return pb.SetModelEndpointResponse(model_port=port)

    @override
    async def StartProcess(self, request: pb.StartProcessRequest, context: Context) -> pb.StartProcessResponse:
        spec = codec.spec_from(request.spec)
        process = await self._agent(context).start_process(ProcessId(request.process_id), spec)
        return pb.StartProcessResponse(process=codec.process_to(process), created=True)

    @override
    async def WaitProcess(self, request: pb.WaitProcessRequest, context: Context) -> pb.WaitProcessResponse:
        process = await self._agent(context).wait_process(ProcessId(request.process_id), timeout=timedelta(seconds=30))
        return pb.WaitProcessResponse(process=codec.process_to(process))

    @override
    async def ListProcesses(self, request: pb.ListProcessesRequest, context: Context) -> pb.ListProcessesResponse:
        found = await self._agent(context).list_processes()
        return pb.ListProcessesResponse(processes=[codec.process_to(one) for one in found])

    @override
    async def GetActivity(self, request: pb.GetActivityRequest, context: Context) -> pb.GetActivityResponse:
        return codec.activity_to(await self._agent(context).get_activity())

    @override
    async def Freeze(self, request: pb.FreezeRequest, context: Context) -> pb.FreezeResponse:
        frozen = await self._agent(context).freeze()
        return pb.FreezeResponse(frozen_processes=frozen.frozen_processes)

    @override
    async def Thaw(self, request: pb.ThawRequest, context: Context) -> pb.ThawResponse:
        return pb.ThawResponse(thawed_processes=await self._agent(context).thaw())

    @override
    async def Shutdown(self, request: pb.ShutdownRequest, context: Context) -> pb.ShutdownResponse:
        self._agent(context).die()
        return pb.ShutdownResponse()


async def _true(_: FakeIo) -> int:
    return 0


class Front:
    """Ends TLS and hands on."""

    def __init__(self, directory: Directory, agents: Agents, port: int) -> None:
        self._directory = directory
        self._agents = agents
        self._port = port

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; nobody is served as somebody else, and none but the service is."""
        try:
            handshake = writer.get_extra_info("ssl_object")
            found = await self._directory.at(writer.get_extra_info("sockname")[0])
            if found is None or handshake.context is not self._directory.of(found[1]) or not _is_service(handshake):
                return
            inner_reader, inner = await asyncio.open_connection("127.0.0.1", self._port)
            here = inner.get_extra_info("sockname")[1]
            self._agents.called[here] = found
            try:
                await asyncio.gather(_copy(reader, inner), _copy(inner_reader, writer))
            finally:
                self._agents.called.pop(here, None)
                inner.close()
        except OSError:
            return
        finally:
            writer.close()


def _is_service(handshake: ssl.SSLObject) -> bool:
    certificate = handshake.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())
    return ("DNS", SERVICE_NAME) in names


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(PIECE):
            target.write(piece)
            await target.drain()
    finally:
        target.close()


async def serve(kubeconfig: Path, home: Path, instance: str) -> None:
    """Answer until cancelled."""
    agents = Agents()  # type: ignore[abstract]  # at runtime the generated base refuses what is missing
    directory = Directory(home)
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(agents, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with KubeClient(kubeconfig) as api:
        label = f"sandboxd.dev/instance={instance}"
        secrets = Reflector(
            api, Kind.SECRET.everywhere(), label_selector=label, field_selector=f"type={AGENT_SECRET_TYPE}"
        )
        pods = Reflector(api, Kind.POD.everywhere(), label_selector=label)
        secrets.listen(directory.take_secret)
        pods.listen(directory.take_pod)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(secrets.run(), name="secrets")
            tasks.create_task(pods.run(), name="pods")
            await secrets.wait_synced()
            await pods.wait_synced()
            # What is demanded of callers is this context's; certificate, authority and protocol are the chosen one's.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.verify_mode = ssl.CERT_REQUIRED
            context.set_alpn_protocols(["h2"])
            context.sni_callback = directory.choose
            front = Front(directory, agents, port)
            listener = await asyncio.start_server(front.take, "0.0.0.0", AGENT_PORT, ssl=context, backlog=1024)
            (home / "agents.ready").touch()
            await listener.serve_forever()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--instance", required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.kubeconfig, given.home, given.instance))


if __name__ == "__main__":
    main()
