"""`sandboxctl pools`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from sandboxd.ctl.exits import Exit
from sandboxd.ctl.figures import span
from sandboxd.ctl.names import bare
from sandboxd.ctl.sanitize import clean_line
from sandboxd.ctl.shell import Shell, UsageError
from sandboxd.ctl.tables import filled
from sandboxd.v1 import pool_pb2, sandbox_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Numbers of a pool; None is not said."""

    least: int | None = None
    target: int | None = None
    most: int | None = None
    idle_minutes: float | None = None
    age_minutes: float | None = None


async def create(shell: Shell, tier: str, options: PoolOptions) -> Exit:
    """Make a pool."""
    pool, _ = _wish(options)
    pool.tier = sandbox_pb2.Tier.Value(f"TIER_{tier.upper()}")
    return _told(shell, await shell.client.pools.create(pool))


async def ls(shell: Shell) -> Exit:
    """List pools."""
    found = await shell.client.pools.list()
    if shell.json:
        for each in found:
            shell.emit(each)
    else:
        shell.out.print(pool_table(found, shell.out))
    return Exit.OK


async def change(shell: Shell, said: str, options: PoolOptions) -> Exit:
    """Change a pool."""
    pool, fields = _wish(options)
    if not fields:
        raise UsageError("Say what to change: --min, --target, --max, --idle or --max-age.")
    pool.name = await _find(shell, said)
    return _told(shell, await shell.client.pools.update(pool, fields))


async def rm(shell: Shell, said: str) -> Exit:
    """Delete a pool."""
    name = await _find(shell, said)
    await shell.client.pools.delete(name)
    shell.say(f"{name} is being deleted; what waits in it ends.", "green")
    return Exit.OK


def pool_table(pools: Iterable[pool_pb2.Pool], console: Console) -> Table:
    """Make the table of `pools ls`."""
    columns = ("POOL", "TIER", "MIN/TARGET/MAX", "WANTED", "READY", "STARTING", "ENDING", "IDLE AFTER", "STATE")
    rows = [
        (
            bare(each.name),
            _word(sandbox_pb2.Tier.Name(each.tier), "TIER_"),
            f"{each.min}/{each.target}/{each.max}",
            f"{each.wanted}",
            f"{each.ready}",
            f"{each.starting}",
            f"{each.ending}",
            span(each.idle_timeout.ToTimedelta().total_seconds()),
            _word(pool_pb2.PoolState.Name(each.state), "POOL_STATE_"),
        )
        for each in pools
    ]
    return filled(console, columns, rows, spare=("IDLE AFTER", "ENDING", "STARTING"))


def _told(shell: Shell, pool: pool_pb2.Pool) -> Exit:
    if shell.json:
        shell.emit(pool)
    else:
        shell.say(f"{pool.name} keeps {pool.wanted} sandboxes ready.", "green")
        shell.out.print(pool_table([pool], shell.out))
    return Exit.OK


def _wish(options: PoolOptions) -> tuple[pool_pb2.Pool, list[str]]:
    pool, fields = pool_pb2.Pool(), []
    for field, number in (("min", options.least), ("target", options.target), ("max", options.most)):
        if number is not None:
            setattr(pool, field, number)
            fields.append(field)
    for field, minutes in (("idle_timeout", options.idle_minutes), ("max_age", options.age_minutes)):
        if minutes is not None:
            getattr(pool, field).FromMilliseconds(int(minutes * 60_000))
            fields.append(field)
    return pool, fields


async def _find(shell: Shell, said: str) -> str:
    """Find a pool by its id, or by its tier: there is one for each."""
    if said.startswith(("pools/", "pol-")):
        return said if said.startswith("pools/") else f"pools/{said}"
    for each in await shell.client.pools.list():
        if _word(sandbox_pb2.Tier.Name(each.tier), "TIER_") == said.lower():
            return each.name
    raise UsageError(f"There is no pool {clean_line(said)}. Name one by its id or its tier, as `pools ls` shows them.")


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()
