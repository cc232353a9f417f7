"""Terminate, and the volumes that go then: the real restic, the service killed at each step, and all of it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxd.v1 import sandbox_pb2
from tests.e2e.conftest import StackMaker
from tests.eventually import eventually


@pytest.mark.timeout(600)
async def test_volumes_go_across_kills_at_each_step_and_restore_brings_them_back(
    postgres_url: str, make_stack: StackMaker, restic: Path, tmp_path: Path
) -> None:
    settings = {
        "SANDBOXD_BACKUPS_LOCATION": str(tmp_path / "backups"),
        "SANDBOXD_BACKUPS_RESTIC": str(restic),
        "SANDBOXD_BACKUPS_LOOK_SECONDS": "0.5",
        "SANDBOXD_BACKUPS_EVERY_SECONDS": "0",
        "SANDBOXD_BACKUPS_RELEASE_SECONDS": "1",
    }
    async with make_stack(postgres_url, settings=settings) as stack, stack.client() as client:
        sandbox = await client.create()
        box = sandbox.name.removeprefix("sandboxes/")
        kept = stack.home / "kept" / box
        (stack.home / "sandboxes" / box / "workspace" / "notes").write_text("walrus")

        await stack.restart("serve", failpoints="release.after_commit=exit9")
        await client.terminate(sandbox.name)
        await stack.died("serve", within=120)
        assert kept.is_dir(), "the row alone says that they go"
        await stack.start("serve", failpoints="release.after_volumes=exit9", ready=False)
        await stack.died("serve", within=120)
        assert not kept.exists()
        await stack.start("serve")

        async def over() -> bool:
            return (await client.get(sandbox.name)).volumes_release.HasField("end_time")

        await eventually(over, within=120)
        released = (await client.get(sandbox.name)).volumes_release
        only = await client.backups.get(released.backup)
        back = await client.restore(sandbox.name, timeout=300)

        assert only.HasField("only_copy_time")
        assert back.state == sandbox_pb2.SANDBOX_STATE_ACTIVE
        assert not back.HasField("volumes_release")
        assert (stack.home / "sandboxes" / box / "workspace" / "notes").read_text() == "walrus"
        assert not (await client.backups.get(released.backup)).HasField("only_copy_time")
