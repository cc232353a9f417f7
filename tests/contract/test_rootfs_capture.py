"""What a capture promises to whoever makes images: the same suite for the fake and for a real agent over mutual TLS."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import grpc
import pytest

from sandboxd.agent.client import GrpcAgentConnector
from sandboxd.agent.rootfs_client import GrpcRootfsCapture
from sandboxd.images.ports import RootfsCapture
from sandboxd.manager.backend_port import Observation, RunningIncarnation
from sandboxd.model.errors import (
    AgentUnavailableError,
    DeadlineError,
    InternalError,
    NotImplementedYetError,
    UnavailableError,
)
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.image_errors import (
    CaptureRunningError,
    CaptureUnsupportedError,
    PackageManagerBusyError,
    PackagesInterruptedError,
)
from sandboxd.model.rootfs import BaselineEntry, CaptureEnd, CaptureFrame, EntryKind, FileData
from sandboxd.model.sandbox import AgentEndpoint
from tests.contract.agent_process import AGENT_NAME, SERVICE_NAME, AgentProcess, Authority, start_agent
from tests.eventually import eventually
from tests.fakes.rootfs import FakeRootfsCapture
from tests.rootfs_trees import Difference, baseline_of, read

SANDBOX, INCARNATION = SandboxId("sbx-test"), IncarnationId("inc-test")
PATIENCE = timedelta(seconds=30)
BASE = {b"etc/passwd": b"root", b"opt/tool/a": b"a", b"opt/tool/b": b"b", b"usr/bin/sh": b"sh"}


class Rootfs(Protocol):
    """A root file system that a test changes."""

    baseline: list[BaselineEntry]

    @property
    def capture(self) -> RootfsCapture: ...

    def put(self, path: bytes, content: bytes) -> None: ...

    def remove(self, path: bytes) -> None: ...


@dataclass(slots=True)
class Memory:
    """The fake's."""

    fake: FakeRootfsCapture
    baseline: list[BaselineEntry]

    @property
    def capture(self) -> RootfsCapture:
        return self.fake

    def put(self, path: bytes, content: bytes) -> None:
        self.fake.put(path, content)

    def remove(self, path: bytes) -> None:
        self.fake.remove(path)


@dataclass(slots=True)
class Running:
    """Where one agent runs."""

    endpoint: AgentEndpoint | None

    async def observe(self, sandbox: SandboxId) -> Observation:
        running = [RunningIncarnation(incarnation=INCARNATION, endpoint=self.endpoint)]
        return Observation(sandbox=sandbox, present=True, running=running)


@dataclass(slots=True)
class Disk:
    """A tree that a real agent has for its root."""

    root: Path
    process: AgentProcess
    capture: GrpcRootfsCapture
    baseline: list[BaselineEntry]

    def put(self, path: bytes, content: bytes) -> None:
        _put(self.root, path, content)

    def remove(self, path: bytes) -> None:
        place = self.root / os.fsdecode(path)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()


