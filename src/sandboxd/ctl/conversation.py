"""Follows one session: shows its events, knows its open turn, has permission questions answered.

It reads the stream in a task of its own, so that questions, cut connections and the keyboard do not wait for each
other. What events look like is the view's business, how questions are answered the asker's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from sandboxd.ctl.client import ApiError, SessionStream
from sandboxd.ctl.errors import from_command_failed
from sandboxd.ctl.permissions import REJECT
from sandboxd.v1 import stream_pb2


class View(Protocol):
    """Shows events to somebody."""

    def show(self, event: stream_pb2.StreamResponse) -> None:
        """Show one event."""


class Asker(Protocol):
    """Answers permission questions."""

    async def ask(self, request: stream_pb2.PermissionRequest) -> str | None:
        """Return the id of the chosen option; empty refuses and ends the turn, None cancels the turn."""


class Conversation:
    """One session, as seen by one person."""

    def __init__(self, stream: SessionStream, *, view: View, asker: Asker) -> None:
        self.open_turn = ""
        """The turn that is going on; empty where none is."""
        self.refused = False
        """True where a permission was refused since the last prompt."""
        self.mode = ""
        """Present approval mode, once it was told."""
        self.model = ""
        """Present model, once it was told."""
        self.modes: Sequence[str] = ()
        """Modes that can be set, once the session is ready."""
        self.models: Sequence[str] = ()
        """Models that can be set, once the session is ready."""
        self._stream = stream
        self._view = view
        self._asker = asker
        self._ready = False
        self._failure: ApiError | None = None
        self._changed = asyncio.Condition()
        self._failed: dict[str, ApiError] = {}
        self._turn_of: dict[str, str] = {}
        self._done: dict[str, stream_pb2.TurnCompleted] = {}
        self._waiting: set[str] = set()
        self._mine: set[str] = set()
        self._questions: dict[str, stream_pb2.PermissionRequest] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked = ""

    @property
    def session(self) -> str:
        """Resource name of the session, once it is ready."""
        return self._stream.session

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Read the stream for as long as the block lasts; starts when the session is known.

        Raises:
            ApiError: The session cannot be opened.
        """
        task = asyncio.create_task(self._pump(), name="conversation-pump")
        try:
            await self._until(lambda: self._ready)
            yield
        finally:
            self._stop_asking()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def prompt(self, text: str, attachments: Sequence[stream_pb2.Attachment] = ()) -> str:
        """Start a turn and return its name as soon as it is durable.

        Raises:
            ApiError: It was refused, or the service is gone for good.
        """
        self.refused = False
        request_id = self._stream.prompt(text, attachments)
        self._waiting.add(request_id)
        self._mine.add(request_id)
        try:
            await self._until(lambda: request_id in self._turn_of or request_id in self._failed)
        finally:
            self._waiting.discard(request_id)
        if request_id in self._failed:
            raise self._failed.pop(request_id)
        return self._turn_of.pop(request_id)

    async def end_of(self, turn: str) -> stream_pb2.TurnCompleted:
        """Wait for the end of a turn.

        Raises:
            ApiError: The service is gone for good; the turn may go on.
        """
        await self._until(lambda: turn in self._done)
        return self._done.pop(turn)

    async def turn_opened(self) -> str:
        """Wait until there is an open turn, and return its name."""
        await self._until(lambda: bool(self.open_turn))
        return self.open_turn

    def is_mine(self, request_id: str) -> bool:
        """Tell whether a prompt or a cancel was sent from here."""
        return request_id in self._mine

    def cancel(self) -> None:
        """Cancel the open turn."""
        self._mine.add(self._stream.cancel())

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self._failure is not None)
        if not condition() and self._failure is not None:
            raise self._failure

    async def _pump(self) -> None:
        try:
            async for event in self._stream:
                self._take(event)
                self._view.show(event)
                if self._ready and self._stream.last_sequence >= self._stream.head_sequence:
                    self._ask_next()
                async with self._changed:
                    self._changed.notify_all()
        except ApiError as error:
            self._failure = error
            async with self._changed:
                self._changed.notify_all()

    def _take(self, event: stream_pb2.StreamResponse) -> None:
        match event.WhichOneof("event"):
            case "stream_ready":
                self._ready = True
                self.open_turn = event.stream_ready.open_turn
            case "acknowledged":
                if event.acknowledged.request_id in self._waiting:
                    self._turn_of[event.acknowledged.request_id] = event.acknowledged.turn
            case "command_failed":
                if event.command_failed.request_id in self._waiting:
                    self._failed[event.command_failed.request_id] = from_command_failed(event.command_failed)
            case "session_ready":
                self.modes, self.models = [*event.session_ready.modes], [*event.session_ready.models]
                self.mode, self.model = event.session_ready.mode, event.session_ready.model
            case "mode_changed":
                self.mode = event.mode_changed.mode
            case "model_changed":
                self.model = event.model_changed.model
            case "turn_started":
                self.open_turn = event.turn
                if event.turn_started.request_id in self._waiting:
                    self._turn_of[event.turn_started.request_id] = event.turn
            case "turn_completed":
                self._done[event.turn] = event.turn_completed
                self._questions.clear()
                self._stop_asking()
                if self.open_turn == event.turn:
                    self.open_turn = ""
            case "permission_request":
                self._questions[event.permission_request.permission] = event.permission_request
            case "permission_answered":
                self._closed(event.permission_answered.permission)
            case _:
                pass

    def _closed(self, permission: str) -> None:
        self._questions.pop(permission, None)
        if permission == self._asked:
            self._stop_asking()

    def _ask_next(self) -> None:
        if self._asking is None and self._questions:
            request = next(iter(self._questions.values()))
            self._asked = request.permission
            self._asking = asyncio.create_task(self._ask(request), name="conversation-ask")

    async def _ask(self, request: stream_pb2.PermissionRequest) -> None:
        try:
            option = await self._asker.ask(request)
        finally:
            self._asking = None
        self._questions.pop(request.permission, None)
        if option is None:
            self.cancel()
            return
        kinds = {each.option: each.kind for each in request.options}
        self.refused = self.refused or not option or kinds.get(option) in REJECT
        self._stream.answer(request.permission, option)
        self._ask_next()

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
