"""A `gemini --acp` in memory: bytes in, bytes out, both at absolute offsets, as a process at the agent is seen.

A prompt's text says what the turn does: `say WORDS` streams the words, `ask` requests a permission first, `tool` runs a
tool, `die` ends the process in the middle of the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

OPTIONS = [
    {"optionId": "proceed_once", "name": "Allow once", "kind": "allow_once"},
    {"optionId": "cancel", "name": "Reject", "kind": "reject_once"},
]


@dataclass(kw_only=True)
class FakeCli:
    stdin: bytes = b""
    stdout: bytes = b""
    exited: bool = False
    prompts: list[str] = field(default_factory=list)
    """Texts of the prompts it was given: what would have been paid for."""
    hints: list[str] = field(default_factory=list)
    _asked: dict[int, tuple[Any, str, str]] = field(default_factory=dict)
    _next_ask: int = 0
    _sessions: int = 0

    def write(self, offset: int, data: bytes) -> int:
        """Accept bytes at an absolute offset, exactly once, like the agent."""
        assert offset <= len(self.stdin), "a gap in stdin"
        fresh = data[len(self.stdin) - offset :]
        done = self.stdin.count(b"\n")
        self.stdin += fresh
        for line in self.stdin.split(b"\n")[done:-1]:
            if not self.exited:
                self._take(json.loads(line))
        return len(self.stdin)

    def _take(self, message: dict[str, Any]) -> None:
        method, number, params = message.get("method"), message.get("id"), message.get("params", {})
        if method is None:
            self._answered(message)
        elif method == "initialize":
            self._reply(number, {"protocolVersion": 1, "agentInfo": {"name": "fake", "version": "0.61.0"}})
        elif method == "authenticate":
            self.hints.append(params["_meta"]["api-key"])
            self._reply(number, {})
        elif method == "session/new":
            self._sessions += 1
            name = f"00000000-0000-4000-8000-{self._sessions:012d}"
            self._reply(number, {"sessionId": name} | self._modes())
        elif method == "session/load":
            self._reply(number, self._modes())
        elif method == "session/prompt":
            self._prompt(number, params["sessionId"], params["prompt"][0]["text"])
        elif method in ("session/set_mode", "session/set_model"):
            self._reply(number, {})

    def _prompt(self, number: Any, session: str, text: str) -> None:
        self.prompts.append(text)
        verb, _, rest = text.partition(" ")
        if verb == "ask":
            call = {"toolCallId": f"run_shell_command__{number}", "title": rest, "kind": "execute", "status": "pending"}
            params = {"sessionId": session, "options": OPTIONS, "toolCall": call | {"content": [], "locations": []}}
            self._asked[self._next_ask] = (number, session, str(call["toolCallId"]))
            self._send({"id": self._next_ask, "method": "session/request_permission", "params": params})
            self._next_ask += 1
            return
        if verb == "tool":
            self._tool(session, f"run_shell_command__{number}", rest)
        for word in rest.split():
            self._chunk(session, word)
            if verb == "die":
                self.exited = True
                return
        self._reply(number, {"stopReason": "end_turn"})

    def _answered(self, message: dict[str, Any]) -> None:
        number, session, call = self._asked.pop(message["id"])
        outcome = message["result"]["outcome"]
        if outcome.get("optionId") == "proceed_once":
            self._update(session, {"sessionUpdate": "tool_call_update", "toolCallId": call, "status": "completed"})
            self._chunk(session, "allowed")
        self._reply(number, {"stopReason": "end_turn" if outcome["outcome"] == "selected" else "cancelled"})

    def _tool(self, session: str, call: str, title: str) -> None:
        start = {"sessionUpdate": "tool_call", "toolCallId": call, "status": "in_progress", "title": title}
        self._update(session, start | {"content": [], "locations": [], "kind": "execute"})
        done = {"sessionUpdate": "tool_call_update", "toolCallId": call, "status": "completed"}
        text = {"type": "content", "content": {"type": "text", "text": "output"}}
        self._update(session, done | {"content": [text]})

    def _chunk(self, session: str, text: str) -> None:
        content = {"type": "text", "text": f"{text} "}
        self._update(session, {"sessionUpdate": "agent_message_chunk", "content": content})

    def _update(self, session: str, update: dict[str, Any]) -> None:
        self._send({"method": "session/update", "params": {"sessionId": session, "update": update}})

    def _reply(self, number: Any, result: dict[str, Any]) -> None:
        self._send({"id": number, "result": result})

    def _send(self, message: dict[str, Any]) -> None:
        self.stdout += json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n"

    @staticmethod
    def _modes() -> dict[str, Any]:
        return {
            "modes": {"availableModes": [{"id": "default", "name": "Default"}], "currentModeId": "default"},
            "models": {"availableModels": [{"modelId": "gemini-2.5-flash"}], "currentModelId": "gemini-2.5-flash"},
        }
