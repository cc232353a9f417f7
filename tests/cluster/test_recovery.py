"""What breaks in a cluster, and what comes of it: each fault has one outcome, and nothing of a person is lost."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import pytest

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.errors import ApiError
from sandboxd.model.cluster import API_VERSION, pod_of
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import ClusterStack, a_cluster_stack, a_shared_stack, one_tests, sandbox_id
from tests.e2e.stack import Transcript
from tests.eventually import eventually
from tests.installation import ClusterInstallation
from tests.postgres import PostgresServer

pytestmark = pytest.mark.timeout(300)

SLOW = "fake:slow(chunks=40; delay=0.5)"
ONCE = RetryPolicy(budget=timedelta(0))
"""A caller who takes the first answer: the words are the same at each."""
ACTIVE = sandbox_pb2.SANDBOX_STATE_ACTIVE


@pytest.fixture(scope="module")
def running(own_installation: ClusterInstallation, postgres_server: PostgresServer) -> Iterator[ClusterStack]:
    """In an installation of this module's: its operator goes and comes."""
    with a_shared_stack(own_installation, postgres_server) as made:
        yield made


@pytest.fixture
async def stack(running: ClusterStack) -> AsyncIterator[ClusterStack]:
    async with one_tests(running) as mine:
        yield mine


async def given_a_file(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> None:
    stack.inside(sandbox, "sh", "-c", "echo mine > /workspace/work.txt && echo yours > /home/gemini/home.txt && sync")


def assert_files(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> None:
    assert stack.inside(sandbox, "cat", "/workspace/work.txt", "/home/gemini/home.txt").split() == ["mine", "yours"]


async def gone_and_back(stack: ClusterStack, seen: Transcript, sandbox: sandbox_pb2.Sandbox) -> None:
    """The turn that was open ends with an error, the next prompt starts a new life, and files and session are there."""
    completed = (await seen.until("turn_completed", within=150)).turn_completed
    assert completed.stop_reason != stream_pb2.STOP_REASON_END_TURN
    said = await seen.turn("fake:say(text=here again)")
    assert said.stop_reason == stream_pb2.STOP_REASON_END_TURN, [
        event for event in seen.events if event.WhichOneof("event") in ("error", "notice", "turn_started")
    ]
    assert "here again" in seen.text
    seen.assert_whole()
    assert_files(stack, sandbox)


@pytest.mark.parametrize("how", ["deleted", "killed", "evicted"])
async def test_a_pod_that_is_lost_in_the_middle_of_a_turn_ends_the_turn_and_nothing_else(
    stack: ClusterStack, how: str
) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        await given_a_file(stack, sandbox)
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(SLOW)
            await seen.until("text")

            if how == "deleted":
                stack.delete_pod(sandbox)
            elif how == "killed":
                stack.kubectl("exec", pod_of(sandbox_id(sandbox)), "-c", "sandbox", "--", "sh", "-c", "kill -TERM 1")
            else:
                evict(stack, sandbox)

            await gone_and_back(stack, seen, sandbox)
        after = await client.get(sandbox.name)
    assert (after.state, after.incarnations) == (ACTIVE, 2)


def evict(stack: ClusterStack, sandbox: sandbox_pb2.Sandbox) -> None:
    pod = pod_of(sandbox_id(sandbox))
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": stack.namespace},
    }
    path = f"/api/v1/namespaces/{stack.namespace}/pods/{pod}/eviction"
    stack.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


@pytest.mark.parametrize("kind", ["statefulset", "secret"])
async def test_what_the_operator_made_is_made_again_and_the_sandbox_goes_on(stack: ClusterStack, kind: str) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        await given_a_file(stack, sandbox)
        name = sandbox_id(sandbox) if kind == "statefulset" else f"{sandbox_id(sandbox)}-agent"

        stack.kubectl("delete", kind, name, "--wait=false")

        await eventually(lambda: bool(stack.get(kind, name).get("metadata", {}).get("uid")), within=60)
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)

            async def answers() -> bool:
                return (await seen.turn("fake:say(text=on)")).stop_reason == stream_pb2.STOP_REASON_END_TURN

            await eventually(answers, within=120)
    assert_files(stack, sandbox)


