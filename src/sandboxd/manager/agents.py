"""Short visits to agents: connect, ask one thing, let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.stream.agent_port import Agent, AgentConnector


@asynccontextmanager
async def visit(connector: AgentConnector, endpoint: AgentEndpoint) -> AsyncIterator[Agent]:
    """Connect to the agent of an incarnation for the length of a block."""
    agent = await connector.connect(endpoint)
    try:
        yield agent
    finally:
        await agent.close()
