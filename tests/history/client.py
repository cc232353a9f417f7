"""One client of a run: does things by chance, tells honestly what it knows, and repeats what it does not know."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc, session_pb2, session_pb2_grpc, stream_pb2
from tests.history.record import Event, History, Kind, Operation, Outcome

CALL_SECONDS: Final = 15.0
TURN_SECONDS: Final = 40.0
ATTEMPTS: Final = 12
PAUSE_SECONDS: Final = 0.4
MODEL: Final = "gemini-2.5-flash"
CHANNEL: Final = (
    ("grpc.enable_retries", 0),  # or the library would repeat what we must know of
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_REFUSED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED,
    }
)  # fmt: skip
"""Codes that say that nothing was done. All others leave it open."""
_OPEN_REASONS: Final = frozenset(
    {"UNAVAILABLE", "DATABASE_UNAVAILABLE", "AGENT_UNAVAILABLE", "DEADLINE_EXCEEDED", "STALE_OWNER", "INTERNAL"}
)
"""The same for commands of a stream, by their reason."""


@dataclass(kw_only=True)
class Worker:
    """One client with a sandbox and a session of its own."""

    name: str
    channel: grpc.aio.Channel
    token: str
    history: History
    began: float
    chance: random.Random
    sandbox: str = ""
    session: str = ""
    known: list[str] = field(default_factory=list)
    """Sandboxes of everybody, which anybody may read."""
    _number: int = 0

    def __post_init__(self) -> None:
        self._boxes = sandbox_pb2_grpc.SandboxServiceStub(self.channel)
        self._sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self._metadata = (("authorization", f"Bearer {self.token}"),)

    async def work(self, *, until: float) -> None:
        """Do one thing after the other until that time of the run."""
        while self.now() < until:
            if not self.sandbox:
                await self.create()
                continue
            deed = self.chance.choices(["prompt", "get", "rest", "other", "end"], weights=[6, 3, 2, 2, 0.4])[0]
            match deed:
                case "prompt":
                    await self.prompt()
                case "get":
                    await self.get(self.sandbox)
                case "other":
                    await self.get(self.chance.choice(self.known))
                case "rest":
                    await self._mutate(Kind.PAUSE, self._boxes.Pause, pb.PauseRequest(name=self.sandbox, force=True))
                    await self.get(self.sandbox)
                    await self.resume()
                case _:
                    await self._mutate(Kind.TERMINATE, self._boxes.Terminate, pb.TerminateRequest(name=self.sandbox))
                    self.sandbox = self.session = ""
            await asyncio.sleep(self.chance.uniform(0, 0.2))

    def now(self) -> float:
        """The time of the run."""
        return time.monotonic() - self.began

    # ------------------------------------------------------------------ sandboxes

    async def create(self) -> None:
        """Make a sandbox of one's own; its display name is the request's id, by which it is found at the end."""
        request_id = self._new("create")
        wanted = pb.Sandbox(display_name=request_id, freelancer=request_id, model=MODEL)
        request = pb.CreateRequest(request_id=request_id, sandbox=wanted)
        await self._mutate(Kind.CREATE, self._boxes.Create, request, give_up=0.0)
        done = [one for one in self.history.operations if one.request_id == request_id and one.outcome is Outcome.OK]
        if done:
            self.sandbox, self.session = done[-1].sandbox, ""
            self.known.append(self.sandbox)

    async def resume(self, *, give_up: float = 0.1) -> None:
        """Bring one's sandbox back."""
        request = pb.ResumeRequest(name=self.sandbox)
        await self._mutate(Kind.RESUME, self._boxes.Resume, request, give_up=give_up)

    async def get(self, sandbox: str) -> None:
        """Read a sandbox once."""
        await self._once(Kind.GET, lambda: self._call(self._boxes.Get, pb.GetRequest(name=sandbox)), sandbox=sandbox)

    async def _mutate(self, kind: Kind, method: Any, request: Any, *, give_up: float = 0.1) -> None:
        """Ask, and ask again with the same id while nothing is known; now and then leave it open. Any: gRPC's stubs."""
        request.request_id = request.request_id or self._new(kind.value)
        leave = self.chance.random() < give_up
        for _ in range(ATTEMPTS):
            sandbox = getattr(request, "name", "")
            found = await self._once(
                kind, lambda: self._call(method, request), sandbox=sandbox, request_id=request.request_id
            )
            if found.outcome is not Outcome.UNKNOWN or leave:
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _call(self, method: Any, request: Any) -> Any:
        return await method(request, metadata=self._metadata, timeout=CALL_SECONDS)

    async def _once(
        self, kind: Kind, call: Callable[[], Awaitable[Any]], *, sandbox: str, request_id: str = ""
    ) -> Operation:
        start, state, reason = self.now(), "", ""
        try:
            answer = await call()
        except grpc.aio.AioRpcError as error:
            outcome = Outcome.FAILED if error.code() in _REFUSED else Outcome.UNKNOWN
            reason = error.code().name
        else:
            outcome, sandbox = Outcome.OK, answer.sandbox.name
            state = pb.SandboxState.Name(answer.sandbox.state).removeprefix("SANDBOX_STATE_")
        operation = Operation(
            client=self.name, kind=kind, start=start, end=self.now(), outcome=outcome, request_id=request_id,
            sandbox=sandbox, state=state, reason=reason,
        )  # fmt: skip
        self.history.operations.append(operation)
        return operation

    # ------------------------------------------------------------------ conversations

    async def prompt(self) -> str:
        """Take one turn, over as many connections as it needs; answers why it ended, or nothing."""
        request_id = self._new("prompt")
        asking = _Asking(request_id=request_id, marker=f"mark-{request_id}", opening=self._new("open"))
        deadline = self.now() + TURN_SECONDS
        while self.now() < deadline and not asking.over:
            start = self.now()
            try:
                async with asyncio.timeout(deadline - self.now()):
                    await self._converse(asking, start)
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
                reason = error.code().name if isinstance(error, grpc.aio.AioRpcError) else "TIMEOUT"
                if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSED:
                    asking.over = True
                if not asking.acknowledged:
                    outcome = Outcome.UNKNOWN if asking.sent else Outcome.FAILED
                    self._note(asking, start, outcome, reason=reason)
            await asyncio.sleep(PAUSE_SECONDS if not asking.over else 0)
        return asking.stop

    async def _converse(self, asking: _Asking, start: float) -> None:
        opening = stream_pb2.Open(sandbox=self.sandbox, session=self.session, after_sequence=len(self._seen()))
        opened = stream_pb2.StreamRequest(request_id=asking.opening, open=opening)
        command = stream_pb2.StreamRequest(
            request_id=asking.request_id,
            prompt=stream_pb2.Prompt(text=asking.text),
        )
        call = self._boxes.Stream(metadata=self._metadata)
        try:
            await call.write(opened)
            while not asking.over:
                response = await call.read()
                if not isinstance(response, stream_pb2.StreamResponse):
                    return
                match response.WhichOneof("event"):
                    case "stream_ready":
                        self.session = response.stream_ready.session
                        if not asking.acknowledged:
                            asking.sent = True
                            await call.write(command)
                    case "acknowledged" if response.acknowledged.request_id == asking.request_id:
                        asking.acknowledged, asking.turn = True, response.acknowledged.turn
                        self._note(asking, start, Outcome.OK)
                    case "command_failed" if response.command_failed.reason in _OPEN_REASONS:
                        self._note(asking, start, Outcome.UNKNOWN, reason=response.command_failed.reason)
                        return
                    case "command_failed":
                        self._note(asking, start, Outcome.FAILED, reason=response.command_failed.reason)
                        asking.over = True
                    case _:
                        pass
                if response.sequence:
                    event = read_event(response)
                    self._seen().append(event)
                    if event.kind == "turn_completed" and asking.turn and event.turn == asking.turn:
                        asking.over, asking.stop = True, event.stop
        finally:
            call.cancel()

    def _seen(self) -> list[Event]:
        return self.history.seen.setdefault((self.name, self.session), []) if self.session else []

    def _note(self, asking: _Asking, start: float, outcome: Outcome, *, reason: str = "") -> None:
        self.history.operations.append(
            Operation(
                client=self.name, kind=Kind.PROMPT, start=start, end=self.now(), outcome=outcome,
                request_id=asking.request_id, sandbox=self.sandbox, session=self.session, turn=asking.turn,
                marker=asking.marker, reason=reason,
            )
        )  # fmt: skip

    def _new(self, what: str) -> str:
        self._number += 1
        return f"{what}-{self.name}-{self._number:04d}"


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One prompt on its way."""

    request_id: str
    marker: str
    opening: str
    sent: bool = False
    acknowledged: bool = False
    over: bool = False
    turn: str = ""
    stop: str = ""

    @property
    def text(self) -> str:
        """What the stand-in CLI is to do."""
        return json.dumps({"chunks": 2, "interval": 0.05, "calls": 1, "marker": self.marker})


async def watch(worker: Worker, name: str) -> None:
    """Watch whatever session the worker has, each from its beginning, until cancelled."""
    stub: Any = sandbox_pb2_grpc.SandboxServiceStub(worker.channel)  # Any: gRPC's
    while True:
        await asyncio.sleep(0.1)
        sandbox, session = worker.sandbox, worker.session
        if not session:
            continue
        seen = worker.history.seen.setdefault((name, session), [])
        opening = stream_pb2.Open(sandbox=sandbox, session=session, after_sequence=len(seen), watch_only=True)
        call = stub.Stream(metadata=(("authorization", f"Bearer {worker.token}"),))
        try:
            await call.write(stream_pb2.StreamRequest(open=opening))
            while worker.session == session:
                async with asyncio.timeout(1):  # nothing new: look whether it is still the worker's session
                    response = await call.read()
                if not isinstance(response, stream_pb2.StreamResponse):
                    break
                if response.sequence:
                    seen.append(read_event(response))
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
            pass
        finally:
            call.cancel()


def read_event(response: stream_pb2.StreamResponse) -> Event:
    """What is written down of an event."""
    kind = response.WhichOneof("event") or ""
    marker = stop = ""
    if kind == "turn_started":
        marker = json.loads(response.turn_started.text).get("marker", "")
    elif kind == "turn_completed":
        stop = stream_pb2.StopReason.Name(response.turn_completed.stop_reason).removeprefix("STOP_REASON_")
    digest = hashlib.sha256(response.SerializeToString(deterministic=True)).hexdigest()[:16]
    return Event(sequence=response.sequence, kind=kind, digest=digest, turn=response.turn, marker=marker, stop=stop)


async def read_log(channel: grpc.aio.Channel, token: str, session: str) -> list[Event]:
    """The whole log of a session."""
    stub: Any = session_pb2_grpc.SessionServiceStub(channel)  # Any: gRPC's stubs
    found: list[Event] = []
    request = session_pb2.GetHistoryRequest(name=session, page_size=500)
    while True:
        page = await stub.GetHistory(request, metadata=(("authorization", f"Bearer {token}"),), timeout=CALL_SECONDS)
        found += [read_event(event) for event in page.events]
        if not page.next_after_sequence:
            return found
        request.after_sequence = page.next_after_sequence
