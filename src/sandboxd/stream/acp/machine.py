"""The ACP dialect: routes what the agent says to sessions, and what people want to the agent.

A message that cannot be understood or placed becomes an `Unparsed` event with its line. Known limits of the protocol:
the CLI repeats an answer's text when it retries a broken stream, and nothing marks the repetition; so it is passed on
as it comes. Its `_meta.quota` is not the bill, and is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandboxd.model.events import Error, EventBody
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput, StopReason
from sandboxd.stream.acp.messages import Notification, Reply, Request, classify
from sandboxd.stream.acp.openings import Openings, learn
from sandboxd.stream.acp.sessions import Sessions
from sandboxd.stream.acp.state import AcpSession, AcpTurn, Opening, Pending, Phase, RequestKind, Wish
from sandboxd.stream.acp.tools import Tools
from sandboxd.stream.acp.turns import Turns
from sandboxd.stream.acp.updates import Updates
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.acp.wishes import Wishes
from sandboxd.stream.decoding import Rejection, decode_line
from sandboxd.stream.dialect import DialectName, Finishing, Step, TurnBill
from sandboxd.stream.failures import (
    CLI_AUTH_REQUIRED,
    CLI_SESSION_LOST,
    SESSION_LOAD_FAILED,
    cli_exited,
    failure_from_rpc,
    named_failure,
)
from sandboxd.stream.framing import Framer, LongLine
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.reading import obj, text
from sandboxd.stream.unparsed import (
    LINE_CUT,
    LINE_TOO_LONG,
    UNKNOWN_ID,
    UNKNOWN_METHOD,
    UNKNOWN_SESSION,
)

SNAPSHOT_VERSION = 1


class AcpDialect:
    """A `gemini --acp` process, as the port `Dialect` wants it."""

    name = DialectName.ACP

    def __init__(self, *, observing: bool = False, prompts: Mapping[TurnId, PromptInput] | None = None) -> None:
        """Begin with a process that has said nothing yet.

        Args:
            observing: Another client talks to the process, and `AcpObserver` tells what it sends.
            prompts: Prompts that a restored machine has accepted and not sent.
        """
        self._outbox = Outbox()
        self._framer = Framer()
        self.sessions = Sessions(self._outbox)
        self.wire = Wire(self._outbox, observing=observing)
        self.tools = Tools(self._outbox, self.wire)
        self.turns = Turns(self._outbox, self.wire, self.tools, prompts=prompts or {})
        self._wishes = Wishes(self.wire)
        self._updates = Updates(self._outbox, self.wire, self.tools)
        self.openings = Openings(
            self._outbox,
            self.wire,
            find=lambda opening: self.sessions.find(opening.session),
            opened=self._opened,
            failed=self._not_opened,
        )

    @property
    def consumed(self) -> int:
        """See `Dialect`."""
        return self._framer.consumed

    @property
    def finishing(self) -> Sequence[Finishing]:
        """See `Dialect`."""
        return [
            Finishing(session=session.id, turn=turn.id, stop_reason=turn.stop, error=turn.error)
            for session in self.sessions
            for turn in session.turns
            if turn.stop is not None
        ]

    def start(self) -> None:
        """See `Dialect`."""
        self.openings.start()

    def open(self, session: SessionId, *, cli_session: str, cwd: str, mode: str, model: str, hint: str) -> None:
        """See `Dialect`."""
        known = self.sessions.begin(session)
        if known.phase is not Phase.CLOSED:
            return
        known.phase = Phase.OPENING
        opening = Opening(session=session, cli_session=cli_session, cwd=cwd, mode=mode, model=model, hint=hint)
        self.openings.add(opening)

    def is_open(self, session: SessionId) -> bool:
        """See `Dialect`."""
        known = self.sessions.find(session)
        return known is not None and known.phase is not Phase.CLOSED

    def open_turn(self, session: SessionId) -> TurnId | None:
        """See `Dialect`."""
        known = self.sessions.find(session)
        return known.turns[0].id if known is not None and known.turns else None

    def permissions(self, session: SessionId) -> Mapping[str, Sequence[str]]:
        """See `Dialect`."""
        known = self.sessions.find(session)
        return {found.permission: tuple(found.options) for found in known.permissions} if known is not None else {}

    def prompt(self, session: SessionId, turn: TurnId, prompt: PromptInput) -> None:
        """See `Dialect`."""
        self.turns.accept(self.sessions.known(session), turn, prompt)

    def answer(self, session: SessionId, *, permission: str, option: str, request_id: str = "") -> None:
        """See `Dialect`."""
        known = self.sessions.known(session)
        if option or known.find_permission(permission) is None:
            self.tools.answer(known, permission, option, request_id)
        else:
            self.turns.cancel(known, request_id=request_id, reason="")

    def cancel(self, session: SessionId, *, request_id: str = "", reason: str = "") -> bool:
        """See `Dialect`."""
        return self.turns.cancel(self.sessions.known(session), request_id=request_id, reason=reason)

    def set_mode(self, session: SessionId, mode: str, *, request_id: str = "") -> None:
        """See `Dialect`."""
        self._wishes.want(self.sessions.known(session), Wish(mode=mode, request_id=request_id))

    def set_model(self, session: SessionId, model: str, *, request_id: str = "") -> None:
        """See `Dialect`."""
        self._wishes.want(self.sessions.known(session), Wish(model=model, request_id=request_id))

    def close(self, session: SessionId) -> None:
        """See `Dialect`."""
        known = self.sessions.find(session)
        if known is None:
            return
        self.openings.forget(session)
        if known.turns and known.phase is Phase.OPEN:
            self.turns.cancel(known, request_id="", reason="")
        self.sessions.drop(known)

    def feed(self, data: bytes) -> None:
        """See `Dialect`."""
        for line in self._framer.feed(data):
            self._line(line)

    def exited(self, *, exit_code: int | None, signal: int | None, stderr_tail: str = "") -> None:
        """See `Dialect`."""
        rest = self._framer.end()
        if isinstance(rest, bytes) and isinstance(decode_line(rest), Rejection) and rest.strip():
            self.sessions.emit_lost(rest, LINE_CUT)
        elif rest is not None:
            self._line(rest)
        error = cli_exited(exit_code=exit_code, signal=signal, stderr_tail=stderr_tail)
        self.openings.drop_all()
        self._nobody_answers(error)
        for session in self.sessions:
            self._updates.release(session)
            if session.phase is Phase.OPENING:
                self._outbox.emit(session.id, None, error)
            self.turns.interrupt(session, error)
            self.tools.close_permissions(session, None)
            self.tools.close_calls(session, None)
            self.sessions.shut(session)

    def finish(self, turn: TurnId, bill: TurnBill) -> None:
        """See `Dialect`."""
        self.turns.finish(self.sessions, turn, bill)

    def take(self) -> Step:
        """See `Dialect`."""
        self.sessions.report()
        return self._outbox.take()

    def snapshot(self) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "version": SNAPSHOT_VERSION,
            "framer": self._framer.snapshot(),
            "wire": self.wire.to_json(),
            "openings": self.openings.to_json(),
            "sessions": self.sessions.to_json(),
        }

    @classmethod
    def restore(
        cls,
        snapshot: Mapping[str, Any],
        *,
        prompts: Mapping[TurnId, PromptInput] | None = None,
        observing: bool = False,
    ) -> AcpDialect:
        """Rebuild a machine.

        Args:
            snapshot: What `snapshot` gave.
            prompts: The prompts of turns that are QUEUED.
            observing: As for the constructor.

        Raises:
            ValueError: The snapshot is of a version that this one cannot read.
        """
        if snapshot.get("version") != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot of version {snapshot.get('version')}, not {SNAPSHOT_VERSION}")
        machine = cls(observing=observing, prompts=prompts)
        machine._framer = Framer.restore(obj(snapshot, "framer"))
        machine.wire.load_json(obj(snapshot, "wire"))
        machine.openings.load_json(obj(snapshot, "openings"))
        machine.sessions.load_json(obj(snapshot, "sessions"))
        return machine

    def observe(self, session: AcpSession, turn: AcpTurn, body: EventBody) -> None:
        """An event that the driver makes in production, and an observer here."""
        self._outbox.emit(session.id, turn.id, body)

    # What the agent says.

    def _line(self, line: bytes | LongLine) -> None:
        if isinstance(line, LongLine):
            self.sessions.emit_lost(line, LINE_TOO_LONG)
            return
        if not line.strip():
            return
        message = decode_line(line)
        if isinstance(message, Rejection):
            self.sessions.emit_lost(line, message.value)
            return
        match classify(message):
            case Notification(method="session/update", params=params):
                self._update(params, line)
            case Notification():
                self.sessions.emit_lost(line, UNKNOWN_METHOD)
            case Request(rpc=rpc, method="session/request_permission", params=params):
                self._permission(rpc, params, line)
            case Request(rpc=rpc, method=method):
                self.wire.refuse(rpc, method)
                self.sessions.emit_lost(line, UNKNOWN_METHOD)
            case Reply() as reply:
                self._reply(reply, line)
            case None:
                self.sessions.emit_lost(line, Rejection.NOT_PROTOCOL.value)

    def _update(self, params: Mapping[str, Any], line: bytes) -> None:
        session = self.sessions.route(text(params, "sessionId"))
        if session is not None:
            mode = session.mode
            self._updates.take(session, obj(params, "update"), line)
            if session.mode != mode:
                self.sessions.changed(session)
        elif not self.sessions.dropped(text(params, "sessionId")):
            self.sessions.emit_lost(line, UNKNOWN_SESSION)

    def _permission(self, rpc: Any, params: Mapping[str, Any], line: bytes) -> None:
        session = self.sessions.route(text(params, "sessionId"))
        if session is None:
            # Nobody could answer it, and the agent would wait for ever.
            self.wire.reply(rpc, {"outcome": {"outcome": "cancelled"}})
            self.sessions.emit_lost(line, UNKNOWN_SESSION)
            return
        self._updates.release(session)
        self.tools.asked(session, rpc, params)

    def _reply(self, reply: Reply, line: bytes) -> None:
        pending = self.wire.answered(reply.rpc)
        if pending is None:
            self.sessions.emit_lost(line, UNKNOWN_ID)
        elif pending.kind is RequestKind.INITIALIZE:
            if self.wire.observing:
                self.openings.introduced(reply.result)
            elif reply.error is None:
                self.openings.greeted(reply.result)
            else:
                self.openings.refused(failure_from_rpc(reply.error))
        elif pending.opening and self.wire.observing:
            self._observed_opening(pending, reply)
        elif pending.opening:
            if reply.error is None:
                self.openings.answered(pending, reply.result)
            else:
                self.openings.failed(pending, reply.error)
            session = self.sessions.find(pending.session)
            if session is not None:
                self.sessions.changed(session)
        elif pending.kind is RequestKind.PROMPT:
            self._prompt_answered(pending, reply)
        else:
            self._wish_answered(pending, reply)

    def _observed_opening(self, pending: Pending, reply: Reply) -> None:
        """Another client made or loaded a session: there are no further steps that we know of."""
        session = self.sessions.find(pending.session)
        if reply.error is not None:
            if session is not None:
                session.muted = False
            error = failure_from_rpc(reply.error)
            if pending.kind is RequestKind.LOAD and error.reason != CLI_AUTH_REQUIRED:
                error = named_failure(SESSION_LOAD_FAILED, error.message)
            self.sessions.emit(session, error)
            return
        if session is None:
            session = self.sessions.adopt(text(reply.result, "sessionId"))
        learn(session, reply.result)
        self.sessions.changed(session)
        self.openings.announce(session, resumed=pending.kind is RequestKind.LOAD)

    def _prompt_answered(self, pending: Pending, reply: Reply) -> None:
        session = self.sessions.find(pending.session)
        turn = session.find_turn(pending.turn) if session is not None else None
        if session is None or turn is None:
            return
        self.sessions.route(session.cli_session)
        self._updates.release(session)
        if reply.error is None:
            self.turns.answered(session, turn, reply.result)
            return
        self.turns.failed(session, turn, reply.error)
        if turn.error is not None and turn.error.reason in (CLI_SESSION_LOST, CLI_AUTH_REQUIRED):
            self.sessions.shut(session)

    def _wish_answered(self, pending: Pending, reply: Reply) -> None:
        session = self.sessions.find(pending.session)
        body = self._wishes.answered(session, pending, reply)
        if body is not None:
            self.sessions.emit(session, body)
        if session is not None:
            self.sessions.changed(session)

    # What happens to sessions.

    def _opened(self, session: AcpSession) -> None:
        self.sessions.changed(session)
        self._wishes.flush(session)
        self.turns.send_queued(session)

    def _not_opened(self, session: AcpSession, error: Error) -> None:
        self._refuse_wishes(session, error)
        if not session.turns:
            self._outbox.emit(session.id, None, error)
        for turn in list(session.turns):
            self.turns.end(session, turn, StopReason.ERROR, error)
        self.sessions.shut(session)

    def _nobody_answers(self, error: Error) -> None:
        for pending in self.wire.drop_all():
            if pending.request_id:
                session = self.sessions.find(pending.session)
                self.sessions.emit(session, named_failure(error.reason, error.message, request_id=pending.request_id))
        for session in self.sessions:
            self._refuse_wishes(session, error)

    def _refuse_wishes(self, session: AcpSession, error: Error) -> None:
        for refused in self._wishes.refuse(session, error):
            self.sessions.emit(session, refused)
