"""`sandboxd serve` killed with SIGKILL at the steps of create, pause, resume and terminate, with sandboxes as pods.

One call a verb: the client repeats it with the same request id, as `sandboxctl` does, while the service dies at one
step after the other and comes back. The first death meets the call itself, each later one the recovery of the one
before.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import pytest

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.model.failpoints import POINTS
from sandboxd.v1 import sandbox_pb2 as pb
from tests.cluster.stack import ClusterStack, a_cluster_stack, sandbox_id
from tests.installation import ClusterInstallation

STUBBORN: Final = RetryPolicy(longest=timedelta(milliseconds=500), budget=timedelta(minutes=10))
"""The client outlives every death of its service."""
DEATH_SECONDS: Final = 60.0
"""A start of `serve`, and a start or an end of a pod, on a busy machine."""


VERBS: Final = ("create", "pause", "resume", "terminate")
TELLING: Final = {
    "create": ["create.after_commit", "create.after_start"],
    "pause": ["pause.after_close", "pause.after_stop"],
    "resume": ["resume.after_start"],
    "terminate": ["terminate.after_stop", "terminate.after_remove"],
}
"""Where the cluster has done something that the row does not say, for each death costs a start of `serve`."""


def every_step() -> Mapping[str, Sequence[str]]:
    """Every step of the verbs, in their order."""
    return {verb: [name for name in POINTS if name.startswith(f"{verb}.")] for verb in VERBS}


@pytest.fixture
async def stack(cluster_installation: ClusterInstallation, postgres_url: str) -> AsyncIterator[ClusterStack]:
    async with a_cluster_stack(cluster_installation, postgres_url, start=False) as made:
        yield made


async def dies(stack: ClusterStack, step: str) -> None:
    """Wait until the service dies at a step that it was started with."""
    try:
        await stack.died("serve", within=DEATH_SECONDS)
    except TimeoutError:
        raise AssertionError(f"it did not die at {step}:\n{stack.log('serve')}") from None
    assert stack.processes["serve"].returncode == -signal.SIGKILL, stack.log("serve")


async def answered(
    stack: ClusterStack, call: Awaitable[pb.Sandbox], steps: Sequence[str], *, following: Sequence[str]
) -> pb.Sandbox:
    """What a call comes to whose service is killed at these steps; the one that answers dies at the next call's first.

    The service runs already, or is started by somebody else, with the first of the steps.
    """
    calling = asyncio.ensure_future(call)
    for step, afterwards in zip(steps, [*steps[1:], *following[:1], ""], strict=False):
        await dies(stack, step)
        assert not calling.done()
        await stack.start("serve", failpoints=f"{afterwards}=exit9" if afterwards else "", ready=False)
    return await asyncio.wait_for(calling, DEATH_SECONDS)


async def a_life_among_deaths(stack: ClusterStack, verbs: Mapping[str, Sequence[str]]) -> None:
    create, pause, resume, terminate = (verbs[verb] for verb in VERBS)
    await stack.start("serve", failpoints=f"{create[0]}=exit9", ready=False)
    async with stack.client(retry=STUBBORN) as client:
        created = await answered(stack, client.create(display_name="one"), create, following=pause)
        assert created.state == pb.SANDBOX_STATE_ACTIVE
        first = stack.pod(created)["metadata"]["uid"]
        stack.inside(created, "sh", "-c", "echo mine > /workspace/work.txt && sync")

        paused = await answered(stack, client.pause(created.name), pause, following=resume)
        assert paused.state == pb.SANDBOX_STATE_PAUSED
        assert stack.pod(created) == {}

        resumed = await answered(stack, client.resume(created.name), resume, following=terminate)
        assert (resumed.state, resumed.incarnations) == (pb.SANDBOX_STATE_ACTIVE, 2)
        pod = stack.pod(created)
        assert pod["metadata"]["uid"] != first
        assert pod["metadata"]["annotations"]["sandboxd.dev/incarnation"] == resumed.incarnation
        assert stack.inside(created, "cat", "/workspace/work.txt").strip() == "mine"

        async def end() -> pb.Sandbox:
            return (await client.terminate(created.name)).sandbox

        ended = await answered(stack, end(), terminate, following=[])
        assert ended.state == pb.SANDBOX_STATE_TERMINATED
    assert stack.resource(created) == {}
    assert stack.pod(created) == {}
    claims = stack.kubectl("get", "pvc", "-l", "sandboxd.dev/kept=true", "-o", "name").split()
    assert len([claim for claim in claims if sandbox_id(created) in claim]) == 2


@pytest.mark.timeout(300)
async def test_every_call_comes_to_one_result_although_the_service_is_killed_on_its_way(stack: ClusterStack) -> None:
    await a_life_among_deaths(stack, TELLING)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_every_call_comes_to_one_result_although_the_service_is_killed_at_every_step(stack: ClusterStack) -> None:
    await a_life_among_deaths(stack, every_step())
