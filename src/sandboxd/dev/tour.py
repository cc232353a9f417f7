"""The demo's way through the API, as any client: a sandbox, a session, turns, the ledger, pause and resume."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from sandboxd.ctl.client import ApiError, Client, SessionStream, usage_filter
from sandboxd.ctl.jsonlines import to_dict
from sandboxd.dev.show import Json, Show

FIRST_PROMPT: Final = (
    "Show which system this is and what date it has, with a shell command. "
    "Then write a file hello.md with a short greeting that names both, and tell me what you did."
)
SECOND_PROMPT: Final = "Do you remember my first prompt in this session? Read hello.md again and tell me what it says."
TURN_SECONDS: Final = 900.0
LEDGER_SECONDS: Final = 20.0
"""How long to wait until no call of the sandbox is open."""
_QUIET_SECONDS: Final = 0.3
"""The CLI may still ask for a title after a turn: the sum has to stay the same this long."""
_GOOD_ENDS: Final = frozenset(
    {"STOP_REASON_END_TURN", "STOP_REASON_MAX_TOKENS", "STOP_REASON_MAX_TURN_REQUESTS", "STOP_REASON_REFUSAL"}
)
_READING: Final = ("read_file", "read_many_files", "run_shell_command")


class TourError(Exception):
    """Something did not work as it should; the text says what."""


class Turn:
    """What was seen of one turn."""

    def __init__(self) -> None:
        self.text = ""
        self.tools: list[str] = []
        """Tools that completed."""
        self.stop_reason = ""
        self.errors: list[str] = []

    def take(self, kind: str, body: Json) -> None:
        """Note an event."""
        if kind == "text":
            self.text += body["text"]
        elif kind == "tool_output" and body["status"] == "TOOL_STATUS_COMPLETED":
            self.tools.append(body["tool"])
        elif kind == "error":
            self.errors.append(f"{body['reason']}: {body['message']}")
        elif kind == "turn_completed":
            self.stop_reason = body["stop_reason"]

    @property
    def problem(self) -> str:
        """What went wrong; empty where nothing did."""
        if self.stop_reason in _GOOD_ENDS:
            return ""
        end = self.stop_reason.removeprefix("STOP_REASON_").lower() or "without an end"
        return f"the turn ended {end}" + "".join(f"; {error}" for error in self.errors[-2:])


class Tour:
    """One sandbox and one session."""

    def __init__(self, client: Client, show: Show, *, model: str) -> None:
        self._client = client
        self._show = show
        self._model = model
        self.sandbox = ""
        self.session = ""
        self.problems: list[str] = []

    async def create(self) -> None:
        """Make the sandbox."""
        began = time.monotonic()
        made = await self._client.create(display_name="demo", labels={"made-by": "demo"}, model=self._model)
        self.sandbox = made.name
        self._show.say(f"{made.name} is ACTIVE after {time.monotonic() - began:.1f} s")

    async def turns(self, prompts: Sequence[str]) -> list[Turn]:
        """Run prompts as turns of the session; the first call makes it."""
        done: list[Turn] = []
        after = -1 if self.session else 0
        async with self._client.stream(self.sandbox, session=self.session, after_sequence=after) as stream:
            for prompt in prompts:
                turn = await self._turn(stream, prompt)
                if turn.problem:
                    self.problems.append(turn.problem)
                    self._show.say(f"✗ {turn.problem}")
                done.append(turn)
        return done

    async def pause_and_resume(self) -> None:
        """Release the sandbox's compute and bring it back."""
        began = time.monotonic()
        await self._client.pause(self.sandbox)
        self._show.say(
            f"paused after {time.monotonic() - began:.1f} s: no process of the sandbox runs, its files are kept"
        )
        began = time.monotonic()
        await self._client.resume(self.sandbox)
        self._show.say(f"resumed after {time.monotonic() - began:.1f} s: another incarnation, the same files")

    async def ledger(self) -> tuple[list[Json], Json]:
        """The rows and the sum of the sandbox, once no call of it is open and the CLI begins no more."""
        wanted = usage_filter(sandbox=self.sandbox)
        deadline = time.monotonic() + LEDGER_SECONDS
        before: Json = {}
        while (total := to_dict((await self._client.usage_summary(wanted)).total)) != before or total["open_calls"]:
            if time.monotonic() > deadline:
                self.problems.append(f"{total['open_calls']} calls are still open in the ledger")
                break
            before = total
            await asyncio.sleep(_QUIET_SECONDS)
        rows = [to_dict(row) async for row in self._client.usage_events(wanted)]
        return rows, total

    def prove(self, turn: Turn) -> None:
        """Say what the turn after the resume has proven.

        Raises:
            TourError: The file was not read, or nothing was answered.
        """
        if turn.problem:
            raise TourError(f"The session did not go on after the resume: {turn.problem}.")
        reader = next((tool for tool in turn.tools if tool in _READING), None)
        if reader is None:
            raise TourError("After the resume no tool has read hello.md.")
        if "hello" not in turn.text.lower():
            raise TourError("After the resume the answer does not tell about the file.")
        self._show.say(
            f"✓ the file is still there ({reader} has read it), and the session remembers what was said before"
        )

    async def finish(self) -> str:
        """End the sandbox; answers where its files were kept."""
        if not self.sandbox:
            return ""
        try:
            return (await self._client.terminate(self.sandbox)).kept
        except ApiError as error:
            self._show.say(f"the sandbox could not be terminated: {error}")
            return ""

    async def _turn(self, stream: SessionStream, prompt: str) -> Turn:
        turn = Turn()
        request = stream.prompt(prompt)
        accepted = ""
        async with asyncio.timeout(TURN_SECONDS):
            async for event in stream:
                self.session = stream.session
                kind = event.WhichOneof("event")
                self._show.event(event)
                if kind is None:
                    continue
                body = to_dict(getattr(event, kind))
                if kind == "command_failed" and body["request_id"] == request:
                    raise TourError(f"The prompt was refused: {body['reason']}: {body['message']}")
                if kind == "acknowledged" and body["request_id"] == request:
                    accepted = body["turn"]
                if kind == "permission_request":
                    self._allow(stream, body)
                turn.take(kind, body)
                if kind == "turn_completed" and event.turn == accepted:
                    return turn
        raise TourError("The stream ended before the turn did.")

    def _allow(self, stream: SessionStream, request: Json) -> None:
        options: list[dict[str, Any]] = request["options"]
        once = next((option for option in options if option["kind"] == "KIND_ALLOW_ONCE"), None)
        if once is None:
            self._show.say("  (the demo refuses: there is no way to allow it once)")
            stream.answer(request["permission"], "")
            return
        self._show.say(f"  (the demo answers for you: {once['label']})")
        stream.answer(request["permission"], once["option"])