def _put(root: Path, path: bytes, content: bytes) -> None:
    place = root / os.fsdecode(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    root = tmp_path / "root"
    for path, content in BASE.items():
        _put(root, path, content)
    baseline = baseline_of(root)
    await asyncio.sleep(0.02)  # the kernel stamps by ticks: what was there is older than the agent's start
    process = await start_agent(tmp_path / "agent", capture_root=str(root))
    capture = GrpcRootfsCapture(backend=Running(process.endpoint), connector=process.connector)
    yield Disk(root, process, capture, baseline)
    await process.end()


@pytest.fixture(params=["fake", "real"])
def rootfs(request: pytest.FixtureRequest) -> Rootfs:
    if request.param == "real":
        disk: Disk = request.getfixturevalue("disk")
        return disk
    fake = FakeRootfsCapture(incarnation=INCARNATION)
    for path, content in BASE.items():
        fake.put(path, content)
    return Memory(fake, fake.begin())


async def _stream(entries: Iterable[BaselineEntry]) -> AsyncIterator[BaselineEntry]:
    for entry in entries:
        yield entry


def _frames(
    rootfs: Rootfs,
    *,
    previous: Sequence[bytes] = (),
    exclude: Sequence[bytes] = (),
    timeout: timedelta = PATIENCE,
    incarnation: IncarnationId = INCARNATION,
    baseline: AsyncIterator[BaselineEntry] | None = None,
) -> AsyncIterator[CaptureFrame]:
    base = _stream(rootfs.baseline) if baseline is None else baseline
    return rootfs.capture.capture(SANDBOX, incarnation, base, previous=previous, exclude=exclude, timeout=timeout)


async def _read(rootfs: Rootfs, *, previous: Sequence[bytes] = (), exclude: Sequence[bytes] = ()) -> Difference:
    return read([frame async for frame in _frames(rootfs, previous=previous, exclude=exclude)])


async def test_nothing_changed_is_an_end_that_has_seen_everything(rootfs: Rootfs) -> None:
    difference = await _read(rootfs)

    assert (difference.entries, difference.deleted, difference.skipped) == ({}, [], {})
    assert difference.end == CaptureEnd(entries=len(rootfs.baseline), changed=0, deleted=0, bytes=0)


async def test_what_is_new_and_what_was_rewritten_comes_with_its_content(rootfs: Rootfs) -> None:
    large = os.urandom(5 << 20)
    rootfs.put(b"etc/passwd", b"toor")
    rootfs.put(b"opt/new/\xff\n", large)

    difference = await _read(rootfs)

    assert difference.contents == {b"etc/passwd": b"toor", b"opt/new/\xff\n": large}
    assert difference.entries[b"opt/new"].kind is EntryKind.DIRECTORY
    assert not difference.torn


async def test_of_what_is_gone_the_topmost_path_is_told(rootfs: Rootfs) -> None:
    rootfs.remove(b"opt/tool")
    rootfs.remove(b"usr/bin/sh")

    assert (await _read(rootfs)).deleted == [b"opt/tool", b"usr/bin/sh"]


async def test_what_was_kept_before_is_always_sent_where_it_is_there(rootfs: Rootfs) -> None:
    difference = await _read(rootfs, previous=[b"etc/passwd", b"opt/gone", b"opt/tool/a"])

    assert difference.contents == {b"etc/passwd": b"root", b"opt/tool/a": b"a"}
    assert difference.deleted == []


async def test_what_is_left_out_is_neither_sent_nor_gone(rootfs: Rootfs) -> None:
    rootfs.put(b"opt/tool/c", b"c")
    rootfs.remove(b"opt/tool/a")

    difference = await _read(rootfs, exclude=[b"opt/tool"])

    assert difference.skipped == {b"opt/tool": "excluded"}
    assert not {path for path in difference.entries if path.startswith(b"opt/tool")}
    assert difference.deleted == []


async def test_another_incarnation_is_refused(rootfs: Rootfs) -> None:
    with pytest.raises(UnavailableError):
        _ = [frame async for frame in _frames(rootfs, incarnation=IncarnationId("inc-other"))]


@pytest.mark.parametrize("microseconds", [0, 1])
async def test_time_that_is_over_ends_it(rootfs: Rootfs, microseconds: int) -> None:
    with pytest.raises(DeadlineError):
        _ = [frame async for frame in _frames(rootfs, timeout=timedelta(microseconds=microseconds))]


async def test_it_can_be_done_again_and_says_the_same(rootfs: Rootfs) -> None:
    rootfs.put(b"opt/new", b"new")

    assert await _read(rootfs) == await _read(rootfs)


async def test_a_base_of_many_thousand_entries_goes_through(disk: Disk) -> None:
    many = [
        BaselineEntry(path=b"srv/%06d" % number, kind=EntryKind.FILE, mode=0o644, uid=0, gid=0)
        for number in range(20_000)
    ]

    difference = await _read(
        Disk(disk.root, disk.process, disk.capture, [*disk.baseline[:-3], *many, *disk.baseline[-3:]])
    )

    assert len(difference.deleted) == 20_000


async def test_the_agent_serves_others_meanwhile_and_refuses_a_second_capture(disk: Disk) -> None:
    _fill(disk)
    agent = await disk.process.connector.connect(disk.process.endpoint)
    try:
        async with aclosing(_frames(disk)) as frames:  # type: ignore[type-var]  # a generator
            await _first_data(frames)

            assert (await agent.describe()).sandbox == SANDBOX
            with pytest.raises(CaptureRunningError):
                await _read(disk)
    finally:
        await agent.close()


async def test_a_caller_who_leaves_in_the_middle_leaves_nothing_behind(disk: Disk) -> None:
    _fill(disk)
    async with aclosing(_frames(disk)) as frames:  # type: ignore[type-var]  # a generator
        await _first_data(frames)

    async def again() -> bool:
        try:
            return len((await _read(disk)).contents) == 8
        except CaptureRunningError:
            return False

    await eventually(again)
    assert b"capture" not in _threads(disk.process.process.pid)
    assert not [link for link in _open_files(disk.process.process.pid) if link.startswith(str(disk.root))]


async def test_an_agent_that_dies_in_the_middle_is_no_end(disk: Disk) -> None:
    _fill(disk)
    frames = _frames(disk)
    await _first_data(frames)
    disk.process.process.kill()

    with pytest.raises(AgentUnavailableError):
        _ = [frame async for frame in frames]


async def test_a_base_that_cannot_be_read_ends_with_its_own_error(disk: Disk) -> None:
    async def broken() -> AsyncIterator[BaselineEntry]:
        for entry in disk.baseline:
            yield entry
        raise DeadlineError("The registry did not answer.")

    with pytest.raises(DeadlineError, match="registry"):
        _ = [frame async for frame in _frames(disk, baseline=broken())]


async def test_a_base_out_of_order_ends_it_before_anything_looks_deleted(disk: Disk) -> None:
    with pytest.raises(InternalError, match="order"):
        _ = [frame async for frame in _frames(disk, baseline=_stream(reversed(disk.baseline)))]


async def test_a_frozen_sandbox_is_captured(disk: Disk) -> None:
    disk.put(b"opt/new", b"new")
    agent = await disk.process.connector.connect(disk.process.endpoint)
    try:
        await agent.freeze()

        assert (await _read(disk)).contents == {b"opt/new": b"new"}
    finally:
        await agent.close()


async def test_an_installation_that_runs_is_waited_for(disk: Disk) -> None:
    lock = _dpkg(disk)
    with lock.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        capture = asyncio.create_task(_read(disk))
        await asyncio.sleep(0.2)
        assert not capture.done()

        disk.put(b"opt/installed", b"whole")
        fcntl.lockf(held, fcntl.LOCK_UN)

        assert (await capture).contents[b"opt/installed"] == b"whole"


async def test_an_installation_that_does_not_end_is_told(disk: Disk) -> None:
    lock = _dpkg(disk)
    with lock.open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)

        with pytest.raises(PackageManagerBusyError):
            _ = [frame async for frame in _frames(disk, timeout=timedelta(seconds=2))]


