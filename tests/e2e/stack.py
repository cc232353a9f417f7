"""The real thing on this machine, in parts: `serve` and `gateway` as processes that a test may kill and start again.

PostgreSQL is a real one, the agent and Gemini CLI are the real ones; the model API is tests/fake_gemini.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp

from sandboxd.ctl.backoff import RetryPolicy
from sandboxd.ctl.client import Client, connect, usage_filter
from sandboxd.ctl.session_stream import SessionStream
from sandboxd.dev.child import child_environment
from sandboxd.dev.gemini_cli import ensure_gemini_cli
from sandboxd.dev.identity import DevIssuer
from sandboxd.settings import Settings
from sandboxd.v1 import stream_pb2 as pb
from sandboxd.v1 import usage_pb2
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.ports import a_free_port

READY_SECONDS = 150.0
TURN_SECONDS = 90.0
PATIENT = RetryPolicy(budget=timedelta(minutes=1))


@dataclass(kw_only=True)
class Stack:
    """What a test drives."""

    home: Path
    database_url: str
    model: FakeGemini
    ports: dict[str, int] = field(
        default_factory=lambda: {name: a_free_port() for name in ("grpc", "web", "gateway", "gateway_web")}
    )
    api_key: str = ""
    """Only the gateway gets it."""
    settings: dict[str, str] = field(default_factory=dict)
    """More variables for both roles."""
    client_id: str = "dev"
    """Whose administrator the token names."""
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cli = ensure_gemini_cli(lambda _: None)
        local = "127.0.0.1"
        self.environment = child_environment(
            {
                "SANDBOXD_DATA_DIR": str(self.home),
                "SANDBOXD_DATABASE_URL": self.database_url,
                "SANDBOXD_GRPC_LISTEN": f"{local}:{self.ports['grpc']}",
                "SANDBOXD_WEB_LISTEN": f"{local}:{self.ports['web']}",
                "SANDBOXD_GATEWAY_LISTEN": f"{local}:{self.ports['gateway']}",
                "SANDBOXD_GATEWAY_URL": f"http://{local}:{self.ports['gateway']}",
                "SANDBOXD_GATEWAY_WEB_LISTEN": f"{local}:{self.ports['gateway_web']}",
                "SANDBOXD_GEMINI_URL": self.model.url,
                "SANDBOXD_NODE": str(cli.node),
                "SANDBOXD_GEMINI_CLI": str(cli.entry),
            },
            with_api_key=False,
        )
        self.token = self.mint("client_admin")

    # ------------------------------------------------------------------ processes

    async def start(self, role: str, *, failpoints: str = "", ready: bool = True) -> None:
        """Start a role; with failpoints it may die on its own."""
        environment = self.environment | self.settings
        if failpoints:
            environment["SANDBOXD_FAILPOINTS"] = failpoints
        if self.api_key and role == "gateway":
            environment["GEMINI_API_KEY"] = self.api_key
        with (self.home / f"{role}.log").open("ab") as log:
            self.processes[role] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sandboxd", role, env=environment, stdout=log, stderr=log
            )
        if ready:
            await self.ready(role)

    async def ready(self, role: str) -> None:
        port = self.ports["web" if role == "serve" else "gateway_web"]
        process = self.processes[role]

        async def answers() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"{role} ended with {process.returncode}: {self.log(role)}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    return answer.status == 200
            return False

        async with aiohttp.ClientSession() as session:
            try:
                await eventually(answers, within=READY_SECONDS, every=0.05, what=f"{role} is ready")
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log(role)}") from error

    async def kill(self, role: str) -> None:
        """SIGKILL: nothing is said, nothing is handed over."""
        process = self.processes[role]
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def died(self, role: str, *, within: float = 30.0) -> None:
        """Wait until a role has struck its failpoint."""
        async with asyncio.timeout(within):
            await self.processes[role].wait()

    async def restart(self, role: str, *, failpoints: str = "") -> None:
        await self.kill(role)
        await self.start(role, failpoints=failpoints)

    def log(self, role: str) -> str:
        return (self.home / f"{role}.log").read_text(errors="replace")[-3000:]

    def pids(self, words: str) -> Sequence[int]:
        """Processes of this stack's sandboxes whose command line has these words."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = f"{(entry / 'cwd').readlink()} {command}"
                if words in command and str(self.home) in place:
                    found.append(int(entry.name))
        return found

    def kill_pids(self, words: str) -> None:
        """SIGKILL processes of this stack's sandboxes."""
        pids = self.pids(words)
        assert pids, f"nothing of this stack runs {words}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    async def stop(self) -> None:
        for role in ("serve", "gateway"):
            if role in self.processes:
                await self.kill(role)
        with contextlib.suppress(AssertionError):
            self.kill_pids("sandboxd.agent")
        with contextlib.suppress(AssertionError):
            self.kill_pids("gemini")

    # ------------------------------------------------------------------ as a client

    def mint(self, role: str) -> str:
        """A token of the stack's client in this role."""
        issuer = DevIssuer.open(Settings(data_dir=self.home))
        return issuer.mint(client=self.client_id, subject="dev", role=role, seconds=3600)

    @asynccontextmanager
    async def client(self, *, retry: RetryPolicy = PATIENT, role: str = "") -> AsyncIterator[Client]:
        """A caller; the administrator of the stack's client unless another role is named."""
        token = self.mint(role) if role else self.token
        async with connect(f"127.0.0.1:{self.ports['grpc']}", token=token, retry=retry, reconnect=PATIENT) as client:
            yield client

    @property
    def paid(self) -> Sequence[str]:
        """Prompts that reached the model API, one for each model call that was not routing."""
        return [
            part["text"]
            for request in self.model.requests
            if "streamGenerateContent" in request["path"]
            for part in request["body"]["contents"][-1]["parts"][-1:]
            if "text" in part
        ]

    async def ledger(self, client: Client, sandbox: str) -> Sequence[usage_pb2.UsageEvent]:
        """The ledger's rows of a sandbox, once none is open."""

        async def settled() -> Sequence[usage_pb2.UsageEvent]:
            rows = [row async for row in client.usage_events(usage_filter(sandbox=sandbox))]
            assert all(row.state != usage_pb2.USAGE_STATE_OPEN for row in rows), "rows are open"
            return rows

        return await eventually(settled, within=60.0)  # a dead gateway's calls are settled after 30 s of silence


