"""The `sandboxd` command as a person starts it, in a home of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

UP_SECONDS = 90


@dataclass(kw_only=True)
class Outcome:
    code: int
    out: str
    err: str


async def sandboxd(*arguments: str, home: Path, within: float = 150, **variables: str) -> Outcome:
    """Run a command to its end."""
    process = await start(*arguments, home=home, **variables)
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"{arguments} did not end:\n{out.decode()}\n{err.decode()}") from None
    assert process.returncode is not None
    return Outcome(code=process.returncode, out=out.decode(), err=err.decode())


class Dev:
    """A running `sandboxd dev`."""

    def __init__(self, process: asyncio.subprocess.Process, welcome: str) -> None:
        self.process = process
        self.welcome = welcome

    async def stop(self) -> str:
        """Press Ctrl-C and wait; answers what it said."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            _, err = await self.process.communicate()
        return err.decode()


@asynccontextmanager
async def a_dev(data: Path, *, home: Path, **variables: str) -> AsyncIterator[Dev]:
    """`sandboxd dev` that is up."""
    process = await start("dev", "--data-dir", str(data), home=home, **variables)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(UP_SECONDS):
            while not lines or not lines[-1].startswith("Ctrl-C"):
                line = await process.stdout.readline()
                if not line:
                    _, err = await process.communicate()
                    raise AssertionError(f"sandboxd dev ended: {err.decode()}")
                lines.append(line.decode())
        yield Dev(process, "".join(lines))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(60):
                await process.communicate()


async def start(*arguments: str, home: Path, **variables: str) -> asyncio.subprocess.Process:
    # The caches stay those of the machine: nothing is downloaded again.
    cache = os.environ.get("SANDBOXD_CACHE_DIR") or str(Path.home() / ".cache" / "sandboxd")
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sandboxd",
        *arguments,
        env={**os.environ, "HOME": str(home), "SANDBOXD_CACHE_DIR": cache, **variables},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
