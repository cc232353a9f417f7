"""One conversation over as many calls of Stream as it takes.

The log's sequence numbers and the commands' request ids make it whole: after a cut the session is opened again after
the last event that was seen, and commands that nobody acknowledged are sent again as they were. Whoever iterates sees
every event once and in order, and every command is done once.
"""

from __future__ import annotations

import asyncio
import enum
import mimetypes
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from sandboxd.ctl.backoff import RECONNECT, UNARY, Backoff, RetryPolicy
from sandboxd.ctl.connection import Connection, new_request_id
from sandboxd.ctl.errors import ApiError, from_rpc_error
from sandboxd.v1 import sandbox_pb2_grpc, stream_pb2

PING_SECONDS = 20.0
"""After this much silence a ping is sent: no cut of the network may look like a model that thinks."""
SILENCE_SECONDS = 60.0
"""After this much silence, pings unanswered, the call is given up and made anew."""

HANG_UP_SECONDS = 0.3
"""How long the service may take to see our half-close."""
OWN_PING = "sandboxctl:are-you-there"
"""Payload of the pings that this module sends by itself; their pongs are not yielded."""
GAP = "EVENT_GAP"
"""Reason of the error where the service left out an event."""

_Call = grpc.aio.StreamStreamCall[stream_pb2.StreamRequest, stream_pb2.StreamResponse]

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED})
# What gRPC makes of a connection that broke in the middle of a message, instead of UNAVAILABLE; the last one when a
# command was just being written. grpc.aio's client says that, too, where a refusal overtakes its first write, and loses
# the reason: as every command has its request id, asking again is safe, and is told.
_CUT_WORDS = ("RST_STREAM", "Stream removed", "Socket closed", "GOAWAY", "Internal error from Core")


class Link(enum.Enum):
    """What happened to the connection under a conversation."""

    LOST = "lost"
    BACK = "back"


