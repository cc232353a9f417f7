"""The machine's processes as far as local sandboxes go: which agents run, what they have under them, and their end.

An agent is recognised by its command line, which names its configuration file, never by a remembered number. A signal
goes through a pidfd whose process was looked at again after it was opened: a number that the kernel has given to
somebody else is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandboxd.backends.local.layout import Layout
from sandboxd.model.ids import IncarnationId, SandboxId

PROC: Final = Path("/proc")
AGENT_MODULE: Final = b"sandboxd.agent"
POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentProcess:
    """An agent that runs on this machine."""

    pid: int
    start_ticks: int
    """When it started, in the kernel's own count: with the number, it names one process for ever."""
    sandbox: SandboxId
    incarnation: IncarnationId


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stat:
    parent: int
    start_ticks: int
    zombie: bool


def find_agents(layout: Layout) -> list[AgentProcess]:
    """All agents of sandboxes below this data directory."""
    found = []
    for pid in _own_processes():
        arguments = _read(pid, "cmdline").split(b"\0")
        if AGENT_MODULE not in arguments or b"--config" not in arguments[:-1]:
            continue
        owner = layout.owner_of(os.fsdecode(arguments[arguments.index(b"--config") + 1]))
        stat = _stat(pid)
        if owner is not None and stat is not None and not stat.zombie:
            found.append(AgentProcess(pid=pid, start_ticks=stat.start_ticks, sandbox=owner[0], incarnation=owner[1]))
    return found


def is_running(pid: int) -> bool:
    """Tell whether some process has this number and has not ended."""
    stat = _stat(pid)
    return stat is not None and not stat.zombie


def is_alive(agent: AgentProcess) -> bool:
    """Tell whether that very process still runs."""
    stat = _stat(agent.pid)
    return stat is not None and not stat.zombie and stat.start_ticks == agent.start_ticks


def signal_agent(agent: AgentProcess, number: signal.Signals) -> None:
    """Send a signal to an agent, if it still runs."""
    _send(agent.pid, number, still=lambda: is_alive(agent))


def kill_tree(agent: AgentProcess, *, seconds: float) -> None:
    """Kill an agent with everything below it, and nothing else.

    The agent is stopped first, so that nobody is adopted or started while its tree is read; a child that dies with it
    by the kernel's order is as good as killed.
    """
    signal_agent(agent, signal.SIGSTOP)
    for pid, ticks in _descendants(agent.pid):
        _kill(pid, ticks)
    signal_agent(agent, signal.SIGKILL)
    _wait(lambda: not is_alive(agent), seconds)


def kill_marked(home: Path, *, seconds: float) -> int:
    """Kill what a dead agent has left: processes whose HOME is this sandbox's; answers how many there were.

    To be called only while no agent of the sandbox runs.
    """
    mark, killed = b"HOME=" + os.fsencode(home), set[tuple[int, int]]()

    def none_left() -> bool:
        left = False
        for pid in _own_processes():
            if pid == os.getpid() or mark not in _read(pid, "environ").split(b"\0"):
                continue
            stat = _stat(pid)
            if stat is None or stat.zombie:
                continue
            left = True
            killed.add((pid, stat.start_ticks))
            _kill(pid, stat.start_ticks)
        return not left

    _wait(none_left, seconds)
    return len(killed)


def _descendants(root: int) -> list[tuple[int, int]]:
    children: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for pid in _own_processes():
        stat = _stat(pid)
        if stat is not None:
            children[stat.parent].append((pid, stat.start_ticks))
    found, todo = [], [root]
    while todo:
        below = children[todo.pop()]
        found.extend(below)
        todo.extend(pid for pid, _ in below)
    return found


def _kill(pid: int, ticks: int) -> None:
    def same() -> bool:
        stat = _stat(pid)
        return stat is not None and stat.start_ticks == ticks

    _send(pid, signal.SIGKILL, still=same)


def _send(pid: int, number: signal.Signals, *, still: Callable[[], bool]) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if still():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _own_processes() -> Iterator[int]:
    mine = os.getuid()
    with os.scandir(PROC) as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                if entry.stat().st_uid == mine:
                    yield int(entry.name)
            except OSError:  # it has just ended
                continue


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:  # it has just ended, or is not ours to look at
        return b""


def _stat(pid: int) -> _Stat | None:
    content = _read(pid, "stat")
    if not content:
        return None
    # The name is in parentheses and may hold anything; what follows the last one is numbers (proc_pid_stat(5)).
    fields = content[content.rindex(b")") + 2 :].split()
    return _Stat(parent=int(fields[1]), start_ticks=int(fields[19]), zombie=fields[0] in (b"Z", b"X"))
