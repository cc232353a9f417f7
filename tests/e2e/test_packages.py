"""An install by the real CLI is noticed by the agent, kept by `serve`, told to the stream, and shown by sandboxctl."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from sandboxd.ctl.client import Client
from sandboxd.ctl.errors import ApiError
from sandboxd.v1 import package_pb2 as pb
from tests.e2e.stack import Stack, Transcript
from tests.eventually import eventually
from tests.integration.test_package_managers import a_wheel

INSTALL = "--no-index --no-deps --disable-pip-version-check --no-warn-script-location --ignore-installed"


def install(wheel: Path) -> str:
    return f'{sys.executable} -m pip install {INSTALL} --prefix "$HOME/.local" {wheel}'


async def history(client: Client, sandbox: str) -> list[pb.PackageChange]:
    changes, _ = await client.packages.history(sandbox)
    return list(changes)


async def sandboxctl(stack: Stack, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "sandboxd.ctl", "--address", f"127.0.0.1:{stack.ports['grpc']}", "--token", stack.token, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.timeout(600)
async def test_an_install_in_a_turn_goes_all_the_way_and_a_killed_service_keeps_it_once(
    stack: Stack, tmp_path: Path
) -> None:
    first, second = a_wheel(tmp_path, "1.3.0"), a_wheel(tmp_path, "1.4.0")
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo", freelancer="one")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            stream.prompt(f"fake:shell(cmd={install(first)})")
            told = (await seen.until("packages_changed")).packages_changed
            if "turn_completed" not in seen.kinds():
                await seen.until("turn_completed")

        async def kept() -> list[pb.PackageChange]:
            return await history(client, sandbox.name)

        (change,) = await kept()
        assert [one.number for one in told.changes] == [change.number] == [told.last_number] == [1]
        assert (change.kind, change.package.name, change.package.version) == (
            pb.PACKAGE_CHANGE_KIND_INSTALLED,
            "left-pad",
            "1.3.0",
        )
        assert (change.package.place, change.package.unsaved) == (pb.PACKAGE_PLACE_HOME, False)
        assert (change.requester, change.session) == (pb.PACKAGE_REQUESTER_SESSION, stream.session)

        # Nobody serves while another version comes: the agent tells it to whoever asks next.
        await stack.kill("serve")
        home = stack.home / "sandboxes" / sandbox.name.removeprefix("sandboxes/") / "home"
        command = await asyncio.create_subprocess_shell(
            install(second), env={"HOME": str(home), "PATH": "/usr/bin:/bin"}
        )
        assert await command.wait() == 0
        await stack.start("serve")

        async def both() -> bool:
            try:
                return len(await kept()) >= 2
            except ApiError:
                return False

        await eventually(both, within=60, every=0.5)
        versions = [(one.number, one.old_version, one.package.version) for one in await kept()]
        assert versions == [(1, "", "1.3.0"), (2, "1.3.0", "1.4.0")]

        await client.pause(sandbox.name)
        rows = [
            json.loads(line) for line in (await sandboxctl(stack, "packages", sandbox.name, "-o", "json")).splitlines()
        ]
        table = await sandboxctl(stack, "packages", sandbox.name, "--history")
        unsaved = await sandboxctl(stack, "packages", sandbox.name, "--unsaved", "-o", "json")
    assert {(row["name"], row["version"]) for row in rows} == {("left-pad", "1.4.0")}
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["1", "2"]
    assert unsaved == ""
