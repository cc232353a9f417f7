"""Which of a sandbox's backup sets a policy keeps and why, which it lets go, and which it must not."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from sandboxd.model.backup import BackupSet, BackupSetId, BackupSetStatus, BackupTrigger

FAILED_KEPT_FOR: Final = timedelta(days=1)
"""How long a failed set can be read."""


class Hold(enum.Enum):
    """Why a COMPLETE set is kept."""

    NEWEST = "newest"
    """It is the newest of its sandbox, and may be the only copy."""
    LAST = "last"
    """It is among the newest `keep_last`."""
    DAILY = "daily"
    """It is the newest of one of `keep_daily` days."""
    WEEKLY = "weekly"
    """It is the newest of one of `keep_weekly` weeks."""
    ONLY_COPY = "only_copy"
    """Its sandbox's volumes were released: it is all that is left of it."""
    LOCKED = "locked"
    """Its window of immutability has not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionOverrides:
    """What a client wants kept otherwise than the installation; None takes the installation's."""

    keep_last: int | None = None
    keep_daily: int | None = None
    keep_weekly: int | None = None
    immutable_for: timedelta | None = None


AS_INSTALLED: Final = RetentionOverrides()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRetention:
    """What is kept of one sandbox: a set stays while any of the rules keeps it."""

    keep_last: int = 3
    """The newest ones."""
    keep_daily: int = 7
    """The newest of each day, of so many days (UTC) that have any."""
    keep_weekly: int = 4
    """The newest of each week, of so many weeks (ISO, UTC) that have any."""
    released_for: timedelta = timedelta(0)
    """How long a sandbox whose volumes were released can be restored: then all of its sets go. Zero: without end."""
    immutable_for: timedelta = timedelta(0)
    """From its completion on nothing deletes a set for so long, whoever asks. Written into each set when it is
    complete: another span later on changes nothing for it."""

    def __post_init__(self) -> None:
        """Raise ValueError for what is no policy."""
        for name in ("keep_last", "keep_daily", "keep_weekly"):
            if not 0 <= getattr(self, name) <= 10_000:
                raise ValueError(f"{name} is 0 to 10000, not {getattr(self, name)}")
        if not timedelta(0) <= self.immutable_for <= timedelta(days=3650):
            raise ValueError(f"immutable_for is 0 to 3650 days, not {self.immutable_for}")
        if not timedelta(0) <= self.released_for <= timedelta(days=36_500):
            raise ValueError(f"released_for is 0 to 36500 days, not {self.released_for}")

    def under(self, wishes: RetentionOverrides) -> BackupRetention:
        """Answer what holds for a client that wants some of it otherwise."""
        return BackupRetention(
            keep_last=self.keep_last if wishes.keep_last is None else wishes.keep_last,
            keep_daily=self.keep_daily if wishes.keep_daily is None else wishes.keep_daily,
            keep_weekly=self.keep_weekly if wishes.keep_weekly is None else wishes.keep_weekly,
            released_for=self.released_for,
            immutable_for=self.immutable_for if wishes.immutable_for is None else wishes.immutable_for,
        )

    def locked_until(self, completed: datetime) -> datetime | None:
        """Until when a set that was completed then is locked; None: not at all."""
        return completed + self.immutable_for if self.immutable_for else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPolicy:
    """What holds for the backups of a client's sandboxes."""

    every: timedelta
    """How old the newest set of one that is used may become; zero: nothing by schedule."""
    after_terminate: bool
    """What a terminated one leaves is backed up."""
    retention: BackupRetention = field(default_factory=BackupRetention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What a policy says of one sandbox's sets now."""

    policy: BackupPolicy
    holds: Mapping[BackupSetId, frozenset[Hold]]
    """Of each COMPLETE one; empty where it goes with the next look."""

    def expire_time(self, one: BackupSet) -> datetime | None:
        """When it is let go; None where that depends on sets to come, or it is going already."""
        if one.status is BackupSetStatus.FAILED:
            return one.update_time + FAILED_KEPT_FOR
        span = self.policy.retention.released_for
        if one.status is BackupSetStatus.COMPLETE and one.pinned_time is not None and span:
            return max(one.pinned_time + span, one.locked_until or one.pinned_time)
        if one.status is not BackupSetStatus.COMPLETE or self.holds.get(one.id, frozenset()) - {Hold.LOCKED}:
            return None
        return one.locked_until or one.update_time


def holds(sets: Sequence[BackupSet], policy: BackupRetention, *, at: datetime) -> Mapping[BackupSetId, frozenset[Hold]]:
    """Say of each of one sandbox's COMPLETE sets why it is kept now; of one that is to go: nothing.

    The newest one is kept, whatever the policy says: it may be the only copy. So is one that is all that is left of its
    sandbox, until `released_for` is over: then nothing but a lock keeps any of them. A set that is locked is kept, and
    counts where rules count. What a rule would keep if no restore had made a set before its work is kept, too.

    Args:
        sets: All of one sandbox, in any order.
        policy: Its client's.
        at: Now. Sets of the future, from before a clock was set back, count as the newest.

    Raises:
        ValueError: They are of several sandboxes.
    """
    if len({one.sandbox for one in sets}) > 1:
        raise ValueError("sets of several sandboxes are no copies of each other")
    complete = sorted(
        (one for one in sets if one.status is BackupSetStatus.COMPLETE),
        key=lambda one: (one.take_time, one.id),
        reverse=True,
    )
    # What restores made, as the undo of each, pushes nothing out: who tries one set after the other would lose them.
    made = [one for one in complete if one.trigger is not BackupTrigger.RESTORE]
    by_rule = {
        Hold.NEWEST: {one.id for one in complete[:1]},
        Hold.LAST: {one.id for those in (complete, made) for one in those[: policy.keep_last]},
        Hold.DAILY: _newest_of_each(complete, policy.keep_daily, _day) | _newest_of_each(made, policy.keep_daily, _day),
        Hold.WEEKLY: _newest_of_each(complete, policy.keep_weekly, _week)
        | _newest_of_each(made, policy.keep_weekly, _week),
        Hold.ONLY_COPY: {one.id for one in complete if one.pinned_time is not None},
        Hold.LOCKED: {one.id for one in complete if _locked(one, at)},
    }
    if any(_over(one, policy, at) for one in complete):
        by_rule = {Hold.LOCKED: by_rule[Hold.LOCKED]}
    return {one.id: frozenset(rule for rule, kept in by_rule.items() if one.id in kept) for one in complete}


def let_go(sets: Sequence[BackupSet], policy: BackupRetention, *, at: datetime) -> Sequence[BackupSet]:
    """Return those of one sandbox's sets that are to be deleted now, the oldest first.

    COMPLETE ones that nothing `holds`, and FAILED ones when they could be read for `FAILED_KEPT_FOR`; what is on its
    way, and what is gone, is left alone. Arguments and errors as of `holds`.
    """
    kept = holds(sets, policy, at=at)
    gone = [
        one
        for one in sets
        if (one.status is BackupSetStatus.FAILED and one.update_time + FAILED_KEPT_FOR <= at)
        or (one.status is BackupSetStatus.COMPLETE and not kept[one.id])
    ]
    return sorted(gone, key=lambda one: (one.take_time, one.id))


def _newest_of_each(complete: Sequence[BackupSet], spans: int, span_of: Callable[[datetime], str]) -> set[BackupSetId]:
    """The newest set of each of the newest spans; `complete` is in order, the newest first."""
    found: dict[str, BackupSetId] = {}
    for one in complete:
        span = span_of(one.take_time.astimezone(UTC))
        if span not in found and len(found) < spans:
            found[span] = one.id
    return set(found.values())


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


def _week(moment: datetime) -> str:
    return "{}-{}".format(*moment.isocalendar()[:2])


def _over(one: BackupSet, policy: BackupRetention, at: datetime) -> bool:
    return bool(policy.released_for) and one.pinned_time is not None and one.pinned_time + policy.released_for <= at


def _locked(one: BackupSet, at: datetime) -> bool:
    return one.locked_until is not None and at < one.locked_until
