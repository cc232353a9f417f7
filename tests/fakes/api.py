"""What stands behind the gRPC edge, in memory: a manager, a hub with sessions, and their directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sandboxd.manager.announcing import RestNotice
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.editing import SandboxEdit
from sandboxd.manager.operations import Settled
from sandboxd.manager.package_tidings import PackageTidings
from sandboxd.manager.ports import SandboxOrder
from sandboxd.manager.reading import ChangeKind, SandboxChange, Selection
from sandboxd.model.backup import BackupSetId, Volume
from sandboxd.model.caller import Caller, Request
from sandboxd.model.errors import (
    RequestIdReusedError,
    SandboxdError,
    SandboxNotFoundError,
    SessionNotFoundError,
    TurnInProgressError,
)
from sandboxd.model.events import (
    CancelRequested,
    EventBody,
    SessionEvent,
    SessionOpened,
    Text,
    TurnCompleted,
    TurnStarted,
)
from sandboxd.model.final_backup import FinalBackup, final_backup
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.lifecycle import LifecyclePolicy
from sandboxd.model.next_step import NextStep, next_step
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import ApprovalMode, Sandbox, SandboxState, Tier
from sandboxd.model.session import PromptInput, Session, StopReason
from sandboxd.model.startup import MissReason, StartPath, StartReport, StartStep, StartStepName
from sandboxd.stream.opening import Accepted, Opening
from sandboxd.stream.ports import SessionOrder

MOMENT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def a_sandbox(name: str = "sbx-1", *, client: str = "acme", freelancer: str = "ada") -> Sandbox:
    return Sandbox(
        id=SandboxId(name),
        client=ClientId(client),
        freelancer=FreelancerId(freelancer),
        state=SandboxState.ACTIVE,
        create_time=MOMENT,
        update_time=MOMENT,
        last_use_time=MOMENT,
    )


@dataclass(kw_only=True)
class FakeManager:
    sandboxes: dict[SandboxId, Sandbox] = field(default_factory=dict)
    requests: dict[tuple[ClientId, RequestId], tuple[bytes, Sandbox]] = field(default_factory=dict)
    restored: tuple[tuple[SandboxId, BackupSetId] | None, dict[Volume, Sequence[bytes]]] | None = None
    """What was asked for last."""
    wished: NewSandbox | None = None
    """The same of `create`."""
    failure: BaseException | None = None
    """Raised by the next call of any kind."""
    hanging: bool = False
    timeouts: list[timedelta] = field(default_factory=list)
    changes: asyncio.Queue[SandboxChange] = field(default_factory=asyncio.Queue)
    notices: asyncio.Queue[RestNotice] = field(default_factory=asyncio.Queue)
    tidings: asyncio.Queue[PackageTidings] = field(default_factory=asyncio.Queue)

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        await self._weather(timeout)
        self.wished = wish

        def make() -> Sandbox:
            return replace(
                a_sandbox(f"sbx-{len(self.sandboxes) + 1}", client=request.caller.client),
                freelancer=wish.freelancer or FreelancerId(request.caller.subject),
                display_name=wish.display_name,
                labels=wish.labels,
                tier=wish.tier or Tier.BASIC,
                model=wish.model,
                approval_mode=wish.approval_mode or ApprovalMode.DEFAULT,
                lifecycle=wish.lifecycle,
                keep_awake_until=wish.keep_awake_until,
            )

        return self._once(request, make)

    async def get(self, caller: Caller, sandbox: SandboxId) -> Sandbox:
        await self._weather()
        found = self.sandboxes.get(sandbox)
        if found is None or found.client != caller.client or caller.freelancer not in (None, found.freelancer):
            raise SandboxNotFoundError(sandbox)
        return found

    def startup(self, sandbox: Sandbox) -> StartReport | None:
        return StartReport(
            path=StartPath.LOCAL,
            steps=[StartStep(name=StartStepName.AGENT, duration=timedelta(milliseconds=250))],
            miss=MissReason.NO_POOL,
        )

    async def rest_notices(self, sandbox: SandboxId) -> AsyncIterator[RestNotice]:
        while True:
            yield await self.notices.get()

    async def package_tidings(self, sandbox: SandboxId) -> AsyncIterator[PackageTidings]:
        while True:
            yield await self.tidings.get()

    async def next_step(self, sandbox: Sandbox) -> NextStep | None:
        return next_step(sandbox, LifecyclePolicy().under(sandbox.lifecycle), at=MOMENT)

    async def list(
        self,
        caller: Caller,
        selection: Selection,
        *,
        order: SandboxOrder = SandboxOrder.CREATE_TIME,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Sandbox]:
        await self._weather()
        where = selection.seen_by(caller)
        return Page(items=[one for one in self.sandboxes.values() if where and where.matches(one)])

    async def watch(self, caller: Caller, selection: Selection) -> AsyncIterator[SandboxChange]:
        await self._weather()
        for one in (await self.list(caller, selection)).items:
            yield SandboxChange(kind=ChangeKind.PRESENT, sandbox=one)
        yield SandboxChange(kind=ChangeKind.SYNCED)
        while True:
            yield await self.changes.get()

    async def update(
        self, request: Request, sandbox: SandboxId, edit: SandboxEdit, *, etag: str, timeout: timedelta
    ) -> Sandbox:
        found = await self.get(request.caller, sandbox)
        return self._once(request, lambda: edit.apply(found))

    async def pause(self, request: Request, sandbox: SandboxId, *, force: bool, timeout: timedelta) -> Sandbox:
        return await self._move(request, sandbox, SandboxState.PAUSED)

    async def resume(self, request: Request, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        return await self._move(request, sandbox, SandboxState.ACTIVE)

    async def terminate(
        self, request: Request, sandbox: SandboxId, *, timeout: timedelta, force: bool = False
    ) -> Settled:
        return Settled(sandbox=await self._move(request, sandbox, SandboxState.TERMINATED), kept="in the attic")

    async def final_backup(self, sandbox: Sandbox) -> FinalBackup | None:
        return final_backup(sandbox, [], wanted=True)

    async def restore(
        self,
        request: Request,
        sandbox: SandboxId,
        *,
        backup: tuple[SandboxId, BackupSetId] | None = None,
        paths: Mapping[Volume, Sequence[bytes]] | None = None,
        workspace_only: bool = False,
        timeout: timedelta,
    ) -> Sandbox:
        self.restored = (backup, dict(paths or {}))
        return await self._move(request, sandbox, SandboxState.ACTIVE)

    async def _move(self, request: Request, sandbox: SandboxId, state: SandboxState) -> Sandbox:
        found = await self.get(request.caller, sandbox)
        return self._once(request, lambda: replace(found, state=state))

    def _once(self, request: Request, make: Callable[[], Sandbox]) -> Sandbox:
        key = (request.caller.client, request.request_id)
        if key in self.requests:
            body_hash, answer = self.requests[key]
            if body_hash != request.body_hash:
                raise RequestIdReusedError(request.request_id)
            return answer
        made = make()
        self.sandboxes[made.id] = made
        self.requests[key] = (request.body_hash, made)
        return made

    async def _weather(self, timeout: timedelta | None = None) -> None:
        if timeout is not None:
            self.timeouts.append(timeout)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if self.hanging:
            await asyncio.Event().wait()


@dataclass(kw_only=True)
class FakeConversation:
    """One session with its log; what a prompt says decides what happens."""

    session: Session
    log: list[SessionEvent] = field(default_factory=list)
    grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    commands: dict[RequestId, tuple[bytes, Accepted]] = field(default_factory=dict)

    async def emit(self, body: EventBody, *, turn: TurnId | None = None) -> None:
        event = SessionEvent(
            session=self.session.id, sequence=len(self.log) + 1, turn=turn, event_time=MOMENT, body=body
        )
        async with self.grown:
            self.log.append(event)
            self.session = replace(self.session, head_sequence=event.sequence)
            self.grown.notify_all()


@dataclass(kw_only=True)
class FakeHub:
    manager: FakeManager
    conversations: dict[SessionId, FakeConversation] = field(default_factory=dict)
    left: list[tuple[SessionId, bool]] = field(default_factory=list)
    command_failure: Exception | None = None
    """Raised by the next command."""

    async def open(self, caller: Caller, opening: Opening) -> FakeHandle:
        sandbox = await self.manager.get(caller, opening.sandbox)
        created = opening.session is None
        if opening.session is None:
            session = SessionId(f"ses-{len(self.conversations) + 1}")
            self.conversations[session] = FakeConversation(
                session=Session(
                    id=session,
                    sandbox=sandbox.id,
                    client=sandbox.client,
                    freelancer=sandbox.freelancer,
                    title=opening.title,
                    create_time=MOMENT,
                    update_time=MOMENT,
                )
            )
            await self.conversations[session].emit(SessionOpened(title=opening.title))
        else:
            session = opening.session
        if session not in self.conversations:
            raise SessionNotFoundError(session)
        return FakeHandle(hub=self, conversation=self.conversations[session], opening=opening, created=created)


class FakeHandle:
    def __init__(self, *, hub: FakeHub, conversation: FakeConversation, opening: Opening, created: bool) -> None:
        self._hub = hub
        self._conversation = conversation
        self._opening = opening
        self.created = created
        self.session = conversation.session
        self.head = len(conversation.log)
        self.open_turn = conversation.session.open_turn

    async def events(self) -> AsyncIterator[SessionEvent]:
        sent = self.head if self._opening.after_sequence < 0 else self._opening.after_sequence
        conversation = self._conversation
        while True:
            async with conversation.grown:
                await conversation.grown.wait_for(lambda: len(conversation.log) > sent)  # noqa: B023  awaited here
                batch = conversation.log[sent:]
            for event in batch:
                yield event
            sent += len(batch)

    async def prompt(self, *, request_id: RequestId, body_hash: bytes, prompt: PromptInput) -> Accepted:
        if (known := self._known(request_id, body_hash)) is not None:
            return known
        conversation = self._conversation
        if conversation.session.open_turn is not None:
            raise TurnInProgressError(conversation.session.id, turn=conversation.session.open_turn)
        turn = TurnId(f"trn-{conversation.session.turns + 1}")
        conversation.session = replace(conversation.session, open_turn=turn, turns=conversation.session.turns + 1)
        await conversation.emit(
            TurnStarted(request_id=request_id, number=conversation.session.turns, text=prompt.text), turn=turn
        )
        if prompt.text != "wait":
            await self.finish(prompt.text)
        return self._remember(request_id, body_hash, Accepted(repeated=False, turn=turn))

    async def finish(self, text: str, *, reason: StopReason = StopReason.END_TURN) -> None:
        turn = self._conversation.session.open_turn
        for word in text.split():
            await self._conversation.emit(Text(text=word), turn=turn)
        self._conversation.session = replace(self._conversation.session, open_turn=None)
        await self._conversation.emit(TurnCompleted(stop_reason=reason), turn=turn)

    async def answer(self, *, request_id: RequestId, body_hash: bytes, permission: str, option: str) -> Accepted:
        return self._known(request_id, body_hash) or self._remember(request_id, body_hash, Accepted(repeated=False))

    async def cancel(self, *, request_id: RequestId, body_hash: bytes) -> Accepted:
        if self._conversation.session.open_turn is not None:
            await self._conversation.emit(CancelRequested(request_id=request_id))
            await self.finish("", reason=StopReason.CANCELLED)
        return self._known(request_id, body_hash) or self._remember(request_id, body_hash, Accepted(repeated=False))

    async def set_mode(self, *, request_id: RequestId, body_hash: bytes, mode: str) -> Accepted:
        return self._known(request_id, body_hash) or self._remember(request_id, body_hash, Accepted(repeated=False))

    async def set_model(self, *, request_id: RequestId, body_hash: bytes, model: str) -> Accepted:
        return self._known(request_id, body_hash) or self._remember(request_id, body_hash, Accepted(repeated=False))

    async def leave(self, *, clean: bool) -> None:
        self._hub.left.append((self.session.id, clean))

    def _known(self, request_id: RequestId, body_hash: bytes) -> Accepted | None:
        if self._hub.command_failure is not None:
            failure, self._hub.command_failure = self._hub.command_failure, None
            raise failure
        if request_id not in self._conversation.commands:
            return None
        known_hash, accepted = self._conversation.commands[request_id]
        if known_hash != body_hash:
            raise RequestIdReusedError(request_id)
        return replace(accepted, repeated=True)

    def _remember(self, request_id: RequestId, body_hash: bytes, accepted: Accepted) -> Accepted:
        self._conversation.commands[request_id] = (body_hash, accepted)
        return accepted


@dataclass(kw_only=True)
class FakeDirectory:
    hub: FakeHub
    deleted: list[SessionId] = field(default_factory=list)

    async def get(self, caller: Caller, sandbox: SandboxId, session: SessionId) -> Session:
        await self.hub.manager.get(caller, sandbox)
        if session not in self.hub.conversations:
            raise SessionNotFoundError(session)
        return self.hub.conversations[session].session

    async def list(
        self,
        caller: Caller,
        sandbox: SandboxId,
        *,
        order: SessionOrder,
        title_contains: str,
        page_size: int,
        page_token: str,
    ) -> Page[Session]:
        await self.hub.manager.get(caller, sandbox)
        return Page(items=[one.session for one in self.hub.conversations.values()][:page_size])

    async def history(
        self, caller: Caller, sandbox: SandboxId, session: SessionId, *, after: int, limit: int
    ) -> tuple[Sequence[SessionEvent], int]:
        await self.get(caller, sandbox, session)
        log = self.hub.conversations[session].log
        return log[after : after + limit], after + limit if after + limit < len(log) else 0

    async def delete(self, request: Request, sandbox: SandboxId, session: SessionId) -> None:
        await self.get(request.caller, sandbox, session)
        self.deleted.append(session)


__all__ = ["FakeDirectory", "FakeHub", "FakeManager", "SandboxdError", "a_sandbox"]
