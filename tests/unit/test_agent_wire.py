"""What a call to an agent ended with: the agent's own word where it gave one, else that it does not answer."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from sandboxd.agent.wire import DETAILS_KEY, from_rpc_error, to_status
from sandboxd.model.errors import AgentUnavailableError, InternalError, SandboxdError


def ended(code: grpc.StatusCode, text: str, said: SandboxdError | None = None) -> grpc.aio.AioRpcError:
    details = [] if said is None else [(DETAILS_KEY, to_status(said).SerializeToString())]
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), details=text)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL"])
def test_a_connection_that_breaks_is_an_agent_that_does_not_answer(code: str) -> None:
    error = from_rpc_error(ended(grpc.StatusCode[code], "Internal error from Core"))

    assert isinstance(error, AgentUnavailableError)


def test_a_defect_of_the_agent_is_told_as_one() -> None:
    error = from_rpc_error(ended(grpc.StatusCode.INTERNAL, "Internal error.", InternalError("a secret")))

    assert isinstance(error, InternalError)
    assert "secret" not in error.message
