"""The hub: opens sessions for callers, finds or becomes the owner of their conversations, and hands out events.

It is the stream room's front door. It decides who may do what with a session and which commands were seen before; what
happens in a conversation is the owner's, what is durable is the journal's, what is shown is the feed's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import (
    ForbiddenError,
    InvalidRequestError,
    InvalidTransitionError,
    OpenTurnsError,
    SandboxNotFoundError,
    SandboxPausedError,
    SessionNotFoundError,
    WrongStateError,
)
from sandboxd.model.events import SessionEvent, SessionOpened
from sandboxd.model.failpoints import failpoint
from sandboxd.model.ids import RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.sandbox import Sandbox, SandboxState
from sandboxd.model.session import PromptInput, Session
from sandboxd.stream.custody import Custody
from sandboxd.stream.desk import repeated
from sandboxd.stream.errands import (
    AnswerPermission,
    CancelTurn,
    Close,
    Deed,
    Order,
    SetMode,
    SetModel,
    StartTurn,
    Vanished,
    Wish,
)
from sandboxd.stream.opening import Accepted, Opening
from sandboxd.stream.owner import Services
from sandboxd.stream.ports import Command, TurnQuotas
from sandboxd.stream.routing import ErrandRouter

log = structlog.get_logger(__name__)

_NO_USE: Final = frozenset({SandboxState.TERMINATING, SandboxState.TERMINATED, SandboxState.FAILED})


class StreamHub:
    """Sessions of all sandboxes, as one replica serves them."""

    def __init__(
        self, services: Services, custody: Custody, router: ErrandRouter, *, turn_quotas: TurnQuotas | None = None
    ) -> None:
        """Take what it works with; without `turn_quotas` as many turns run as are asked for."""
        self._turn_quotas = turn_quotas
        self._services = services
        self._custody = custody
        self._router = router

    async def open(self, caller: Caller, opening: Opening) -> SessionHandle:
        """Open a session, make it where none is named, and begin to wake the sandbox unless it is only watched.

        Raises:
            SandboxNotFoundError, SessionNotFoundError: None such, or somebody else's.
            ForbiddenError: An auditor may watch only.
            WrongStateError: The sandbox cannot be used: terminated, or failed.
        """
        sandbox = await self.visible(caller, opening.sandbox)
        if caller.role is Role.AUDITOR and not (opening.watch_only and opening.session):
            raise ForbiddenError("An auditor can watch existing sessions only. Set watch_only.")
        if opening.session is not None:
            session, created = await self.session_of(caller, sandbox.id, opening.session), False
        else:
            _require_usable(sandbox)
            session, created = await self._create(caller, sandbox, opening)
        head = session.head_sequence if created else await self._services.journal.head(session.id)
        handle = SessionHandle(self, caller=caller, session=session, opening=opening, created=created, head=head)
        usable = sandbox.state not in _NO_USE | {SandboxState.PAUSED, SandboxState.PAUSING}
        if not opening.watch_only and usable:
            await self._router.do(Wish(caller=caller, sandbox=sandbox.id, session=session.id))
        return handle

    async def visible(self, caller: Caller, name: SandboxId) -> Sandbox:
        """A sandbox that the caller may see. Raises SandboxNotFoundError."""
        sandbox = await self._services.sandboxes.get(name)
        if sandbox.client != caller.client or caller.freelancer not in (None, sandbox.freelancer):
            raise SandboxNotFoundError(name)
        return sandbox

    async def session_of(self, caller: Caller, sandbox: SandboxId, name: SessionId) -> Session:
        """A session of that sandbox that the caller may see. Raises SessionNotFoundError."""
        session = await self._services.sessions.get(name, client=caller.client, freelancer=caller.freelancer)
        if session.sandbox != sandbox:
            raise SessionNotFoundError(name)
        return session

    async def command(self, handle: SessionHandle, *, request_id: RequestId, body_hash: bytes, deed: Deed) -> Accepted:
        """Do a command once: answered from its row where it was seen, else done by the owner and made durable."""
        caller, session, place = handle.caller, handle.session, self._services.tracer.current()
        order = Order(
            caller=caller,
            sandbox=session.sandbox,
            session=session.id,
            request_id=request_id,
            body_hash=body_hash,
            deed=deed,
            traceparent="" if place is None else place.traceparent,
        )
        asked = asyncio.get_running_loop().time()
        known = await self._services.journal.find_command(caller.client, request_id)
        if known is not None:
            return repeated(known, order)
        _require_usable(await self.visible(caller, session.sandbox))
        failpoint("command.before_run")
        if isinstance(deed, StartTurn) and self._turn_quotas is not None:
            async with self._turn_quotas.place(session, request_id):
                accepted = await self._router.do(order, unknown_since=asked)
        else:
            accepted = await self._router.do(order, unknown_since=asked)
        failpoint("command.after_commit")
        await self._services.sandboxes.touch(session.sandbox)
        return accepted

    async def vanished(self, handle: SessionHandle) -> None:
        """A client went away that wanted its turn cancelled then."""
        await self._router.do(Vanished(sandbox=handle.session.sandbox, session=handle.session.id))

    async def events(self, session: Session, *, after: int, head: int) -> AsyncIterator[SessionEvent]:
        """Events of a session after a sequence number, then live, for ever."""
        with self._services.hints.following(session.sandbox, session.id):
            batches = self._services.feed.follow(session.id, after=after, head=head)
            async with aclosing(batches):
                async for batch in batches:
                    for event in batch:
                        yield event

    # ------------------------------------------------------------------ for the manager (its `Conversations` port)

    async def open_turns(self, sandbox: SandboxId) -> int:
        """How many turns of the sandbox are open, in any session, on any replica."""
        return len(await self._services.sessions.open_turns(sandbox))

    async def close(self, sandbox: SandboxId, *, reason: str, timeout: timedelta, only_idle: bool = False) -> None:
        """End the sandbox's CLI; open turns end as interrupted, durably. Nothing open is success.

        Raises:
            OpenTurnsError: With `only_idle`: a turn is open, and nothing was done.
        """
        try:
            await self._router.do(Close(sandbox=sandbox, reason=reason, timeout=timeout, only_idle=only_idle))
        except WrongStateError as error:
            if error.reason != OpenTurnsError.reason:
                raise
            # From another replica it comes as any class with this reason.
            raise OpenTurnsError(sandbox, turns=int(error.metadata.get("turns", 1))) from error

    async def drain(self) -> None:
        """Hand every conversation over and end every watcher's events. Turns go on in their sandboxes."""
        await self._custody.drain()
        self._services.feed.close()

    async def _create(self, caller: Caller, sandbox: Sandbox, opening: Opening) -> tuple[Session, bool]:
        services = self._services
        if not opening.request_id:
            raise InvalidRequestError("A new session needs a request_id.")
        now = services.clock.now()
        session = Session(
            id=SessionId(services.ids.new("ses")),
            sandbox=sandbox.id,
            client=sandbox.client,
            freelancer=sandbox.freelancer,
            title=opening.title,
            mode=opening.mode or sandbox.approval_mode.value,
            model=opening.model or sandbox.model,
            head_sequence=1,
            create_time=now,
            update_time=now,
        )
        opened = SessionEvent(
            session=session.id, sequence=1, turn=None, event_time=now, body=SessionOpened(title=opening.title)
        )
        command = Command(
            client=caller.client, request_id=opening.request_id, body_hash=opening.body_hash, session=session.id
        )
        created, made = await services.sessions.create(session, opened=opened, command=command)
        if made:
            services.feed.publish([opened])
        return created, made


