"""When policy does what with a sandbox: limits, who overrides whom, and what comes next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.model.idleness import Reading, look_at
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.lifecycle import (
    LONGEST,
    NEVER,
    NO_OVERRIDES,
    SHORTEST,
    LifecycleOverrides,
    LifecyclePolicy,
    LifecycleStep,
    Limit,
    limit_problem,
)
from sandboxd.model.next_step import STEPS, TARGETS, next_step
from sandboxd.model.processes import AgentActivity
from sandboxd.model.sandbox import TRANSITIONS, Sandbox, SandboxState

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
LIFE = IncarnationId("inc-1")


def a_sandbox(
    state: SandboxState = SandboxState.ACTIVE, *, awake: datetime | None = None, since: datetime | None = None
) -> Sandbox:
    return Sandbox(
        id=SandboxId("sbx-1"),
        client=ClientId("acme"),
        freelancer=FreelancerId("ada"),
        state=state,
        create_time=NOON,
        update_time=NOON,
        last_use_time=NOON,
        state_time=since,
        keep_awake_until=awake,
    )


def an_activity(
    *, cpu: float = 0, typed: datetime | None = None, called: datetime | None = None, calls: int = 0
) -> AgentActivity:
    return AgentActivity(
        report_time=NOON,
        processes=(),
        last_input_time=typed,
        last_output_time=None,
        open_model_requests=calls,
        last_model_request_time=called,
        cpu_time=timedelta(seconds=cpu),
        frozen=False,
    )


@pytest.mark.parametrize(
    ("state", "idle", "step", "due"),
    [
        (SandboxState.ACTIVE, timedelta(0), LifecycleStep.HIBERNATE, 15 * MINUTE),
        (SandboxState.ACTIVE, 20 * MINUTE, LifecycleStep.HIBERNATE, 15 * MINUTE),
        (SandboxState.ACTIVE, 2 * HOUR, LifecycleStep.STOP, HOUR),
        (SandboxState.ACTIVE, 25 * HOUR, LifecycleStep.TERMINATE, 24 * HOUR),
        (SandboxState.HIBERNATED, 20 * MINUTE, LifecycleStep.STOP, HOUR),
        (SandboxState.STOPPED, 2 * HOUR, LifecycleStep.TERMINATE, 24 * HOUR),
        (SandboxState.PAUSED, 48 * HOUR, LifecycleStep.TERMINATE, timedelta(days=30)),
    ],
)
def test_the_next_step_is_the_first_to_come_or_the_strongest_that_is_overdue(
    state: SandboxState, idle: timedelta, step: LifecycleStep, due: timedelta
) -> None:
    planned = next_step(a_sandbox(state), LifecyclePolicy(), at=NOON + idle)

    assert planned is not None
    assert (planned.step, planned.time) == (step, NOON + due)


@pytest.mark.parametrize("state", [state for state in SandboxState if state not in STEPS])
def test_nothing_comes_by_policy_to_a_sandbox_on_its_way_at_its_end_or_failed(state: SandboxState) -> None:
    assert next_step(a_sandbox(state), LifecyclePolicy(), at=NOON + timedelta(days=99)) is None


@pytest.mark.parametrize("state", list(STEPS))
def test_every_step_is_a_transition_of_the_table(state: SandboxState) -> None:
    assert {TARGETS[step] for step in STEPS[state]} <= TRANSITIONS[state]


def test_a_sandbox_overrides_its_client_and_the_client_the_installation() -> None:
    of_client = LifecycleOverrides(hibernate_after=Limit(after=HOUR), stop_after=Limit(after=2 * HOUR))
    of_sandbox = LifecycleOverrides(stop_after=NEVER, discard_root_changes=True)

    holds = LifecyclePolicy().under(of_client).under(of_sandbox)

    assert holds == LifecyclePolicy(
        hibernate_after=HOUR, stop_after=None, terminate_after=24 * HOUR, discard_root_changes=True
    )
    assert holds.under(NO_OVERRIDES) == holds


def test_never_leaves_a_step_out_and_the_others_where_they_are() -> None:
    policy = LifecyclePolicy(hibernate_after=None)

    planned = next_step(a_sandbox(), policy, at=NOON)

    assert planned is not None
    assert (planned.step, planned.time) == (LifecycleStep.STOP, NOON + HOUR)


def test_keeping_awake_counts_as_use_until_its_end_and_starts_every_limit_anew() -> None:
    awake = NOON + timedelta(days=2)

    planned = next_step(a_sandbox(awake=awake), LifecyclePolicy(), at=awake + MINUTE)

    assert planned is not None
    assert (planned.step, planned.time) == (LifecycleStep.HIBERNATE, awake + 15 * MINUTE)


def test_a_paused_sandbox_ends_so_long_after_its_pause_and_not_after_its_last_use() -> None:
    planned = next_step(a_sandbox(SandboxState.PAUSED, since=NOON + HOUR), LifecyclePolicy(), at=NOON)

    assert planned is not None
    assert planned.time == NOON + HOUR + timedelta(days=30)


def test_a_step_is_announced_a_minute_ahead_and_a_short_limit_by_its_quarter() -> None:
    usual = next_step(a_sandbox(), LifecyclePolicy(), at=NOON)
    short = next_step(a_sandbox(), LifecyclePolicy(hibernate_after=timedelta(seconds=20)), at=NOON)

    assert usual is not None
    assert short is not None
    assert usual.time - usual.announce_time == MINUTE
    assert short.time - short.announce_time == timedelta(seconds=5)


@pytest.mark.parametrize(
    ("limit", "fine"),
    [(None, True), (NEVER, True), (Limit(after=SHORTEST), True), (Limit(after=LONGEST), True)]
    + [(Limit(after=span), False) for span in (timedelta(0), -HOUR, timedelta(seconds=59), LONGEST + HOUR)],
)
def test_limits_lie_between_a_minute_and_ten_years(limit: Limit | None, fine: bool) -> None:
    assert (limit_problem(limit) == "") is fine


@given(
    idle=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=60)),
    later=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=60)),
    state=st.sampled_from(sorted(STEPS, key=lambda state: state.value)),
)
def test_what_is_overdue_stays_overdue_until_it_is_used(idle: timedelta, later: timedelta, state: SandboxState) -> None:
    at = NOON + idle
    first = next_step(a_sandbox(state), LifecyclePolicy(), at=at)
    second = next_step(a_sandbox(state), LifecyclePolicy(), at=at + later)

    assert first is not None
    assert second is not None
    if first.time <= at:
        assert second.time <= at + later


def test_the_first_look_at_processes_says_nothing_of_their_processor_time() -> None:
    seen = look_at(an_activity(cpu=500), incarnation=LIFE, former=None, at=NOON)

    assert (seen.compared, seen.used) == (False, None)


@pytest.mark.parametrize(("spent", "used"), [(0.0, None), (1.0, None), (6.0, NOON), (200.0, NOON)])
def test_processes_are_in_use_from_a_fiftieth_of_a_processor_on(spent: float, used: datetime | None) -> None:
    former = Reading(incarnation=LIFE, time=NOON - 5 * MINUTE, cpu_time=timedelta(seconds=100))

    seen = look_at(an_activity(cpu=100 + spent), incarnation=LIFE, former=former, at=NOON)

    assert (seen.compared, seen.used) == (True, used)


def test_looks_in_the_same_second_are_not_compared_and_the_first_is_kept() -> None:
    former = Reading(incarnation=LIFE, time=NOON - timedelta(milliseconds=900), cpu_time=timedelta(0))

    seen = look_at(an_activity(cpu=5), incarnation=LIFE, former=former, at=NOON)

    assert (seen.reading, seen.compared, seen.used) == (former, False, None)


def test_counters_of_another_life_are_not_compared() -> None:
    former = Reading(incarnation=IncarnationId("inc-0"), time=NOON - HOUR, cpu_time=timedelta(0))

    seen = look_at(an_activity(cpu=500), incarnation=LIFE, former=former, at=NOON)

    assert (seen.compared, seen.used) == (False, None)
    assert seen.reading.incarnation == LIFE


def test_input_and_model_calls_are_uses_at_their_moment_and_an_open_call_is_one_now() -> None:
    typed, called = NOON - 3 * MINUTE, NOON - 2 * MINUTE

    ended = look_at(an_activity(typed=typed, called=called), incarnation=LIFE, former=None, at=NOON)
    running = look_at(an_activity(typed=typed, calls=1), incarnation=LIFE, former=None, at=NOON)

    assert ended.used == called
    assert running.used == NOON


def test_a_clock_ahead_of_ours_makes_no_use_in_the_future() -> None:
    seen = look_at(an_activity(typed=NOON + HOUR), incarnation=LIFE, former=None, at=NOON)

    assert seen.used == NOON
