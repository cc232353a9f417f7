"""`sandboxd serve` killed with SIGKILL at every step of create, and in the middle of pause, resume and terminate.

One call a verb: the client repeats it with the same request id, as `sandboxctl` does, while the service dies at one
step after the other and comes back. The first death meets the call itself, each later one the recovery of the one
before. Every step of the other verbs is in tests/unit/test_manager_recovery.py: a death here costs a start.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from sandboxd.v1 import sandbox_pb2 as pb
from tests.e2e.service import Service
from tests.eventually import eventually

CREATE = ["before_commit", "after_commit", "after_start", "after_token", "after_settle"]


@pytest.fixture
async def service(tmp_path: Path, postgres_url: str) -> AsyncIterator[Service]:
    made = Service(data=tmp_path, database_url=postgres_url)
    async with made.client():  # makes the development key that the service will trust
        pass
    yield made
    if made._process is not None:
        await made.end()


async def die(service: Service, failpoint: str) -> None:
    """Start the service, which works until it comes to the failpoint."""
    await service.start(failpoints=f"{failpoint}=exit9")
    assert await service.wait_end() == -signal.SIGKILL, f"it did not die at {failpoint}"


async def the_sandbox(service: Service, *, states: tuple[str, ...] = ()) -> pb.Sandbox:
    async with service.client() as client:
        (sandbox,) = [sandbox async for sandbox in client.sandboxes(states=states)]
        return sandbox


@pytest.mark.timeout(300)
async def test_every_call_comes_to_one_result_although_the_service_is_killed_at_its_steps(service: Service) -> None:
    async with service.client() as client:
        creating = asyncio.ensure_future(client.create(display_name="one"))
        for step in CREATE:
            await die(service, f"create.{step}")
            assert not creating.done()
        (agent,) = service.agents()

        dying = asyncio.ensure_future(die(service, "pause.after_close"))
        created = await creating
        assert created.state == pb.SANDBOX_STATE_ACTIVE
        assert await the_sandbox(service) == created
        assert service.agents() == [agent], "the agent that an earlier life of the service started goes on"
        assert agent.incarnation == created.incarnation
        workspace = service.data / "sandboxes" / agent.sandbox / "workspace"
        (workspace / "work.txt").write_text("mine")

        pausing = asyncio.ensure_future(client.pause(created.name))
        await dying
        dying = asyncio.ensure_future(die(service, "resume.after_start"))
        assert (await pausing).state == pb.SANDBOX_STATE_PAUSED
        assert service.agents() == []

        resuming = asyncio.ensure_future(client.resume(created.name))
        await dying
        dying = asyncio.ensure_future(die(service, "terminate.after_stop"))
        resumed = await resuming
        assert (resumed.state, resumed.incarnations) == (pb.SANDBOX_STATE_ACTIVE, 2)
        assert [agent.incarnation for agent in service.agents()] == [resumed.incarnation]
        assert (workspace / "work.txt").read_text() == "mine"

        terminating = asyncio.ensure_future(client.terminate(created.name))
        await dying
        await service.start()
        ended = await terminating
        assert ended.sandbox.state == pb.SANDBOX_STATE_TERMINATED
        assert service.agents() == []
        assert (Path(ended.kept) / "workspace" / "work.txt").read_text() == "mine"
        assert (await the_sandbox(service, states=("TERMINATED",))).name == created.name


@pytest.mark.timeout(120)
async def test_a_killed_agent_is_noticed_and_its_sandbox_can_be_paused_and_resumed(service: Service) -> None:
    await service.start(settings={"SANDBOXD_SWEEP_SECONDS": "0.5"})
    await service.wait_ready()
    async with service.client() as client:
        created = await client.create()
        (agent,) = service.agents()
        psutil.Process(agent.pid).kill()

        async def noticed() -> bool:
            return "agent has ended" in (await client.get(created.name)).state_reason

        await eventually(noticed, within=40, every=0.2)
        await client.pause(created.name)
        resumed = await client.resume(created.name)

        assert resumed.state == pb.SANDBOX_STATE_ACTIVE
        assert [agent.incarnation for agent in service.agents()] == [resumed.incarnation]
