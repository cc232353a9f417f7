"""`sandboxctl admin`: how an installation is, and what a person does to it."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell
from sandboxd.ctl.tables import when
from sandboxd.v1 import admin_pb2, sandbox_pb2


async def status(shell: Shell) -> Exit:
    """Show how the installation is."""
    found = await shell.client.admin.status()
    if shell.json:
        shell.emit(found)
        return Exit.OK
    here = found.here
    shell.out.print(
        Text(
            f"{clean_line(here.id)} (sandboxd {clean_line(here.version)}){', draining' if here.draining else ''}: "
            f"{here.conversations} conversations, {here.open_turns} open turns, {here.watchers} watchers, "
            f"{here.agent_connections} agents, {here.queued_appends} appends queued, "
            f"database {here.database_used} of {here.database_limit} connections used"
        )
    )
    if not found.database_answers:
        shell.err.print(Text("The database does not answer: only this replica's own figures are known.", style="red"))
        return Exit.FAILED
    shell.out.print(_replicas(found.replicas))
    shell.out.print(_gateways(found.gateways))
    states = ", ".join(f"{one.sandboxes} {_word(sandbox_pb2.SandboxState.Name(one.state))}" for one in found.sandboxes)
    shell.out.print(Text(f"Sandboxes: {states or 'none'}"))
    if found.HasField("push_hold"):
        hold = found.push_hold
        how = "are held" if hold.held else "stop, to be held"
        if hold.overdue:
            how = "were held, and nobody has released them,"
        shell.err.print(
            Text(f"Pushes {how} by {clean_line(hold.holder)} until {when(hold.until_time)}.", style="yellow")
        )
    if found.stuck_sandboxes:
        shell.err.print(Text(f"{found.stuck_sandboxes} are stuck on their way. See the log of serve.", style="yellow"))
    return Exit.OK


async def sweep(shell: Shell, sweeps: Sequence[str], *, dry_run: bool = False) -> Exit:
    """Run sweeps now."""
    done = await shell.client.admin.sweep(sweeps, dry_run=dry_run)
    if shell.json:
        shell.emit(done)
    elif dry_run:
        for one in done.results:
            if one.failure:
                name = _word(admin_pb2.Sweep.Name(one.sweep))
                shell.err.print(Text(f"{name}: failed: {clean_line(one.failure)}", style="red"))
        plans = [plan for one in done.results for plan in one.plans]
        images = [image for one in done.results for image in one.images]
        if plans:
            shell.out.print(_plans(plans))
        if images:
            shell.out.print(_images(images))
        if not plans and not images:
            shell.out.print(Text("Nothing is planned."))
    else:
        for one in done.results:
            name = _word(admin_pb2.Sweep.Name(one.sweep))
            said = f"failed: {clean_line(one.failure)}" if one.failure else f"{one.done} done, {one.found} found"
            shell.out.print(Text(f"{name}: {said}", style="red" if one.failure else ""))
            for found in one.names:
                shell.out.print(Text(f"  {clean_line(found)}"))
    return Exit.FAILED if any(one.failure for one in done.results) else Exit.OK


async def drain(shell: Shell) -> Exit:
    """Let the replica that answers hand over."""
    done = await shell.client.admin.drain()
    if shell.json:
        shell.emit(done)
    else:
        shell.say(f"{clean_line(done.replica)} has handed over {done.conversations} conversations.", "green")
    return Exit.OK


async def undrain(shell: Shell) -> Exit:
    """Let the replica that answers take new work again."""
    done = await shell.client.admin.undrain()
    if shell.json:
        shell.emit(done)
    else:
        shell.say(f"{clean_line(done.replica)} takes new work again.", "green")
    return Exit.OK


async def reset_circuit(shell: Shell, gateway: str) -> Exit:
    """Let gateways call the model API again at once."""
    done = await shell.client.admin.reset_circuit(gateway)
    if shell.json:
        shell.emit(done)
    else:
        told = ", ".join(clean_line(one) for one in done.gateways)
        shell.say(f"Told, within seconds: {told or 'no gateway, because none lives'}.", "green" if told else "yellow")
    return Exit.OK


def _replicas(replicas: Sequence[admin_pb2.Replica]) -> Table:
    table = Table("REPLICA", "ADDRESS", "STATE", "CONVERSATIONS", box=box.SIMPLE_HEAD)
    for one in replicas:
        state = "draining" if one.draining else "living"
        table.add_row(
            clean_line(one.id),
            clean_line(one.address),
            Text(state if one.living else "dead", style="" if one.living else "red"),
            str(one.conversations),
        )
    return table


def _gateways(gateways: Sequence[admin_pb2.Gateway]) -> Table:
    table = Table("GATEWAY", "VERSION", "STATE", "CIRCUIT", "CALLS", "SPOOLED", box=box.SIMPLE_HEAD)
    for one in gateways:
        circuit = admin_pb2.CircuitState.Name(one.circuit).removeprefix("CIRCUIT_STATE_").lower()
        table.add_row(
            clean_line(one.id),
            clean_line(one.version),
            "living" if one.living else f"silent for {one.silence.seconds} s",
            Text(circuit, style="bold red" if one.circuit == admin_pb2.CIRCUIT_STATE_OPEN else ""),
            str(one.open_calls),
            str(one.spooled_settlements),
        )
    return table


def _plans(plans: Sequence[admin_pb2.LifecyclePlan]) -> Table:
    table = Table("SANDBOX", "CLIENT", "STATE", "NEXT", "WHEN", "NOW", "HINDERED", box=box.SIMPLE_HEAD)
    for one in plans:
        table.add_row(
            bare(one.sandbox),
            clean_line(one.client),
            _word(sandbox_pb2.SandboxState.Name(one.state)),
            sandbox_pb2.LifecycleStep.Name(one.step).removeprefix("LIFECYCLE_STEP_").lower() if one.step else "-",
            when(one.time) if one.HasField("time") else "-",
            clean_line(one.now),
            clean_line(one.hindrance),
        )
    return table


def _images(images: Sequence[admin_pb2.ImagePlan]) -> Table:
    table = Table("SANDBOX", "REPOSITORY", "TAGS", "DIGEST", "SIZE", "STAYS", box=box.SIMPLE_HEAD)
    for one in images:
        stays = f"{clean_line(one.stays)}: {clean_line(one.named_by)}" if one.named_by else clean_line(one.stays)
        table.add_row(
            bare(one.sandbox) if one.sandbox else "-",
            clean_line(one.repository),
            clean_line(", ".join(one.tags)),
            clean_line(one.digest)[:19],
            f"{one.compressed_bytes / 1e6:,.1f} MB" if one.compressed_bytes else "-",
            Text(stays or "goes", style="" if stays else "bold"),
        )
    return table


def _word(name: str) -> str:
    return name.removeprefix("SANDBOX_STATE_").removeprefix("SWEEP_").lower()
