"""Percentiles of latencies, and what each part of the stack used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PARTS = {
    "serve": "sandboxd serve",
    "gateway": "sandboxd gateway",
    "agents": "sandboxd.agent",
    "CLIs, stand-in": "recorded_cli.py",
    "CLIs, real": "gemini.js",
    "PostgreSQL": "postgres",
}
"""Words of the command lines; `Parts` looks only at processes of this run."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed; not a number where there is none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one part of the stack used while it was watched."""

    processes: int
    cores: float
    waited: float
    """Threads that were ready and waited for a processor, on average."""
    memory: int
    """Bytes in all, shared pages counted once (proportional set size)."""
    largest: int
    """Resident bytes of the largest process."""


class Parts:
    """The processes of the stack by part, told by words of their command lines, watched from the first look on."""

    def __init__(self, words: dict[str, str], *, within: str) -> None:
        """Look for the first time.

        Args:
            words: What a command line contains, by the part's name; the first that fits counts.
            within: What command line, working directory or environment of all of them contains: the data directory.
        """
        self._words = words
        self._within = within
        looked = self._look()
        self._began = {part: sum(map(_cpu_seconds, members)) for part, members in looked.items()}
        self._waited = {part: sum(map(_queue_seconds, members)) for part, members in looked.items()}

    def used(self, seconds: float) -> dict[str, Use]:
        """Return what was used since the first look."""
        uses = {}
        for part, members in self._look().items():
            sizes = [_memory(process) for process in members]
            uses[part] = Use(
                processes=len(members),
                cores=(sum(map(_cpu_seconds, members)) - self._began[part]) / seconds,
                waited=max(0.0, sum(map(_queue_seconds, members)) - self._waited[part]) / seconds,
                memory=sum(proportional for proportional, _ in sizes),
                largest=max((resident for _, resident in sizes), default=0),
            )
        return uses

    def _look(self) -> dict[str, list[psutil.Process]]:
        members: dict[str, list[psutil.Process]] = {part: [] for part in self._words}
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                part = next((part for part, word in self._words.items() if word in line), None)
                if part and self._within in " ".join([line, process.cwd(), *process.environ().values()]):
                    members[part].append(process)
            except psutil.Error:
                continue
        members["this bench"] = [psutil.Process()]
        return members


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    # With what its ended children used: PostgreSQL's connections come and go.
    return float(times.user + times.system + times.children_user + times.children_system)


def _queue_seconds(process: psutil.Process) -> float:
    """How long its threads have been ready and not running, as the kernel counts it."""
    waited = 0
    try:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            waited += int((thread / "schedstat").read_text().split()[1])
    except (OSError, IndexError):
        pass
    return waited / 1e9


def _memory(process: psutil.Process) -> tuple[int, int]:
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0, 0
    return info.pss, info.rss
