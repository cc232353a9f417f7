"""Turns of the ACP machine: sent, ended by an answer or by the process's death, finished with the ledger's word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sandboxd.model.errors import TurnInProgressError
from sandboxd.model.events import CancelRequested, Error
from sandboxd.model.ids import TurnId
from sandboxd.model.session import PromptInput, StopReason, TurnState
from sandboxd.stream.acp.prompts import content_blocks
from sandboxd.stream.acp.state import AcpSession, AcpTurn, Pending, Phase, RequestKind
from sandboxd.stream.acp.tools import Tools
from sandboxd.stream.acp.wire import Wire
from sandboxd.stream.dialect import TurnBill
from sandboxd.stream.failures import failure_from_rpc, named_failure
from sandboxd.stream.outbox import Outbox
from sandboxd.stream.outcome import conclude
from sandboxd.stream.reading import text

_STOP_REASONS = {
    "end_turn": StopReason.END_TURN,
    "cancelled": StopReason.CANCELLED,
    "max_tokens": StopReason.MAX_TOKENS,
    "max_turn_requests": StopReason.MAX_TURN_REQUESTS,
    "refusal": StopReason.REFUSAL,
}
_FAILED = frozenset({StopReason.ERROR, StopReason.INTERRUPTED})


class Turns:
    """Moves turns from QUEUED over RUNNING and FINISHING to their end."""

    def __init__(self, outbox: Outbox, wire: Wire, tools: Tools, *, prompts: Mapping[TurnId, PromptInput]) -> None:
        self._outbox = outbox
        self._wire = wire
        self._tools = tools
        self._prompts = dict(prompts)

    def accept(self, session: AcpSession, turn: TurnId, prompt: PromptInput) -> None:
        """Take a prompt; it is sent at once where the session is open."""
        if session.turns:
            raise TurnInProgressError(session.id, turn=session.turns[0].id)
        session.turns.append(AcpTurn(id=turn))
        self._prompts[turn] = prompt
        if session.phase is Phase.OPEN:
            self.send_queued(session)

    def send_queued(self, session: AcpSession) -> None:
        """Send the prompt that waited for the session to open."""
        for turn in [queued for queued in session.turns if queued.state is TurnState.QUEUED]:
            prompt = self._prompts.pop(turn.id, None)
            if prompt is None:
                message = "The prompt was lost in a restart before it was sent. Send it again."
                self.end(session, turn, StopReason.ERROR, named_failure("PROMPT_LOST", message, retryable=True))
                continue
            params = {"sessionId": session.cli_session, "prompt": content_blocks(prompt)}
            self._wire.request("session/prompt", params, self.sent(session, turn))

    def sent(self, session: AcpSession, turn: AcpTurn) -> Pending:
        """The prompt goes out, by us or by the client that we observe: what comes now is new."""
        if session.muted and not session.commands_seen and self._wire.observing:
            session.held = []
        session.muted = False
        turn.state = TurnState.RUNNING
        self._outbox.turn(session.id, turn.id, TurnState.RUNNING)
        return Pending(kind=RequestKind.PROMPT, session=session.id, turn=turn.id)

    def answered(self, session: AcpSession, turn: AcpTurn, result: Mapping[str, Any]) -> None:
        """The agent ended the turn."""
        # A reason that is new to us ends the turn like any other; what it means, the ledger may know.
        self.end(session, turn, _STOP_REASONS.get(text(result, "stopReason"), StopReason.END_TURN))

    def failed(self, session: AcpSession, turn: AcpTurn, rpc_error: Mapping[str, Any]) -> None:
        """The agent answered the prompt with an error."""
        error = failure_from_rpc(rpc_error)
        cancelled = turn.cancelling and error.http_status is None
        self.end(session, turn, StopReason.CANCELLED if cancelled else StopReason.ERROR, error)

    def cancel(self, session: AcpSession, *, request_id: str, reason: str) -> bool:
        """Cancel the open turn; open permission requests first, the agent does not hear it before."""
        turn = next((found for found in session.turns if found.state is not TurnState.FINISHING), None)
        if turn is None or turn.cancelling:
            return False
        turn.cancelling = True
        self._outbox.emit(session.id, turn.id, CancelRequested(request_id=request_id, reason=reason))
        if turn.state is TurnState.QUEUED:
            self._prompts.pop(turn.id, None)
            self.end(session, turn, StopReason.CANCELLED)
            return True
        self._tools.close_permissions(session, turn.id, request_id=request_id)
        self._wire.notify("session/cancel", {"sessionId": session.cli_session})
        return True

    def observed_cancel(self, session: AcpSession) -> None:
        """Another client cancelled; it answers the permission requests itself."""
        for turn in session.turns:
            if turn.state is TurnState.RUNNING and not turn.cancelling:
                turn.cancelling = True
                self._outbox.emit(session.id, turn.id, CancelRequested())

    def end(self, session: AcpSession, turn: AcpTurn, stop: StopReason, error: Error | None = None) -> None:
        """Close what the turn left open; it waits for the ledger now."""
        if turn.state is TurnState.FINISHING:
            return
        self._tools.close_permissions(session, turn.id)
        self._tools.close_calls(session, turn.id)
        if error is not None:
            self._outbox.emit(session.id, turn.id, error)
        self._prompts.pop(turn.id, None)
        turn.state, turn.stop, turn.error = TurnState.FINISHING, stop, error
        self._outbox.turn(session.id, turn.id, TurnState.FINISHING, stop)

    def interrupt(self, session: AcpSession, error: Error) -> None:
        """The process is gone: end every turn that it was given. What it never got is the next process's."""
        for turn in list(session.turns):
            if turn.state is TurnState.QUEUED:
                session.turns.remove(turn)
                self._prompts.pop(turn.id, None)
            else:
                self.end(session, turn, StopReason.INTERRUPTED, error)

    def finish(self, sessions: Iterable[AcpSession], turn: TurnId, bill: TurnBill) -> None:
        """The ledger has spoken: the turn's last events."""
        for session in sessions:
            found = session.find_turn(turn)
            if found is None or found.state is not TurnState.FINISHING or found.stop is None:
                continue
            stop, bodies = conclude(found.stop, said=found.said, bill=bill)
            for body in bodies:
                self._outbox.emit(session.id, turn, body)
            session.turns.remove(found)
            state = TurnState.FAILED if stop in _FAILED else TurnState.COMPLETED
            self._outbox.turn(session.id, turn, state, stop)
            return
