"""A start whose node pulls its image longer than a start may take: it is waited for, told, and bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from sandboxd.backends.kubernetes.backend import KubernetesBackend
from sandboxd.backends.kubernetes.pulling import is_pulling
from sandboxd.kubeapi.ports import Json
from sandboxd.model.errors import DeadlineError
from sandboxd.model.sandbox import AgentEndpoint
from tests.eventually import eventually
from tests.fakes.agent import FakeAgentConnector
from tests.fakes.cluster_operator import FakeOperator
from tests.fakes.kube import FakeKube
from tests.unit.test_kubernetes_backend import a_spec, an_incarnation, make_backend

SHORT = timedelta(seconds=0.5)
LOOKS = timedelta(seconds=0.05)
IMAGE = "registry.example/clients/acme/gemini-cli-user-ada@sha256:" + "1" * 64
PULLING = f'Pulling image "{IMAGE}"'
PULLED = f'Successfully pulled image "{IMAGE}" in 3m0.5s (3m0.5s including waiting). Image size: 9 bytes.'
FAILED = f'Failed to pull image "{IMAGE}": unexpected end of file'


def said(*events: tuple[str, str, str]) -> list[Json]:
    return [{"reason": reason, "message": text, "lastTimestamp": at} for reason, text, at in events]


@pytest.mark.parametrize(
    ("events", "pulling"),
    [
        ([], False),
        ([("Scheduled", "Successfully assigned x to y", "10:00:01")], False),
        ([("Pulling", PULLING, "10:00:02")], True),
        ([("Pulling", PULLING, "10:00:02"), ("Pulled", PULLED, "10:03:02")], False),
        ([("Pulling", PULLING, "10:00:02"), ("Pulled", PULLED, "10:00:02")], False),
        ([("Pulling", PULLING, "10:00:02"), ("Failed", FAILED, "10:00:09")], False),
        ([("Failed", FAILED, "10:00:09"), ("Pulling", PULLING, "10:00:20")], True),
        ([("Pulling", PULLING, "10:00:02"), ("Pulled", 'Successfully pulled image "agent" in 1s', "10:00:09")], True),
        ([("Pulling", PULLING, "10:00:02"), ("BackOff", f'Back-off pulling image "{IMAGE}"', "10:00:09")], False),
    ],
)
def test_an_image_is_being_pulled_from_the_word_that_it_begins_until_any_word_that_it_ended(
    events: list[tuple[str, str, str]], pulling: bool
) -> None:
    assert is_pulling(said(*events)) is pulling


@dataclass(kw_only=True)
class Slow:
    """A start that waits for its image."""

    operator: FakeOperator
    backend: KubernetesBackend
    kube: FakeKube
    told: int = 0

    @asynccontextmanager
    async def starting(self, *, events: list[tuple[str, str, str]]) -> AsyncIterator[asyncio.Task[AgentEndpoint]]:
        self.operator.pulling = True
        self.spec = a_spec()

        async def tell() -> None:
            self.told += 1

        start = self.backend.start(self.spec, an_incarnation(), timeout=SHORT, pulling=tell)
        task = asyncio.create_task(start)
        await eventually(self._has_a_pod)
        for reason, message, at in events:
            await self.operator.say(self.spec.sandbox, reason, message, at=at)
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _has_a_pod(self) -> bool:
        return any((obj.get("status") or {}).get("podUID") for obj in self.kube.all("sandboxes"))


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    kube, connector = FakeKube(), FakeAgentConnector()
    backend = make_backend(kube, connector)
    backend._starting.look_for_pulls_every = LOOKS
    async with FakeOperator(kube, connector).running() as operator:
        following = asyncio.create_task(backend.run())
        yield Slow(operator=operator, backend=backend, kube=kube)
        following.cancel()


async def test_a_start_outlasts_its_time_while_its_node_pulls_and_says_so_once(slow: Slow) -> None:
    async with slow.starting(events=[("Pulling", PULLING, "10:00:02")]) as start:
        done, _ = await asyncio.wait({start}, timeout=SHORT.total_seconds() * 3)

        assert not done
        assert slow.told == 1

        await slow.operator.say(slow.spec.sandbox, "Pulled", PULLED, at="10:03:02")
        await slow.operator.pulled(slow.spec.sandbox)
        assert (await asyncio.wait_for(start, 10)).host == "127.0.0.1"


@pytest.mark.parametrize(
    "events",
    [
        [],
        [("Pulling", PULLING, "10:00:02"), ("Failed", FAILED, "10:00:09")],
        [("Pulling", PULLING, "10:00:02"), ("Pulled", PULLED, "10:00:09")],
    ],
)
async def test_a_start_whose_node_does_not_pull_ends_in_its_time(
    slow: Slow, events: list[tuple[str, str, str]]
) -> None:
    async with slow.starting(events=events) as start:
        with pytest.raises(DeadlineError):
            await asyncio.wait_for(start, SHORT.total_seconds() * 10)

        assert slow.told == 0


async def test_a_pull_without_end_is_given_up_and_named(slow: Slow) -> None:
    slow.backend._starting.pull_timeout = SHORT

    async with slow.starting(events=[("Pulling", PULLING, "10:00:02")]) as start:
        with pytest.raises(DeadlineError, match="still pulling its image"):
            await asyncio.wait_for(start, SHORT.total_seconds() * 10)
