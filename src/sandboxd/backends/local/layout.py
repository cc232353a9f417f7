"""Where the files of local sandboxes are. Every path follows from ids; nothing here runs anything.

<data>/sandboxes/<sandbox>/home, workspace            what is kept
<data>/sandboxes/<sandbox>/run/<incarnation>/…        what one life needs
<data>/kept/<sandbox>/                                what a terminated sandbox leaves
<data>/kept/.leaving-<sandbox>-…/                     that, while it is being destroyed
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sandboxd.model.ids import IncarnationId, SandboxId
from sandboxd.volumes.removing import remove_tree

LEAVING: Final = ".leaving-"
"""Begins the name of what is being destroyed among what is kept."""
KEPT_LOGS: Final = 5
"""Logs of so many former incarnations stay for whoever looks for a cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What an agent wrote when it was ready."""

    port: int
    pid: int
    model_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files of one incarnation."""

    directory: Path

    @property
    def config(self) -> Path:
        """The agent's configuration; its path on the command line is how the agent is recognised."""
        return self.directory / "agent.json"

    @property
    def ready(self) -> Path:
        """Written by the agent when it answers, removed when it ends."""
        return self.directory / "ready.json"

    @property
    def log(self) -> Path:
        """The agent's log."""
        return self.directory / "agent.log"

    @property
    def certificate(self) -> Path:
        """The agent's certificate."""
        return self.directory / "agent.pem"

    @property
    def key(self) -> Path:
        """The agent's key."""
        return self.directory / "agent.key"

    @property
    def authority(self) -> Path:
        """Who signs the service's certificate."""
        return self.directory / "authority.pem"

    @property
    def spool(self) -> Path:
        """Output spools."""
        return self.directory / "spool"

    @property
    def settings(self) -> Path:
        """The CLI's system settings."""
        return self.directory / "settings.json"

    def read_ready(self) -> Ready | None:
        """What the agent wrote, or None while it has not."""
        try:
            content: dict[str, Any] = json.loads(self.ready.read_text(encoding="utf-8"))  # Any: JSON
            return Ready(port=int(content["port"]), pid=int(content["pid"]), model_port=int(content["model_port"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def last_lines(self, number: int = 5, *, longest: int = 300) -> str:
        """The end of the agent's log, for people."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 16_384))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(line[:longest] for line in lines[-number:])

    def clear(self) -> None:
        """Remove everything but the log."""
        shutil.rmtree(self.spool, ignore_errors=True)
        for path in (self.key, self.certificate, self.authority, self.ready, self.config):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFiles:
    """The files of one sandbox."""

    directory: Path

    @property
    def home(self) -> Path:
        """The freelancer's home; also the mark of its processes: it is their HOME."""
        return self.directory / "home"

    @property
    def workspace(self) -> Path:
        """The freelancer's files."""
        return self.directory / "workspace"

    @property
    def runs(self) -> Path:
        """One directory for each incarnation."""
        return self.directory / "run"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops it, in any process."""
        return self.directory / ".lock"

    @property
    def present(self) -> bool:
        """True while it is in its place."""
        return self.home.is_dir()

    def run(self, incarnation: IncarnationId) -> RunFiles:
        """The files of one incarnation."""
        return RunFiles(directory=self.runs / incarnation)

    def make(self) -> None:
        """Make the directories where they are absent."""
        for path in (self.home, self.workspace, self.runs):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def forget_old_runs(self, *, keep: IncarnationId) -> None:
        """Remove what former incarnations left, but the newest logs. Ids sort by time of birth."""
        former = sorted((path for path in self.runs.iterdir() if path.name != keep), reverse=True)
        for number, path in enumerate(former):
            if number < KEPT_LOGS:
                RunFiles(directory=path).clear()
            else:
                shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The files of all local sandboxes."""

    data: Path
    """Absolute."""

    @property
    def sandboxes(self) -> Path:
        """Where sandboxes are."""
        return self.data / "sandboxes"

    @property
    def kept(self) -> Path:
        """Where the files of terminated sandboxes are."""
        return self.data / "kept"

    def sandbox(self, sandbox: SandboxId) -> SandboxFiles:
        """The files of one sandbox."""
        return SandboxFiles(directory=self.sandboxes / sandbox)

    def present(self) -> list[SandboxId]:
        """All sandboxes that are in their place."""
        if not self.sandboxes.is_dir():
            return []
        return sorted(SandboxId(path.name) for path in self.sandboxes.iterdir() if (path / "home").is_dir())

    def keep(self, sandbox: SandboxId) -> Path | None:
        """Move a sandbox's files to where terminated ones are kept; safe to repeat. None: there never were any."""
        source, target = self.sandbox(sandbox).directory, self.kept / sandbox
        if source.is_dir():
            self.kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.rmtree(source / "run", ignore_errors=True)
            source.rename(target)
        return target if target.is_dir() else None

    def bring_back(self, sandbox: SandboxId) -> None:
        """Put a sandbox's kept files into their place again, and make directories that are absent; safe to repeat."""
        files = self.sandbox(sandbox)
        if not files.directory.is_dir() and (self.kept / sandbox).is_dir():
            self.sandboxes.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.kept / sandbox).rename(files.directory)
        files.make()

    def measure(self, sandbox: SandboxId) -> tuple[int, int]:
        """Files of a sandbox, and their lengths added up. What cannot be read is counted without its length."""
        files = size = 0
        left = [os.fspath(place) for place in (self.sandbox(sandbox).directory, self.kept / sandbox)]
        while left:  # os.walk calls itself once for each level, of which a freelancer can make too many
            with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                        continue
                    files += 1
                    with contextlib.suppress(OSError):
                        size += entry.stat(follow_symlinks=False).st_size
        return files, size

    def erase(self, sandbox: SandboxId) -> None:
        """Remove everything of a sandbox; safe to repeat."""
        for place in (self.sandbox(sandbox).directory, self.kept / sandbox, *self._leaving(sandbox)):
            remove_tree(os.fsencode(place))

    def identity_of_kept(self, sandbox: SandboxId) -> str | None:
        """Say which very directory a terminated sandbox has left: a later one has another. None: none is there."""
        try:
            status = (self.kept / sandbox).lstat()
        except FileNotFoundError:
            return None
        return f"{status.st_dev}-{status.st_ino}-{status.st_ctime_ns}"

    def release(self, sandbox: SandboxId, identities: Collection[str]) -> None:
        """Remove what a terminated sandbox has left, if it is one of these; safe to repeat, after a crash too."""
        if self.identity_of_kept(sandbox) in identities:
            # Out of the way first: nobody finds it halfway.
            (self.kept / sandbox).rename(self.kept / f"{LEAVING}{sandbox}-{secrets.token_hex(4)}")
        for place in self._leaving(sandbox):
            remove_tree(os.fsencode(place))

    def _leaving(self, sandbox: SandboxId) -> Sequence[Path]:
        return sorted(self.kept.glob(f"{LEAVING}{sandbox}-*"))

    def owner_of(self, config: str) -> tuple[SandboxId, IncarnationId] | None:
        """Whose agent has this configuration file; None for a file that is not of ours."""
        parts = Path(config).parts
        root = self.sandboxes.parts
        if parts[: len(root)] != root or len(parts) != len(root) + 4 or parts[-3] != "run":
            return None
        return SandboxId(parts[len(root)]), IncarnationId(parts[-2])
