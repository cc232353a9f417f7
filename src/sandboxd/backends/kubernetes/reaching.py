"""Reaching an agent that just starts: tight tries of its port, then one call that proves which incarnation it is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

from sandboxd.manager.agents import visit
from sandboxd.model.errors import AgentUnavailableError, DeadlineError
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import AgentConnector

TRY_EVERY: Final = 0.01
"""Seconds between tries while the port refuses: what a refused one costs is some ten microseconds."""
TRY_SECONDS: Final = 1.0
"""How long a try waits for a port that says nothing."""
ANSWER_TIMEOUT: Final = timedelta(seconds=5)


async def reach(connector: AgentConnector, endpoint: AgentEndpoint) -> None:
    """Wait until the agent answers. The certificate's name proves that it is the incarnation; ends only by success.

    The caller bounds the time.
    """
    while True:
        await _until_open(endpoint)
        with suppress(AgentUnavailableError, DeadlineError):
            async with visit(connector, endpoint) as agent:
                await agent.describe(timeout=ANSWER_TIMEOUT)
                return
        await asyncio.sleep(TRY_EVERY)


async def _until_open(endpoint: AgentEndpoint) -> None:
    while True:
        try:
            async with asyncio.timeout(TRY_SECONDS):
                _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        except (OSError, TimeoutError):
            await asyncio.sleep(TRY_EVERY)
            continue
        writer.close()
        return