async def test_nobody_can_install_while_it_runs_and_everybody_afterwards(disk: Disk) -> None:
    lock = _dpkg(disk)
    _fill(disk)
    with lock.open("r+b") as other:
        frames = _frames(disk)
        await _first_data(frames)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

        _ = [frame async for frame in frames]

        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_holding_the_locks_opens_nothing_for_writing(disk: Disk) -> None:
    """An overlay copies up what is opened for writing: each capture would find the locks changed."""
    _dpkg(disk)
    _fill(disk)
    async with aclosing(_frames(disk)) as frames:  # type: ignore[type-var]  # a generator
        await _first_data(frames)

        process = Path(f"/proc/{disk.process.process.pid}")
        held = [link.name for link in (process / "fd").iterdir() if "/dpkg/lock" in str(link.readlink())]
        flags = [(process / "fdinfo" / name).read_text().split("flags:")[1].split()[0] for name in held]

    assert len(held) == 2
    assert {int(flag, 8) & os.O_ACCMODE for flag in flags} == {os.O_RDONLY}


async def test_an_installation_that_was_killed_is_told(disk: Disk) -> None:
    _dpkg(disk)
    disk.put(b"var/lib/dpkg/updates/0001", b"Package: half")

    with pytest.raises(PackagesInterruptedError):
        await _read(disk)


async def test_where_the_root_is_the_machines_nothing_is_captured(tmp_path: Path) -> None:
    process = await start_agent(tmp_path)
    try:
        capture = GrpcRootfsCapture(backend=Running(process.endpoint), connector=process.connector)
        with pytest.raises(CaptureUnsupportedError):
            _ = [frame async for frame in _frames_of(capture)]
    finally:
        await process.end()


def _fill(disk: Disk) -> None:
    """More than what buffers on the way take, so that a capture cannot end unread."""
    for number in range(8):
        disk.put(b"opt/large-%d" % number, bytes(8 << 20))


async def _first_data(frames: AsyncIterator[CaptureFrame]) -> None:
    async for frame in frames:
        if isinstance(frame, FileData):
            return


def _dpkg(disk: Disk) -> Path:
    for name in (b"lock-frontend", b"lock", b"updates/.keep"):
        disk.put(b"var/lib/dpkg/" + name, b"")
    return disk.root / "var/lib/dpkg/lock-frontend"


def _threads(pid: int) -> list[bytes]:
    return [(task / "comm").read_bytes().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


def _open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


async def test_an_agent_of_an_older_version_is_told_apart_from_one_that_does_not_answer(tmp_path: Path) -> None:
    authority = Authority()
    agent, service = authority.issue(AGENT_NAME), authority.issue(SERVICE_NAME)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("sandboxd.agent.v1.AgentService", {})]  # it knows no method `Capture`
    )
    keys = grpc.ssl_server_credentials(
        [(agent.key, agent.certificate)], root_certificates=authority.certificate, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", keys)
    await server.start()
    connector = GrpcAgentConnector(
        certificate=service.certificate, key=service.key, agent_authority=authority.certificate
    )
    endpoint = AgentEndpoint(host="127.0.0.1", port=port, server_name=AGENT_NAME)
    capture = GrpcRootfsCapture(backend=Running(endpoint), connector=connector)
    try:
        with pytest.raises(NotImplementedYetError, match="older"):
            _ = [frame async for frame in _frames_of(capture)]
    finally:
        await server.stop(None)


async def test_what_is_not_reachable_yet_is_told(tmp_path: Path) -> None:
    capture = GrpcRootfsCapture(
        backend=Running(None),
        connector=GrpcAgentConnector(certificate=b"", key=b"", agent_authority=Authority().certificate),
    )

    with pytest.raises(UnavailableError):
        _ = [frame async for frame in _frames_of(capture)]


def _frames_of(capture: RootfsCapture) -> AsyncIterator[CaptureFrame]:
    return capture.capture(SANDBOX, INCARNATION, _stream([]), previous=(), exclude=(), timeout=PATIENCE)
