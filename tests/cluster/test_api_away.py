"""The cluster's API is away or silent: sessions go on, and what needs it waits and comes to one result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import grpc
import pytest
import yaml

from sandboxd.ctl.errors import ApiError
from sandboxd.v1 import sandbox_pb2, stream_pb2
from tests.cluster.stack import a_cluster_stack
from tests.e2e.stack import Transcript
from tests.eventually import eventually
from tests.fault_proxy import FaultProxy
from tests.installation import ClusterInstallation

pytestmark = pytest.mark.timeout(240)

END_TURN: Final = stream_pb2.STOP_REASON_END_TURN


@asynccontextmanager
async def a_proxied_api(installation: ClusterInstallation, home: Path) -> AsyncIterator[tuple[FaultProxy, Path]]:
    """A kubeconfig whose API server is behind bad weather."""
    content = yaml.safe_load(installation.cluster.kubeconfig.read_text())
    current = next(one for one in content["contexts"] if one["name"] == content["current-context"])["context"]
    cluster = next(one for one in content["clusters"] if one["name"] == current["cluster"])["cluster"]
    real = urlsplit(cluster["server"])

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(real.hostname, real.port or 443)

    async with FaultProxy(connect).running() as proxy:
        if real.hostname != "127.0.0.1":
            cluster["tls-server-name"] = real.hostname
        cluster["server"] = f"https://127.0.0.1:{proxy.port}"
        path = home / "kubeconfig"
        path.write_text(json.dumps(content))
        yield proxy, path


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_sessions_go_on_without_the_api_and_a_create_comes_to_one_result(
    cluster_installation: ClusterInstallation, postgres_url: str, tmp_path: Path, how: str
) -> None:
    async with (
        a_proxied_api(cluster_installation, tmp_path) as (proxy, kubeconfig),
        a_cluster_stack(cluster_installation, postgres_url, start=False) as stack,
    ):
        stack.settings["KUBECONFIG"] = str(kubeconfig)
        await asyncio.gather(stack.start("gateway"), stack.start("serve"))
        async with stack.client() as client:
            used = await client.create(display_name="used", model="gemini-2.5-flash")
            fresh = await client.create(display_name="fresh", model="gemini-2.5-flash")
            async with client.stream(used.name) as stream, client.stream(fresh.name) as other:
                seen, first = Transcript(stream=stream), Transcript(stream=other)
                await seen.turn("fake:say(text=before )")

                if how == "silent":
                    proxy.silent = True
                else:
                    proxy.refusing = True
                    proxy.cut()
                creating = asyncio.ensure_future(client.create(display_name="late", model="gemini-2.5-flash"))
                during = await seen.turn("fake:say(text=during )")
                begun = await first.turn("fake:say(text=begun )")
                with pytest.raises(ApiError) as refused:
                    await client.create(display_name="short", model="gemini-2.5-flash", timeout=3)
                await stack.restart("serve")
                again = await seen.turn("fake:say(text=and after a restart)")
                listed = {one.display_name: one.state async for one in client.sandboxes()}
                assert not creating.done()

                proxy.silent = proxy.refusing = False
                created = await creating

            assert [turn.stop_reason for turn in (during, begun, again)] == [END_TURN] * 3
            assert seen.text == "before during and after a restart"
            seen.assert_whole()
            assert refused.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert listed["late"] == sandbox_pb2.SANDBOX_STATE_CREATING
            assert created.state == sandbox_pb2.SANDBOX_STATE_ACTIVE

            async def settled() -> bool:
                found = [(one.display_name, one.state) async for one in client.sandboxes()]
                assert sorted(name for name, _ in found) == ["fresh", "late", "short", "used"]
                assert {state for _, state in found} == {sandbox_pb2.SANDBOX_STATE_ACTIVE}
                assert len(stack.kubectl("get", "pods", "-o", "name").split()) == 4
                return True

            await eventually(settled, within=60)
