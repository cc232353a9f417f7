"""Watches a conversation that another client leads: what it sends teaches the machine what the process was asked.

The machine is the same as in production, with a wire that writes nothing. Other clients have their own ids and order:
prompts that overlap, methods we never use, answers to questions we would have answered otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxd.model.events import AttachmentInfo, TurnStarted
from sandboxd.model.ids import TurnId
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.acp.state import AcpSession, AcpTurn, Pending, RequestKind
from sandboxd.stream.cutting import shorten
from sandboxd.stream.limits import MAX_NAME_BYTES, MAX_OUTPUT_BYTES
from sandboxd.stream.reading import obj, objects, text

_KINDS = {kind.value: kind for kind in RequestKind}


class AcpObserver:
    """Tells an observing machine what another client sent."""

    def __init__(self, machine: AcpDialect, *, turns: int = 0) -> None:
        """Watch a machine that observes; `turns` were counted before."""
        self._machine = machine
        self._turns = turns

    @property
    def turns(self) -> int:
        """How many prompts were seen."""
        return self._turns

    def sent(self, message: Mapping[str, Any]) -> None:
        """One message of the other client, in the order of the recording. Never raises."""
        method = message.get("method")
        rpc = message.get("id")
        params = obj(message, "params")
        if not isinstance(method, str):
            self._answered(rpc, message)
        elif method == "session/cancel":
            session = self._machine.sessions.find_cli(text(params, "sessionId"))
            if session is not None:
                self._machine.turns.observed_cancel(session)
        elif isinstance(rpc, (int, str)):
            self._machine.wire.observe(rpc, self._asked(method, params))

    def _asked(self, method: str, params: Mapping[str, Any]) -> Pending:
        kind = _KINDS.get(method, RequestKind.OTHER)
        cli_session = text(params, "sessionId")
        if kind is RequestKind.LOAD:
            session = self._session(cli_session)
            session.muted, session.commands_seen, session.held = True, False, None
            return Pending(kind=kind, session=session.id, opening=True)
        if kind is RequestKind.NEW:
            return Pending(kind=kind, opening=True)
        if kind is RequestKind.PROMPT:
            return self._prompted(self._session(cli_session), params)
        value = text(params, "modeId") or text(params, "modelId") or method
        known = self._machine.sessions.find_cli(cli_session)
        return Pending(kind=kind, session=known.id if known else None, value=shorten(value, MAX_NAME_BYTES))

    def _prompted(self, session: AcpSession, params: Mapping[str, Any]) -> Pending:
        self._turns += 1
        turn = AcpTurn(id=TurnId(f"turn-{self._turns}"))
        session.turns.append(turn)
        blocks = objects(params, "prompt")
        said = "".join(text(block, "text") for block in blocks if text(block, "type") == "text")
        others = [block for block in blocks if text(block, "type") != "text"]
        started = TurnStarted(
            request_id="",
            number=self._turns,
            text=shorten(said, MAX_OUTPUT_BYTES),
            attachments=tuple(_attachment(block) for block in others),
        )
        self._machine.observe(session, turn, started)
        return self._machine.turns.sent(session, turn)

    def _answered(self, rpc: Any, message: Mapping[str, Any]) -> None:
        """The client answered a request of the agent."""
        outcome = obj(obj(message, "result"), "outcome")
        option = text(outcome, "optionId") if text(outcome, "outcome") == "selected" else ""
        for session in self._machine.sessions:
            for permission in session.permissions:
                if permission.rpc == rpc and type(permission.rpc) is type(rpc):
                    self._machine.tools.observed(session, permission, option, failed="result" not in message)
                    return

    def _session(self, cli_session: str) -> AcpSession:
        """The session with the CLI's id; a recording may begin after it was made."""
        return self._machine.sessions.find_cli(cli_session) or self._machine.sessions.adopt(cli_session)


def _attachment(block: Mapping[str, Any]) -> AttachmentInfo:
    resource = obj(block, "resource")
    name = text(block, "name") or text(block, "uri") or text(resource, "uri") or text(block, "type")
    mime_type = text(block, "mimeType") or text(resource, "mimeType")
    coded = text(block, "data") or text(resource, "blob")
    return AttachmentInfo(
        name=shorten(name, MAX_NAME_BYTES),
        mime_type=shorten(mime_type, MAX_NAME_BYTES),
        size=len(coded) * 3 // 4 or len(text(resource, "text").encode("utf-8", "replace")),
        sha256="",
    )
