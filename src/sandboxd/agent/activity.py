"""What is being used in the sandbox, and how much: reports for the decision whether it is idle, and for people."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from sandboxd.agent import proctree
from sandboxd.agent.clock import now
from sandboxd.agent.config import AgentConfig
from sandboxd.agent.freezer import Freezer
from sandboxd.agent.process import ManagedProcess
from sandboxd.agent.proctree import Entry
from sandboxd.agent.reaper import Reaper
from sandboxd.agent.supervisor import Supervisor, foreground_group
from sandboxd.model.processes import AgentActivity, AgentStats, ProcessActivity, ProcessId, Root, RootStats

TREE_SECONDS = 2.0
"""How long one directory tree is measured at most."""
TREE_ENTRIES = 500_000
"""How many entries of one directory tree are measured at most."""


class ActivityReporter:
    """Looks at everything that runs."""

    def __init__(self, *, config: AgentConfig, supervisor: Supervisor, freezer: Freezer, reaper: Reaper) -> None:
        self._config = config
        self._supervisor = supervisor
        self._freezer = freezer
        self._reaper = reaper
        self._highest_cpu: dict[ProcessId, timedelta] = {}

    def activity(self, *, open_model_requests: int, last_model_request_time: datetime | None) -> AgentActivity:
        """Report what is used.

        Args:
            open_model_requests: Requests at the model endpoint now.
            last_model_request_time: When one last began or ended.
        """
        entries = proctree.descendants(os.getpid())
        trees = self._supervisor.trees(entries)
        processes = self._supervisor.processes
        reports = [
            self._report(process, trees) for process in processes if process.exit is None or process.process_id in trees
        ]
        self._highest_cpu = {report.process_id: report.cpu_time for report in reports}
        inputs = [process.last_input_time for process in processes] + [self._supervisor.last_start_time]
        return AgentActivity(
            report_time=now(),
            processes=reports,
            last_input_time=max((moment for moment in inputs if moment is not None), default=None),
            last_output_time=max(
                (process.last_output_time for process in processes if process.last_output_time is not None),
                default=None,
            ),
            open_model_requests=open_model_requests,
            last_model_request_time=last_model_request_time,
            cpu_time=self._cpu_time(entries),
            frozen=self._freezer.frozen,
        )

    def stats(self) -> AgentStats:
        """Measure memory, processor and file systems; `measure_tree` adds what is slow."""
        entries = proctree.descendants(os.getpid())
        own = resource.getrusage(resource.RUSAGE_SELF)
        agent = proctree.read_entry(os.getpid())
        return AgentStats(
            memory_bytes=sum(entry.memory_bytes for entry in entries.values() if entry.live),
            agent_memory_bytes=agent.memory_bytes if agent is not None else 0,
            cpu_time=self._cpu_time(entries),
            agent_cpu_time=timedelta(seconds=own.ru_utime + own.ru_stime),
            live_processes=sum(entry.live for entry in entries.values()),
            roots=[_root_stats(root, path) for root, path in self.roots.items()],
        )

    @property
    def roots(self) -> Mapping[Root, Path]:
        """The two persistent directories."""
        return {Root.HOME: self._config.home, Root.WORKSPACE: self._config.workspace}

    def _cpu_time(self, entries: Mapping[int, Entry]) -> timedelta:
        return sum((entry.cpu for entry in entries.values()), self._reaper.cpu_time)

    def _report(self, process: ManagedProcess, trees: Mapping[ProcessId, list[Entry]]) -> ProcessActivity:
        tree = trees.get(process.process_id, [])
        cpu = sum((entry.cpu for entry in tree), timedelta())
        # An orphan that ends takes its share with it to the agent: never let the figure go back.
        cpu = max(cpu, self._highest_cpu.get(process.process_id, timedelta()))
        leader = next((entry for entry in tree if entry.pid == process.pid), None)
        foreground, busy, command = cpu, False, leader
        if process.terminal >= 0:
            group = foreground_group(process)
            members = [entry for entry in tree if entry.group == group]
            foreground = sum((entry.own_cpu for entry in members), timedelta())
            busy = bool(members) and group != process.pid
            command = members[0] if members else leader
        return ProcessActivity(
            process_id=process.process_id,
            running=process.exit is None,
            cpu_time=cpu,
            last_input_time=process.last_input_time,
            last_output_time=process.last_output_time,
            live_processes=len(tree),
            foreground_command=command.command if command is not None else "",
            foreground_busy=busy,
            foreground_cpu_time=foreground,
        )


def measure_tree(path: Path) -> tuple[int, int, bool]:
    """Add up the bytes that files below a directory occupy. Blocks; run it in a thread.

    Returns:
        The bytes, the files, and whether a limit ended the measuring early.
    """
    end = time.monotonic() + TREE_SECONDS
    total, files, seen, waiting = 0, 0, 0, [str(path)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > TREE_ENTRIES or (seen % 256 == 0 and time.monotonic() > end):
                        return total, files, True
                    try:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        else:
                            files += 1
                    except OSError:  # it went away meanwhile
                        continue
        except OSError:
            continue
    return total, files, False


def _root_stats(root: Root, path: Path) -> RootStats:
    try:
        system = os.statvfs(path)
    except OSError:  # the freelancer removed it
        return RootStats(root=root, filesystem_bytes=0, available_bytes=0, used_bytes=None, partial=True)
    return RootStats(
        root=root,
        filesystem_bytes=system.f_blocks * system.f_frsize,
        available_bytes=system.f_bavail * system.f_frsize,
        used_bytes=None,
        partial=False,
    )
