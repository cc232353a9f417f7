"""Calls of the ledger: from what the database holds to the model, and the conditions of a filter. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId, SessionId, TurnId
from sandboxd.model.money import Money
from sandboxd.model.usage import (
    CallError,
    GatewayId,
    ModelMethod,
    Reservation,
    TokenCounts,
    UsageEvent,
    UsageEventId,
    UsageState,
)
from sandboxd.monitor.ports import UsageFilter
from sandboxd.persistence.escape import escape, unescape

Row = Mapping[str, Any]
"""A record. Any: its columns have any type."""

TOKEN_COLUMNS: Final = (
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "thoughts_tokens",
    "tool_use_tokens",
    "total_tokens",
)
_EXACT: Final = ("client", "freelancer", "sandbox", "session", "turn")


def read_tokens(row: Row) -> TokenCounts:
    """Tokens by class."""
    return TokenCounts(
        prompt=row["prompt_tokens"],
        cached=row["cached_tokens"],
        output=row["output_tokens"],
        thoughts=row["thoughts_tokens"],
        tool_use=row["tool_use_tokens"],
        total=row["total_tokens"],
    )


def token_values(tokens: TokenCounts) -> tuple[int, ...]:
    """Tokens in the order of TOKEN_COLUMNS."""
    return (tokens.prompt, tokens.cached, tokens.output, tokens.thoughts, tokens.tool_use, tokens.total)


def read_usage_event(row: Row) -> UsageEvent:
    """A call from its row."""
    return UsageEvent(
        id=UsageEventId(row["id"]),
        gateway=GatewayId(row["gateway"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        sandbox=SandboxId(row["sandbox"]),
        incarnation=IncarnationId(row["incarnation"]),
        session=SessionId(row["session"]) if row["session"] else None,
        turn=TurnId(row["turn"]) if row["turn"] else None,
        method=ModelMethod(row["method"]),
        model=unescape(row["model"]),
        model_version=optional(row["model_version"]),
        state=UsageState(row["state"]),
        http_status=row["http_status"],
        finish_reason=optional(row["finish_reason"]),
        block_reason=optional(row["block_reason"]),
        tokens=read_tokens(row),
        cost=None if row["cost_micros"] is None else Money(micros=row["cost_micros"], currency=row["currency"]),
        price_id=row["price"],
        reserved=Reservation(prompt_tokens=row["reserved_prompt_tokens"], output_tokens=row["reserved_output_tokens"]),
        start_time=row["start_time"],
        first_byte_time=row["first_byte_time"],
        end_time=row["end_time"],
        error_reason=CallError(row["error_reason"]) if row["error_reason"] else None,
    )


def optional(text: str | None) -> str | None:
    """Undo the escape of a text that may be absent."""
    return None if text is None else unescape(text)


def conditions(where: UsageFilter, values: list[Any]) -> str:
    """Write a filter as an SQL condition, and add its values to the statement's parameters. Any: any type."""
    found = ["true"]

    def add(condition: str, value: Any) -> None:  # Any: a parameter of any type
        values.append(value)
        found.append(condition.format(f"${len(values)}"))

    for name in _EXACT:
        value = getattr(where, name)
        if value is not None:
            add(f"{name} = {{}}", value)
    if where.model is not None:
        add("model = {}", escape(where.model))
    if where.states:
        add("state = ANY({}::text[])", sorted(state.value for state in where.states))
    if where.start_from is not None:
        add("start_time >= {}", where.start_from)
    if where.start_before is not None:
        add("start_time < {}", where.start_before)
    return " AND ".join(found)
