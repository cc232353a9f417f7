"""One call of Stream: commands are read and events are written at the same time, until one side ends it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, cast

import grpc.aio
import structlog

from sandboxd.api.grpc.admission import Drain, StreamSlots, draining
from sandboxd.api.grpc.body_hash import hash_command
from sandboxd.api.grpc.codec_events import encode_event
from sandboxd.api.grpc.codec_packages import encode_tidings
from sandboxd.api.grpc.codec_session import decode_opening, decode_prompt
from sandboxd.api.grpc.deeds import deed_of, outcome_of
from sandboxd.api.grpc.errors import INTERNAL_MESSAGE, WatchOnlyError
from sandboxd.api.grpc.interceptors.audit import on_record
from sandboxd.api.grpc.interceptors.failures import make_error_id
from sandboxd.api.grpc.names import session_name, timestamp, turn_name
from sandboxd.api.grpc.ports import SandboxManager, SessionDirectory, SessionHandle, StreamHub
from sandboxd.api.grpc.rpc import ClientGoneError, Rpc, Undecodable, closed_at_end, write
from sandboxd.api.grpc.stay import Stay
from sandboxd.api.grpc.validation import UNDECODABLE, RequestRules, refusal
from sandboxd.model.errors import (
    DeadlineError,
    FieldViolation,
    InvalidRequestError,
    SandboxdError,
    UnauthenticatedError,
)
from sandboxd.model.events import TurnCompleted
from sandboxd.model.ids import RequestId, TurnId
from sandboxd.model.trace import TRACEPARENT, Span, SpanKind, Tracer, parse_traceparent
from sandboxd.monitor.audit_ports import AuditTrail
from sandboxd.stream.opening import Accepted
from sandboxd.v1 import stream_pb2 as pb

log = structlog.get_logger("sandboxd.api")

StreamContext = grpc.aio.ServicerContext[pb.StreamRequest, pb.StreamResponse]

HALF_CLOSE_SETTLES = 0.1
"""Seconds. grpc.aio reports a vanished client as an end of its requests first, and cancels the call right after: only
an end that no cancellation follows is a half-close."""
_ASK_AGAIN = 1.0
"""Seconds between looks at a session that a half-closed call waits for."""


class StreamCalls:
    """Serves the calls of Stream."""

    def __init__(
        self,
        *,
        hub: StreamHub,
        sessions: SessionDirectory,
        rules: RequestRules,
        manager: SandboxManager,
        slots: StreamSlots,
        drain: Drain,
        stay: Stay,
        trail: AuditTrail,
        first_within: timedelta,
        write_within: timedelta,
        tracer: Tracer,
    ) -> None:
        self._trail = trail
        self._first_within = first_within
        self.write_within = write_within
        self.tracer = tracer
        self._hub = hub
        self.manager = manager
        """Says what policy is about to do with the sandbox."""
        self._sessions = sessions
        self._rules = rules
        self._slots = slots
        self._drain = drain
        self._stay = stay

    async def serve(self, rpc: Rpc, context: StreamContext) -> None:
        """Serve one call until it ends."""
        self._drain.refuse()
        with self._slots.take(rpc.caller.client):
            first = await self._first(context)
            if isinstance(first, Undecodable):
                raise refusal([FieldViolation(field="", description=UNDECODABLE)])
            if first is None:
                raise InvalidRequestError("The first request of a stream must be `open`; none came.")
            if violations := await self._rules.violations(first):
                raise refusal(violations)
            if not first.HasField("open"):
                raise refusal([FieldViolation(field="command", description="the first request must be `open`")])
            rpc.target = first.open.session or first.open.sandbox
            handle = await self._open(rpc, first)
            rpc.on_record = True
            rpc.facts["sandbox"], rpc.facts["session"] = handle.session.sandbox, handle.session.id
            call = _Call(rpc=rpc, context=context, handle=handle, opening=first.open, calls=self)
            await call.run()

    async def _open(self, rpc: Rpc, first: pb.StreamRequest) -> SessionHandle:
        """Open the session. To make a new one changes something, and is put on record before."""
        opening = decode_opening(
            first.open, request_id=first.request_id, body_hash=hash_command(first, session=first.open.sandbox)
        )
        if opening.session is not None or opening.watch_only:
            return await self._hub.open(rpc.caller, opening)
        deed = deed_of(rpc, command="open", message=first, target=first.open.sandbox)
        async with on_record(self._trail, rpc, deed) as record:
            rpc.on_record = True
            handle = await self._hub.open(rpc.caller, opening)
            record.target = session_name(handle.session.sandbox, handle.session.id)
        return handle

    async def _first(self, context: StreamContext) -> pb.StreamRequest | Undecodable | None:
        try:
            async with asyncio.timeout(self._first_within.total_seconds()):
                return await _read(context)
        except TimeoutError as error:
            # A call that says nothing must not hold a slot for ever.
            raise DeadlineError("The first request of the stream, `open`, did not come in time.") from error

    @property
    def rules(self) -> RequestRules:
        """The rules that every command is checked against."""
        return self._rules

    @property
    def sessions(self) -> SessionDirectory:
        """Where a half-closed call asks how far its session is."""
        return self._sessions

    @property
    def trail(self) -> AuditTrail:
        """Puts commands on record."""
        return self._trail

    @property
    def drain(self) -> Drain:
        """Ends the call when the server stops."""
        return self._drain

    @property
    def stay(self) -> Stay:
        """Ends the call when its caller must go."""
        return self._stay


class _AllSentError(Exception):
    """Ends the task group of a half-closed call: everything was sent."""


class _Call:
    """The state of one call, once its session is open."""

    def __init__(
        self, *, rpc: Rpc, context: StreamContext, handle: SessionHandle, opening: pb.Open, calls: StreamCalls
    ) -> None:
        self._rpc = rpc
        self._context = context
        self._handle = handle
        self._watch_only = opening.watch_only
        self._calls = calls
        self._sandbox, self._session = handle.session.sandbox, handle.session.id
        self._name = session_name(self._sandbox, self._session)
        # grpc allows one write at a time; answers and events come from two tasks.
        self._writing = asyncio.Lock()
        self._sent = handle.head if opening.after_sequence < 0 else opening.after_sequence
        self._completed: set[TurnId] = set()
        self._progress = asyncio.Event()
        self._half_closed = False

    async def run(self) -> None:
        vanished = False
        try:
            await self._serve()
        except (asyncio.CancelledError, ClientGoneError):
            vanished = not self._half_closed
            raise
        finally:
            await asyncio.shield(self._handle.leave(clean=not vanished))

    async def _serve(self) -> None:
        await self._write(
            pb.StreamResponse(
                stream_ready=pb.StreamReady(
                    session=self._name,
                    head_sequence=self._handle.head,
                    open_turn=self._turn(self._handle.open_turn),
                    created=self._handle.created,
                )
            )
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send_events(), name=f"stream-events {self._session}")
                tasks.create_task(self._take_commands(), name=f"stream-commands {self._session}")
                tasks.create_task(self._tell_rests(), name=f"stream-rests {self._session}")
                tasks.create_task(self._tell_packages(), name=f"stream-packages {self._session}")
                tasks.create_task(self._calls.drain.end(), name=f"stream-drain {self._session}")
                tasks.create_task(self._calls.stay.end(self._rpc, self._announce), name=f"stream-stay {self._session}")
        except BaseExceptionGroup as group:
            if group.subgroup(ClientGoneError) is not None:
                raise ClientGoneError from group
            _, rest = group.split(_AllSentError)
            if rest is not None:
                raise rest from None

    async def _announce(self, expired: UnauthenticatedError, left: timedelta) -> None:
        """Say that the stream will end, and why; the turn does not end with it."""
        notice = pb.Notice(
            code=expired.reason, message=f"{expired.message} This stream ends in {left.total_seconds():.0f} s."
        )
        await self._write(pb.StreamResponse(notice=notice))

    async def _tell_rests(self) -> None:
        """Announce what policy does with the sandbox. No part of the session's log: it concerns who is here now."""
        notices = self._calls.manager.rest_notices(self._sandbox)
        async with closed_at_end(notices):
            async for one in notices:
                notice = pb.Notice(code=one.code, message=one.message, due_time=timestamp(one.due_time))
                await self._write(pb.StreamResponse(notice=notice))

    async def _tell_packages(self) -> None:
        """Tell which packages of the sandbox change. No part of the session's log: the sandbox has its own history."""
        told: int | None = None
        tidings = self._calls.manager.package_tidings(self._sandbox)
        async with closed_at_end(tidings):
            async for one in tidings:
                told = one.after_number if told is None else told
                await self._write(encode_tidings(one, sandbox=self._sandbox, told=told))
                told = one.last_number

    async def _send_events(self) -> None:
        sent = 0
        try:
            events = self._handle.events()
            async with closed_at_end(events):
                async for event in events:
                    await self._write(encode_event(event, sandbox=self._sandbox))
                    sent += 1
                    self._sent = event.sequence
                    if isinstance(event.body, TurnCompleted) and event.turn is not None:
                        self._completed.add(event.turn)
                    self._progress.set()
        finally:
            self._rpc.facts["events"] = sent
        raise draining()

    async def _take_commands(self) -> None:
        commands = 0
        while (message := await _read(self._context)) is not None:
            commands += 1
            self._rpc.facts["commands"] = commands
            await self._write(await self._obey(message))
        await asyncio.sleep(HALF_CLOSE_SETTLES)
        self._half_closed = True
        await self._wait_until_all_is_sent()
        raise _AllSentError

    async def _wait_until_all_is_sent(self) -> None:
        # What the client asked for is durable by now, so the session's row knows of it.
        while True:
            session = await self._calls.sessions.get(self._rpc.caller, self._sandbox, self._session)
            if self._sent >= session.head_sequence and (
                session.open_turn is None or session.open_turn in self._completed
            ):
                return
            self._progress.clear()
            try:
                async with asyncio.timeout(_ASK_AGAIN):
                    while self._sent < session.head_sequence or (
                        session.open_turn is not None and session.open_turn not in self._completed
                    ):
                        await self._progress.wait()
                        self._progress.clear()
                return
            except TimeoutError:
                continue

    async def _obey(self, message: pb.StreamRequest | Undecodable) -> pb.StreamResponse:
        """Do one command and make its answer. A refused command is an answer; the stream goes on."""
        if isinstance(message, Undecodable):
            return _refused(refusal([FieldViolation(field="", description=UNDECODABLE)]), request_id="")
        try:
            if violations := await self._calls.rules.violations(message):
                raise refusal(violations)
            if message.HasField("ping"):
                return pb.StreamResponse(pong=pb.Pong(payload=message.ping.payload))
            if message.HasField("open"):
                raise refusal([FieldViolation(field="open", description="must be the first request, and only that")])
            deed = deed_of(self._rpc, command=message.WhichOneof("command") or "", message=message, target=self._name)
            if self._watch_only:
                refused = WatchOnlyError("This call only watches. Open another one to give commands.")
                self._calls.trail.deny(deed, outcome_of(refused))
                raise refused
            with self._traced(message):
                async with on_record(self._calls.trail, self._rpc, deed) as record:
                    accepted = await self._command(message)
                    record.target = self._turn(accepted.turn)
        except SandboxdError as error:
            return _refused(error, request_id=message.request_id)
        except Exception:  # a loop: one broken command must not end the conversation
            error_id = make_error_id()
            log.exception("stream.command_failed_unexpectedly", error_id=error_id)
            failed = pb.CommandFailed(
                request_id=message.request_id,
                reason="INTERNAL",
                message=INTERNAL_MESSAGE,
                metadata={"error_id": error_id},
            )
            return pb.StreamResponse(command_failed=failed)
        return pb.StreamResponse(
            acknowledged=pb.Acknowledged(
                request_id=message.request_id, repeated=accepted.repeated, turn=self._turn(accepted.turn)
            )
        )

    def _traced(self, message: pb.StreamRequest) -> AbstractContextManager[Span]:
        """A command's span: below the stream's where its caller traces, else a trace of its own. A chat lasts hours."""
        tracer, stream = self._calls.tracer, self._calls.tracer.current()
        given = parse_traceparent(self._rpc.metadata.get(TRACEPARENT)) is not None
        return tracer.span(
            f"{self._rpc.method}/{message.WhichOneof('command')}",
            kind=SpanKind.SERVER,
            root=not given,
            links=() if given or stream is None else (stream,),
            attributes={"sandbox": self._sandbox, "session": self._session},
        )

    async def _command(self, message: pb.StreamRequest) -> Accepted:
        request_id = RequestId(message.request_id)
        body_hash = hash_command(message, session=self._name)
        match message.WhichOneof("command"):
            case "prompt":
                prompt = decode_prompt(message.prompt)
                return await self._handle.prompt(request_id=request_id, body_hash=body_hash, prompt=prompt)
            case "answer_permission":
                answer = message.answer_permission
                return await self._handle.answer(
                    request_id=request_id, body_hash=body_hash, permission=answer.permission, option=answer.option
                )
            case "cancel_turn":
                return await self._handle.cancel(request_id=request_id, body_hash=body_hash)
            case "set_mode":
                return await self._handle.set_mode(
                    request_id=request_id, body_hash=body_hash, mode=message.set_mode.mode
                )
            case "set_model":
                return await self._handle.set_model(
                    request_id=request_id, body_hash=body_hash, model=message.set_model.model
                )
            case _:
                raise refusal([FieldViolation(field="command", description="this version does not know the command")])

    async def _write(self, response: pb.StreamResponse) -> None:
        async with self._writing:
            await write(self._context, response, within=self._calls.write_within)

    def _turn(self, turn: TurnId | None) -> str:
        return turn_name(self._sandbox, self._session, turn)


def _refused(error: SandboxdError, *, request_id: str) -> pb.StreamResponse:
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    return pb.StreamResponse(
        command_failed=pb.CommandFailed(
            request_id=request_id,
            reason=error.reason,
            message=error.message,
            metadata=error.metadata,
            violations=[pb.FieldViolation(field=one.field, description=one.description) for one in violations],
        )
    )


async def _read(context: StreamContext) -> pb.StreamRequest | Undecodable | None:
    # Any: grpcio types read() as a request or its private end mark.
    message: Any = await context.read()
    return None if message is grpc.aio.EOF else cast("pb.StreamRequest | Undecodable", message)
