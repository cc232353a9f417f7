"""New sandboxes from backups, and backups brought into other ones: whose they are, what comes, what a crash leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sandboxd.manager.backup_ports import BackupSetNotFoundError
from sandboxd.manager.creation import NewSandbox
from sandboxd.model.backup import BackupSet, BackupSetStatusError, Volume
from sandboxd.model.backup_errors import BackupHomeError, BackupRepositoryBusyError, BackupsOffError
from sandboxd.model.caller import Role
from sandboxd.model.client import ClientPolicy, Quotas
from sandboxd.model.client_errors import QuotaExceededError
from sandboxd.model.commit_errors import ImageUnusableError
from sandboxd.model.errors import DeadlineError, ForbiddenError, InvalidRequestError
from sandboxd.model.ids import FreelancerId
from sandboxd.model.image import CommitTrigger, GenerationStatus
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier
from tests.eventually import eventually
from tests.manager_world import NOW, SOON, ManagerWorld, a_caller, a_request

S = SandboxState
HOME, WORK = {b".bashrc": b"alias", b".gemini/chat.json": b"{}"}, {b"src/main.py": b"print()", b"notes": b"one"}
ADA, BOB = a_caller(subject="ada", role=Role.FREELANCER), a_caller(subject="bob", role=Role.FREELANCER)
ADMIN = a_caller(subject="root", role=Role.CLIENT_ADMIN)


@pytest.fixture
def world() -> ManagerWorld:
    return ManagerWorld(backups=True)


async def given(world: ManagerWorld, wish: NewSandbox | None = None) -> tuple[Sandbox, BackupSet]:
    sandbox = await world.given_active(ADA, wish)
    world.volumes.given(sandbox.id, home=HOME, workspace=WORK)
    return sandbox, await backed_up(world, sandbox)


async def backed_up(world: ManagerWorld, sandbox: Sandbox) -> BackupSet:
    world.clock.advance(1)
    made = await world.manager.backups.create(a_request(), sandbox.id, timeout=SOON)
    world.clock.advance(1)
    return made


def a_wish(backup: BackupSet, **changes: Any) -> NewSandbox:
    return replace(NewSandbox(from_backup=(backup.sandbox, backup.id)), **changes)


async def test_a_new_sandbox_has_what_the_backup_has_and_the_old_one_is_as_it_was(world: ManagerWorld) -> None:
    wish = NewSandbox(tier=Tier.STANDARD, model="gemini-x", approval_mode=ApprovalMode.YOLO, display_name="old")
    old, backup = await given(world, wish)
    world.volumes.volumes[old.id][Volume.WORKSPACE][b"notes"] = b"two"

    new = await world.manager.create(a_request(ADMIN), a_wish(backup, display_name="new"), timeout=SOON)

    assert (new.state, new.incarnations, new.restoring, new.display_name) == (S.ACTIVE, 1, None, "new")
    assert (new.freelancer, new.tier, new.model) == ("ada", Tier.STANDARD, "gemini-x")
    assert new.approval_mode is ApprovalMode.YOLO
    assert new.id != old.id
    assert new.incarnation != old.incarnation
    assert world.volumes.volumes[new.id] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}
    assert world.row(old.id).state is S.ACTIVE
    assert world.volumes.volumes[old.id][Volume.WORKSPACE][b"notes"] == b"two"
    assert len(world.units.rows.backup_sets) == 1, "there was nothing to lose"


async def test_a_repeated_request_makes_one_sandbox(world: ManagerWorld) -> None:
    _, backup = await given(world)
    request = a_request(ADA)

    first, again = await asyncio.gather(
        *(world.manager.create(request, a_wish(backup), timeout=SOON) for _ in range(2))
    )

    assert first.id == again.id
    assert len(world.units.rows.sandboxes) == 2


async def test_a_crash_in_the_middle_is_finished_by_another_replica_and_the_request_has_its_answer(
    world: ManagerWorld,
) -> None:
    old, backup = await given(world)
    world.volumes.gate.clear()
    request = a_request(ADA)
    with pytest.raises(DeadlineError):
        await world.manager.create(request, a_wish(backup), timeout=NOW)
    await eventually(lambda: any(name.startswith("rst-") for name in world.volumes.working))
    (new,) = world.units.rows.sandboxes.keys() - {old.id}
    assert world.row(new).state is S.RESTORING
    _, other = world.replica("second")
    world.crash()

    await other.recovery.finish_left_over()
    world.volumes.gate.set()
    answered = await other.create(request, a_wish(backup), timeout=SOON)

    assert (answered.id, answered.state) == (new, S.ACTIVE)
    assert world.volumes.volumes[new] == {Volume.HOME: HOME, Volume.WORKSPACE: WORK}


async def test_what_cannot_be_restored_leaves_an_empty_terminated_one_into_which_it_can_be_tried_again(
    world: ManagerWorld,
) -> None:
    old, backup = await given(world)
    world.volumes.restore_trouble = BackupRepositoryBusyError("Somebody is at it.")
    request = a_request(ADA)

    for _ in range(2):
        with pytest.raises(BackupRepositoryBusyError, match="TERMINATED and empty"):
            await world.manager.create(request, a_wish(backup), timeout=SOON)

    (new,) = world.units.rows.sandboxes.keys() - {old.id}
    assert (world.row(new).state, world.row(new).incarnation) == (S.TERMINATED, None)
    world.volumes.restore_trouble = None
    back = await world.manager.restore(a_request(ADA), new, backup=(backup.sandbox, backup.id), timeout=SOON)
    assert back.state is S.ACTIVE
    assert world.volumes.volumes[new][Volume.HOME] == HOME


async def test_nothing_is_backed_up_of_a_new_one_before_it_has_anything(world: ManagerWorld) -> None:
    old, backup = await given(world)
    world.volumes.gate.clear()
    with pytest.raises(DeadlineError):
        await world.manager.create(a_request(ADA), a_wish(backup), timeout=NOW)
    (new,) = world.units.rows.sandboxes.keys() - {old.id}

    with pytest.raises(Exception, match="nothing to back up yet"):
        await world.manager.backups.create(a_request(ADA), new, timeout=SOON)

    world.volumes.gate.set()
    await eventually(lambda: world.row(new).state is S.ACTIVE)


async def test_a_freelancer_has_nobody_elses_backup_and_makes_nothing_for_others(world: ManagerWorld) -> None:
    _, backup = await given(world)

    with pytest.raises(BackupSetNotFoundError):
        await world.manager.create(a_request(BOB), a_wish(backup), timeout=SOON)
    with pytest.raises(BackupSetNotFoundError):
        await world.manager.create(a_request(BOB), a_wish(backup, workspace_only=True), timeout=SOON)
    with pytest.raises(ForbiddenError):
        await world.manager.create(
            a_request(ADA), a_wish(backup, freelancer=FreelancerId("bob"), workspace_only=True), timeout=SOON
        )
    with pytest.raises(BackupSetNotFoundError):
        await world.manager.create(a_request(a_caller(client="other")), a_wish(backup), timeout=SOON)

    assert len(world.units.rows.sandboxes) == 1


async def test_an_admin_hands_over_a_workspace_and_never_a_home(world: ManagerWorld) -> None:
    _, backup = await given(world)
    for_bob = a_wish(backup, freelancer=FreelancerId("bob"))

    with pytest.raises(BackupHomeError, match="home and the image of freelancer ada"):
        await world.manager.create(a_request(ADMIN), for_bob, timeout=SOON)
    new = await world.manager.create(a_request(ADMIN), replace(for_bob, workspace_only=True), timeout=SOON)

    assert (new.freelancer, new.image) == ("bob", None)
    assert world.volumes.volumes[new.id] == {Volume.HOME: {}, Volume.WORKSPACE: WORK}


async def test_paths_of_another_sandbox_come_into_a_paused_one_and_what_that_had_is_kept(world: ManagerWorld) -> None:
    _, backup = await given(world)
    other = await world.given_active(ADA)
    world.volumes.given(other.id, home={b"own": b"1"}, workspace={b"src/main.py": b"broken", b"mine": b"2"})
    world.clock.advance(1)
    await world.manager.pause(a_request(ADA), other.id, timeout=SOON)
    source = (backup.sandbox, backup.id)

    await world.manager.restore(
        a_request(ADA), other.id, backup=source, paths={Volume.WORKSPACE: [b"src"]}, timeout=SOON
    )

    assert world.volumes.volumes[other.id] == {
        Volume.HOME: {b"own": b"1"},
        Volume.WORKSPACE: {b"src/main.py": WORK[b"src/main.py"], b"mine": b"2"},
    }
    assert [one.sandbox for one in world.units.rows.backup_sets.values()] == [backup.sandbox, other.id]


async def test_into_anothers_sandbox_come_paths_of_the_workspace_alone(world: ManagerWorld) -> None:
    _, backup = await given(world)
    other = await world.given_active(BOB)
    world.volumes.given(other.id, home={b"own": b"1"}, workspace={})
    await world.manager.pause(a_request(BOB), other.id, timeout=SOON)
    source = (backup.sandbox, backup.id)

    for wrong in ({Volume.HOME: [b".bashrc"]}, {Volume.HOME: [b".bashrc"], Volume.WORKSPACE: [b"src"]}, None):
        with pytest.raises(BackupHomeError):
            await world.manager.restore(a_request(ADMIN), other.id, backup=source, paths=wrong, timeout=SOON)
    with pytest.raises(BackupSetNotFoundError):
        await world.manager.restore(a_request(BOB), other.id, backup=source, workspace_only=True, timeout=SOON)
    await world.manager.restore(a_request(ADMIN), other.id, backup=source, workspace_only=True, timeout=SOON)

    assert world.volumes.volumes[other.id] == {Volume.HOME: {b"own": b"1"}, Volume.WORKSPACE: WORK}


async def test_quotas_hold_and_a_refusal_leaves_nothing(world: ManagerWorld) -> None:
    _, backup = await given(world)
    rows = world.units.rows
    rows.clients["acme"] = replace(rows.clients["acme"], policy=ClientPolicy(quotas=Quotas(sandboxes=1)))  # type: ignore[index]

    with pytest.raises(QuotaExceededError):
        await world.manager.create(a_request(ADA), a_wish(backup), timeout=SOON)

    assert len(rows.sandboxes) == 1


async def test_what_cannot_be_meant_is_refused(world: ManagerWorld) -> None:
    _, backup = await given(world)
    world.volumes.gate.clear()
    world.clock.advance(1)
    making = await world.manager.backups.create(a_request(), backup.sandbox, wait=False, timeout=SOON)

    with pytest.raises(BackupSetStatusError):
        await world.manager.create(a_request(ADA), a_wish(making), timeout=SOON)
    with pytest.raises(InvalidRequestError):
        await world.manager.create(a_request(ADA), NewSandbox(workspace_only=True), timeout=SOON)
    with pytest.raises(InvalidRequestError):
        await world.manager.restore(
            a_request(ADA), backup.sandbox, paths={Volume.HOME: [b"a"]}, workspace_only=True, timeout=SOON
        )
    with pytest.raises(BackupsOffError):
        await ManagerWorld().manager.create(a_request(ADA), a_wish(backup), timeout=SOON)
    world.volumes.gate.set()


async def test_the_image_comes_along_as_an_image_of_the_new_sandboxs_own() -> None:
    world = ManagerWorld(backups=True, keeps_root=False, commits=True)
    old = await world.given_active(ADA)
    world.volumes.given(old.id, home=HOME, workspace=WORK)
    world.builder.roots[old.id] = "one"
    await world.manager.images.commit(a_request(ADA), old.id, timeout=SOON)
    backup = await backed_up(world, old)

    new = await world.manager.create(a_request(ADA), a_wish(backup), timeout=SOON)

    assert new.image is not None
    assert new.image.reference == backup.image
    first, second = sorted(world.units.rows.generations.values(), key=lambda one: one.number)
    assert (second.id, second.sandbox, second.trigger) == (new.image.generation, new.id, CommitTrigger.RESTORE)
    assert (first.status, second.status) == (GenerationStatus.ACTIVE, GenerationStatus.ACTIVE)
    assert second.content == first.content
    images = await world.manager.images.list(ADA, new.id, everything=False, page_size=0, page_token="")
    assert [one.generation.id for one in images.items] == [second.id]


async def test_where_the_image_is_kept_no_more_the_workspace_alone_comes() -> None:
    world = ManagerWorld(backups=True, keeps_root=False, commits=True)
    old = await world.given_active(ADA)
    world.volumes.given(old.id, home=HOME, workspace=WORK)
    world.builder.roots[old.id] = "one"
    await world.manager.images.commit(a_request(ADA), old.id, timeout=SOON)
    backup = await backed_up(world, old)
    rows = world.units.rows.generations
    for one in [*rows.values()]:
        rows[one.id] = replace(one, status=GenerationStatus.FAILED)

    with pytest.raises(ImageUnusableError, match="workspace alone"):
        await world.manager.create(a_request(ADA), a_wish(backup), timeout=SOON)
    new = await world.manager.create(a_request(ADA), a_wish(backup, workspace_only=True), timeout=SOON)

    assert (new.state, new.image) == (S.ACTIVE, None)
