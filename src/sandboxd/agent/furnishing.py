"""The agent's first steps in a place: directories, the freelancer's rights on them, and the mark of this start.

A fresh volume belongs to root and is empty; the freelancer finds a home on it as a new account has one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sandboxd.agent.config import AgentConfig, ConfigError
from sandboxd.agent.user import User

SKELETON: Final = Path("/etc/skel")
FRESH: Final = frozenset({"lost+found"})
"""What a file system holds when nobody has written to it."""
MARKER: Final = "started"
"""File in the run directory: an agent was started here."""


class StartedBeforeError(Exception):
    """An agent ran here before. Its processes and its incarnation are lost; a new pod is needed, not a new agent."""


def claim_start(config: AgentConfig) -> None:
    """Leave the mark that the agent was started, where there is a run directory.

    Raises:
        StartedBeforeError: The mark is there.
        ConfigError: It cannot be written.
    """
    if config.run_directory is None:
        return
    marker = config.run_directory / MARKER
    try:
        config.run_directory.mkdir(parents=True, exist_ok=True)
        config.run_directory.chmod(0o700)
        with os.fdopen(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(config.incarnation)
    except FileExistsError:
        before = marker.read_text(encoding="utf-8", errors="replace")
        raise StartedBeforeError(
            f"an agent of incarnation {before or 'unknown'} was started here before ({marker}); "
            f"incarnation {config.incarnation} is refused: what ran is lost, and only a new pod may go on"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot leave the mark {marker}: {error.strerror}") from error


def make_directories(config: AgentConfig, user: User | None) -> None:
    """Make the directories of the configuration; where there is a user, they become its own.

    Raises:
        ConfigError: One cannot be made.
    """
    try:
        for directory in (config.home, config.workspace):
            directory.mkdir(parents=True, exist_ok=True)
            if user is not None:
                _hand_over(directory, user)
        if user is not None:
            _furnish(config.home, user)
        config.spool_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"cannot make the directory {error.filename}: {error.strerror}") from error


def _hand_over(directory: Path, user: User) -> None:
    """Give the directory to the user when it is nobody's yet. What lies in it keeps its owner."""
    found = directory.stat()
    if found.st_uid != user.user_id:
        os.chown(directory, user.user_id, user.group_id)
        directory.chmod(0o755)


def _furnish(home: Path, user: User) -> None:
    """Fill an empty home with the skeleton of new accounts."""
    if not SKELETON.is_dir() or {entry.name for entry in home.iterdir()} - FRESH:
        return
    import shutil  # only where a home is fresh

    with user.rights():
        shutil.copytree(SKELETON, home, symlinks=True, dirs_exist_ok=True, copy_function=shutil.copyfile)
