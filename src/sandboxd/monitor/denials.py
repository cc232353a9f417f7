"""Refusals that would be too many to write one by one: counted by who and why, written once a minute, bounded.

Nobody who is refused can fill the database or this process: ten thousand refused calls a second become a few entries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sandboxd.model.ids import ClientId
from sandboxd.monitor.audit_ports import ANONYMOUS_ROLE, Deed, Outcome

SINGLE_ENTRIES: Final = 60
"""Refusals of one client that get an entry each, between two flushes; those beyond are counted."""
MAX_COUNTERS: Final = 256
"""Different who-and-why that are counted at the same time."""
MAX_CLIENTS: Final = 1024
"""Clients whose single entries are counted; those beyond are counted together only."""
OTHERS: Final = Deed(client=ClientId(""), role=ANONYMOUS_ROLE, action="")
"""Stands for everybody for whom there was no counter left."""
_MIXED: Final = Outcome(code="UNKNOWN", reason="MIXED")
_OVERFLOW: Final = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Refusals of the same kind."""

    deed: Deed
    outcome: Outcome
    count: int
    since: datetime


@dataclass(slots=True)
class _Counter:
    deed: Deed
    outcome: Outcome
    since: datetime
    count: int = 0


class Denials:
    """Counts refusals between two flushes."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, ...], _Counter] = {}
        self._singles: Counter[ClientId] = Counter()

    def is_single(self, deed: Deed) -> bool:
        """Tell whether a refusal gets an entry of its own, and count that it does. Nobody knows the anonymous ones."""
        if deed.role == ANONYMOUS_ROLE:
            return False
        if self._singles[deed.client] >= SINGLE_ENTRIES or (
            deed.client not in self._singles and len(self._singles) >= MAX_CLIENTS
        ):
            return False
        self._singles[deed.client] += 1
        return True

    def count(self, deed: Deed, outcome: Outcome, *, at: datetime) -> None:
        """Count a refusal."""
        # What differs from call to call would make a counter for each of them.
        action = "" if deed.role == ANONYMOUS_ROLE else deed.action
        key: tuple[str, ...] = (deed.client, deed.role, action, deed.actor, deed.peer, outcome.code, outcome.reason)
        if key not in self._counters and len(self._counters) >= MAX_COUNTERS - 1:
            key, deed, outcome = _OVERFLOW, OTHERS, _MIXED
        counter = self._counters.get(key)
        if counter is None:
            plain = Deed(client=deed.client, role=deed.role, action=action, actor=deed.actor, peer=deed.peer)
            counter = self._counters[key] = _Counter(plain, outcome, at)
        counter.count += 1

    def flush(self) -> Sequence[Tally]:
        """Return what was counted, and begin anew."""
        tallies = [
            Tally(deed=each.deed, outcome=each.outcome, count=each.count, since=each.since)
            for each in self._counters.values()
        ]
        self._counters.clear()
        self._singles.clear()
        return tallies
