"""Terminate and Restore with the real things: restic, the agent, Gemini CLI. What was there is there again."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

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
