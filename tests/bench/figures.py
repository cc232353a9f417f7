"""Percentiles of latencies, and what each part of the stack used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


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
    memory: int
    """Bytes in all, shared pages counted once (proportional set size)."""
    largest: int
    """Resident bytes of the largest process."""


class Parts:
    """The processes of the stack by part, told by words of their command lines, watched from `begin` to `end`."""

    def __init__(self, words: dict[str, str], *, within: str) -> None:
        """Look the processes up.

        Args:
            words: What a command line contains, by the part's name; the first that fits counts.
            within: What command line, working directory or environment of all of them contains: the data directory.
        """
        self._members: dict[str, list[psutil.Process]] = {part: [] for part in words}
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if within not in " ".join([line, process.cwd(), *process.environ().values()]):
                    continue
            except psutil.Error:
                continue
            if part := next((part for part, word in words.items() if word in line), None):
                self._members[part].append(process)
        self._began = self._cpu()

    def _cpu(self) -> dict[str, float]:
        return {part: sum(map(_cpu_seconds, members)) for part, members in self._members.items()}

    def used(self, seconds: float) -> dict[str, Use]:
        """Return what was used since the look-up."""
        ended = self._cpu()
        uses = {}
        for part, members in self._members.items():
            sizes = [_memory(process) for process in members]
            uses[part] = Use(
                processes=len(members),
                cores=(ended[part] - self._began[part]) / seconds,
                memory=sum(proportional for proportional, _ in sizes),
                largest=max((resident for _, resident in sizes), default=0),
            )
        return uses


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _memory(process: psutil.Process) -> tuple[int, int]:
    try:
        info = process.memory_full_info()
    except psutil.Error:
        return 0, 0
    return info.pss, info.rss
