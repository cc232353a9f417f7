import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.backup import (
    BackupSet,
    BackupSetId,
    BackupSetStatus,
    BackupTrigger,
    SnapshotId,
    Volume,
    VolumeSnapshot,
)
from sandboxd.model.backup_retention import (
    BackupPolicy,
    BackupRetention,
    Hold,
    Keeping,
    RetentionOverrides,
    holds,
    let_go,
)
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId

S = BackupSetStatus
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)  # a Sunday
BOTH = tuple(
    VolumeSnapshot(volume=one, snapshot=SnapshotId("1" * 64), tree="", files=0, bytes=0, added_bytes=0)
    for one in Volume
)


def a_set(
    take_time: datetime, *, status: BackupSetStatus = S.COMPLETE, locked_until: datetime | None = None
) -> BackupSet:
    return BackupSet(
        id=BackupSetId(f"bak-{take_time.isoformat()}"),
        sandbox=SandboxId("sbx-1"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        take_time=take_time,
        volumes=BOTH,
        status=status,
        locked_until=locked_until,
        create_time=take_time,
        update_time=take_time,
    )


def by_restore(one: BackupSet) -> BackupSet:
    return replace(one, trigger=BackupTrigger.RESTORE)


def ago(**spans: float) -> datetime:
    return NOW - timedelta(**spans)


HOURS = [0, 1, 2, 11, 13, 25, 37, 49, 24 * 6, 24 * 7, 24 * 8, 24 * 15, 24 * 40]
"""Ages: four of this Sunday, two of Saturday, one of Friday at 23:00 and one at 11:00, then older ones."""


@pytest.mark.parametrize(
    ("last", "daily", "weekly", "kept"),
    [
        (0, 0, 0, [0]),
        (1, 0, 0, [0]),
        (3, 0, 0, [0, 1, 2]),
        (99, 0, 0, HOURS),
        (0, 1, 0, [0]),
        (0, 2, 0, [0, 13]),
        (0, 3, 0, [0, 13, 37]),
        (0, 4, 0, [0, 13, 37, 24 * 6]),
        (0, 0, 1, [0]),
        (0, 0, 2, [0, 24 * 7]),
        (0, 0, 3, [0, 24 * 7, 24 * 15]),
        (0, 0, 4, [0, 24 * 7, 24 * 15, 24 * 40]),
        (2, 2, 2, [0, 1, 13, 24 * 7]),
    ],
)
def test_what_no_rule_keeps_is_let_go_the_oldest_first(last: int, daily: int, weekly: int, kept: Sequence[int]) -> None:
    policy = BackupRetention(keep_last=last, keep_daily=daily, keep_weekly=weekly)
    sets = [a_set(ago(hours=hours)) for hours in HOURS]
    random.Random(7).shuffle(sets)

    gone = let_go(sets, policy, at=NOW)

    assert [one.take_time for one in gone] == [ago(hours=age) for age in reversed(HOURS) if age not in kept]


def test_a_day_is_one_of_utc_wherever_the_clock_of_a_set_stood() -> None:
    elsewhere = datetime.fromisoformat("2026-11-29T01:00:00+02:00")  # still Saturday in UTC
    sets = [a_set(NOW), a_set(elsewhere), a_set(ago(days=1))]

    gone = let_go(sets, BackupRetention(keep_last=0, keep_daily=2, keep_weekly=0), at=NOW)

    assert gone == [sets[2]]


def test_the_only_copy_stays_also_when_newer_ones_failed_or_are_on_their_way() -> None:
    only = a_set(ago(days=300))
    failed, creating = a_set(ago(days=1), status=S.FAILED), a_set(NOW, status=S.CREATING)
    deleting, deleted = a_set(ago(days=2), status=S.DELETING), a_set(ago(days=3), status=S.DELETED)

    nothing = BackupRetention(keep_last=0, keep_daily=0, keep_weekly=0)

    gone = let_go([only, failed, creating, deleting, deleted], nothing, at=NOW)

    assert gone == [failed]


def test_a_locked_set_stays_until_its_window_ends_and_takes_no_other_ones_place() -> None:
    policy = BackupRetention(keep_last=1, keep_daily=0, keep_weekly=0, immutable_for=timedelta(days=7))
    old = a_set(ago(days=7), locked_until=policy.locked_until(ago(days=7)))
    young = a_set(ago(days=6), locked_until=policy.locked_until(ago(days=6)))

    assert let_go([a_set(NOW), old, young], policy, at=NOW) == [old]
    assert let_go([a_set(NOW), old, young], policy, at=ago(seconds=1)) == []
    assert BackupRetention().locked_until(NOW) is None


def test_of_each_set_it_is_said_why_it_is_kept_and_when_it_goes() -> None:
    policy = BackupRetention(keep_last=2, keep_daily=2, keep_weekly=0)
    newest, second, saturday = a_set(NOW), a_set(ago(hours=1)), a_set(ago(hours=13))
    locked = a_set(ago(days=3), locked_until=NOW + timedelta(days=4))
    old, failed = a_set(ago(days=4)), a_set(ago(hours=2), status=S.FAILED)
    everything = [newest, second, saturday, locked, old, failed]

    said = holds(everything, policy, at=NOW)
    keeping = Keeping(policy=BackupPolicy(every=timedelta(0), after_terminate=True, retention=policy), holds=said)

    assert said == {
        newest.id: {Hold.NEWEST, Hold.LAST, Hold.DAILY},
        second.id: {Hold.LAST},
        saturday.id: {Hold.DAILY},
        locked.id: {Hold.LOCKED},
        old.id: set(),
    }
    assert let_go(everything, policy, at=NOW) == [old]
    assert [keeping.expire_time(one) for one in everything] == [
        None,
        None,
        None,
        locked.locked_until,
        old.update_time,
        failed.update_time + timedelta(days=1),
    ]


def test_a_client_overrides_each_rule_by_itself_and_also_with_nothing() -> None:
    installed = BackupRetention(keep_last=5, keep_daily=6, keep_weekly=7, immutable_for=timedelta(days=8))

    assert installed.under(RetentionOverrides()) == installed
    assert installed.under(RetentionOverrides(keep_daily=0, immutable_for=timedelta(0))) == BackupRetention(
        keep_last=5, keep_daily=0, keep_weekly=7
    )


def test_sets_of_several_sandboxes_are_refused() -> None:
    with pytest.raises(ValueError, match="several"):
        let_go([a_set(NOW), replace(a_set(NOW), sandbox=SandboxId("sbx-2"))], BackupRetention(), at=NOW)


@pytest.mark.parametrize(
    "wrong",
    [{"keep_last": -1}, {"keep_daily": 10_001}, {"keep_weekly": -1}, {"immutable_for": timedelta(seconds=-1)}],
)
def test_what_is_no_policy_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BackupRetention(**wrong)  # type: ignore[arg-type]


COUNTS = st.integers(0, 5)


@given(
    ages=st.lists(st.integers(-50, 2000), unique=True, max_size=40),
    policy=st.builds(BackupRetention, keep_last=COUNTS, keep_daily=COUNTS, keep_weekly=COUNTS),
)
def test_letting_go_keeps_the_newest_stays_within_the_rules_and_is_done_after_once(
    ages: list[int], policy: BackupRetention
) -> None:
    sets = [a_set(ago(hours=age)) for age in ages]

    gone = let_go(sets, policy, at=NOW)

    left = [one for one in sets if one not in gone]
    assert not sets or max(sets, key=lambda one: one.take_time) in left
    assert len(left) <= max(1, policy.keep_last) + policy.keep_daily + policy.keep_weekly
    assert let_go(left, policy, at=NOW) == []


def test_what_restores_make_before_their_work_pushes_out_nothing_that_somebody_wanted() -> None:
    wanted = [a_set(ago(hours=hours)) for hours in (12, 11, 10)]
    undos = [by_restore(a_set(ago(minutes=minutes))) for minutes in (50, 40, 30, 20, 10)]

    gone = let_go([*wanted, *undos], BackupRetention(keep_last=3, keep_daily=0, keep_weekly=0), at=NOW)

    assert gone == undos[:2], "and of these themselves there are as many as of the others"