async def test_a_deleted_namespace_is_told_as_missing_files_and_the_row_stays(stack: ClusterStack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")

        stack.installation.kubectl("delete", "namespace", stack.namespace, "--wait=true")

        await stack.reports('"kind": "files_missing"', sandbox_id(sandbox))
        found = await client.get(sandbox.name)
    assert found.state == ACTIVE, "nothing that is known of it is thrown away"


async def test_a_sandbox_that_no_row_knows_is_reported_and_left_alone(stack: ClusterStack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        resource = stack.resource(sandbox)
    stray = f"sbx-{secrets.token_hex(8)}"
    body = {
        "apiVersion": API_VERSION,
        "kind": "Sandbox",
        "metadata": {"name": stray, "namespace": stack.namespace, "labels": resource["metadata"]["labels"]},
        "spec": {**resource["spec"], "mode": "Stopped"},
    }

    stack.kubectl("apply", "-f", "-", stdin=json.dumps(body))

    await stack.reports(f'"name": "{stray}"')
    assert stack.get("sandboxes.sandboxd.dev", stray)["metadata"].get("deletionTimestamp") is None


async def test_what_keeps_a_sandbox_from_starting_is_told_with_what_to_look_at(
    cluster_installation: ClusterInstallation, postgres_server: PostgresServer
) -> None:
    """All at once: each is waited for as long as it may still come about."""
    no_image = "localhost:5000/sandboxd/nothing@sha256:" + "0" * 64
    async with asyncio.TaskGroup() as tasks:
        for template, words in (
            ({"image": no_image}, "image cannot be pulled"),
            ({"nodeSelector": {"sandboxd.test/none": "here"}}, "No node has room"),
            ({"storageClassName": "no-such-class"}, "volumes are not bound"),
        ):
            tasks.create_task(is_refused(cluster_installation, postgres_server, words, **template))


async def is_refused(
    installation: ClusterInstallation, server: PostgresServer, words: str, /, **template: object
) -> None:
    """A service whose template is wrong says so, to who asks and in the row."""
    database = await server.clone()
    async with a_cluster_stack(installation, server.url(database), start=False, own_template=True) as stack:
        stack.apply_template(**template)
        await stack.start("serve")
        async with stack.client(retry=ONCE) as client:
            with pytest.raises(ApiError) as refused:
                await client.create(model="gemini-2.5-flash")
            (sandbox,) = [one async for one in client.sandboxes()]
    await server.drop(database)

    assert words in str(refused.value)
    assert sandbox.state == sandbox_pb2.SANDBOX_STATE_FAILED
    assert words in sandbox.state_reason


async def test_a_spent_quota_is_exhausted_with_advice_and_resume_works_when_there_is_room(stack: ClusterStack) -> None:
    async with stack.client() as client:
        first = await client.create(model="gemini-2.5-flash")
        stack.installation.kubectl("annotate", "namespace", stack.namespace, "sandboxd.dev/quota=pods=1")

        def limited() -> bool:
            return bool(stack.get("resourcequota", "sandboxd")["spec"]["hard"]["pods"] == "1")

        await eventually(limited, within=60)
        with pytest.raises(ApiError) as refused:
            await client.create(model="gemini-2.5-flash")
        assert "quota" in str(refused.value)
        (second,) = [one async for one in client.sandboxes() if one.name != first.name]
        assert second.state == sandbox_pb2.SANDBOX_STATE_FAILED

        await client.pause(first.name)
        resumed = await client.resume(second.name)
        stack.installation.kubectl("annotate", "namespace", stack.namespace, "sandboxd.dev/quota-")

    assert resumed.state == ACTIVE


async def test_with_the_operator_down_sessions_go_on_and_a_new_one_waits_for_it(stack: ClusterStack) -> None:
    installation = stack.installation
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=before)")
            await asyncio.to_thread(installation.stop_operator)
            try:
                during = await seen.turn("fake:say(text=during)")
                creating = asyncio.ensure_future(client.create(display_name="late", model="gemini-2.5-flash"))
                await eventually(lambda: len(stack.kubectl("get", "sandboxes", "-o", "name").split()) == 2, within=30)
            finally:
                await asyncio.to_thread(installation.start_operator)
            created = await creating

    assert during.stop_reason == stream_pb2.STOP_REASON_END_TURN
    assert created.state == ACTIVE
