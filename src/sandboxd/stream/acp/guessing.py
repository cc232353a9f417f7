"""Fills in what a client must have sent, where only the CLI's output was kept: a prompt before a text, and the like.

For raw output, without a recording's other half. Guesses are taught to the observer like all that a client sends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sandboxd.model.session import TurnState
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.acp.messages import Notification, Reply, Request, classify
from sandboxd.stream.acp.observer import AcpObserver
from sandboxd.stream.decoding import decode_line
from sandboxd.stream.reading import obj, text

_OF_A_TURN = frozenset({"agent_message_chunk", "agent_thought_chunk", "tool_call", "tool_call_update", "plan"})


class AcpGuesser:
    """Guesses the client's half of a conversation."""

    def __init__(self, machine: AcpDialect, observer: AcpObserver) -> None:
        self._machine = machine
        self._observer = observer
        self._guessed: list[str] = []
        """Ids of guessed prompts, oldest first."""

    def prepare(self, line: bytes) -> bytes:
        """Teach the observer what must have come before a line of the CLI; answers the line to feed."""
        message = decode_line(line)
        match classify(message) if isinstance(message, dict) else None:
            case Notification(method="session/update", params=params):
                if text(obj(params, "update"), "sessionUpdate") in _OF_A_TURN:
                    self._prompted(text(params, "sessionId"))
                elif text(params, "sessionId"):
                    self._session(text(params, "sessionId"))
            case Request(method="session/request_permission", params=params):
                self._prompted(text(params, "sessionId"))
            case Reply(rpc=rpc, result=result, error=error) if not self._machine.wire.knows(rpc):
                return self._replied(rpc, result, error, message if isinstance(message, dict) else {}, line)
            case _:
                pass
        return line

    def _replied(
        self,
        rpc: int | str,
        result: Mapping[str, Any],
        error: Mapping[str, Any] | None,
        message: Mapping[str, Any],
        line: bytes,
    ) -> bytes:
        if "agentInfo" in result:
            self._observer.sent({"id": rpc, "method": "initialize", "params": {}})
        elif text(result, "sessionId"):
            self._observer.sent({"id": rpc, "method": "session/new", "params": {}})
        elif error is not None or "stopReason" in result:
            guessed = [id_ for id_ in self._guessed if self._machine.wire.knows(id_)]
            self._guessed = guessed[1:]
            if guessed:
                return json.dumps({**message, "id": guessed[0]}).encode()
        return line

    def _prompted(self, cli_session: str) -> None:
        session = self._machine.sessions.find_cli(cli_session)
        if not cli_session or (session is not None and (session.muted or _runs(session.turns))):
            return
        self._session(cli_session)
        params = {"sessionId": cli_session, "prompt": []}
        guessed = f"guessed-{self._observer.turns + 1}"
        self._guessed.append(guessed)
        self._observer.sent({"id": guessed, "method": "session/prompt", "params": params})

    def _session(self, cli_session: str) -> None:
        if self._machine.sessions.find_cli(cli_session) is None:
            self._machine.sessions.adopt(cli_session)


def _runs(turns: list[Any]) -> bool:
    return any(turn.state is TurnState.RUNNING for turn in turns)