class SessionHandle:
    """One caller's hold on one session, for the time of one stream."""

    def __init__(
        self, hub: StreamHub, *, caller: Caller, session: Session, opening: Opening, created: bool, head: int
    ) -> None:
        self._hub = hub
        self.caller = caller
        self.session = session
        self.created = created
        self.head = head
        """Sequence number of the newest event when it was opened."""
        self._opening = opening

    @property
    def open_turn(self) -> TurnId | None:
        """The turn that was open when the session was opened."""
        return self.session.open_turn

    def events(self) -> AsyncIterator[SessionEvent]:
        """What the caller has not seen, then what comes, in order, each once."""
        after = self._opening.after_sequence
        return self._hub.events(self.session, after=self.head if after < 0 else after, head=self.head)

    async def prompt(self, *, request_id: RequestId, body_hash: bytes, prompt: PromptInput) -> Accepted:
        """Start a turn.

        Raises:
            TurnInProgressError: The session has an open turn.
            SandboxPausedError: The sandbox's owner paused it.
        """
        return await self._command(request_id, body_hash, StartTurn(prompt=prompt))

    async def answer(self, *, request_id: RequestId, body_hash: bytes, permission: str, option: str) -> Accepted:
        """Answer a permission request.

        Raises:
            PermissionNotOpenError: It is not open.
            InvalidRequestError: It has no such option.
        """
        return await self._command(request_id, body_hash, AnswerPermission(permission=permission, option=option))

    async def cancel(self, *, request_id: RequestId, body_hash: bytes) -> Accepted:
        """Cancel the open turn; where none is open there is nothing to do."""
        return await self._command(request_id, body_hash, CancelTurn())

    async def set_mode(self, *, request_id: RequestId, body_hash: bytes, mode: str) -> Accepted:
        """Set the approval mode."""
        return await self._command(request_id, body_hash, SetMode(mode=mode))

    async def set_model(self, *, request_id: RequestId, body_hash: bytes, model: str) -> Accepted:
        """Set the model."""
        return await self._command(request_id, body_hash, SetModel(model=model))

    async def leave(self, *, clean: bool) -> None:
        """Let go. A client that vanished cancels its turn only where it asked for that."""
        if not clean and self._opening.cancel_on_disconnect and not self._opening.watch_only:
            await self._hub.vanished(self)

    async def _command(self, request_id: RequestId, body_hash: bytes, deed: Deed) -> Accepted:
        if self._opening.watch_only:
            raise _WatchOnlyError("This stream only watches. Open the session without watch_only.")
        if not request_id:
            raise InvalidRequestError("This command needs a request_id.")
        return await self._hub.command(self, request_id=request_id, body_hash=body_hash, deed=deed)


class _WatchOnlyError(WrongStateError):
    """A command on a stream that only watches."""

    reason = "WATCH_ONLY"


def _require_usable(sandbox: Sandbox) -> None:
    if sandbox.state in (SandboxState.PAUSED, SandboxState.PAUSING):
        raise SandboxPausedError(sandbox.id)
    if sandbox.state in _NO_USE:
        hint = "Resume tries again." if sandbox.state is SandboxState.FAILED else ""
        raise InvalidTransitionError(sandbox.id, state=sandbox.state.value, wanted=SandboxState.ACTIVE.value, hint=hint)
