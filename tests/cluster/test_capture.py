"""A capture of a real pod: an installation is found whole, with its owners; mounts and what nobody touched are not."""

import secrets
from collections.abc import AsyncIterator, Sequence

import pytest

from sandboxd.model.rootfs import BaselineEntry, CaptureFrame, ChangedEntry, EntryKind
from tests.cluster.capturing import INCARNATION, LONG, SANDBOX, capture_of
from tests.cluster.pod_world import PodWorld, a_pod
from tests.kube import Cluster
from tests.rootfs_trees import Difference, read

pytestmark = pytest.mark.timeout(240)
INSTALL = r"""
set -e
cd "$(mktemp -d)"
mkdir -p kept/DEBIAN kept/usr/bin kept/var/log/kept
printf 'Package: kept\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: kept\n' > kept/DEBIAN/control
printf '#!/bin/sh\necho kept\n' > kept/usr/bin/kept
chmod 4755 kept/usr/bin/kept
dpkg-deb --root-owner-group --build kept > /dev/null
sudo dpkg --install kept.deb > /dev/null
sudo install -d -o 1000 -g 1000 /opt/mine
ln -s /usr/bin/kept /opt/mine/link
sudo rm -r /usr/share/doc/bash
echo private > ~/private
echo done
"""


async def _frames(world: PodWorld, baseline: Sequence[BaselineEntry]) -> AsyncIterator[CaptureFrame]:
    async def base() -> AsyncIterator[BaselineEntry]:
        for entry in baseline:
            yield entry

    capture = await capture_of(world)
    async for frame in capture.capture(SANDBOX, INCARNATION, base(), previous=(), exclude=(), timeout=LONG):
        yield frame


async def _capture(world: PodWorld, baseline: Sequence[BaselineEntry]) -> Difference:
    return read([frame async for frame in _frames(world, baseline)])


async def _everything(world: PodWorld) -> list[BaselineEntry]:
    """What a capture without a base finds, as the base of the next one."""
    found = {frame.path: frame async for frame in _frames(world, []) if isinstance(frame, ChangedEntry)}

    def entry_of(entry: ChangedEntry) -> BaselineEntry:
        linked = entry.kind is EntryKind.HARDLINK
        return BaselineEntry(
            path=entry.path,
            kind=EntryKind.FILE if linked else entry.kind,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            size=found[entry.link].size if linked else entry.size,
            mtime=entry.mtime,
            link=b"" if linked else entry.link,
        )

    return [entry_of(entry) for entry in found.values()]


async def test_an_installation_in_a_pod_is_found_whole_and_nothing_else_is(cluster: Cluster) -> None:
    instance = f"t-{secrets.token_hex(4)}"
    try:
        async with a_pod(cluster, instance) as world:
            await world.connect()
            base = await _everything(world)
            untouched = await _capture(world, base)
            assert (untouched.entries, untouched.deleted) == ({}, [])

            assert "done" in await world.run(INSTALL)
            found = await _capture(world, base)
    finally:
        await cluster.clean(instance)

    assert found.contents[b"usr/bin/kept"] == b"#!/bin/sh\necho kept\n"
    assert found.entries[b"usr/bin/kept"].mode == 0o4755
    assert b"Package: kept\n" in found.contents[b"var/lib/dpkg/status"]
    assert b"var/lib/dpkg/info/kept.list" in found.contents
    assert found.entries[b"var/log/kept"].kind is EntryKind.DIRECTORY
    assert found.entries[b"opt/mine/link"].link == b"/usr/bin/kept"
    assert {found.entries[path].uid for path in (b"opt/mine", b"opt/mine/link")} == {1000}
    assert found.entries[b"usr/bin/kept"].uid == 0
    assert found.deleted == [b"usr/share/doc/bash"]
    assert {b"home/gemini", b"workspace", b"opt/agent", b"etc/hosts", b"etc/resolv.conf", b"proc"} <= {
        path for path, reason in found.skipped.items() if reason == "mount"
    }
    assert len(found.entries) < 60, sorted(found.entries)
    assert not found.torn
