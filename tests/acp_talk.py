"""Both ends of an ACP connection in a test: the real machine, and an agent that says what the test lets it say."""

from __future__ import annotations

import json
from typing import Any

from sandboxd.model.events import EventBody
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.dialect import SessionChange, Step, TurnChange

MODES = {"availableModes": [{"id": "default"}, {"id": "yolo"}, {"id": "plan"}], "currentModeId": "default"}
MODELS = {"availableModels": [{"modelId": "auto"}, {"modelId": "flash"}], "currentModelId": "auto"}
OPTIONS = [
    {"optionId": "proceed_always", "name": "Always", "kind": "allow_always"},
    {"optionId": "proceed_once", "name": "Allow", "kind": "allow_once"},
    {"optionId": "cancel", "name": "Reject", "kind": "reject_once"},
]
A = SessionId("ses-a")
B = SessionId("ses-b")
T = TurnId("trn-1")


class Talk:
    """A machine with everything that it produced."""

    def __init__(self) -> None:
        self.machine = AcpDialect()
        self.sent: list[dict[str, Any]] = []
        """What the agent was sent and has not answered or looked at."""
        self.bodies: list[EventBody] = []
        self.steps: list[Step] = []
        self.turns: list[TurnChange] = []
        self.sessions: dict[SessionId, SessionChange] = {}

    def collect(self) -> None:
        """Take what there is."""
        step = self.machine.take()
        self.steps.append(step)
        self.sent += [json.loads(line) for line in step.stdin.splitlines()]
        self.bodies += [emitted.body for emitted in step.events]
        self.turns += step.turns
        self.sessions |= {change.session: change for change in step.sessions}

    def restart(self, **prompts: PromptInput) -> None:
        """The service dies and comes back."""
        self.collect()
        snapshot = json.loads(json.dumps(self.machine.snapshot()))
        self.machine = AcpDialect.restore(snapshot, prompts={TurnId(key): value for key, value in prompts.items()})

    def says(self, *messages: Any) -> None:
        """The agent writes lines."""
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
            self.machine.feed(line + b"\n")
        self.collect()

    def asked(self, method: str) -> dict[str, Any]:
        """The next message to the agent, which is of this method; it is looked at now."""
        self.collect()
        message = self.sent.pop(0)
        assert message.get("method") == method, message
        return message

    def answers(
        self, method: str, result: dict[str, Any] | None = None, *, error: dict[str, Any] | None = None
    ) -> None:
        """The agent answers the next request, which is of this method."""
        request = self.asked(method)
        reply = {"result": result or {}} if error is None else {"error": error}
        self.says({"id": request["id"], **reply})

    def updates(self, cli_session: str, **update: Any) -> None:
        """The agent reports on a session."""
        self.says({"method": "session/update", "params": {"sessionId": cli_session, "update": update}})

    def writes(self, text: str, cli_session: str = "cli-a", kind: str = "agent_message_chunk") -> None:
        """The model says something."""
        self.updates(cli_session, sessionUpdate=kind, content={"type": "text", "text": text})

    def asks(self, tool_call_id: str = "run_shell_command__1", rpc: Any = 0, cli_session: str = "cli-a") -> None:
        """The agent asks for permission."""
        tool = {"toolCallId": tool_call_id, "title": "touch x", "kind": "execute", "content": [], "locations": []}
        params = {"sessionId": cli_session, "options": OPTIONS, "toolCall": tool}
        self.says({"id": rpc, "method": "session/request_permission", "params": params})

    def greet(self) -> None:
        """The first exchange."""
        self.machine.start()
        self.answers("initialize", {"protocolVersion": 1, "agentInfo": {"version": "0.61.0"}})

    def open(self, session: SessionId = A, cli_session: str = "cli-a") -> None:
        """Make a new conversation."""
        self.machine.open(session, cli_session="", cwd="/workspace", mode="", model="", hint=f"sbxd-{session}")
        self.answers("authenticate")
        self.answers("session/new", {"sessionId": cli_session, "modes": MODES, "models": MODELS})

    def prompt(self, text: str = "hello", session: SessionId = A, turn: TurnId = T) -> dict[str, Any]:
        """Send a prompt; answers the request."""
        self.machine.prompt(session, turn, PromptInput(text=text))
        return self.asked("session/prompt")

    def ends(self, request: dict[str, Any], stop: str = "end_turn") -> None:
        """The agent ends a turn."""
        self.says({"id": request["id"], "result": {"stopReason": stop}})

    def of(self, kind: type[EventBody]) -> list[Any]:
        """The events of a kind, so far."""
        self.collect()
        return [body for body in self.bodies if isinstance(body, kind)]

    def kinds(self) -> list[str]:
        """The kinds of all events, in order."""
        self.collect()
        return [type(body).__name__ for body in self.bodies]


def opened() -> Talk:
    """A talk with one open session."""
    talk = Talk()
    talk.greet()
    talk.open()
    talk.collect()
    talk.bodies.clear()
    talk.turns.clear()
    return talk
