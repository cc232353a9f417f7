"""Captures of a pod without the operator, as the service makes them."""

from __future__ import annotations

from datetime import timedelta

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.agent.rootfs_client import GrpcRootfsCapture
from sandboxd.manager.backend_port import Observation, RunningIncarnation
from sandboxd.model.cluster import AGENT_PORT
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint
from tests.cluster.pod_world import PodWorld
from tests.contract.agent_process import AGENT_NAME, SERVICE_NAME

SANDBOX = SandboxId("sbx-shape")
INCARNATION = IncarnationId("inc-test")
LONG = timedelta(minutes=3)


class _Running:
    def __init__(self, endpoint: AgentEndpoint) -> None:
        self._endpoint = endpoint

    async def observe(self, sandbox: SandboxId) -> Observation:
        running = [RunningIncarnation(incarnation=INCARNATION, endpoint=self._endpoint)]
        return Observation(sandbox=sandbox, present=True, running=running)


async def capture_of(world: PodWorld) -> GrpcRootfsCapture:
    """Return what captures this pod as `SANDBOX` and `INCARNATION`."""
    service = world.authority.issue(SERVICE_NAME)
    connector = GrpcAgentConnector(
        certificate=service.certificate, key=service.key, agent_authority=world.authority.certificate
    )
    host = (await world.pod())["status"]["podIP"]
    endpoint = AgentEndpoint(host=host, port=AGENT_PORT, server_name=AGENT_NAME)
    return GrpcRootfsCapture(backend=_Running(endpoint), connector=connector)
