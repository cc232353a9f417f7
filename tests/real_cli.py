"""The real Gemini CLI driven by the ACP machine alone: no agent, no service, one thread that reads."""

from __future__ import annotations

import os
import queue
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from sandboxd.dev.gemini_cli import GeminiCli
from sandboxd.model.events import EventBody, PermissionRequest, Text
from sandboxd.model.ids import SessionId, TurnId
from sandboxd.model.session import PromptInput
from sandboxd.stream.acp import chat_files, launch, user_settings
from sandboxd.stream.acp.machine import AcpDialect
from sandboxd.stream.dialect import SessionChange, TurnBill

PATIENCE_SECONDS = 60


class RealCli:
    """One life of the CLI in a directory that outlives it."""

    def __init__(self, cli: GeminiCli, root: Path, url: str, *, load: tuple[str, ...] = ()) -> None:
        """Prepare the directory as production does, and start.

        Args:
            cli: The installed CLI.
            root: Where home and workspace are.
            url: What stands for the Gemini API.
            load: The CLI's ids of the sessions that will be loaded.
        """
        self.home, self.workspace = root / "home", root / "workspace"
        self.workspace.mkdir(parents=True, exist_ok=True)
        settings = launch.system_settings()
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        for argv in (
            user_settings.merge_argv(node=str(cli.node), settings=settings),
            chat_files.prepare_argv(load),
        ):
            subprocess.run(list(argv), env=environment, check=True, timeout=PATIENCE_SECONDS)
        environment |= launch.environment(
            home=str(self.home), model_endpoint=url, settings_path=str(root / "no-system-settings.json")
        )
        self.process = subprocess.Popen(
            list(launch.acp_argv(node=str(cli.node), entry=str(cli.entry), model="gemini-2.5-flash")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.workspace,
            env=environment,
        )
        self.machine = AcpDialect()
        self.bodies: list[tuple[TurnId | None, EventBody]] = []
        self.sessions: dict[SessionId, SessionChange] = {}
        self._output: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, name="real-cli", daemon=True).start()
        self.machine.start()
        self._settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def open(self, session: str, *, cli_session: str = "", mode: str = "") -> None:
        """Make or load a conversation."""
        hint = f"sbxd-{session}"
        cwd = str(self.workspace)
        self.machine.open(SessionId(session), cli_session=cli_session, cwd=cwd, mode=mode, model="", hint=hint)
        self._settle()

    def prompt(self, session: str, turn: str, text: str, *, answer: str = "") -> str:
        """Run a turn to its end; answers what the model said. `answer` is the option for every permission request."""
        self.machine.prompt(SessionId(session), TurnId(turn), PromptInput(text=text))
        self._settle()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.machine.open_turn(SessionId(session)) is not None:
            assert time.monotonic() < deadline, self.bodies[-5:]
            self.machine.feed(self._output.get(timeout=PATIENCE_SECONDS))
            self._settle()
            for permission in self.machine.permissions(SessionId(session)):
                self.machine.answer(SessionId(session), permission=permission, option=answer)
            self._settle()
        return "".join(body.text for where, body in self.bodies if where == turn and isinstance(body, Text))

    def of(self, kind: type[EventBody]) -> list[Any]:
        """The events of a kind."""
        return [body for _, body in self.bodies if isinstance(body, kind)]

    def asked(self) -> list[str]:
        """Titles of the permission requests so far."""
        return [body.title for body in self.of(PermissionRequest)]

    def _settle(self) -> None:
        while True:
            for finishing in self.machine.finishing:
                self.machine.finish(finishing.turn, TurnBill())
            step = self.machine.take()
            if not step:
                return
            self.bodies += [(emitted.turn, emitted.body) for emitted in step.events]
            self.sessions |= {change.session: change for change in step.sessions}
            if step.stdin and self.process.stdin is not None:
                self.process.stdin.write(step.stdin)
                self.process.stdin.flush()

    def _read(self) -> None:
        output = self.process.stdout
        while output is not None and (data := os.read(output.fileno(), 1 << 16)):
            self._output.put(data)
