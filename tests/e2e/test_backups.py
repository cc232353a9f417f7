"""Terminate and Restore with the real things: restic, the agent, Gemini CLI. What was there is there again."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import grpc
import pytest

from sandboxd.ctl.client import ApiError, Client
from sandboxd.v1 import backup_pb2, sandbox_pb2
from tests.backup_trees import a_hard_tree, everything, without_sockets
from tests.e2e.conftest import StackMaker
from tests.e2e.stack import Transcript


@pytest.mark.timeout(600)
async def test_a_terminated_sandbox_comes_back_byte_for_byte_with_its_sessions_after_a_kill_in_the_middle(
    postgres_url: str, make_stack: StackMaker, restic: Path, tmp_path: Path
) -> None:
    settings = {
        "SANDBOXD_BACKUPS_LOCATION": str(tmp_path / "backups"),
        "SANDBOXD_BACKUPS_RESTIC": str(restic),
        "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",  # nothing but what is asked for
    }
    async with make_stack(postgres_url, settings=settings) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        box = sandbox.name.removeprefix("sandboxes/")
        place, kept = stack.home / "sandboxes" / box, stack.home / "kept" / box
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("remember the word walrus")
            session = stream.session
        a_hard_tree(place / "workspace" / "hard")
        await client.terminate(sandbox.name)
        without_sockets(kept)
        before = {name: everything(kept / name) for name in ("home", "workspace")}

        # The service is killed when both volumes are in the repository and no row says so.
        await stack.restart("serve", failpoints="backup.after_take=exit9")
        made = await client.backups.begin(sandbox.name)
        await stack.died("serve", within=120)
        await stack.start("serve")
        async for backup in client.backups.follow(made.name):
            made = backup
        assert made.status == backup_pb2.BACKUP_STATUS_COMPLETE
        assert made.consistency == backup_pb2.BACKUP_CONSISTENCY_QUIESCED
        shutil.rmtree(kept)  # the only copy is the backup

        # And again when they are back, before anything says so.
        await stack.restart("serve", failpoints="restore.after_volumes=exit9")
        restoring = asyncio.create_task(client.restore(sandbox.name, timeout=300))
        await stack.died("serve", within=120)
        await stack.start("serve")
        restored = await restoring

        assert restored.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
        after = {name: everything(place / name) for name in ("home", "workspace")}
        assert after["workspace"] == before["workspace"]
        # What the CLI keeps for itself may have changed since it runs again; its chats are what they were.
        chats = [path for path in before["home"] if b"/chats/" in path]
        assert chats
        assert {path: after["home"][path] for path in chats} == {path: before["home"][path] for path in chats}
        async with client.stream(sandbox.name, session=session) as stream:
            again = Transcript(stream=stream)
            await again.turn("which word was it")
        asked = stack.model.requests[-1]["body"]["contents"]
        assert "walrus" in str(asked)


@pytest.mark.timeout(600)
async def test_a_new_sandbox_begins_byte_for_byte_with_a_backup_after_two_kills_and_a_drill_of_that_passes(
    postgres_url: str, make_stack: StackMaker, restic: Path, tmp_path: Path
) -> None:
    settings = {
        "SANDBOXD_BACKUPS_LOCATION": str(tmp_path / "backups"),
        "SANDBOXD_BACKUPS_RESTIC": str(restic),
        "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",
    }
    async with make_stack(postgres_url, settings=settings) as stack, stack.client() as client:
        old = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        place = stack.home / "sandboxes" / old.name.removeprefix("sandboxes/")
        a_hard_tree(place / "workspace" / "hard")
        (place / "home" / ".bashrc").write_text("alias ll='ls -l'")
        await client.pause(old.name)
        without_sockets(place / "workspace")
        before = {name: everything(place / name) for name in ("home", "workspace")}
        made = await client.backups.begin(old.name)
        async for backup in client.backups.follow(made.name):
            made = backup
        assert made.status == backup_pb2.BACKUP_STATUS_COMPLETE

        # Killed before anything came back, and again when all is back and no row says so.
        await stack.restart("serve", failpoints="restore.before_volumes=exit9")
        making = asyncio.create_task(_made(client, made.name))
        await stack.died("serve", within=120)
        await stack.start("serve", failpoints="restore.after_volumes=exit9")
        await stack.died("serve", within=120)
        await stack.start("serve")
        new = await making

        assert (new.state, new.model, new.approval_mode) == (
            sandbox_pb2.SANDBOX_STATE_ACTIVE,
            "gemini-2.5-flash",
            "yolo",
        )
        there = stack.home / "sandboxes" / new.name.removeprefix("sandboxes/")
        assert {name: everything(there / name) for name in before} == before
        assert len([each async for each in client.sandboxes()]) == 2, "however often it was asked for"
        keys = [path.read_bytes() for path in stack.home.glob("sandboxes/*/run/*/agent.key")]
        assert not any(key in content for key in keys for content in _contents(there))

        # The service dies while a drill is compared; the next one clears up and does it again.
        boxes = set((stack.home / "sandboxes").iterdir())
        await stack.restart("serve", failpoints="drill.after_boot=exit9")
        async with stack.client(role="platform") as platform:
            drilling = asyncio.create_task(platform.backups.drill(made.name, timeout=300))
            await stack.died("serve", within=120)
            drilling.cancel()
            await asyncio.gather(drilling, return_exceptions=True)
            await stack.start("serve")
            drill = await _ended(platform)

        assert (drill.status, drill.failure.reason) == (backup_pb2.DRILL_STATUS_PASSED, "")
        assert [one.difference_count for one in drill.volumes] == [0, 0]
        assert all(one.expected == one.found for one in drill.volumes)
        assert sum(one.entries for one in drill.volumes) > 20
        assert set((stack.home / "sandboxes").iterdir()) == boxes
        assert [each.id async for each in client.backups.drills()] == [drill.id]


@pytest.mark.timeout(300)
async def test_a_restore_that_is_cancelled_leaves_everything_as_it_was_also_after_kills(
    postgres_url: str, make_stack: StackMaker, restic: Path, tmp_path: Path
) -> None:
    settings = {
        "SANDBOXD_BACKUPS_LOCATION": str(tmp_path / "backups"),
        "SANDBOXD_BACKUPS_RESTIC": str(restic),
        "SANDBOXD_BACKUPS_LOOK_SECONDS": "0",
        "SANDBOXD_BACKUPS_DOWNLOAD_KIBIBYTES": "1024",  # so that there is time for a wish
    }
    async with make_stack(postgres_url, settings=settings) as stack, stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        place = stack.home / "sandboxes" / sandbox.name.removeprefix("sandboxes/")
        (place / "workspace" / "old").write_bytes(os.urandom(3 << 20))
        backup = await client.backups.begin(sandbox.name)
        async for each in client.backups.follow(backup.name):
            backup = each
        old = (place / "workspace" / "old").read_bytes()
        (place / "workspace" / "old").unlink()
        a_hard_tree(place / "workspace" / "hard")
        await client.pause(sandbox.name)
        without_sockets(place / "workspace")
        before = {name: everything(place / name) for name in ("home", "workspace")}

        # Killed before anything is fetched; whoever takes it up is killed while it ends what somebody has cancelled.
        await stack.restart("serve", failpoints="restore.before_volumes=exit9")
        restoring = asyncio.create_task(client.restore(sandbox.name, backup=backup.name, timeout=120))
        await stack.died("serve", within=60)
        await stack.start("serve", failpoints="restore.turning_back=exit9")
        cancelling = asyncio.create_task(client.backups.cancel_restore(sandbox.name))
        await stack.died("serve", within=60)
        await stack.start("serve")
        await cancelling
        with pytest.raises(ApiError, match="cancelled"):
            await restoring

        assert (await client.get(sandbox.name)).state == sandbox_pb2.SANDBOX_STATE_PAUSED
        for name, then in before.items():
            now = everything(place / name)
            assert [path for path in now.keys() | then.keys() if now.get(path) != then.get(path)] == []

        # Killed when what was fetched takes its place: that goes on to its end.
        await stack.restart("serve", failpoints="restore.placing=exit9")
        restoring = asyncio.create_task(client.restore(sandbox.name, backup=backup.name, timeout=120))
        await stack.died("serve", within=60)
        await stack.start("serve")
        assert (await restoring).state == sandbox_pb2.SANDBOX_STATE_ACTIVE
        assert (place / "workspace" / "old").read_bytes() == old
        assert not (place / "workspace" / "hard").exists()


def _contents(place: Path) -> list[bytes]:
    return [
        path.read_bytes()
        for name in ("home", "workspace")
        for path in (place / name).rglob("*")
        if path.is_file() and not path.is_symlink()
    ]


async def _made(client: Client, backup: str) -> sandbox_pb2.Sandbox:
    """Asks again and again while the service is away: it is one request."""
    while True:
        try:
            return await client.create(display_name="new", from_backup=backup, request_id="a-new-sandbox", timeout=300)
        except ApiError as error:
            if error.code is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.2)


async def _ended(client: Client) -> backup_pb2.Drill:
    while True:
        async for each in client.backups.drills():
            if each.status != backup_pb2.DRILL_STATUS_RUNNING:
                return each
        await asyncio.sleep(0.3)
