"""Remembers for half a second that a budget refused a call, so that a sandbox that asks at full speed asks us alone.

A client that retries against the advice would otherwise make the database write and undo a row for each try. Larger
calls are refused from memory; a smaller one may still fit into what is left, so the ledger is asked for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sandboxd.model.ids import SandboxId, SessionId
from sandboxd.monitor.ports import CallRefused, CallStart

SECONDS: Final = 0.5
"""How long a refusal is repeated without asking; a budget that was raised is noticed as late as this."""
LIMIT: Final = 10_000

_Key = tuple[SandboxId, SessionId | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refused:
    answer: CallRefused
    tokens: int
    until: float


class SpentBudgets:
    """Recent refusals by sandbox, session and model."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._refused: OrderedDict[_Key, _Refused] = OrderedDict()

    def remember(self, call: CallStart, answer: CallRefused) -> None:
        """Note a refusal of the ledger."""
        self._refused[_key(call)] = _Refused(
            answer=answer, tokens=call.reserved.tokens, until=self._monotonic() + SECONDS
        )
        self._refused.move_to_end(_key(call))
        if len(self._refused) > LIMIT:
            self._refused.popitem(last=False)

    def find(self, call: CallStart) -> CallRefused | None:
        """Answer what the ledger would say; None where it has to be asked."""
        known = self._refused.get(_key(call))
        if known is None or call.reserved.tokens < known.tokens:
            return None
        if self._monotonic() >= known.until:
            del self._refused[_key(call)]
            return None
        return known.answer


def _key(call: CallStart) -> _Key:
    return (call.identity.sandbox, call.session_hint, call.model)
