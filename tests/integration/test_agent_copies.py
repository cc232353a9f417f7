"""Copies into and out of a sandbox, with archives and trees that try to get out of it."""

import asyncio
import io
import os
import socket
import stat
import tarfile
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxd.model.errors import SandboxdError
from sandboxd.model.processes import CopyResult, Root
from sandboxd.stream.agent_port import (
    Agent,
    ArchiveInvalidError,
    CopyLimitError,
    PathEscapesError,
    PathNotFoundError,
)
from tests.contract.agent_process import AgentProcess, start_agent

PATIENCE = timedelta(seconds=30)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    running = await start_agent(tmp_path)
    yield running
    await running.end()


@pytest.fixture
async def agent(process: AgentProcess) -> AsyncIterator[Agent]:
    client = await process.connector.connect(process.endpoint)
    yield client
    await client.close()


def _file(name: str, content: bytes = b"content", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in more.items():
        setattr(info, field, value)
    return info, content


def _link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


async def _copy_in(agent: Agent, data: bytes, path: str = "in", *, limit: int = 0, entries: int = 0) -> CopyResult:
    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 100_000):
            yield data[begin : begin + 100_000]

    return await agent.copy_in(Root.WORKSPACE, path, pieces(), max_bytes=limit, max_entries=entries, timeout=PATIENCE)


async def _copy_out(agent: Agent, path: str, *, limit: int = 0) -> tuple[tarfile.TarFile, CopyResult]:
    pieces = [piece async for piece in agent.copy_out(Root.WORKSPACE, path, max_bytes=limit, timeout=PATIENCE)]
    result = pieces[-1]
    assert isinstance(result, CopyResult)
    data = b"".join(piece for piece in pieces if isinstance(piece, bytes))
    return tarfile.open(fileobj=io.BytesIO(data)), result


def _nothing_outside(process: AgentProcess) -> bool:
    known = {"home", "workspace", "spools", "agent.pem", "agent.key", "authority.pem", "agent.json", "agent.log"}
    return {one.name for one in process.directory.iterdir()} == known | {"ready.json"}


ESCAPES: dict[str, tuple[tuple[tarfile.TarInfo, bytes], ...]] = {
    "parent": (_file("../evil"),),
    "hidden parent": (_file("a/../../../evil"),),
    "absolute": (_file("/tmp/evil"),),
    "through a link": (_link("way", "/tmp"), _file("way/evil")),
    "through a relative link": (_link("way", "../../.."), _file("way/evil")),
    "over a link chain": (_link("a", "."), _link("a/b", "../.."), _file("a/b/evil")),
    "hard link to outside": (_link("shadow", "/etc/passwd", tarfile.LNKTYPE),),
    "hard link to a parent": (_link("key", "../../agent.key", tarfile.LNKTYPE),),
    "hard link through a link": (_link("way", "/etc"), _link("shadow", "way/passwd", tarfile.LNKTYPE)),
    "device": (_link("null", "", tarfile.CHRTYPE),),
}


@pytest.mark.parametrize("name", ESCAPES)
async def test_an_archive_cannot_get_out(agent: Agent, process: AgentProcess, name: str) -> None:
    with pytest.raises(PathEscapesError):
        await _copy_in(agent, _tar(*ESCAPES[name]))

    assert _nothing_outside(process)
    assert not Path("/tmp/evil").exists()
    assert list(process.workspace.rglob("evil")) == []
    assert not any((process.workspace / "in" / one).is_file() for one in ("shadow", "key"))


async def test_a_link_that_was_there_before_is_not_followed(agent: Agent, process: AgentProcess) -> None:
    (process.workspace / "in").mkdir()
    (process.workspace / "in" / "way").symlink_to(process.directory)
    (process.workspace / "in" / "key").symlink_to(process.directory / "agent.key")
    before = (process.directory / "agent.key").read_bytes()

    with pytest.raises(PathEscapesError):
        await _copy_in(agent, _tar(_file("way/evil")))
    await _copy_in(agent, _tar(_file("key", b"mine")))

    assert _nothing_outside(process)
    assert (process.directory / "agent.key").read_bytes() == before
    assert (process.workspace / "in" / "key").read_bytes() == b"mine"


@pytest.mark.parametrize("path", ["..", "../x", "/tmp", "a/../../x", "link", "link/x"])
async def test_a_destination_cannot_lie_outside(agent: Agent, process: AgentProcess, path: str) -> None:
    (process.workspace / "link").symlink_to(process.directory)

    with pytest.raises(PathEscapesError):
        await _copy_in(agent, _tar(_file("evil")), path)
    with pytest.raises((PathEscapesError, PathNotFoundError)):
        await _copy_out(agent, path)

    assert _nothing_outside(process)


