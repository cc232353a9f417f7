"""How a turn ends for the client, once the ledger was asked: its usage, its true stop reason, its sums. Pure.

The CLI calls nearly everything `end_turn`; only the ledger knows that an answer was blocked, cut or malformed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sandboxd.model.events import EventBody, Notice, TurnCompleted, Usage
from sandboxd.model.session import StopReason
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.failures import named_failure

REFUSING_FINISHES = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
    }
)
"""Finish reasons of the API that mean: the model, or its filter, gives no answer."""
MALFORMED_FINISHES = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"})
"""Finish reasons that mean: the model tried to call a tool and failed to write the call."""

_OK = 200
_REPEATED = 2
"""Calls of a turn from which on the last one can be a repetition."""


def conclude(stop: StopReason, *, said: bool, bill: TurnBill) -> tuple[StopReason, Sequence[EventBody]]:
    """The last events of a turn.

    Args:
        stop: What the CLI's answer means by itself.
        said: Whether the turn had any text or tool.
        bill: What the ledger says.
    """
    final, remarks = _judge(stop, said=said, bill=bill)
    return final, [*bill.usage, *remarks, *bill.notices, _completed(final, bill)]


def _judge(stop: StopReason, *, said: bool, bill: TurnBill) -> tuple[StopReason, Sequence[EventBody]]:
    if stop is not StopReason.END_TURN:
        return stop, ()
    if bill.finish_reason == "MAX_TOKENS":
        return StopReason.MAX_TOKENS, ()
    if said:
        return stop, _repeated(bill)
    why = bill.block_reason or (bill.finish_reason if bill.finish_reason in REFUSING_FINISHES else "")
    if why:
        return StopReason.REFUSAL, [Notice(code="ANSWER_REFUSED", message=f"The model gave no answer: {why}.")]
    if bill.finish_reason in MALFORMED_FINISHES:
        message = "The model wrote a tool call that could not be read. Send the prompt again."
        return StopReason.ERROR, [named_failure("MODEL_ANSWER_MALFORMED", message, retryable=True)]
    if bill.usage:
        return stop, [Notice(code="ANSWER_EMPTY", message="The model gave an empty answer. Send the prompt again.")]
    return stop, ()


def _repeated(bill: TurnBill) -> Sequence[EventBody]:
    """Whether the CLI has tried a broken answer again: it sends the text of every attempt, and nothing marks them."""
    attempts = [row for row in bill.usage if row.http_status in (None, _OK) and not row.estimated]
    if not bill.complete or bill.finish_reason or len(attempts) < _REPEATED:
        return ()
    message = "The model broke its answer off and the CLI asked again: the text above may stand there several times."
    return [Notice(code="ANSWER_REPEATED", message=message)]


def _completed(stop: StopReason, bill: TurnBill) -> TurnCompleted:
    cost, currency = _cost(bill.usage)
    done = TurnCompleted(stop_reason=stop, calls=len(bill.usage), duration_ms=bill.duration_ms)
    return replace(
        done,
        prompt_tokens=sum(row.prompt_tokens for row in bill.usage),
        cached_tokens=sum(row.cached_tokens for row in bill.usage),
        output_tokens=sum(row.output_tokens for row in bill.usage),
        thoughts_tokens=sum(row.thoughts_tokens for row in bill.usage),
        tool_use_tokens=sum(row.tool_use_tokens for row in bill.usage),
        total_tokens=sum(row.total_tokens for row in bill.usage),
        cost_micros=cost,
        currency=currency,
        usage_complete=bill.complete,
    )


def _cost(usage: Sequence[Usage]) -> tuple[int | None, str]:
    """The sum, where it is one: every call that used tokens has a price, all in one currency."""
    priced = [row for row in usage if row.total_tokens or row.cost_micros]
    currencies = {row.currency for row in priced} or {row.currency for row in usage if row.currency}
    costs = [row.cost_micros for row in priced]
    if not usage or len(currencies) > 1 or any(cost is None for cost in costs):
        return None, ""
    return sum(cost or 0 for cost in costs), next(iter(currencies), "")