@dataclass(kw_only=True)
class Transcript:
    """What a client saw of one session: every event with a number, in the order of arrival."""

    stream: SessionStream
    events: list[pb.StreamResponse] = field(default_factory=list)

    async def until(self, *kinds: str, within: float = TURN_SECONDS) -> pb.StreamResponse:
        """Read on until an event of one of these kinds; permissions on the way are granted."""
        async with asyncio.timeout(within):
            async for event in self.stream:
                kind = event.WhichOneof("event")
                assert kind != "command_failed", event.command_failed
                if event.sequence:
                    self.events.append(event)
                if kind == "permission_request" and kind not in kinds:
                    self.stream.answer(event.permission_request.permission, "proceed_once")
                if kind in kinds:
                    return event
        raise AssertionError(f"the stream ended without {kinds}")

    async def turn(self, text: str) -> pb.TurnCompleted:
        self.stream.prompt(text)
        return (await self.until("turn_completed")).turn_completed

    @property
    def text(self) -> str:
        return "".join(event.text.text for event in self.events if event.HasField("text"))

    def kinds(self) -> Sequence[str | None]:
        return [event.WhichOneof("event") for event in self.events]

    def assert_whole(self) -> None:
        """Every event once, in order, without a gap."""
        assert [event.sequence for event in self.events] == list(range(1, len(self.events) + 1))
