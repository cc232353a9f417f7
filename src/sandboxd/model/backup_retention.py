"""Which of a sandbox's backup sets a policy lets go, and which it must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sandboxd.model.backup import BackupSet, BackupSetId, BackupSetStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRetention:
    """What is kept of one sandbox: a set stays while any of the rules keeps it."""

    keep_last: int = 3
    """The newest ones."""
    keep_daily: int = 7
    """The newest of each day, of so many days (UTC) that have any."""
    keep_weekly: int = 4
    """The newest of each week, of so many weeks (ISO, UTC) that have any."""
    immutable_for: timedelta = timedelta(0)
    """From its completion on nothing deletes a set for so long, whoever asks."""

    def __post_init__(self) -> None:
        """Raise ValueError for what is no policy."""
        for name in ("keep_last", "keep_daily", "keep_weekly"):
            if not 0 <= getattr(self, name) <= 10_000:
                raise ValueError(f"{name} is 0 to 10000, not {getattr(self, name)}")
        if not timedelta(0) <= self.immutable_for <= timedelta(days=3650):
            raise ValueError(f"immutable_for is 0 to 3650 days, not {self.immutable_for}")

    def locked_until(self, completed: datetime) -> datetime | None:
        """Until when a set that was completed then is locked; None: not at all."""
        return completed + self.immutable_for if self.immutable_for else None


def let_go(sets: Sequence[BackupSet], policy: BackupRetention, *, at: datetime) -> Sequence[BackupSet]:
    """Return those of one sandbox's sets that are to be deleted now, the oldest first.

    The newest COMPLETE set stays, whatever the policy says: it may be the only copy. A set that is locked stays, and
    counts where rules count. FAILED sets are let go; what is on its way, and what is gone, is left alone.

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
    kept = {one.id for one in complete[: max(1, policy.keep_last)]}
    kept |= _newest_of_each(complete, policy.keep_daily, lambda moment: moment.date().isoformat())
    kept |= _newest_of_each(complete, policy.keep_weekly, lambda moment: "{}-{}".format(*moment.isocalendar()[:2]))
    gone = [
        one
        for one in sets
        if one.status is BackupSetStatus.FAILED
        or (one.status is BackupSetStatus.COMPLETE and one.id not in kept and not _locked(one, at))
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


def _locked(one: BackupSet, at: datetime) -> bool:
    return one.locked_until is not None and at < one.locked_until
