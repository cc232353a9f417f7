"""Starts agents as processes of this machine, and waits until they answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from sandboxd.backends.certificates import CertificateAuthority, agent_name, write_private
from sandboxd.backends.local.layout import Ready, RunFiles, SandboxFiles
from sandboxd.backends.local.processes import is_running
from sandboxd.manager.agents import visit
from sandboxd.model.errors import DeadlineError, SandboxdError, UnavailableError
from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.model.sandbox import AgentEndpoint
from sandboxd.model.sources import Clock
from sandboxd.stream.agent_port import AgentConnector

POLL_SECONDS: Final = 0.02
CLEAN_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NICENESS: Final = 10
"""Of sandboxes, a ninth of the service's weight (sched(7)): where all share one machine, a hundred of them that
compute must not hold up the one that serves them. In a cluster pods' requests say that."""


class AgentStartError(UnavailableError):
    """An agent ended before it answered."""

    reason = "AGENT_START_FAILED"


class Launcher:
    """Starts one agent after the other."""

    def __init__(
        self, *, authority: CertificateAuthority, connector: AgentConnector, clock: Clock, python: str = sys.executable
    ) -> None:
        self._authority = authority
        self._connector = connector
        self._clock = clock
        self._python = python
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def spawn(self, sandbox: SandboxId, incarnation: IncarnationId, files: SandboxFiles) -> int:
        """Start the agent of an incarnation; blocks for some milliseconds.

        Raises:
            UnavailableError: This machine refuses.
        """
        run = files.run(incarnation)
        try:
            self._prepare(sandbox, incarnation, files, run)
            with run.log.open("ab") as log:
                program = [self._python, "-s", "-m", "sandboxd.agent", "--config", str(run.config)]
                child = subprocess.Popen(
                    ["nice", "-n", str(NICENESS), *program],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=files.directory,
                    # Nothing of ours: no settings, no keys. Its own processes get an environment that they are given.
                    env={"PATH": CLEAN_PATH, "LANG": "C.UTF-8", "PYTHONPATH": _module_path()},
                    start_new_session=True,  # it outlives this service, and no Ctrl-C of a terminal reaches it
                )
        except OSError as error:
            raise UnavailableError(
                f"The agent of sandbox {sandbox} could not be started: {error.strerror or error}.", sandbox=sandbox
            ) from error
        self._children[child.pid] = child
        return child.pid

    def reap(self) -> None:
        """Collect ended agents that this process had started, so that they do not stay as zombies."""
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                self._children.pop(pid, None)

    async def wait_ready(
        self, sandbox: SandboxId, incarnation: IncarnationId, run: RunFiles, pid: int, *, seconds: float
    ) -> AgentEndpoint:
        """Wait until the agent with this number answers.

        Raises:
            AgentStartError: It ended; the message has the last lines of its log.
            DeadlineError: It does not answer in time; the same.
        """
        deadline = self._clock.monotonic() + seconds
        last = "it has not said that it is ready"
        while True:
            ready = run.read_ready()
            if ready is not None and ready.pid == pid:
                endpoint = _endpoint(incarnation, ready)
                try:
                    async with visit(self._connector, endpoint) as agent:
                        await agent.describe()
                except SandboxdError as error:
                    last = error.message
                else:
                    return endpoint
            self.reap()
            if not is_running(pid):
                raise AgentStartError(
                    f"The agent of sandbox {sandbox} ended before it was ready.\n{run.last_lines()}".strip(),
                    sandbox=sandbox,
                    incarnation=incarnation,
                )
            if self._clock.monotonic() >= deadline:
                raise DeadlineError(
                    f"The agent of sandbox {sandbox} does not answer after {seconds:.0f} s: {last}\n"
                    f"{run.last_lines()}".strip(),
                    sandbox=sandbox,
                    incarnation=incarnation,
                )
            await asyncio.sleep(POLL_SECONDS)

    def _prepare(self, sandbox: SandboxId, incarnation: IncarnationId, files: SandboxFiles, run: RunFiles) -> None:
        run.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        run.ready.unlink(missing_ok=True)
        identity = self._authority.issue_agent(incarnation)
        write_private(run.certificate, identity.certificate)
        write_private(run.key, identity.key)
        write_private(run.authority, self._authority.certificate)
        config = {
            "sandbox": sandbox,
            "incarnation": incarnation,
            "home": str(files.home),
            "workspace": str(files.workspace),
            "spool_directory": str(run.spool),
            "ready_file": str(run.ready),
            "tls_certificate": str(run.certificate),
            "tls_key": str(run.key),
            "tls_client_authority": str(run.authority),
        }
        write_private(run.config, json.dumps(config, indent=1).encode())


def endpoint_of(incarnation: IncarnationId, run: RunFiles, pid: int) -> AgentEndpoint | None:
    """Where the agent with this number listens; None until it is ready."""
    ready = run.read_ready()
    return _endpoint(incarnation, ready) if ready is not None and ready.pid == pid else None


def _endpoint(incarnation: IncarnationId, ready: Ready) -> AgentEndpoint:
    return AgentEndpoint(host="127.0.0.1", port=ready.port, server_name=agent_name(incarnation))


def _module_path() -> str:
    """Where this program's own modules are, whether it is installed or run from a checkout."""
    return str(Path(__file__).resolve().parents[3])
