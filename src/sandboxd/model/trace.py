"""Traces: W3C's trace context, read strictly, and the port through which rooms report spans. Off, it costs nothing.

A turn outlives the call that started it, and the replica that took it. So a turn keeps the context of its caller, and
the id of its own span follows from its name: whoever ends the turn, after any number of restarts, can report the one
span, and the gateway can hang model calls below it before that span exists.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from sandboxd.model.ids import TurnId

TRACEPARENT: Final = "traceparent"
"""Name of the header and of the metadata, in lower case."""
_FORM: Final = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_LONGEST: Final = 256

Value = str | int | float | bool


class SpanKind(enum.Enum):
    """Which side of a call a span is."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A place in a trace: what is below it names it as its parent."""

    trace_id: str
    """32 lower-case hexadecimal digits, not all zero."""
    span_id: str
    """16 lower-case hexadecimal digits, not all zero."""
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The context as W3C writes it."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: str | None) -> TraceContext | None:
    """Read a `traceparent`; None where it is not one, as the recommendation asks: a bad one is no error."""
    found = _FORM.fullmatch(text) if text and len(text) <= _LONGEST else None
    if found is None or (found[1] == "00" and found[5]):
        return None  # version 00 ends there; later ones may go on
    if not int(found[2], 16) or not int(found[3], 16):
        return None
    return TraceContext(trace_id=found[2], span_id=found[3], sampled=bool(int(found[4], 16) & 1))


def turn_context(traceparent: str, turn: TurnId) -> TraceContext | None:
    """Return the place of a turn's own span, from what the turn keeps of its caller; None where it is not traced."""
    above = parse_traceparent(traceparent)
    if above is None:
        return None
    return replace(above, span_id=hashlib.sha256(turn.encode()).hexdigest()[:16])


class Span(Protocol):
    """A span that is going on."""

    @property
    def context(self) -> TraceContext | None:
        """Its place; None where nothing is traced."""
        ...

    def note(self, **attributes: Value) -> None:
        """Add attributes: names, numbers and states, never a person's text."""
        ...

    def fail(self, reason: str) -> None:
        """Mark it as failed, with a stable reason."""
        ...


class Tracer(Protocol):
    """Where spans are reported. Implemented by `monitor/tracing.py`; `NO_TRACES` where no collector is set."""

    @property
    def on(self) -> bool:
        """False where nothing is ever reported: callers may leave out what only a trace needs."""
        ...

    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        root: bool = False,
        links: Sequence[TraceContext] = (),
        start: datetime | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> AbstractContextManager[Span]:
        """Report the time of a block as a span; an error that leaves the block marks it as failed.

        Args:
            name: Constant: no id, no name of a thing.
            kind: Which side of a call it is.
            parent: Where it hangs; the current span of this task if None.
            root: Begin a trace of its own, whatever is current.
            links: Places it has to do with and does not hang below.
            start: When it began, if that is before the block.
            attributes: As in `Span.note`.
        """
        ...

    def step(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Value] | None = None
    ) -> AbstractContextManager[Span]:
        """Like `span`, but only below a current span: work that nobody traces makes no trace of its own."""
        ...

    def record(
        self,
        name: str,
        *,
        parent: TraceContext | None,
        start: datetime,
        end: datetime,
        own: TraceContext | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        failed: str = "",
    ) -> None:
        """Report a span that is over.

        Args:
            name: Constant.
            parent: Where it hangs; None begins a trace.
            start: When it began.
            end: When it ended.
            own: Its own place, where others hang below it already; a new one if None.
            kind: Which side of a call it is.
            attributes: As in `Span.note`.
            failed: Why it failed; empty where it did not.
        """
        ...

    def below(self, context: TraceContext | None) -> AbstractContextManager[None]:
        """Make a place current for a block, and for the tasks that it starts. None: nothing is current."""
        ...

    def current(self) -> TraceContext | None:
        """The current place."""
        ...


class _NoSpan:
    context: TraceContext | None = None

    def note(self, **attributes: Value) -> None:
        """Forget it."""

    def fail(self, reason: str) -> None:
        """Forget it."""


_NO_SPAN: Final = _NoSpan()


class NoTraces:
    """Reports nothing."""

    on = False

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        parent: TraceContext | None = None,
        root: bool = False,
        links: Sequence[TraceContext] = (),
        start: datetime | None = None,
        attributes: Mapping[str, Value] | None = None,
    ) -> Iterator[Span]:
        """Do nothing around a block."""
        yield _NO_SPAN

    @contextmanager
    def step(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, Value] | None = None
    ) -> Iterator[Span]:
        """Do nothing around a block."""
        yield _NO_SPAN

    def record(
        self,
        name: str,
        *,
        parent: TraceContext | None,
        start: datetime,
        end: datetime,
        own: TraceContext | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        failed: str = "",
    ) -> None:
        """Forget it."""

    @contextmanager
    def below(self, context: TraceContext | None) -> Iterator[None]:
        """Do nothing around a block."""
        yield

    def current(self) -> TraceContext | None:
        """Nothing is current."""
        return None


NO_TRACES: Final = NoTraces()
