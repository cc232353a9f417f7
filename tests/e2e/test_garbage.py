"""Thousands of garbage requests to every port of the real thing: each still serves, small, and quiet in its log.

Ten thousand at each of the six ports; `SANDBOXD_GARBAGE=6000 pytest tests/e2e/test_garbage.py` throws a tenth of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import psutil
import pytest

from sandboxd.backends.local.layout import Layout
from sandboxd.backends.local.processes import find_agents
from tests.e2e.stack import Stack
from tests.eventually import eventually
from tests.garbage import CANARY, Drip, throw

pytestmark = pytest.mark.timeout(600)

# Read before any test runs: the tests themselves see no settings of the person who runs them.
TIMES = int(os.environ.get("SANDBOXD_GARBAGE", "60000"))
DRIPS = 24
GROWN_BYTES = 48 << 20
LOG_BYTES_EACH = 150
"""Bytes of log that one garbage request may cost on average: far less than one line with a traceback."""


async def ports(stack: Stack) -> Mapping[str, int]:
    """Every port of the stack, by who listens there."""
    found = {name: stack.ports[name] for name in ("grpc", "web", "gateway", "gateway_web")}
    (agent,) = find_agents(Layout(data=stack.home.absolute()))
    ready = Layout(data=stack.home.absolute()).sandbox(agent.sandbox).run(agent.incarnation).ready
    told = json.loads(ready.read_text())
    return found | {"agent": told["port"], "model": told["model_port"]}


def processes(stack: Stack) -> Mapping[str, psutil.Process]:
    (agent,) = find_agents(Layout(data=stack.home.absolute()))
    return {
        **{role: psutil.Process(stack.processes[role].pid) for role in ("serve", "gateway")},
        "agent": psutil.Process(agent.pid),
    }


def logs(stack: Stack) -> Mapping[Path, int]:
    return {path: path.stat().st_size for path in stack.home.rglob("*.log")}


async def serves(stack: Stack, sandbox: str, model_port: int) -> None:
    """Each port does its work."""
    async with stack.client() as client, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http:
        assert (await client.get(sandbox)).name == sandbox
        for name in ("web", "gateway_web"):
            async with http.get(f"http://127.0.0.1:{stack.ports[name]}/readyz") as answer:
                assert answer.status == 200, name
        async with http.post(f"http://127.0.0.1:{stack.ports['gateway']}/v1beta/models/m:generateContent") as answer:
            assert answer.status == 401
        # Through the model endpoint, the gateway and the model: the whole path of a call.
        url = f"http://127.0.0.1:{model_port}/v1beta/models/gemini-2.5-flash:generateContent"
        body = {"contents": [{"role": "user", "parts": [{"text": "fake:say(text=fine)"}]}]}
        async with http.post(url, json=body, headers={"x-goog-api-key": "none"}) as answer:
            assert answer.status == 200, await answer.text()
        # The agent's own port: the service speaks with it when it pauses and resumes.


async def test_garbage_at_every_port_changes_nothing(stack: Stack) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash")
    targets = await ports(stack)
    await serves(stack, sandbox.name, targets["model"])
    for port in targets.values():
        await throw(port, times=200, seed=7)  # what grows once and stays is not a leak
    await serves(stack, sandbox.name, targets["model"])
    running = processes(stack)
    memory = {name: process.memory_info().rss for name, process in running.items()}
    files = {name: process.num_fds() for name, process in running.items()}
    sizes = logs(stack)

    async with contextlib.AsyncExitStack() as dripping:
        for port in targets.values():
            await dripping.enter_async_context(Drip(port, count=DRIPS))
        each = TIMES // len(targets)
        thrown = await asyncio.gather(*(throw(port, times=each, seed=port) for port in targets.values()))
        await serves(stack, sandbox.name, targets["model"])  # while slow ones still hold their connections

    async def let_go() -> bool:
        return all(process.num_fds() <= files[name] + 20 for name, process in running.items())

    await eventually(let_go, within=30, every=0.2, what="the connections of the garbage are given back")
    await serves(stack, sandbox.name, targets["model"])
    async with stack.client() as client:
        await client.pause(sandbox.name)
        await client.resume(sandbox.name)
    grown = {
        name: process.memory_info().rss - memory[name] for name, process in running.items() if process.is_running()
    }
    written = {path.name: size - sizes.get(path, 0) for path, size in logs(stack).items()}
    print("memory grown", grown, "log written", written)  # noqa: T201 - the figures are worth seeing with -s
    assert sum(one.refused for one in thrown) == 0
    assert {name for name, bytes_ in grown.items() if bytes_ > GROWN_BYTES} == set(), grown
    assert sum(written.values()) < TIMES * LOG_BYTES_EACH, written
    assert [path.name for path in logs(stack) if CANARY in path.read_text(errors="replace")] == []
