"""Which started process has installed something, as far as it can be told from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sandboxd.agent.supervisor import Supervisor
from sandboxd.model.processes import ProcessId

PROGRAMS: Final = frozenset(
    {
        *("apt", "apt-get", "aptitude", "dpkg", "cargo", "gem", "bundle", "go", "npm", "npx", "pnpm", "yarn"),
        *("pip", "pip3", "pipx", "uv"),
    }
)
"""First words of what package managers call themselves."""


def requester(supervisor: Supervisor, since: datetime) -> ProcessId | None:
    """Name the one process that can have done it; None where several or none can.

    First those below which a package manager runs now; where none does any more, those that have said something since.
    A guess, and told as such: a freelancer can name any program `pip`.

    Args:
        supervisor: The started processes.
        since: When nothing was changed yet.
    """
    trees = supervisor.trees()
    running = {one for one, tree in trees.items() if any(_is_manager(entry.command) for entry in tree)}
    if not running:
        running = {
            process.process_id
            for process in supervisor.processes
            if process.last_output_time is not None and process.last_output_time >= since
        }
    return running.pop() if len(running) == 1 else None


def _is_manager(command: str) -> bool:
    return command.partition(" ")[0] in PROGRAMS
