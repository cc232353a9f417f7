"""JSON-RPC messages of the agent, told apart. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The agent wants an answer."""

    rpc: int | str
    method: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """The agent tells something."""

    method: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The agent answers a request of ours."""

    rpc: int | str
    result: Mapping[str, Any]
    """Empty where there was an error, or a result that is no object."""
    error: Mapping[str, Any] | None


def classify(message: Mapping[str, Any]) -> Request | Notification | Reply | None:
    """What kind of message it is; None where it is none."""
    method = message.get("method")
    rpc = message.get("id")
    has_id = isinstance(rpc, (int, str)) and not isinstance(rpc, bool)
    if isinstance(method, str):
        params = message.get("params", {})
        if params is None:
            params = {}
        if not isinstance(params, dict) or ("id" in message and not has_id):
            return None
        if has_id:
            return Request(rpc=rpc, method=method, params=params)  # type: ignore[arg-type]  # has_id says so
        return Notification(method=method, params=params)
    if not has_id or method is not None:
        return None
    error = message.get("error")
    if isinstance(error, dict):
        return Reply(rpc=rpc, result={}, error=error)  # type: ignore[arg-type]  # has_id says so
    if "result" not in message:
        return None
    result = message["result"]
    return Reply(rpc=rpc, result=result if isinstance(result, dict) else {}, error=None)  # type: ignore[arg-type]
