"""Short visits to agents: connect, ask one thing, let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream import agent_port


@asynccontextmanager
async def visit(connector: agent_port.AgentConnector, endpoint: AgentEndpoint) -> AsyncIterator[agent_port.Agent]:
    """Connect to the agent of an incarnation for the length of a block."""
    agent = await connector.connect(endpoint)
    try:
        yield agent
    finally:
        await agent.close()
