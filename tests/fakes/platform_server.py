"""A service that speaks sandboxd's contract from memory, for tests of its clients, and fails in the ways they fear.

Prompts choose what a turn does: `permission` in the text asks one question, `slow` works until it is cancelled,
`refuse` and `fail` end badly, everything else thinks, edits a file and answers with an echo.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from typing_extensions import override

from sandboxd.v1 import (
    backup_pb2,
    sandbox_pb2,
    sandbox_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    stream_pb2,
    usage_pb2,
    usage_pb2_grpc,
)
from tests.fakes.platform_accounting import FakeAccounting
from tests.fakes.platform_admin import FakeAdmin
from tests.fakes.platform_backups import FakeBackups
from tests.fakes.platform_images import FakeImages
from tests.fakes.platform_packages import FakePackages

TOKEN = "a-token-of-the-tests"
MODEL = "gemini-2.5-flash"


@dataclass
class FakeSession:
    """One session: its log, and what is open in it."""

    session: session_pb2.Session
    log: list[stream_pb2.StreamResponse] = field(default_factory=list)
    acknowledged: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    cancelled: bool = False


class FakePlatform(
    sandbox_pb2_grpc.SandboxServiceServicer,
    session_pb2_grpc.SessionServiceServicer,
    usage_pb2_grpc.UsageServiceServicer,
    FakeAccounting,
    FakeAdmin,
    FakePackages,
    FakeBackups,
    FakeImages,
):
    """The service. What tests look at and turn are its public attributes."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, sandbox_pb2.Sandbox] = {}
        self.sessions: dict[str, FakeSession] = {}
        self.created: dict[str, str] = {}
        """Sandboxes by the request id that made them."""
        self.prompts: list[str] = []
        """Prompts that were paid."""
        self.calls: list[tuple[str, Message]] = []
        """Every request, by method."""
        self.opens: list[stream_pb2.StreamRequest] = []
        """First request of every Stream call."""
        self.lose_answers = 0
        """So many unary calls do their work and then fail with UNAVAILABLE."""
        self.cut_after: list[int] = []
        """For each Stream call to come: cut it after so many responses."""
        self.swallow_acks = 0
        """So many acknowledgements are lost: the call is cut instead."""
        self.repeat_events = False
        """Send events again that the client has seen."""
        self.leave_out: set[int] = set()
        """Sequence numbers that are left out once."""
        self.page = 2
        """Largest page."""
        self.usage: list[usage_pb2.UsageEvent] = []
        self.restores: list[sandbox_pb2.RestoreRequest] = []
        self.creates: list[sandbox_pb2.CreateRequest] = []
        FakeAccounting.__init__(self)
        FakeAdmin.__init__(self)
        FakePackages.__init__(self)
        FakeBackups.__init__(self)
        FakeImages.__init__(self)
        self.lock = threading.Condition()
        self.address = ""
        self._server: grpc.Server | None = None

    # -- how it is run

    @contextmanager
    def served(self) -> Iterator[FakePlatform]:
        """Serve on a free port for as long as the block lasts."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        sandbox_pb2_grpc.add_SandboxServiceServicer_to_server(self, server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, server)
        usage_pb2_grpc.add_UsageServiceServicer_to_server(self, server)
        self.add_accounting_to(server)
        self.add_admin_to(server)
        self.add_packages_to(server)
        self.add_backups_to(server)
        self.add_images_to(server)
        port = server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        server.start()
        self._server = server

    def stop(self) -> None:
        """Cut every connection at once."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None
        with self.lock:
            self.lock.notify_all()

    # -- what tests put into it

    def given_sandbox(self, name: str, *, state: str = "ACTIVE", **fields: Any) -> sandbox_pb2.Sandbox:
        """Put a sandbox there."""
        sandbox = sandbox_pb2.Sandbox(
            name=f"sandboxes/{name}", state=sandbox_pb2.SandboxState.Value(f"SANDBOX_STATE_{state}"), **fields
        )
        sandbox.create_time.FromDatetime(datetime.now(UTC))
        with self.lock:
            self.sandboxes[sandbox.name] = sandbox
            self.lock.notify_all()
        return sandbox

    def given_session(self, sandbox: str, name: str, **fields: Any) -> FakeSession:
        """Put a session there, with its first event."""
        found = FakeSession(session_pb2.Session(name=f"sandboxes/{sandbox}/sessions/{name}", **fields))
        self.sessions[found.session.name] = found
        self.say(found, session_opened=stream_pb2.SessionOpened(title=found.session.title))
        return found

    def say(self, session: FakeSession, *, turn: str = "", **event: Any) -> stream_pb2.StreamResponse:
        """Append an event to a log."""
        with self.lock:
            response = stream_pb2.StreamResponse(sequence=len(session.log) + 1, turn=turn, **event)
            response.event_time.FromDatetime(datetime.now(UTC))
            session.log.append(response)
            session.session.head_sequence = response.sequence
            self.lock.notify_all()
        return response

    # -- sandboxes

    @override
    def Create(self, request: sandbox_pb2.CreateRequest, context: Any) -> sandbox_pb2.CreateResponse:
        self._enter("Create", request, context)
        self.creates.append(request)
        name = self.created.setdefault(request.request_id, f"sbx-{len(self.created) + 100:026d}")
        if f"sandboxes/{name}" not in self.sandboxes:
            wanted = request.sandbox
            self.given_sandbox(
                name,
                display_name=wanted.display_name,
                freelancer=wanted.freelancer or "ada",
                labels=wanted.labels,
                tier=wanted.tier,
                model=wanted.model,
                approval_mode=wanted.approval_mode,
                client="acme",
            )
        self._leave(context)
        return sandbox_pb2.CreateResponse(sandbox=self.sandboxes[f"sandboxes/{name}"])

    @override
    def Get(self, request: sandbox_pb2.GetRequest, context: Any) -> sandbox_pb2.GetResponse:
        self._enter("Get", request, context)
        self._leave(context)
        return sandbox_pb2.GetResponse(sandbox=self._sandbox(request.name, context))

    @override
    def List(self, request: sandbox_pb2.ListRequest, context: Any) -> sandbox_pb2.ListResponse:
        self._enter("List", request, context)
        self._leave(context)
        found, token = self._paged([*self._matching(request.filter)], request.page_token)
        return sandbox_pb2.ListResponse(sandboxes=found, next_page_token=token)

    @override
    def Watch(self, request: sandbox_pb2.WatchRequest, context: Any) -> Iterator[sandbox_pb2.WatchResponse]:
        self._enter("Watch", request, context)
        kind = sandbox_pb2.WatchResponse
        known = {each.name: each.SerializeToString() for each in self._matching(request.filter)}
        for name in known:
            yield kind(change=kind.CHANGE_PRESENT, sandbox=self.sandboxes[name])
        yield kind(change=kind.CHANGE_SYNCED)
        while context.is_active():
            with self.lock:
                self.lock.wait(0.05)
                now = {each.name: each.SerializeToString() for each in self._matching(request.filter)}
            for name in known.keys() - now.keys():
                yield kind(change=kind.CHANGE_REMOVED, sandbox=sandbox_pb2.Sandbox(name=name))
            for name in (each for each in now if now[each] != known.get(each)):
                yield kind(change=kind.CHANGE_UPDATED, sandbox=self.sandboxes[name])
            known = now

    @override
    def Pause(self, request: sandbox_pb2.PauseRequest, context: Any) -> sandbox_pb2.PauseResponse:
        self._enter("Pause", request, context)
        sandbox = self._sandbox(request.name, context)
        open_turn = any(each.session.open_turn for each in self.sessions.values())
        if open_turn and not request.force:
            refuse(context, "FAILED_PRECONDITION", "TURN_IN_PROGRESS", "A turn is open.", sandbox=request.name)
        self._set_state(sandbox, sandbox_pb2.SANDBOX_STATE_PAUSED)
        self._leave(context)
        return sandbox_pb2.PauseResponse(sandbox=sandbox)

    @override
    def Resume(self, request: sandbox_pb2.ResumeRequest, context: Any) -> sandbox_pb2.ResumeResponse:
        self._enter("Resume", request, context)
        sandbox = self._sandbox(request.name, context)
        if sandbox.state != sandbox_pb2.SANDBOX_STATE_PAUSED:
            refuse(context, "FAILED_PRECONDITION", "SANDBOX_STATE_INVALID", "It is ACTIVE.", sandbox=request.name)
        self._set_state(sandbox, sandbox_pb2.SANDBOX_STATE_ACTIVE)
        self._leave(context)
        return sandbox_pb2.ResumeResponse(sandbox=sandbox)

    @override
    def Terminate(self, request: sandbox_pb2.TerminateRequest, context: Any) -> sandbox_pb2.TerminateResponse:
        self._enter("Terminate", request, context)
        sandbox = self._sandbox(request.name, context)
        self._set_state(sandbox, sandbox_pb2.SANDBOX_STATE_TERMINATED)
        sandbox.final_backup.state = backup_pb2.FINAL_BACKUP_STATE_PENDING
        self._leave(context)
        return sandbox_pb2.TerminateResponse(sandbox=sandbox, kept="/data/kept")

    @override
    def Update(self, request: sandbox_pb2.UpdateRequest, context: Any) -> sandbox_pb2.UpdateResponse:
        refuse(context, "UNIMPLEMENTED", "NOT_IMPLEMENTED", "Not here.")

    @override
    def Commit(self, request: sandbox_pb2.CommitRequest, context: Any) -> sandbox_pb2.CommitResponse:
        return self.begin_commit(request)

    @override
    def Restore(self, request: sandbox_pb2.RestoreRequest, context: Any) -> sandbox_pb2.RestoreResponse:
        self.restores.append(request)
        self.restoring.wait(10)
        if self.cancelled_restores:
            context.abort(grpc.StatusCode.ABORTED, "The restore was cancelled.")
        return sandbox_pb2.RestoreResponse(sandbox=self.sandboxes[request.name])

    # -- the stream

    @override
    def Stream(
        self, request_iterator: Iterator[stream_pb2.StreamRequest], context: Any
    ) -> Iterator[stream_pb2.StreamResponse]:
        self._enter("Stream", stream_pb2.StreamRequest(), context)
        first = next(request_iterator)
        self.opens.append(first)
        session, created = self._open(first, context)
        cut = self.cut_after.pop(0) if self.cut_after else -1
        for sent, response in enumerate(self._responses(session, first.open, created, request_iterator, context)):
            if sent == cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
            yield response

    def _open(self, first: stream_pb2.StreamRequest, context: Any) -> tuple[FakeSession, bool]:
        sandbox = self._sandbox(first.open.sandbox, context)
        if sandbox.state == sandbox_pb2.SANDBOX_STATE_PAUSED and not first.open.watch_only:
            refuse(context, "FAILED_PRECONDITION", "SANDBOX_PAUSED", "It is paused.", sandbox=sandbox.name)
        name = first.open.session or f"{sandbox.name}/sessions/ses-{_stable(first.request_id):026d}"
        if name in self.sessions:
            return self.sessions[name], False
        if first.open.session:
            refuse(context, "NOT_FOUND", "SESSION_NOT_FOUND", "No such session.", session=name)
        short = name.rpartition("/")[2]
        made = self.given_session(
            sandbox.name.removeprefix("sandboxes/"), short, title=first.open.title, mode=first.open.mode or "default"
        )
        ready = stream_pb2.SessionReady(mode="default", modes=["default", "yolo"], model=MODEL, models=[MODEL])
        self.say(made, session_ready=ready)
        return made, True

    def _responses(
        self,
        session: FakeSession,
        opening: stream_pb2.Open,
        created: bool,
        requests: Iterator[stream_pb2.StreamRequest],
        context: Any,
    ) -> Iterator[stream_pb2.StreamResponse]:
        head = len(session.log)
        answers: list[stream_pb2.StreamResponse] = []
        hung_up = threading.Event()
        yield stream_pb2.StreamResponse(
            stream_ready=stream_pb2.StreamReady(
                session=session.session.name, head_sequence=head, open_turn=session.session.open_turn, created=created
            )
        )
        seen = head if opening.after_sequence < 0 else opening.after_sequence
        if self.repeat_events:
            seen = max(0, seen - 3)
        threading.Thread(
            target=self._commands, args=(session, requests, answers, hung_up, context), daemon=True
        ).start()
        while context.is_active():
            with self.lock:
                fresh, mine = session.log[seen:], answers[:]
                answers.clear()
                if not fresh and not mine:
                    if hung_up.is_set():
                        return
                    self.lock.wait(0.05)
                    continue
            for each in mine:
                if each.HasField("acknowledged") and self.swallow_acks:
                    self.swallow_acks -= 1
                    context.abort(grpc.StatusCode.UNAVAILABLE, "the acknowledgement was lost")
                yield each
            for each in fresh:
                seen = each.sequence
                if each.sequence in self.leave_out:
                    self.leave_out.discard(each.sequence)
                    continue
                yield each

    def _commands(
        self,
        session: FakeSession,
        requests: Iterator[stream_pb2.StreamRequest],
        answers: list[stream_pb2.StreamResponse],
        hung_up: threading.Event,
        context: Any,
    ) -> None:
        with suppress(Exception):  # the call is over
            for request in requests:
                answer = self._command(session, request)
                with self.lock:
                    answers.append(answer)
                    self.lock.notify_all()
        hung_up.set()
        with self.lock:
            self.lock.notify_all()

    def _command(self, session: FakeSession, request: stream_pb2.StreamRequest) -> stream_pb2.StreamResponse:
        key = request.request_id
        match request.WhichOneof("command"):
            case "ping":
                return stream_pb2.StreamResponse(pong=stream_pb2.Pong(payload=request.ping.payload))
            case _ if key in session.acknowledged:
                return _acknowledged(key, session.acknowledged[key], repeated=True)
            case "prompt":
                if session.session.open_turn:
                    return _failed(key, "TURN_IN_PROGRESS", "A turn is open.", session=session.session.name)
                return _acknowledged(key, self._start_turn(session, request))
            case "answer_permission":
                answer = request.answer_permission
                if answer.permission in session.answers:
                    return _failed(key, "PERMISSION_NOT_OPEN", "It was answered.")
                session.answers[answer.permission] = answer.option
                answered = stream_pb2.PermissionAnswered(
                    permission=answer.permission, option=answer.option, request_id=key
                )
                self.say(session, turn=session.session.open_turn, permission_answered=answered)
            case "cancel_turn":
                session.cancelled = True
                requested = stream_pb2.CancelRequested(request_id=key)
                self.say(session, turn=session.session.open_turn, cancel_requested=requested)
            case "set_mode":
                if request.set_mode.mode == "plan":
                    return _failed(key, "REQUEST_INVALID", "plan is not offered here.")
                session.session.mode = request.set_mode.mode
                self.say(session, mode_changed=stream_pb2.ModeChanged(mode=request.set_mode.mode, request_id=key))
            case "set_model":
                session.session.model = request.set_model.model
                self.say(session, model_changed=stream_pb2.ModelChanged(model=request.set_model.model, request_id=key))
            case other:
                raise AssertionError(other)
        session.acknowledged[key] = ""
        return _acknowledged(key, "")

    def _start_turn(self, session: FakeSession, request: stream_pb2.StreamRequest) -> str:
        self.prompts.append(request.prompt.text)
        session.session.turns += 1
        turn = f"{session.session.name}/turns/trn-{session.session.turns:026d}"
        session.session.open_turn, session.cancelled = turn, False
        session.acknowledged[request.request_id] = turn
        files = [
            stream_pb2.AttachmentInfo(file_name=each.file_name, mime_type=each.mime_type, size=len(each.data))
            for each in request.prompt.attachments
        ]
        started = stream_pb2.TurnStarted(
            request_id=request.request_id, number=session.session.turns, text=request.prompt.text, attachments=files
        )
        self.say(session, turn=turn, turn_started=started)
        threading.Thread(target=self._work, args=(session, turn, request.prompt.text), daemon=True).start()
        return turn

    def _work(self, session: FakeSession, turn: str, text: str) -> None:
        def say(**event: Any) -> None:
            self.say(session, turn=turn, **event)

        stop = stream_pb2.STOP_REASON_END_TURN
        say(thought=stream_pb2.Thought(subject="Planning", text="What do they want?"))
        if "permission" in text:
            self._ask(session, turn, f"prm-{session.session.turns}")
        if "slow" in text:
            say(text=stream_pb2.Text(text="working on it"))
            self._wait(lambda: session.cancelled)
        elif "refuse" in text:
            stop = stream_pb2.STOP_REASON_REFUSAL
        elif "fail" in text:
            say(error=stream_pb2.Error(reason="MODEL_UNAVAILABLE", message="It failed.", http_status=503))
            stop = stream_pb2.STOP_REASON_ERROR
        elif "permission" not in text:
            say(tool_call=stream_pb2.ToolCall(call="c1", tool="replace", title="a.txt", kind=stream_pb2.TOOL_KIND_EDIT))
            diff = stream_pb2.Diff(path="a.txt", old_text="one\n", new_text="two\n", kind="modify")
            done = stream_pb2.TOOL_STATUS_COMPLETED
            say(tool_output=stream_pb2.ToolOutput(call="c1", tool="replace", status=done, diffs=[diff]))
            say(text=stream_pb2.Text(text="Echo: "))
            say(text=stream_pb2.Text(text=text))
        if session.cancelled:
            stop = stream_pb2.STOP_REASON_CANCELLED
        self._finish(session, turn, stop)

    def _ask(self, session: FakeSession, turn: str, permission: str) -> None:
        kind = stream_pb2.PermissionOption
        options = [
            stream_pb2.PermissionOption(option="once", label="Allow once", kind=kind.KIND_ALLOW_ONCE),
            stream_pb2.PermissionOption(option="always", label="Always allow", kind=kind.KIND_ALLOW_ALWAYS),
            stream_pb2.PermissionOption(option="no", label="Reject", kind=kind.KIND_REJECT_ONCE),
        ]
        request = stream_pb2.PermissionRequest(
            permission=permission, call="c1", tool="run_shell_command", title="rm -rf build", options=options
        )
        self.say(session, turn=turn, permission_request=request)
        self._wait(lambda: session.cancelled or permission in session.answers)
        chosen = session.answers.get(permission, "")
        if session.cancelled:
            closed = stream_pb2.PermissionAnswered(permission=permission)
            self.say(session, turn=turn, permission_answered=closed)
        allowed = chosen in ("once", "always")
        status = stream_pb2.TOOL_STATUS_COMPLETED if allowed else stream_pb2.TOOL_STATUS_REJECTED
        output = stream_pb2.ToolOutput(call="c1", tool="run_shell_command", status=status, text="removed" * allowed)
        self.say(session, turn=turn, tool_output=output)
        self.say(session, turn=turn, text=stream_pb2.Text(text=f"You said {chosen or 'nothing'}."))

    def _finish(self, session: FakeSession, turn: str, stop: stream_pb2.StopReason.ValueType) -> None:
        used = usage_pb2.UsageEvent(
            id=f"use-{len(self.usage) + 1}",
            client="acme",
            freelancer="ada",
            sandbox=session.session.name.partition("/sessions/")[0],
            session=session.session.name,
            turn=turn,
            method="streamGenerateContent",
            model=MODEL,
            state=usage_pb2.USAGE_STATE_SETTLED,
            http_status=200,
            tokens=usage_pb2.TokenCounts(prompt=1000, cached=200, output=50, thoughts=10, total=1060),
            cost_micros=1234,
            currency="USD",
        )
        used.start_time.FromDatetime(datetime.now(UTC))
        self.usage.append(used)
        figures: dict[str, Any] = {
            "prompt_tokens": 1000,
            "cached_tokens": 200,
            "output_tokens": 50,
            "thoughts_tokens": 10,
            "total_tokens": 1060,
            "cost_micros": 1234,
            "currency": "USD",
        }
        self.say(
            session,
            turn=turn,
            usage=stream_pb2.Usage(usage_event=used.id, model=MODEL, http_status=200, **figures),
        )
        with self.lock:
            session.session.open_turn = ""
        completed = stream_pb2.TurnCompleted(
            stop_reason=stop, calls=1, duration_ms=1500, usage_complete=True, **figures
        )
        self.say(session, turn=turn, turn_completed=completed)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        with self.lock:
            while not condition() and time.monotonic() < deadline:
                self.lock.wait(0.05)

    # -- sessions and usage

    @override
    def ListSessions(self, request: session_pb2.ListSessionsRequest, context: Any) -> session_pb2.ListSessionsResponse:
        self._enter("ListSessions", request, context)
        self._sandbox(request.sandbox, context)
        mine = [each.session for name, each in self.sessions.items() if name.startswith(f"{request.sandbox}/")]
        found, token = self._paged(mine[::-1], request.page_token)
        return session_pb2.ListSessionsResponse(sessions=found, next_page_token=token)

    @override
    def GetSession(self, request: session_pb2.GetSessionRequest, context: Any) -> session_pb2.GetSessionResponse:
        self._enter("GetSession", request, context)
        return session_pb2.GetSessionResponse(session=self._session(request.name, context).session)

    @override
    def GetHistory(self, request: session_pb2.GetHistoryRequest, context: Any) -> session_pb2.GetHistoryResponse:
        self._enter("GetHistory", request, context)
        log = self._session(request.name, context).log
        last = request.after_sequence + self.page
        return session_pb2.GetHistoryResponse(
            events=log[request.after_sequence : last], next_after_sequence=last if last < len(log) else 0
        )

    @override
    def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Any
    ) -> session_pb2.DeleteSessionResponse:
        self._enter("DeleteSession", request, context)
        self._session(request.name, context)
        del self.sessions[request.name]
        return session_pb2.DeleteSessionResponse()

    @override
    def ListUsageEvents(
        self, request: usage_pb2.ListUsageEventsRequest, context: Any
    ) -> usage_pb2.ListUsageEventsResponse:
        self._enter("ListUsageEvents", request, context)
        wanted = request.filter
        rows = [each for each in self.usage if wanted.session in ("", each.session)]
        found, token = self._paged(rows, request.page_token)
        return usage_pb2.ListUsageEventsResponse(events=found, next_page_token=token)

    @override
    def WatchUsage(self, request: usage_pb2.WatchUsageRequest, context: Any) -> Iterator[usage_pb2.WatchUsageResponse]:
        """Send totals, and every call after the cursor; then cut, as a restart does, or refuse, when there is none."""
        self._enter("WatchUsage", request, context)
        seen = int(request.cursor.split(".")[0] or 0)
        if seen >= len(self.usage):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "You have seen everything.")
        total = usage_pb2.UsageSum()
        for row in self.usage:
            _add(total, row)
        yield usage_pb2.WatchUsageResponse(cursor=f"{seen}.0.", totals=total)
        yield usage_pb2.WatchUsageResponse(cursor=f"{seen + 1}.0.", event=self.usage[seen])
        context.abort(grpc.StatusCode.UNAVAILABLE, "The service is restarting.")

    @override
    def SummarizeResources(
        self, request: usage_pb2.SummarizeResourcesRequest, context: Any
    ) -> usage_pb2.SummarizeResourcesResponse:
        self._enter("SummarizeResources", request, context)
        found = usage_pb2.ResourceSum(
            keys=["basic"] * len(request.group_by), duration=Duration(seconds=5400), sandboxes=2
        )
        if request.kind == usage_pb2.RESOURCE_KIND_STORAGE:
            found.megabyte_seconds = 36_000_000
        return usage_pb2.SummarizeResourcesResponse(sums=[found], total=found)

    @override
    def SummarizeUsage(
        self, request: usage_pb2.SummarizeUsageRequest, context: Any
    ) -> usage_pb2.SummarizeUsageResponse:
        self._enter("SummarizeUsage", request, context)
        names = [
            usage_pb2.UsageDimension.Name(each).removeprefix("USAGE_DIMENSION_").lower() for each in request.group_by
        ]
        sums: dict[tuple[str, ...], usage_pb2.UsageSum] = {}
        total = usage_pb2.UsageSum()
        for row in self.usage:
            keys = tuple("2026-11-23" if name == "day" else str(getattr(row, name)) for name in names)
            for each in (sums.setdefault(keys, usage_pb2.UsageSum(keys=keys)), total):
                _add(each, row)
        return usage_pb2.SummarizeUsageResponse(sums=[*sums.values()] if names else [total], total=total)

    # -- what all of them do

    def _enter(self, method: str, request: Message, context: Any) -> None:
        self.calls.append((method, request))
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            refuse(context, "UNAUTHENTICATED", "UNAUTHENTICATED", "The token is not accepted.")

    def _leave(self, context: Any) -> None:
        if self.lose_answers:
            self.lose_answers -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    def _sandbox(self, name: str, context: Any) -> sandbox_pb2.Sandbox:
        if name not in self.sandboxes:
            refuse(context, "NOT_FOUND", "SANDBOX_NOT_FOUND", f"Sandbox {name} does not exist.", sandbox=name)
        return self.sandboxes[name]

    def _session(self, name: str, context: Any) -> FakeSession:
        if name not in self.sessions:
            refuse(context, "NOT_FOUND", "SESSION_NOT_FOUND", f"Session {name} does not exist.", session=name)
        return self.sessions[name]

    def _set_state(self, sandbox: sandbox_pb2.Sandbox, state: sandbox_pb2.SandboxState.ValueType) -> None:
        with self.lock:
            sandbox.state = state
            self.lock.notify_all()

    def _matching(self, wanted: sandbox_pb2.SandboxFilter) -> Iterator[sandbox_pb2.Sandbox]:
        for each in [*self.sandboxes.values()]:
            states = wanted.states or [
                state for state in sandbox_pb2.SandboxState.values() if state != sandbox_pb2.SANDBOX_STATE_TERMINATED
            ]
            labels = all(each.labels.get(key) == value for key, value in wanted.labels.items())
            if each.state in states and wanted.freelancer in ("", each.freelancer) and labels:
                yield each

    def _paged(self, rows: list[Any], token: str) -> tuple[list[Any], str]:
        start = int(token or 0)
        end = start + self.page
        return rows[start:end], str(end) if end < len(rows) else ""


