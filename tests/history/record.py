"""What is written down: what clients asked and were told, what they saw, and what is there when all is quiet again."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class Outcome(enum.Enum):
    """What a client knows of its own operation, as in Jepsen's histories."""

    OK = "ok"
    FAILED = "failed"
    """Refused for a reason that says that nothing was done."""
    UNKNOWN = "unknown"
    """No answer, or one that leaves it open: it may be done, be done later, or never."""


class Kind(enum.Enum):
    """What was asked."""

    CREATE = "create"
    GET = "get"
    PAUSE = "pause"
    RESUME = "resume"
    TERMINATE = "terminate"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One attempt of one client; attempts with the same request id are one request."""

    client: str
    kind: Kind
    start: float
    end: float
    """When the client knew, by the clock of the run."""
    outcome: Outcome
    request_id: str = ""
    sandbox: str = ""
    """Empty where a create has no answer yet."""
    state: str = ""
    """What was answered: the state of the sandbox."""
    session: str = ""
    turn: str = ""
    marker: str = ""
    """The word by which a prompt is found again everywhere."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event of a session's log."""

    sequence: int
    kind: str
    digest: str
    """Of the whole event: the same number must always be the same event."""
    turn: str = ""
    marker: str = ""
    """Of a turn that began: the marker in its prompt."""
    stop: str = ""
    """Of a turn that ended: why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the ledger."""

    id: str
    turn: str
    state: str
    tokens: int
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that reached the model API."""

    marker: str
    tokens: int
    whole: bool
    """True where the answer was sent to its end."""


@dataclass(kw_only=True)
class History:
    """A whole run."""

    operations: list[Operation] = field(default_factory=list)
    seen: dict[tuple[str, str], list[Event]] = field(default_factory=dict)
    """What each observer saw of each session, over all its connections, in the order of arrival."""
    sandboxes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """At the end: each sandbox with the request that made it (its display name) and its state."""
    logs: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    """At the end: the log of each session."""
    rows: Sequence[Row] = ()
    """At the end: the ledger."""
    calls: Sequence[Call] = ()
    """At the end: what the model API received."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    """What was broken, and when."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All attempts with one request id, taken together."""

    kind: Kind
    request_id: str
    start: float
    end: float
    """Infinite where nobody ever heard."""
    outcome: Outcome
    attempts: tuple[Operation, ...]

    @property
    def done(self) -> tuple[Operation, ...]:
        """The attempts that were answered."""
        return tuple(attempt for attempt in self.attempts if attempt.outcome is Outcome.OK)


def requests_of(operations: Sequence[Operation]) -> list[Request]:
    """Take attempts together. One that was answered decides; a refusal after silence leaves it open."""
    found: dict[str, list[Operation]] = {}
    for number, operation in enumerate(operations):
        found.setdefault(operation.request_id or f"read-{number}", []).append(operation)
    made = []
    for request_id, attempts in found.items():
        ok = [attempt for attempt in attempts if attempt.outcome is Outcome.OK]
        failed = all(attempt.outcome is Outcome.FAILED for attempt in attempts)
        outcome = Outcome.OK if ok else Outcome.FAILED if failed else Outcome.UNKNOWN
        ends = {Outcome.OK: min((one.end for one in ok), default=math.inf), Outcome.FAILED: attempts[0].end}
        made.append(
            Request(
                kind=attempts[0].kind,
                request_id=request_id,
                start=min(attempt.start for attempt in attempts),
                end=ends.get(outcome, math.inf),
                outcome=outcome,
                attempts=tuple(attempts),
            )
        )
    return made
