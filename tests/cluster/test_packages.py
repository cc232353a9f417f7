"""An install with sudo in a real pod: it is unsaved while it is there, and with its pod it is lost, which is told."""

from __future__ import annotations

import pytest

from sandboxd.ctl.client import Client
from sandboxd.v1 import package_pb2 as pb
from sandboxd.v1 import sandbox_pb2
from tests.cluster.stack import ClusterStack, sandbox_id
from tests.e2e.stack import Transcript
from tests.e2e.test_packages import sandboxctl
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)
INSTALL = r"""set -e
cd "$(mktemp -d)"
mkdir -p deb/DEBIAN tool
printf 'Package: hello-test\nVersion: 1.0-1\nArchitecture: all\nMaintainer: T <t@example.test>\nDescription: test\n' \
  > deb/DEBIAN/control
dpkg-deb --build deb hello.deb > /dev/null
sudo dpkg --install hello.deb > /dev/null
cd tool
echo '{"name":"tool","version":"2.0.0"}' > package.json
npm pack --silent > /dev/null
npm install -g --offline --silent ./tool-2.0.0.tgz
printf 'echo by hand\n' > by-hand
sudo install -m 755 by-hand /usr/local/bin/by-hand
echo installed
"""
UNSAVED = {("dpkg", "hello-test"), ("program", "by-hand")}
CHANGED = {*UNSAVED, ("npm", "tool")}


def named(change: pb.PackageChange) -> tuple[str, str]:
    manager = pb.PackageManager.Name(change.package.manager).removeprefix("PACKAGE_MANAGER_").lower()
    return manager, change.package.name


async def history(client: Client, sandbox: sandbox_pb2.Sandbox) -> list[pb.PackageChange]:
    changes, last = await client.packages.history(sandbox.name)
    assert [one.number for one in changes] == list(range(1, len(changes) + 1))
    assert last.missed == 0
    return list(changes)


async def test_what_sudo_installs_is_unsaved_and_lost_with_its_pod_and_the_history_tells_both(
    stack: ClusterStack,
) -> None:
    async with stack.client() as client:
        sandbox = await client.create(model="gemini-2.5-flash", approval_mode="yolo")
        stack.inside(sandbox, "sh", "-c", f"cat > /workspace/install.sh <<'END'\n{INSTALL}END")
        async with client.stream(sandbox.name) as stream:
            seen = Transcript(stream=stream)
            await seen.turn("fake:say(text=nothing yet)")
            untouched = await client.get(sandbox.name)

            stream.prompt("fake:shell(cmd=sh /workspace/install.sh)")
            told: list[pb.PackageChange] = []
            while {named(one) for one in told} != CHANGED:
                told.extend((await seen.until("packages_changed")).packages_changed.changes)

        assert not untouched.HasField("unsaved")
        assert {(named(one), one.package.unsaved) for one in told} == {
            *((each, True) for each in UNSAVED),
            (("npm", "tool"), False),
        }
        kept = await history(client, sandbox)
        assert {named(one) for one in kept} == CHANGED
        assert {(one.requester, one.session) for one in kept} == {(pb.PACKAGE_REQUESTER_SESSION, stream.session)}
        dirty = (await client.get(sandbox.name)).unsaved
        assert (dirty.packages, dirty.HasField("dirty_since")) == (2, True)
        assert "2 packages" in await sandboxctl(stack, "ls")
        running = await client.packages.list(sandbox.name, unsaved=True)
        assert ([one.name for one in running.packages], running.last.recorded) == (["hello-test", "by-hand"], False)

        stack.delete_pod(sandbox)  # before anybody could commit it

        async def gone() -> bool:
            return (await client.get(sandbox.name)).state_reason != ""

        await eventually(gone, within=60, every=0.5, what="the loss is seen")
        lost = await client.packages.list(sandbox.name, unsaved=True)
        assert ([one.name for one in lost.packages], lost.last.recorded) == (["hello-test", "by-hand"], True)
        assert (await client.get(sandbox.name)).unsaved == dirty
        assert "not saved is gone" in await sandboxctl(stack, "packages", sandbox_id(sandbox))

        async with client.stream(sandbox.name, session=stream.session, after_sequence=-1) as again:
            await Transcript(stream=again).turn("fake:say(text=here again)")

        async def clean() -> bool:
            return not (await client.get(sandbox.name)).HasField("unsaved")

        await eventually(clean, within=60, every=0.5, what="the new life is clean")
        ends = (await history(client, sandbox))[-len(UNSAVED) :]
        assert {(named(one), one.kind, one.requester) for one in ends} == {
            (each, pb.PACKAGE_CHANGE_KIND_REMOVED, pb.PACKAGE_REQUESTER_IMAGE) for each in UNSAVED
        }
        assert {one.name for one in (await client.packages.list(sandbox.name)).packages} >= {"tool", "bash"}
