"""Launching the CLI through the agent: the sandbox prepared, leftovers ended, the process started or found again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId, TurnId
from sandboxd.model.processes import ProcessId, ProcessSpec, SignalScope, Spool, SpoolPolicy
from sandboxd.model.session import PromptInput
from sandboxd.stream import dialects
from sandboxd.stream.acp import chat_files, user_settings
from sandboxd.stream.acp import launch as acp
from sandboxd.stream.agent_port import Agent, AgentConnector, ProcessExitedError, ProcessNotFoundError
from sandboxd.stream.cli_process import CliProcess, run_script
from sandboxd.stream.conversation import CLI_PREFIX
from sandboxd.stream.dialect import Dialect, DialectName, Spawn
from sandboxd.stream.ports import ActiveSandbox, CliPlace, Journal, Sandboxes
from sandboxd.stream.starting import Put

log = structlog.get_logger(__name__)

STDOUT_SPOOL_BYTES: Final = 64 << 20
"""Output that the CLI may be ahead of the journal; then it blocks. Four times the longest line that is understood."""
STDERR_SPOOL_BYTES: Final = 1 << 20
REACH_TIMEOUT: Final = timedelta(seconds=10)
KILL_TIMEOUT: Final = timedelta(seconds=5)
_SIGKILL: Final = 9

_WRITE_SETTINGS = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1.new" && mv -f "$1.new" "$1"'


class CliLauncher:
    """Starts Gemini CLI in ACP mode in any sandbox, whatever backend placed it."""

    def __init__(
        self,
        *,
        connector: AgentConnector,
        sandboxes: Sandboxes,
        journal: Journal,
        dialect: DialectName = DialectName.ACP,
    ) -> None:
        self._dialect = dialect
        self._connector = connector
        self._sandboxes = sandboxes
        self._journal = journal
        self._agents: dict[SandboxId, tuple[str, Agent]] = {}

    @property
    def dialect(self) -> str:
        """What new conversations speak."""
        return self._dialect.value

    def machine(self, dialect: str) -> Dialect:
        """A fresh machine."""
        return dialects.make(DialectName(dialect))

    def restore(self, dialect: str, snapshot: Mapping[str, Any], prompts: Mapping[TurnId, PromptInput]) -> Dialect:
        """A machine as it was when the snapshot was taken."""
        return dialects.restore(DialectName(dialect), snapshot, prompts=prompts)

    async def prepare(self, active: ActiveSandbox, process: str, *, cli_sessions: Sequence[str]) -> None:
        """Make the sandbox ready for the CLI; what an earlier owner left running is ended first.

        Raises:
            UnavailableError: A step of it failed.
        """
        agent, place = await self._agent(active), await self._sandboxes.place(active)
        await self._end_leftovers(agent, process)
        await self._prepare(agent, place, process, cli_sessions)

    async def start(self, active: ActiveSandbox, process: str, *, spawn: Spawn | None = None) -> None:
        """Start the CLI under this id: in ACP mode, or as a headless run.

        Raises:
            ProcessStartError: The CLI's program is not there.
        """
        agent, place = await self._agent(active), await self._sandboxes.place(active)
        environment = {"PATH": place.path, "LANG": "C.UTF-8", "USER": "gemini"} | dict(
            acp.environment(home=place.home, model_endpoint=place.model_endpoint, settings_path=place.settings)
        )
        argv = acp.acp_argv(node=place.node, entry=place.entry)
        if spawn is not None:
            argv = acp.headless_argv(node=place.node, entry=place.entry, arguments=spawn.argv)
            environment |= spawn.env
        spec = ProcessSpec(
            argv=tuple(argv),
            environment=environment,
            working_directory=place.workspace,
            stdout_spool=Spool(max_bytes=STDOUT_SPOOL_BYTES, policy=SpoolPolicy.BLOCK),
            stderr_spool=Spool(max_bytes=STDERR_SPOOL_BYTES, policy=SpoolPolicy.DROP_OLDEST),
        )
        started = await agent.start_process(ProcessId(process), spec)
        log.info("cli.started", sandbox=active.sandbox.id, process=process, pid=started.pid)

    async def attach(
        self, active: ActiveSandbox, *, process: str, epoch: int, consumed: int, put: Put
    ) -> CliProcess | None:
        """The CLI's process as the agent has it, not yet running its tasks; None where the agent has none."""
        agent = await self._agent(active)
        try:
            await agent.get_process(ProcessId(process))
        except ProcessNotFoundError:
            return None
        return CliProcess(
            agent,
            sandbox=active.sandbox.id,
            incarnation=active.incarnation.id,
            process=process,
            epoch=epoch,
            consumed=consumed,
            journal=self._journal,
            sandboxes=self._sandboxes,
            put=put,
        )

    async def workspace(self, active: ActiveSandbox) -> str:
        """The workspace as the sandbox sees it."""
        return (await self._sandboxes.place(active)).workspace

    async def reach(self, active: ActiveSandbox) -> None:
        """Make sure that this life is there and its agent answers.

        Raises:
            UnavailableError: It is not, or it does not.
        """
        await self._sandboxes.place(active)
        await (await self._agent(active)).describe(timeout=REACH_TIMEOUT)

    async def close(self) -> None:
        """Let go of all connections to agents."""
        for _, agent in self._agents.values():
            await agent.close()
        self._agents.clear()

    async def _agent(self, active: ActiveSandbox) -> Agent:
        """The connection to the agent of this life; that of an earlier life is closed."""
        held = self._agents.get(active.sandbox.id)
        if held is not None and held[0] == active.incarnation.id:
            return held[1]
        if active.incarnation.endpoint is None:
            raise UnavailableError("The sandbox's agent is not ready.", sandbox=active.sandbox.id)
        agent = await self._connector.connect(active.incarnation.endpoint)
        self._agents[active.sandbox.id] = (active.incarnation.id, agent)
        if held is not None:
            await held[1].close()
        return agent

    async def _end_leftovers(self, agent: Agent, process: str) -> None:
        for old in await agent.list_processes():
            if not old.process_id.startswith(CLI_PREFIX) or old.process_id == process:
                continue
            if old.running:
                log.warning("cli.leftover_ended", process=old.process_id)
                try:
                    await agent.signal_process(old.process_id, _SIGKILL, scope=SignalScope.TREE)
                    await agent.wait_process(old.process_id, timeout=KILL_TIMEOUT)
                except (ProcessNotFoundError, ProcessExitedError):
                    continue
            await agent.remove_process(old.process_id)

    async def _prepare(self, agent: Agent, place: CliPlace, process: str, cli_sessions: Sequence[str]) -> None:
        environment = {"PATH": place.path, "HOME": place.home}
        settings = json.dumps(acp.system_settings(), sort_keys=True)
        argv = ("/bin/sh", "-c", _WRITE_SETTINGS, "sh", place.settings, settings)
        await run_script(agent, name=f"settings-{process}", spec=ProcessSpec(argv=argv, environment=environment))
        merge = user_settings.merge_argv(node=place.node, settings=acp.system_settings())
        await run_script(agent, name=f"merge-{process}", spec=ProcessSpec(argv=merge, environment=environment))
        chats = chat_files.prepare_argv(cli_sessions)
        await run_script(agent, name=f"chats-{process}", spec=ProcessSpec(argv=chats, environment=environment))
