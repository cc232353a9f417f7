"""What the processes of pods keep in memory, by part, as the node's kernel counts it. To be run on that node."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SHIM: Final = "containerd-shim-runc-v2"
PARTS: Final = {
    "agent": "sandboxd.agent",
    "CLI, real": "gemini.js",
    "CLI, stand-in": "recorded_cli.py",
    "pause": "/pause",
    "containerd-shim": SHIM,
}
"""Words of the command lines; what a pod runs beside these counts as `OTHER`."""
OTHER: Final = "other processes"
_POD: Final = re.compile(r"/pod([0-9a-f-]{36})/([0-9a-f]{64})")
_PROC: Final = Path("/proc")
_CGROUPS: Final = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
"""Version 1, version 2."""
_USAGE: Final = ("memory.usage_in_bytes", "memory.current")
KIBIBYTE: Final = 1024


@dataclass(slots=True, kw_only=True)
class Part:
    """Processes of one kind."""

    processes: int = 0
    proportional: int = 0
    """Bytes, shared pages divided among those who share them (PSS)."""
    private: int = 0
    """Bytes that would be free without them (USS)."""
    largest: int = 0
    """Proportional bytes of the largest one."""


@dataclass(slots=True, kw_only=True)
class PodMemory:
    """What some pods keep."""

    parts: dict[str, Part] = field(default_factory=dict)
    groups: list[int] = field(default_factory=list)
    """Bytes charged to each pod's control group: its processes, its page cache, what the kernel keeps for it."""


def measure(pods: Collection[str]) -> PodMemory:
    """Look at every process of these pods now.

    Args:
        pods: Their uids.
    """
    found, groups, containers = PodMemory(), dict[str, int](), set[str]()
    commands: dict[int, str] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = _POD.search((entry / "cgroup").read_text())
        except OSError:  # it has ended meanwhile
            continue
        if place is not None and place[1] in pods:
            containers.add(place[2])
            groups.setdefault(place[1], _charged(entry))
            add(found, entry, command)
        elif SHIM in command:
            commands[int(entry.name)] = command
    for pid, command in commands.items():  # a shim is in no pod's group; it names its pod's first container
        if any(container in command for container in containers):
            add(found, _PROC / str(pid), command)
    found.groups = list(groups.values())
    return found


def available() -> int:
    """Bytes that the machine could still give to processes, as the kernel estimates it."""
    return _fields(Path("/proc/meminfo").read_text())["MemAvailable"]


def add(found: PodMemory, process: Path, command: str) -> None:
    """Count one process, by its directory in /proc, to the part that its command line names."""
    try:
        sizes = _fields((process / "smaps_rollup").read_text())
    except OSError:
        return
    name = next((part for part, word in PARTS.items() if word in command), OTHER)
    part = found.parts.setdefault(name, Part())
    part.processes += 1
    part.proportional += sizes["Pss"]
    part.private += sizes["Private_Clean"] + sizes["Private_Dirty"]
    part.largest = max(part.largest, sizes["Pss"])


def _charged(process: Path) -> int:
    """What the group of the process's pod is charged with."""
    for line in (process / "cgroup").read_text().splitlines():
        path = line.split(":", 2)[2].lstrip("/")
        for root in _CGROUPS:
            for name in _USAGE:
                if (usage := root / Path(path).parent / name).is_file():
                    return int(usage.read_text())
    return 0


def _fields(text: str) -> Mapping[str, int]:
    """Fields of a file of /proc that counts in kB, in bytes."""
    pairs = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * KIBIBYTE for words in pairs}
