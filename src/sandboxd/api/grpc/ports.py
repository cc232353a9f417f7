"""What the gRPC edge calls in the middle. The classes of `manager`, `stream` and `monitor` have these shapes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from sandboxd.manager.announcing import RestNotice
from sandboxd.manager.creation import NewSandbox
from sandboxd.manager.editing import SandboxEdit
from sandboxd.manager.operations import Settled
from sandboxd.manager.package_tidings import PackageTidings
from sandboxd.manager.ports import SandboxOrder
from sandboxd.manager.reading import SandboxChange, Selection
from sandboxd.model.backup import BackupSetId, Volume
from sandboxd.model.caller import Caller, Request
from sandboxd.model.events import SessionEvent
from sandboxd.model.final_backup import FinalBackup
from sandboxd.model.ids import RequestId, SandboxId, SessionId, TurnId
from sandboxd.model.next_step import NextStep
from sandboxd.model.paging import Page
from sandboxd.model.sandbox import Sandbox
from sandboxd.model.session import PromptInput, Session
from sandboxd.model.startup import StartReport
from sandboxd.stream.opening import Accepted, Opening
from sandboxd.stream.ports import SessionOrder


class SessionHandle(Protocol):
    """One call's hold on a session (`stream/hub.py`)."""

    @property
    def session(self) -> Session:
        """The session as it was when it was opened."""
        ...

    @property
    def created(self) -> bool:
        """True where opening made the session."""
        ...

    @property
    def head(self) -> int:
        """Sequence number of the newest event when it was opened."""
        ...

    @property
    def open_turn(self) -> TurnId | None:
        """The turn that was open when it was opened."""
        ...

    def events(self) -> AsyncIterator[SessionEvent]:
        """Events after the opening's sequence, in order; for ever."""
        ...

    async def prompt(self, *, request_id: RequestId, body_hash: bytes, prompt: PromptInput) -> Accepted:
        """Start a turn."""
        ...

    async def answer(self, *, request_id: RequestId, body_hash: bytes, permission: str, option: str) -> Accepted:
        """Answer a permission request."""
        ...

    async def cancel(self, *, request_id: RequestId, body_hash: bytes) -> Accepted:
        """Cancel the open turn."""
        ...

    async def set_mode(self, *, request_id: RequestId, body_hash: bytes, mode: str) -> Accepted:
        """Set the approval mode."""
        ...

    async def set_model(self, *, request_id: RequestId, body_hash: bytes, model: str) -> Accepted:
        """Set the model."""
        ...

    async def leave(self, *, clean: bool) -> None:
        """Let go. Not clean: the client vanished, and `cancel_on_disconnect` applies."""
        ...


class SandboxManager(Protocol):
    """What can be done with sandboxes (`manager/sandboxes.py`)."""

    async def create(self, request: Request, wish: NewSandbox, *, timeout: timedelta) -> Sandbox:
        """Make a sandbox and wait until its agent answers."""
        ...

    async def get(self, caller: Caller, sandbox: SandboxId) -> Sandbox:
        """Return one sandbox."""
        ...

    def startup(self, sandbox: Sandbox) -> StartReport | None:
        """Return how a sandbox came up, as far as this replica knows."""
        ...

    def rest_notices(self, sandbox: SandboxId) -> AsyncIterator[RestNotice]:
        """What policy is about to do with a sandbox, as it becomes known; for ever."""
        ...

    def package_tidings(self, sandbox: SandboxId) -> AsyncIterator[PackageTidings]:
        """Which packages of a sandbox change, as it becomes known; for ever."""
        ...

    async def next_step(self, sandbox: Sandbox) -> NextStep | None:
        """Return what policy does next with a sandbox."""
        ...

    async def list(
        self,
        caller: Caller,
        selection: Selection,
        *,
        order: SandboxOrder = SandboxOrder.CREATE_TIME,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Sandbox]:
        """Return one page."""
        ...

    def watch(self, caller: Caller, selection: Selection) -> AsyncIterator[SandboxChange]:
        """The present sandboxes, SYNCED, then every change."""
        ...

    async def update(
        self, request: Request, sandbox: SandboxId, edit: SandboxEdit, *, etag: str, timeout: timedelta
    ) -> Sandbox:
        """Change a sandbox."""
        ...

    async def pause(self, request: Request, sandbox: SandboxId, *, force: bool, timeout: timedelta) -> Sandbox:
        """Release a sandbox's compute."""
        ...

    async def resume(self, request: Request, sandbox: SandboxId, *, timeout: timedelta) -> Sandbox:
        """Bring a sandbox back."""
        ...

    async def terminate(
        self, request: Request, sandbox: SandboxId, *, timeout: timedelta, force: bool = False
    ) -> Settled:
        """End a sandbox."""
        ...

    async def final_backup(self, sandbox: Sandbox) -> FinalBackup | None:
        """Say what a terminated sandbox is backed up as; None of one that is not terminated."""
        ...

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
        """Bring a sandbox back to what a backup has."""
        ...


class StreamHub(Protocol):
    """Opens sessions (`stream/hub.py`)."""

    async def open(self, caller: Caller, opening: Opening) -> SessionHandle:
        """Open a session, new or existing."""
        ...


class Standing(Protocol):
    """Whether a caller is still welcome: its client and its freelancer are known, and neither suspended nor deleted."""

    async def check(self, caller: Caller) -> None:
        """Return where they may act. Asked with every call, and every few seconds while a stream is open: from memory.

        Raises:
            ForbiddenError: One of them is suspended or deleted; it ends open streams, too.
            UnavailableError: It cannot be told now; no open stream ends for that.
        """
        ...

    async def wait(self, caller: Caller, *, timeout: timedelta) -> None:
        """Wait until it is worth asking again, at most so long."""
        ...


class SessionDirectory(Protocol):
    """Finds and deletes sessions (`stream/sessions.py`). A session of another sandbox, or client, is not found."""

    async def get(self, caller: Caller, sandbox: SandboxId, session: SessionId) -> Session:
        """Return one session, as its row is now."""
        ...

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
        """Return one page of a sandbox's sessions."""
        ...

    async def history(
        self, caller: Caller, sandbox: SandboxId, session: SessionId, *, after: int, limit: int
    ) -> tuple[Sequence[SessionEvent], int]:
        """Return events after a sequence number, and the number to go on from; 0 on the last page."""
        ...

    async def delete(self, request: Request, sandbox: SandboxId, session: SessionId) -> None:
        """Delete a session with its log, once per request id."""
        ...