class SessionStream:
    """A conversation: commands in, events out, whatever happens to the connection."""

    def __init__(
        self,
        connection: Connection,
        opening: stream_pb2.Open,
        *,
        retry: RetryPolicy = UNARY,
        reconnect: RetryPolicy = RECONNECT,
        on_link: Callable[[Link], None] | None = None,
        ping_seconds: float = PING_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.session = opening.session
        """Resource name; of a new session it is known from the first response on."""
        self.last_sequence = opening.after_sequence
        """The newest event that was yielded."""
        self.head_sequence = 0
        """The newest event there was when the call was made; what comes up to it is catching up."""
        self.open_turn = ""
        """The turn that was open when the call was made."""
        self._connection = connection
        self._opening = opening
        self._open_id = new_request_id()
        self._method = sandbox_pb2_grpc.SandboxServiceStub(connection.channel).Stream
        self._backoff = Backoff(retry)
        self._reconnect = reconnect
        self._on_link = on_link
        self._ping_seconds = ping_seconds
        self._silence_seconds = silence_seconds
        self._pending: dict[str, stream_pb2.StreamRequest] = {}
        self._pings: deque[stream_pb2.StreamRequest] = deque()
        self._wake = asyncio.Event()
        self._call: _Call | None = None
        self._reading: asyncio.Task[stream_pb2.StreamResponse | None] | None = None
        self._heard = 0.0
        self._shown: tuple[tuple[str, str], ...] = ()
        self._ready = False
        self._lost = False
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[stream_pb2.StreamResponse]:
        return self

    async def __anext__(self) -> stream_pb2.StreamResponse:
        """Return the next response that is news. Cancelling this loses nothing.

        Raises:
            ApiError: The service refused the call, or stayed away for longer than patience lasts.
        """
        while not self._closing:
            try:
                response = await self._read()
                if self._is_news(response):
                    return response
            except ApiError as error:
                await self._drop_call()
                await self._wait_to_try_again(error)
        raise StopAsyncIteration

    async def close(self) -> None:
        """Hang up with a half-close; the open turn goes on without us."""
        self._closing = True
        self._wake.set()
        if self._reading is not None:
            # The half-close must be on its way before the call is dropped: without one the service may take us for
            # a client that vanished.
            await asyncio.wait({self._reading}, timeout=HANG_UP_SECONDS)
        await self._drop_call()

    def prompt(self, text: str, attachments: Sequence[stream_pb2.Attachment] = (), *, request_id: str = "") -> str:
        """Start a turn. This and the other commands return their request id at once; the answer is an event."""
        prompt = stream_pb2.Prompt(text=text, attachments=attachments)
        return self._send(stream_pb2.StreamRequest(prompt=prompt), request_id)

    def answer(self, permission: str, option: str) -> str:
        """Answer a permission request; an empty option refuses and ends the turn."""
        answer = stream_pb2.AnswerPermission(permission=permission, option=option)
        return self._send(stream_pb2.StreamRequest(answer_permission=answer))

    def cancel(self) -> str:
        """Cancel the open turn; its turn_completed follows."""
        return self._send(stream_pb2.StreamRequest(cancel_turn=stream_pb2.CancelTurn()))

    def set_mode(self, mode: str) -> str:
        """Set the session's approval mode."""
        return self._send(stream_pb2.StreamRequest(set_mode=stream_pb2.SetMode(mode=mode)))

    def set_model(self, model: str) -> str:
        """Set the session's model."""
        return self._send(stream_pb2.StreamRequest(set_model=stream_pb2.SetModel(model=model)))

    def ping(self, payload: str = "") -> None:
        """Ask for a pong. A ping is not repeated after a cut."""
        self._pings.append(stream_pb2.StreamRequest(ping=stream_pb2.Ping(payload=payload)))
        self._wake.set()

    def _send(self, request: stream_pb2.StreamRequest, request_id: str = "") -> str:
        request.request_id = request_id or new_request_id()
        self._pending[request.request_id] = request
        self._wake.set()
        return request.request_id

    async def _read(self) -> stream_pb2.StreamResponse:
        """Wait for one response of the present call, which is made where there is none."""
        clock = asyncio.get_running_loop().time
        if self._call is None:
            self._shown = self._connection.metadata()
            self._call = self._method(self._requests(), metadata=self._shown)
            self._heard = clock()
        while True:
            if self._reading is None:
                self._reading = asyncio.create_task(_read_one(self._call), name="session-stream-read")
            done, _ = await asyncio.wait({self._reading}, timeout=self._ping_seconds)
            if done:
                break
            if clock() - self._heard >= self._silence_seconds:
                raise _away("The service has been silent for too long.")
            self.ping(OWN_PING)
        reading, self._reading = self._reading, None
        self._heard = clock()
        if reading.cancelled():  # this is how grpc.aio tells of a call that the *service* cancelled
            raise _away("The service cancelled the stream.")
        response = reading.result()
        if response is None:
            raise _away("The service ended the stream.")
        return response

    async def _requests(self) -> AsyncIterator[stream_pb2.StreamRequest]:
        opening = stream_pb2.Open()
        opening.CopyFrom(self._opening)
        if self._ready:
            opening.session = self.session
            opening.after_sequence = self.last_sequence
        # The id makes the new session one session, should the first response be lost.
        yield stream_pb2.StreamRequest(request_id=self._open_id if not opening.session else "", open=opening)
        sent = set[str]()
        while not self._closing:
            self._wake.clear()  # before the scan: what is sent during it must wake us again
            for request_id, request in [*self._pending.items()]:
                if request_id not in sent:
                    sent.add(request_id)
                    yield request
            while self._pings:
                yield self._pings.popleft()
            await self._wake.wait()

    def _is_news(self, response: stream_pb2.StreamResponse) -> bool:
        if response.sequence > 0:
            if response.sequence <= self.last_sequence:
                return False
            if response.sequence != self.last_sequence + 1 and self.last_sequence >= 0:
                raise _away(f"Event {self.last_sequence + 1} did not come.", reason=GAP)
            self._backoff.reset()
            self.last_sequence = response.sequence
            return True
        match response.WhichOneof("event"):
            case "stream_ready":
                return self._became_ready(response.stream_ready)
            case "acknowledged":
                return self._pending.pop(response.acknowledged.request_id, None) is not None
            case "command_failed" if response.command_failed.request_id:
                return self._pending.pop(response.command_failed.request_id, None) is not None
            case "pong":
                return response.pong.payload != OWN_PING
            case _:
                return True

    def _became_ready(self, ready: stream_pb2.StreamReady) -> bool:
        first = not self._ready
        self._ready = True
        self.session, self.head_sequence, self.open_turn = ready.session, ready.head_sequence, ready.open_turn
        if self.last_sequence < 0:  # "from now on": now is here
            self.last_sequence = ready.head_sequence
        if first:
            self._backoff = Backoff(self._reconnect)
        if self._lost:
            self._lost = False
            self._tell(Link.BACK)
        return first

    async def _wait_to_try_again(self, error: ApiError) -> None:
        broken = error.code in _AWAY or any(word in error.message for word in _CUT_WORDS)
        away = broken and not error.reason.startswith("TLS_")
        # A token file is renewed by somebody else: another token than the one that expired is worth another call.
        away = away or (error.reason == "TOKEN_EXPIRED" and self._connection.metadata() != self._shown)
        delay = self._backoff.next_delay(at_least=error.retry_after) if away else None
        if delay is None:
            self._closing = True
            raise error
        if self._ready and not self._lost:
            self._lost = True
            self._tell(Link.LOST)
        await asyncio.sleep(delay)

    def _tell(self, link: Link) -> None:
        if self._on_link is not None:
            self._on_link(link)

    async def _drop_call(self) -> None:
        call, self._call = self._call, None
        reading, self._reading = self._reading, None
        self._pings.clear()
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await reading
        if call is not None:
            call.cancel()


def attachment(path: Path) -> stream_pb2.Attachment:
    """Read a file to go with a prompt; its MIME type is guessed from its name.

    Raises:
        OSError: It cannot be read.
    """
    mime_type, encoding = mimetypes.guess_type(path.name)
    if mime_type is None or encoding is not None:
        mime_type = "application/octet-stream"
    data = path.read_bytes()
    if mime_type == "application/octet-stream" and encoding is None and _is_text(data):
        mime_type = "text/plain"
    return stream_pb2.Attachment(file_name=path.name, mime_type=mime_type.lower(), data=data)


def _is_text(data: bytes) -> bool:
    try:
        return "\x00" not in data.decode()
    except UnicodeDecodeError:
        return False


async def _read_one(call: _Call) -> stream_pb2.StreamResponse | None:
    try:
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return response if isinstance(response, stream_pb2.StreamResponse) else None


def _away(message: str, *, reason: str = "") -> ApiError:
    return ApiError(code=grpc.StatusCode.UNAVAILABLE, reason=reason, message=message)
