"""Create, pause, resume, terminate, update: what they come to, who may, and what a repeated request answers."""

import asyncio
from dataclasses import replace

import pytest

from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.editing import SandboxEdit
from sandboxd.manager.startup import PULLING
from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import (
    AgentUnavailableError,
    DatabaseUnavailableError,
    DeadlineError,
    ForbiddenError,
    InvalidTransitionError,
    OpenTurnsError,
    RequestIdReusedError,
    SandboxdError,
    SandboxNotFoundError,
    StaleEtagError,
    UnavailableError,
)
from sandboxd.model.ids import FreelancerId, SandboxId
from sandboxd.model.sandbox import TRANSITIONS, SandboxState
from tests.eventually import eventually
from tests.manager_world import GATEWAY, NOW, SOON, ManagerWorld, a_caller, a_request

S = SandboxState


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld()


async def test_create_answers_an_active_sandbox_whose_agent_has_its_token(world: ManagerWorld) -> None:
    sandbox = await world.manager.create(a_request(), NewSandbox(display_name="mine"), timeout=SOON)

    assert (sandbox.state, sandbox.display_name, sandbox.incarnations) == (S.ACTIVE, "mine", 1)
    assert world.row(sandbox.id) == sandbox
    endpoint = world.backend.agent(sandbox.id).model_endpoint
    assert endpoint["base_url"] == GATEWAY
    assert str(endpoint["token"]).endswith(str(sandbox.incarnation))
    (life,) = world.lives(sandbox.id)
    assert life.ready_time is not None
    assert life.endpoint is not None


async def test_a_repeated_create_answers_the_same_and_makes_nothing(world: ManagerWorld) -> None:
    request = a_request()
    first = await world.manager.create(request, NewSandbox(), timeout=SOON)
    await world.manager.pause(a_request(), first.id, timeout=SOON)

    again = await world.manager.create(request, NewSandbox(), timeout=SOON)

    assert again == first
    assert len(world.units.rows.sandboxes) == 1


async def test_two_creates_at_once_with_one_id_make_one_sandbox(world: ManagerWorld) -> None:
    request = a_request()

    first, second = await asyncio.gather(
        world.manager.create(request, NewSandbox(), timeout=SOON),
        world.manager.create(request, NewSandbox(), timeout=SOON),
    )

    assert first == second
    assert world.backend.starts == 1


async def test_a_request_id_with_another_body_is_refused(world: ManagerWorld) -> None:
    await world.manager.create(a_request(request_id="request-x"), NewSandbox(), timeout=SOON)

    with pytest.raises(RequestIdReusedError):
        await world.manager.create(a_request(request_id="request-x", body="other"), NewSandbox(), timeout=SOON)


async def test_while_a_node_pulls_the_image_the_sandbox_says_so_and_no_longer_than_that(world: ManagerWorld) -> None:
    world.backend.pull = asyncio.Event()
    making = asyncio.create_task(world.manager.create(a_request(), NewSandbox(), timeout=SOON))

    def told() -> bool:
        rows = world.units.rows.sandboxes.values()
        return [(row.state, row.state_reason) for row in rows] == [(S.CREATING, PULLING)]

    await eventually(told)
    world.backend.pull.set()
    sandbox = await making

    assert (sandbox.state, sandbox.state_reason) == (S.ACTIVE, "")
    assert world.row(sandbox.id) == sandbox


async def test_a_create_that_fails_leaves_a_failed_sandbox_and_answers_the_same_error_again(
    world: ManagerWorld,
) -> None:
    world.backend.error = AgentUnavailableError("The agent does not answer.")
    request = a_request()
    with pytest.raises(AgentUnavailableError) as first:
        await world.manager.create(request, NewSandbox(), timeout=SOON)
    world.backend.error = None

    with pytest.raises(AgentUnavailableError) as second:
        await world.manager.create(request, NewSandbox(), timeout=SOON)

    assert (second.value.message, second.value.reason) == (first.value.message, first.value.reason)
    (sandbox,) = world.units.rows.sandboxes.values()
    assert (sandbox.state, sandbox.state_reason) == (S.FAILED, "The agent does not answer.")
    assert [life.end_reason for life in world.lives(sandbox.id)] == ["START_FAILED"]
    advice = f"Sandbox {sandbox.id} is FAILED: Resume tries again, Terminate ends it."
    assert second.value.message == f"The agent does not answer. {advice}"
    assert (second.value.metadata["sandbox"], second.value.metadata["state"]) == (sandbox.id, "FAILED")


