"""A role as a child process: started, watched, started again when it dies, and ended in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

FIRST_WAIT: Final = 0.2
LAST_WAIT: Final = 10.0
STEADY_SECONDS: Final = 20.0
"""A child that ran this long died of something new: the waits begin anew."""
MAX_LOG_BYTES: Final = 20 << 20
"""A log that is larger when its stack starts becomes `<name>.log.1`."""
_API_KEYS: Final = frozenset(
    f"{prefix}{name}{suffix}"
    for prefix in ("", "SANDBOXD_")
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    for suffix in ("", "_FILE")
)
_TAIL_BYTES: Final = 16 << 10


class ChildFailedError(Exception):
    """A child ended before it was ready; the text has the end of its log."""


class Child:
    """One role of the stack."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.log = log
        self._arguments = [sys.executable, "-m", "sandboxd", *arguments, "--with-parent"]
        self._environment = dict(environment)
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._ready = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the process that runs now."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it, and keep it running."""
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        await self._launch()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{self.name}")

    async def wait_ready(self, port: int, *, seconds: float) -> None:
        """Wait until `/readyz` on a port says so.

        Raises:
            ChildFailedError: It ended, or it is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while not await _answers_ready(port):
            if self._process is not None and self._process.returncode is not None:
                raise ChildFailedError(self._report(f"{self.name} ended with code {self._process.returncode}"))
            if time.monotonic() > deadline:
                raise ChildFailedError(self._report(f"{self.name} is not ready after {seconds:g} s"))
            await asyncio.sleep(0.03)
        self._ready = True

    async def stop(self, *, grace: float) -> None:
        """Ask it to end; kill it after the grace."""
        self._stopping = True
        if self._watcher is not None:
            self._watcher.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            self._say(f"{self.name} did not end within {grace:g} s and is killed; its log: {self.log}")
            process.kill()
            await process.wait()

    async def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C at the terminal is for the supervisor, which ends its children in order.
                start_new_session=True,
            )

    async def _watch(self) -> None:
        wait = FIRST_WAIT
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping or not self._ready:
                return
            if time.monotonic() - began > STEADY_SECONDS:
                wait = FIRST_WAIT
            self._say(self._report(f"{self.name} ended with code {code}; it starts again in {wait:g} s"))
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_WAIT)
            await self._launch()

    def _report(self, what: str) -> str:
        return f"{what}. The end of {self.log}:\n{tail(self.log)}"


def tail(log: Path, *, lines: int = 15) -> str:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return "  (it cannot be read)"
    return "\n".join(f"  {line[:400]}" for line in text.splitlines()[-lines:]) or "  (it is empty)"


async def _answers_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status


def child_environment(changes: Mapping[str, str], *, with_api_key: bool) -> dict[str, str]:
    """Return this process's environment with changes. Only the gateway gets the API key."""
    kept = os.environ if with_api_key else {k: v for k, v in os.environ.items() if k not in _API_KEYS}
    return {**kept, **changes}
