"""The embedded PostgreSQL: found again, several at once, and back after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from sandboxd.persistence.embedded import EmbeddedPostgres


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    made = EmbeddedPostgres(tmp_path / "pg")
    await made.start()
    yield made
    await made.stop()


async def ask(server: EmbeddedPostgres, statement: str) -> object:
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_a_second_start_finds_the_running_server(server: EmbeddedPostgres, tmp_path: Path) -> None:
    pid = server.pid()

    url = await EmbeddedPostgres(tmp_path / "pg").start()

    assert (url, server.pid()) == (server.url(), pid)


async def test_two_who_start_at_once_get_one_server(tmp_path: Path) -> None:
    servers = [EmbeddedPostgres(tmp_path / "pg", durable=False) for _ in range(2)]

    urls = await asyncio.gather(*(one.start() for one in servers))

    assert len({*urls}) == 1
    assert await ask(servers[0], "SELECT 1") == 1
    await servers[1].stop()
    assert servers[0].pid() is None


async def test_what_was_committed_is_there_after_a_kill(server: EmbeddedPostgres) -> None:
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = server.pid()
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    await server.start()

    assert server.pid() != pid
    assert await ask(server, "SELECT answer FROM kept") == 42


async def test_a_pid_file_that_names_a_stranger_holds_up_nothing_and_nobody(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    await server.stop()
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=subprocess.PIPE)
    (tmp_path / "pg" / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n")

    await server.start()

    assert await ask(server, "SELECT 1") == 1
    assert stranger.returncode is None
    await stranger.communicate(b"\n")


async def test_servers_of_several_folders_live_side_by_side(server: EmbeddedPostgres, tmp_path: Path) -> None:
    # Too deep for the path of a socket, closed to everybody else, and with a space.
    parent = tmp_path / ("deep folder " * 10)
    parent.mkdir(mode=0o700)
    other = EmbeddedPostgres(parent / "pg", durable=False)
    await other.start()
    await ask(other, "CREATE TABLE mine ()")

    assert await ask(server, "SELECT to_regclass('mine')") is None
    await other.stop()
    assert server.pid() is not None


async def test_it_listens_on_no_port(server: EmbeddedPostgres) -> None:
    assert await ask(server, "SHOW listen_addresses") == ""
    assert await ask(server, "SHOW fsync") == "on"


async def test_stopping_twice_and_stopping_nothing_is_success(server: EmbeddedPostgres, tmp_path: Path) -> None:
    await server.stop()
    await server.stop()
    await EmbeddedPostgres(tmp_path / "never").stop()

    assert server.pid() is None
    assert not (tmp_path / "never").exists()