async def test_a_create_that_takes_too_long_goes_on_and_is_answered_when_repeated(world: ManagerWorld) -> None:
    world.backend.hanging = asyncio.Event()
    request = a_request()
    with pytest.raises(DeadlineError):
        await world.manager.create(request, NewSandbox(), timeout=NOW)
    (sandbox,) = world.units.rows.sandboxes.values()
    assert sandbox.state is S.CREATING
    world.backend.hanging.set()

    assert (await world.manager.create(request, NewSandbox(), timeout=SOON)).state is S.ACTIVE


async def test_a_caller_that_goes_away_does_not_end_the_work(world: ManagerWorld) -> None:
    world.backend.hanging = asyncio.Event()
    call = asyncio.create_task(world.manager.create(a_request(), NewSandbox(), timeout=SOON))
    await eventually(lambda: [*world.units.rows.sandboxes])
    call.cancel()
    world.backend.hanging.set()

    (sandbox,) = world.units.rows.sandboxes
    await eventually(lambda: world.row(sandbox).state is S.ACTIVE)


async def test_pause_closes_the_conversation_ends_the_life_and_keeps_the_files(world: ManagerWorld) -> None:
    sandbox = await world.given_active()

    paused = await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert paused.state is S.PAUSED
    assert world.conversations.closed == [(sandbox.id, "PAUSED")]
    assert world.backend.running[sandbox.id] == {}
    assert sandbox.id in world.backend.files
    assert [life.end_reason for life in world.lives(sandbox.id)] == ["PAUSED"]


async def test_pause_refuses_while_a_turn_is_open_unless_forced(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.conversations.turns[sandbox.id] = 1
    with pytest.raises(OpenTurnsError):
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)
    assert world.row(sandbox.id).state is S.ACTIVE

    assert (await world.manager.pause(a_request(), sandbox.id, force=True, timeout=SOON)).state is S.PAUSED


