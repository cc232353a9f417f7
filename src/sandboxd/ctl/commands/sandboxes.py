"""`sandboxctl create`, `ls`, `show`, `pause`, `resume`, `rm`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from rich.status import Status
from rich.text import Text

from sandboxd.ctl.client import ApiError
from sandboxd.ctl.commands.backups import find_source
from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import span
from sandboxd.ctl.names import bare, find_sandbox
from sandboxd.ctl.shell import Shell, UsageError, write_line
from sandboxd.ctl.tables import final_line, sandbox_facts, sandbox_table, session_table, state_name
from sandboxd.v1 import sandbox_pb2

T = TypeVar("T")
EVERY_STATE = tuple(name.removeprefix("SANDBOX_STATE_") for name in sandbox_pb2.SandboxState.keys()[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What to create."""

    name: str = ""
    freelancer: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: str = ""
    model: str = ""
    mode: str = ""
    from_backup: str = ""
    """A sandbox, or `SANDBOX/BACKUP`."""
    workspace_only: bool = False
    request_id: str = ""
    timeout: float = 180.0
    progress: bool = False
    """Tell how it goes also without a terminal."""
    quiet: bool = False
    """Print the bare id only."""


async def create(shell: Shell, options: CreateOptions) -> Exit:
    """Create a sandbox."""
    started = time.monotonic()
    backup = await find_source(shell, options.from_backup) if options.from_backup else ""
    making = shell.client.create(
        display_name=options.name,
        freelancer=options.freelancer,
        labels=options.labels,
        tier=options.tier,
        model=options.model,
        approval_mode=options.mode,
        from_backup=backup,
        workspace_only=options.workspace_only,
        request_id=options.request_id,
        timeout=options.timeout,
    )
    sandbox = await _with_progress(shell, making, "creating the sandbox", lines=options.progress)
    if shell.json:
        shell.emit(sandbox)
    elif options.quiet:
        write_line(bare(sandbox.name))
    else:
        shell.say(
            f"✓ {bare(sandbox.name)} is {state_name(sandbox.state)} after {span(time.monotonic() - started)}", "green"
        )
        shell.say(f"  Talk to it: sandboxctl chat {_call_it(sandbox)}", "dim")
    return Exit.OK


async def ls(
    shell: Shell,
    *,
    states: Sequence[str] = (),
    freelancer: str = "",
    labels: Mapping[str, str],
    everything: bool = False,
    quiet: bool = False,
) -> Exit:
    """List sandboxes."""
    wanted = states or (EVERY_STATE if everything else ())
    found = shell.client.sandboxes(states=wanted, freelancer=freelancer, labels=labels)
    if shell.json or quiet:
        async for each in found:
            if shell.json:
                shell.emit(each)
            else:
                write_line(bare(each.name))
        return Exit.OK
    rows = [each async for each in found]
    if rows:
        shell.out.print(sandbox_table(rows, shell.out))
    else:
        shell.err.print(Text("There are no sandboxes here. Make one with: sandboxctl create", style="dim"))
    return Exit.OK


async def show(shell: Shell, said: str) -> Exit:
    """Show one sandbox."""
    sandbox = await shell.client.get(await find_sandbox(shell.client, said, ended=True))
    if shell.json:
        shell.emit(sandbox)
        return Exit.OK
    shell.out.print(sandbox_facts(sandbox))
    newest = []
    async for session in shell.client.sessions(sandbox.name, page_size=5):
        newest.append(session)
        if len(newest) == 5:
            break
    if newest:
        shell.out.print()
        shell.out.print(session_table(newest, shell.out))
    return Exit.OK


async def pause(shell: Shell, said: str, *, force: bool, timeout: float) -> Exit:
    """Pause a sandbox."""
    name = await find_sandbox(shell.client, said)
    work = shell.client.pause(name, force=force, timeout=timeout)
    return _told(shell, await _with_progress(shell, work, f"pausing {bare(name)}"))


async def resume(shell: Shell, said: str, *, timeout: float) -> Exit:
    """Resume a sandbox."""
    name = await find_sandbox(shell.client, said)
    work = shell.client.resume(name, timeout=timeout)
    return _told(shell, await _with_progress(shell, work, f"resuming {bare(name)}"))


async def rm(shell: Shell, said: Sequence[str], *, yes: bool, force: bool = False, timeout: float) -> Exit:
    """Terminate sandboxes, each after a question unless told otherwise."""
    names = [await find_sandbox(shell.client, each) for each in said]
    failure: ApiError | None = None
    for name in dict.fromkeys(names):
        if not yes and not await _confirmed(shell, name):
            shell.err.print(Text(f"{bare(name)} stays.", style="yellow"))
            continue
        try:
            work = shell.client.terminate(name, force=force, timeout=timeout)
            response = await _with_progress(shell, work, f"terminating {bare(name)}")
        except ApiError as error:
            if len(names) > 1:
                shell.err.print(Text(f"✗ {bare(name)}: {error.message}", style="red"))
            failure = failure or error
            continue
        if shell.json:
            shell.emit(response)
        else:
            shell.say(f"✓ {bare(name)} is terminated", "green")
            if response.kept:
                shell.say(f"  its files were kept: {response.kept}", "dim")
            if backed_up := final_line(response.sandbox):
                shell.say(f"  backed up: {backed_up}", "dim")
    if failure is not None:
        raise failure
    return Exit.OK


def _told(shell: Shell, sandbox: sandbox_pb2.Sandbox) -> Exit:
    if shell.json:
        shell.emit(sandbox)
    else:
        shell.say(f"✓ {bare(sandbox.name)} is {state_name(sandbox.state)}", "green")
    return Exit.OK


def _call_it(sandbox: sandbox_pb2.Sandbox) -> str:
    name = sandbox.display_name
    return (
        name
        if name and name.isascii() and all(each.isalnum() or each in "-_." for each in name)
        else bare(sandbox.name)
    )


async def _confirmed(shell: Shell, name: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("rm asks first, and there is no terminal to ask at. Give --yes.")
    sandbox = await shell.client.get(name)
    called = f" ({sandbox.display_name})" if sandbox.display_name else ""
    question = f"Terminate {bare(name)}{called}, which is {state_name(sandbox.state)}? [y/N] "
    shell.err.print(Text(question, style="yellow"), end="")
    said = await asyncio.to_thread(sys.stdin.readline)
    return said.strip().lower() in ("y", "yes")


async def _with_progress(shell: Shell, work: Awaitable[T], what: str, *, lines: bool = False) -> T:
    """Wait, and tell on stderr that and for how long: a spinner at a terminal, else one line where asked for."""
    if shell.err.is_terminal:
        with shell.err.status(Text(f"{what} …")) as status:
            ticking = asyncio.create_task(_tick(status, what), name="progress")
            try:
                return await work
            finally:
                ticking.cancel()
                with suppress(asyncio.CancelledError):
                    await ticking
    if lines:
        shell.err.print(Text(f"{what} …"))
    return await work


async def _tick(status: Status, what: str) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(0.5)
        status.update(Text(f"{what} … {span(time.monotonic() - started)}"))