async def test_links_and_modes_come_back_as_they_were(agent: Agent, process: AgentProcess) -> None:
    given = process.workspace / "given"
    (given / "bin").mkdir(parents=True)
    (given / "bin" / "run").write_text("#!/bin/sh\n")
    (given / "bin" / "run").chmod(0o4755)
    (given / "python").symlink_to("/usr/bin/python3")
    (given / "again").hardlink_to(given / "bin" / "run")
    (given / "grüße \n").write_text("name")
    (given / "bin").chmod(0o555)

    archive, result = await _copy_out(agent, "given")
    with archive:
        sent = archive.fileobj
        assert isinstance(sent, io.BytesIO)
        returned = await _copy_in(agent, sent.getvalue(), "back")

    back = process.workspace / "back"
    assert (result.entries, returned.entries) == (5, 5)
    assert stat.S_IMODE((back / "bin" / "run").stat().st_mode) == 0o755, "set-id bits are not taken over"
    assert os.readlink(back / "python") == "/usr/bin/python3"  # noqa: PTH115
    assert (back / "again").stat().st_ino == (back / "bin" / "run").stat().st_ino
    assert (back / "grüße \n").read_text() == "name"
    (given / "bin").chmod(0o755)


async def test_a_single_file_keeps_its_name(agent: Agent, process: AgentProcess) -> None:
    (process.workspace / "one.txt").write_text("1")

    archive, _ = await _copy_out(agent, "one.txt")

    with archive:
        assert archive.getnames() == ["one.txt"]


async def test_what_cannot_be_packed_is_counted(agent: Agent, process: AgentProcess) -> None:
    tree = process.workspace / "tree"
    tree.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "s"))
    os.mkfifo(tree / "fifo")
    (tree / "file").write_text("x")

    archive, result = await _copy_out(agent, "tree")

    with archive:
        assert archive.getnames() == ["file"]
    assert (result.entries, result.skipped_entries) == (1, 2)


async def test_a_link_out_of_the_tree_is_stored_and_not_followed(agent: Agent, process: AgentProcess) -> None:
    (process.workspace / "tree").mkdir()
    (process.workspace / "tree" / "key").symlink_to(process.directory / "agent.key")

    archive, _ = await _copy_out(agent, "tree")

    with archive:
        assert archive.getmember("key").issym()


async def test_a_large_tree_travels_whole(agent: Agent, process: AgentProcess) -> None:
    content = os.urandom(1 << 20)
    data = _tar(*(_file(f"d{number % 10}/f{number}", content) for number in range(60)))

    result = await _copy_in(agent, data)
    archive, summary = await _copy_out(agent, "in")

    with archive:
        assert sum(member.size for member in archive if member.isreg()) == 60 << 20
    assert (result.entries, result.content_bytes) == (60, 60 << 20)
    assert summary.content_bytes == 60 << 20
    assert process.resident_bytes < 60_000_000


async def test_more_than_allowed_is_refused(agent: Agent, process: AgentProcess) -> None:
    data = _tar(_file("a", bytes(1000)), _file("b", bytes(1000)))

    with pytest.raises(CopyLimitError):
        await _copy_in(agent, data, limit=1999)
    with pytest.raises(CopyLimitError):
        await _copy_in(agent, data, entries=1)
    await _copy_in(agent, data, "fits", limit=2000, entries=2)
    with pytest.raises(CopyLimitError):
        await _copy_out(agent, "fits", limit=1999)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "not an archive": lambda _: b"hello" * 1000,
    "cut in a file": lambda data: data[: 512 + 300],
    "cut between": lambda data: data[:2048],
    "broken in the middle": lambda data: data[:1536] + b"X" * 512 + data[2048:],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_archive_is_told(agent: Agent, name: str) -> None:
    data = _tar(_file("a", bytes(1000)), _file("b", bytes(1000)), _file("c", bytes(1000)))

    with pytest.raises(ArchiveInvalidError):
        await _copy_in(agent, BROKEN[name](data))


async def test_a_copy_that_the_caller_gives_up_leaves_the_agent_well(agent: Agent) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield _tar(_file("a", bytes(1000)))[:600]
        await asyncio.sleep(60)

    with pytest.raises(SandboxdError):
        await agent.copy_in(Root.WORKSPACE, "x", endless(), timeout=timedelta(seconds=0.3))

    await _copy_in(agent, _tar(_file("a")))