async def test_a_repeated_pause_is_answered_even_when_a_turn_is_open_by_then(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    request = a_request()
    paused = await world.manager.pause(request, sandbox.id, timeout=SOON)
    await world.manager.resume(a_request(), sandbox.id, timeout=SOON)
    world.conversations.turns[sandbox.id] = 1

    assert await world.manager.pause(request, sandbox.id, timeout=SOON) == paused
    assert world.row(sandbox.id).state is S.ACTIVE


async def test_a_pause_that_cannot_release_now_stays_pausing_and_recovery_finishes_it(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.backend.error = UnavailableError("Not now.")
    request = a_request()
    with pytest.raises(UnavailableError):
        await world.manager.pause(request, sandbox.id, timeout=SOON)
    assert world.row(sandbox.id).state is S.PAUSING
    world.backend.error = None

    assert await world.manager.recovery.finish_left_over() == 1

    assert (await world.manager.pause(request, sandbox.id, timeout=SOON)).state is S.PAUSED


@pytest.mark.parametrize("error", [AgentUnavailableError("Gone."), InvalidTransitionError("s", state="a", wanted="b")])
async def test_a_conversation_that_cannot_be_closed_does_not_hold_a_pause_up(
    world: ManagerWorld, error: SandboxdError
) -> None:
    sandbox = await world.given_active()
    world.conversations.error = error

    assert (await world.manager.pause(a_request(), sandbox.id, timeout=SOON)).state is S.PAUSED


async def test_compute_is_not_taken_away_while_nothing_can_be_written(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.conversations.error = DatabaseUnavailableError("No answer.")

    with pytest.raises(DatabaseUnavailableError):
        await world.manager.pause(a_request(), sandbox.id, timeout=SOON)

    assert world.row(sandbox.id).state is S.PAUSING
    assert world.backend.running[sandbox.id]


async def test_resume_makes_a_new_life(world: ManagerWorld) -> None:
    sandbox = await world.given_paused()

    resumed = await world.manager.resume(a_request(), sandbox.id, timeout=SOON)

    assert (resumed.state, resumed.incarnations) == (S.ACTIVE, 2)
    assert resumed.incarnation != sandbox.incarnation
    assert [*world.backend.running[sandbox.id]] == [resumed.incarnation]


async def test_resume_tries_a_failed_sandbox_again(world: ManagerWorld) -> None:
    world.backend.error = AgentUnavailableError("No.")
    with pytest.raises(AgentUnavailableError):
        await world.given_active()
    world.backend.error = None
    (sandbox,) = world.units.rows.sandboxes

    assert (await world.manager.resume(a_request(), sandbox, timeout=SOON)).state is S.ACTIVE


async def test_terminate_says_where_the_files_were_kept_also_when_it_is_repeated(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    world.conversations.turns[sandbox.id] = 1
    request = a_request()

    ended = await world.manager.terminate(request, sandbox.id, timeout=SOON)

    assert ended.sandbox.state is S.TERMINATED
    assert ended.sandbox.terminate_time is not None
    assert ended.kept == f"/kept/{sandbox.id}"
    assert await world.manager.terminate(request, sandbox.id, timeout=SOON) == ended


@pytest.mark.parametrize("state", list(S))
async def test_every_state_refuses_what_the_table_does_not_allow(world: ManagerWorld, state: SandboxState) -> None:

    sandbox = await world.given_active()
    world.units.rows.sandboxes[sandbox.id] = replace(sandbox, state=state)

    for verb, wanted in (
        (world.manager.pause, S.PAUSING),
        (world.manager.resume, S.RESUMING),
        (world.manager.terminate, S.TERMINATING),
    ):
        if wanted not in TRANSITIONS[state]:
            with pytest.raises(InvalidTransitionError) as refused:
                await verb(a_request(), sandbox.id, timeout=SOON)
            assert (refused.value.metadata["state"], refused.value.metadata["wanted"]) == (state.value, wanted.value)
    assert world.row(sandbox.id).state is state


async def test_update_changes_what_it_names_and_nothing_else(world: ManagerWorld) -> None:
    sandbox = await world.given_active(wish=NewSandbox(display_name="old", model="gemini-2.5-pro"))
    request = a_request()

    edited = await world.manager.update(
        request, sandbox.id, SandboxEdit(display_name="new", labels={"a": "b"}), etag=str(sandbox.version), timeout=SOON
    )

    assert (edited.display_name, edited.model, edited.labels) == ("new", "gemini-2.5-pro", {"a": "b"})
    assert edited.version == sandbox.version + 1
    again = await world.manager.update(
        request, sandbox.id, SandboxEdit(display_name="new", labels={"a": "b"}), etag=str(sandbox.version), timeout=SOON
    )
    assert again == edited


async def test_update_refuses_an_old_etag(world: ManagerWorld) -> None:
    sandbox = await world.given_active()
    await world.manager.update(a_request(), sandbox.id, SandboxEdit(display_name="b"), timeout=SOON)

    with pytest.raises(StaleEtagError):
        await world.manager.update(
            a_request(), sandbox.id, SandboxEdit(display_name="c"), etag=str(sandbox.version), timeout=SOON
        )
    assert world.row(sandbox.id).display_name == "b"


@pytest.mark.parametrize(
    "stranger",
    [a_caller(client="other"), a_caller(subject="bob", role=Role.FREELANCER)],
    ids=["another client", "another freelancer"],
)
async def test_what_belongs_to_somebody_else_does_not_exist(world: ManagerWorld, stranger: Caller) -> None:

    sandbox = await world.given_active()
    world.conversations.turns[sandbox.id] = 1
    manager, request = world.manager, a_request(stranger)

    for attempt in (
        manager.get(stranger, sandbox.id),
        manager.pause(request, sandbox.id, timeout=SOON),
        manager.resume(request, sandbox.id, timeout=SOON),
        manager.terminate(request, sandbox.id, timeout=SOON),
        manager.update(request, sandbox.id, SandboxEdit(display_name="x"), timeout=SOON),
    ):
        with pytest.raises(SandboxNotFoundError):
            await attempt
    assert world.row(sandbox.id) == sandbox


async def test_a_freelancer_creates_for_itself_only(world: ManagerWorld) -> None:
    ada = a_caller(subject="ada", role=Role.FREELANCER)

    assert (await world.given_active(ada)).freelancer == "ada"
    with pytest.raises(ForbiddenError):
        await world.manager.create(a_request(ada), NewSandbox(freelancer=FreelancerId("bob")), timeout=SOON)


async def test_a_sandbox_that_never_was_is_not_found(world: ManagerWorld) -> None:
    with pytest.raises(SandboxNotFoundError):
        await world.manager.pause(a_request(), SandboxId("sbx-none"), timeout=SOON)
