"""The whole stack for one run: `sandboxd dev` in a directory of its own, with the stand-in CLI and our upstream."""

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sandboxd.dev.node import find_node

CLI = Path(__file__).parent / "recorded_cli.py"
START_SECONDS = 90
STOP_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack that answers."""

    address: str
    token: str
    data: Path


@asynccontextmanager
async def stack(data: Path, *, upstream: str, stand_in: bool) -> AsyncIterator[Stack]:
    """Start the stack, with the stand-in for the CLI or with the real one, give its address, and stop it.

    Raises:
        RuntimeError: It did not come up; the text ends with its last lines.
    """
    dropped = {name for name in os.environ if name.startswith("SANDBOXD_") and name != "SANDBOXD_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {
        "SANDBOXD_DATA_DIR": str(data),
        "SANDBOXD_GEMINI_URL": upstream,
        "SANDBOXD_GEMINI_API_KEY": "bench",
        "SANDBOXD_LOG_LEVEL": "warning",  # a line for each call would be measured, too
        "SANDBOXD_GRPC_LISTEN": "127.0.0.1:0",
        "SANDBOXD_WEB_LISTEN": "127.0.0.1:0",
    }
    data.mkdir(parents=True, exist_ok=True)
    if stand_in:
        environment |= {"SANDBOXD_NODE": str(make_shim(data)), "SANDBOXD_GEMINI_CLI": str(CLI)}
    log = data / "bench.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "sandboxd", "dev", env=environment, stdout=output, stderr=output
        )
    try:
        found = await _coming_up(process, data / "dev.json", log)
        token = (data / found["token_file"]).read_text().strip()
        yield Stack(address=found["address"], token=token, data=data)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def make_shim(data: Path) -> Path:
    """Make a program to name as Node, which runs the stand-in where the CLI is meant."""
    # The sandbox is prepared by small scripts for Node; only the CLI itself is replaced.
    shim = data / "node"
    python, node = shlex.quote(sys.executable), shlex.quote(str(find_node().binary))
    shim.write_text(f'#!/bin/sh\ncase "$1" in *recorded_cli.py) exec {python} "$@";; esac\nexec {node} "$@"\n')
    shim.chmod(0o755)
    return shim


async def _coming_up(process: asyncio.subprocess.Process, file: Path, log: Path) -> dict[str, str]:
    for _ in range(START_SECONDS * 10):
        if process.returncode is not None:
            break
        if file.is_file():
            found: dict[str, str] = json.loads(file.read_text())
            return found
        await asyncio.sleep(0.1)
    raise RuntimeError(f"the stack did not come up:\n{log.read_text(errors='replace')[-3000:]}")
