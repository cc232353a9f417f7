"""The spans of a conversation: its turns, the commits that move them, and the start of the CLI that they wait for.

A turn's span is reported when it ends, by whoever owns the conversation then; model calls hang below it long before.
There is no span for an event or an append of output: a turn has hundreds.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, Final

from sandboxd.model.ids import SandboxId
from sandboxd.model.session import StopReason, Turn
from sandboxd.model.sources import Clock
from sandboxd.model.trace import Tracer, parse_traceparent, turn_context
from sandboxd.stream.ports import Entry

_FAILED: Final = frozenset({StopReason.ERROR, StopReason.INTERRUPTED})


class ConversationTraces:
    """Reports what happens in one conversation."""

    def __init__(self, sandbox: SandboxId, tracer: Tracer, clock: Clock) -> None:
        self._sandbox = sandbox
        self._tracer = tracer
        self._clock = clock

    def committed(self, entry: Entry, *, began: datetime) -> None:
        """Report an append that changed turns, and the turns that ended with it."""
        if not entry.turns or not self._tracer.on:
            return
        now = self._clock.now()
        for turn in entry.turns:
            own = turn_context(turn.traceparent, turn.id)
            if own is None:
                continue
            self._tracer.record(
                "journal.commit",
                parent=own,
                start=began,
                end=now,
                attributes={"turn_state": turn.state.value, "events": len(entry.events)},
            )
            if turn.end_time is not None:
                reason = turn.stop_reason or StopReason.ERROR
                self._tracer.record(
                    "turn",
                    parent=parse_traceparent(turn.traceparent),
                    own=own,
                    start=turn.start_time,
                    end=now,
                    failed=reason.name if reason in _FAILED else "",
                    attributes={
                        "sandbox": self._sandbox,
                        "session": turn.session,
                        "turn": turn.id,
                        "number": turn.number,
                        "stop_reason": reason.value,
                    },
                )

    async def starting(self, start: Coroutine[Any, Any, None], waiting: Sequence[Turn]) -> None:
        """Run the start of the CLI below the first turn that waits for it. Any: a coroutine's own parameters."""
        turn = next((one for one in waiting if one.traceparent), None)
        place = None if turn is None else turn_context(turn.traceparent, turn.id)
        with self._tracer.below(place), self._tracer.step("cli.start"):
            await start