def refuse(
    context: Any,
    code: str,
    reason: str,
    message: str,
    *,
    violations: Sequence[tuple[str, str]] = (),
    retry_seconds: int = 0,
    **facts: str,
) -> NoReturn:
    """End a call with google.rpc details."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain="sandboxd.dev", metadata=facts)]
    if violations:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=path, description=why) for path, why in violations]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if retry_seconds:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=retry_seconds)))
    packed = []
    for each in details:
        detail = Packed()
        detail.Pack(each)
        packed.append(detail)
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message=message, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


def _acknowledged(request_id: str, turn: str, *, repeated: bool = False) -> stream_pb2.StreamResponse:
    acknowledged = stream_pb2.Acknowledged(request_id=request_id, repeated=repeated, turn=turn)
    return stream_pb2.StreamResponse(acknowledged=acknowledged)


def _failed(request_id: str, reason: str, message: str, **facts: str) -> stream_pb2.StreamResponse:
    failed = stream_pb2.CommandFailed(request_id=request_id, reason=reason, message=message, metadata=facts)
    return stream_pb2.StreamResponse(command_failed=failed)


def _add(total: usage_pb2.UsageSum, row: usage_pb2.UsageEvent) -> None:
    total.calls += 1
    for name in ("prompt", "cached", "output", "thoughts", "total"):
        setattr(total.tokens, name, getattr(total.tokens, name) + getattr(row.tokens, name))
    cost = total.costs[0] if total.costs else total.costs.add(currency=row.currency)
    cost.micros += row.cost_micros


def _stable(request_id: str) -> int:
    """Make the same session of the same request id."""
    return int.from_bytes(request_id.encode()[:8].ljust(8, b"0")) % 10**26
