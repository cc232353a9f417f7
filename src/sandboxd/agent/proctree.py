"""The processes of this sandbox, read from /proc: who descends from whom, and who belongs to which started process.

There may be no PID namespace, so every signal goes through here: only to descendants of the agent, and only through a
pidfd whose process was looked at again after it was opened, so that a number that the kernel has given to somebody else
is never hit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sandboxd.agent.user import User
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
    own_ticks: int
    waited_ticks: int
    memory_bytes: int

    @property
    def own_cpu(self) -> timedelta:
        """Processor time of itself."""
        return timedelta(seconds=self.own_ticks / _TICKS)

    @property
    def cpu(self) -> timedelta:
        """Processor time with that of the children it has waited for."""
        return timedelta(seconds=(self.own_ticks + self.waited_ticks) / _TICKS)

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
    text = _read(f"/proc/{pid}/stat")
    return _parse(pid, text) if text else None


def descendants(agent: int) -> dict[int, Entry]:
    """Return every process below the agent, parents before children."""
    everything: dict[int, list[tuple[int, bytes]]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - this path is hot: it reads every process of the machine
        if name.isdigit() and (text := _read(f"/proc/{name}/stat")):
            parent = int(text[text.rindex(b")") + 4 :].split(b" ", 1)[0])
            everything.setdefault(parent, []).append((int(name), text))
    found: dict[int, Entry] = {}
    level = [agent]
    while level:
        below = [child for parent in level for child in everything.get(parent, ())]
        found.update((pid, _parse(pid, text)) for pid, text in below)
        level = [pid for pid, _ in below]
    return found


def owners(
    entries: Mapping[int, Entry], leaders: Mapping[int, ProcessId], *, user: User | None = None
) -> dict[int, ProcessId]:
    """Tell which started process each descendant belongs to.

    By ancestry first; an orphan by its marker, then by its session.

    Args:
        entries: The descendants, parents before children.
        leaders: The started processes by number, exited ones included.
        user: Whose environment root may not read without that user's rights: in a container it lacks a capability.
    """
    known = frozenset(leaders.values())
    result: dict[int, ProcessId] = {}
    for entry in entries.values():
        if entry.parent in result:
            result[entry.pid] = result[entry.parent]
            continue
        owner = leaders.get(entry.pid) if entry.session == entry.pid else None
        marked = _marker(entry.pid, user)
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


def _parse(pid: int, text: bytes) -> Entry:
    # The command is in parentheses and may itself contain any of them, and spaces: split after the last one.
    head, _, tail = text.rpartition(b")")
    words = tail.split()
    return Entry(
        pid=pid,
        parent=int(words[1]),
        group=int(words[2]),
        session=int(words[3]),
        state=words[0].decode(),
        start=int(words[19]),
        command=head.partition(b"(")[2].decode(errors="replace"),
        own_ticks=int(words[11]) + int(words[12]),
        waited_ticks=int(words[13]) + int(words[14]),
        memory_bytes=int(words[21]) * _PAGE,
    )


def _marker(pid: int, user: User | None) -> ProcessId | None:
    prefix = f"{PROCESS_MARKER}=".encode()
    environment = _read(f"/proc/{pid}/environ")
    if not environment and user is not None:
        with user.rights():
            environment = _read(f"/proc/{pid}/environ")
    for line in environment.split(b"\0"):
        if line.startswith(prefix):
            return ProcessId(line[len(prefix) :].decode(errors="replace"))
    return None


def _read(path: str) -> bytes:
    """Read a file of /proc; nothing when its process is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while piece := os.read(file, 1 << 16):
            data += piece
    except OSError:  # it ended after the file was opened
        return b""
    finally:
        os.close(file)
    return data
