"""The processes of this sandbox, read from /proc: who descends from whom, and who belongs to which started process.

There may be no PID namespace, so every signal goes through here: only to descendants of the agent, and only through a
pidfd whose process was looked at again after it was opened, so that a number that the kernel has given to somebody else
is never hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from sandboxd.model.processes import ProcessId

INCARNATION_MARKER: Final = "SBXD_INCARNATION"
"""Environment variable that says whose a process is; a backend finds the orphans of a dead agent by it."""
PROCESS_MARKER: Final = "SBXD_PROCESS"
"""Environment variable that says which started process one descends from."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One process of the machine at one moment."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    """The kernel's letter: R, S, D, T (stopped), t (traced), Z (ended, not yet waited for) …"""
    start: int
    """When it started, in ticks since boot: with the number it is unique."""
    command: str
    own_cpu: timedelta
    cpu: timedelta
    """With that of the children it has waited for."""
    memory_bytes: int

    @property
    def live(self) -> bool:
        """False when it has ended and only waits to be reaped."""
        return self.state not in "ZX"

    @property
    def stopped(self) -> bool:
        """True when a signal or a tracer has stopped it."""
        return self.state in "Tt"


def read_entry(pid: int) -> Entry | None:
    """Read one process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    # The command is in parentheses and may itself contain any of them, and spaces: split after the last one.
    head, _, tail = text.rpartition(")")
    words = tail.split()
    if len(words) < 22:
        return None
    own = int(words[11]) + int(words[12])
    return Entry(
        pid=pid,
        parent=int(words[1]),
        group=int(words[2]),
        session=int(words[3]),
        state=words[0],
        start=int(words[19]),
        command=head.partition("(")[2],
        own_cpu=timedelta(seconds=own / _TICKS),
        cpu=timedelta(seconds=(own + int(words[13]) + int(words[14])) / _TICKS),
        memory_bytes=int(words[21]) * _PAGE,
    )


def descendants(agent: int) -> dict[int, Entry]:
    """Return every process below the agent, parents before children."""
    everything: dict[int, list[Entry]] = {}
    with os.scandir("/proc") as entries:
        numbers = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for number in numbers:
        entry = read_entry(number)
        if entry is not None:
            everything.setdefault(entry.parent, []).append(entry)
    found: dict[int, Entry] = {}
    level = [agent]
    while level:
        children = [child for parent in level for child in everything.get(parent, ()) if child.pid not in found]
        found.update((child.pid, child) for child in children)
        level = [child.pid for child in children]
    return found


def owners(entries: Mapping[int, Entry], leaders: Mapping[int, ProcessId]) -> dict[int, ProcessId]:
    """Tell which started process each descendant belongs to.

    By ancestry first; an orphan by its marker, then by its session.

    Args:
        entries: The descendants, parents before children.
        leaders: The started processes by number, exited ones included.
    """
    known = frozenset(leaders.values())
    result: dict[int, ProcessId] = {}
    for entry in entries.values():
        if entry.parent in result:
            result[entry.pid] = result[entry.parent]
            continue
        owner = leaders.get(entry.pid) if entry.session == entry.pid else None
        marked = _marker(entry.pid)
        if marked in known:
            owner = marked
        elif owner is None:
            owner = leaders.get(entry.session)
        if owner is not None:
            result[entry.pid] = owner
    return result


def send(entries: Iterable[Entry], number: int) -> int:
    """Send a signal to exactly these processes, and return how many were still there."""
    return sum(_send_one(entry, number) for entry in entries)


def read_again(entries: Collection[Entry]) -> list[Entry]:
    """Return those that are still the same process, with their present state."""
    fresh = ((entry, read_entry(entry.pid)) for entry in entries)
    return [new for old, new in fresh if new is not None and new.start == old.start]


def _send_one(entry: Entry, number: int) -> bool:
    try:
        descriptor = os.pidfd_open(entry.pid)
    except OSError:
        return False
    try:
        present = read_entry(entry.pid)
        if present is None or present.start != entry.start or not present.live:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _marker(pid: int) -> ProcessId | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = f"{PROCESS_MARKER}=".encode()
    for line in environment.split(b"\0"):
        if line.startswith(prefix):
            return ProcessId(line[len(prefix) :].decode(errors="replace"))
    return None
