"""A small S3-compatible server for tests of backups: gofakes3, which keeps buckets in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from sandboxd.backends.restic.child import ResticSettings
from sandboxd.dev.node import ToolchainError
from tests.eventually import eventually
from tests.ports import a_free_port
from tools.restic import ensure_s3_server


@asynccontextmanager
async def an_s3_server(directory: Path, settings: ResticSettings) -> AsyncIterator[ResticSettings]:
    """Start one on a free port with one bucket; answers the settings of a repository on it."""
    try:
        program = ensure_s3_server()
    except ToolchainError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
    address = f"127.0.0.1:{a_free_port()}"
    keys = directory / "s3-keys"
    keys.write_text("[default]\naws_access_key_id = somebody\naws_secret_access_key = secret\n")
    process = await asyncio.create_subprocess_exec(
        str(program),
        "-host",
        address,
        "-backend",
        "memory",
        "-initialbucket",
        "backups",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        await eventually(lambda: _answers(address), within=20)
        yield replace(settings, location=f"s3:http://{address}/backups/acme", s3_credentials_file=keys)
    finally:
        process.kill()
        await process.wait()


async def _answers(address: str) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"http://{address}/") as answer:
            return answer.status < 500
    except aiohttp.ClientError:
        return False
