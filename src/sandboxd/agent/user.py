"""Whose the freelancer's processes and files are, where the agent itself is root: in a pod.

The agent's own C library must not be asked: it would follow the sandbox's nsswitch.conf into the sandbox's libraries,
which may be another version's, or broken. So `/etc/passwd` and `/etc/group` are read here, and a broken line is passed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from sandboxd.agent.reaper import LIBC

PASSWD: Final = Path("/etc/passwd")
GROUP: Final = Path("/etc/group")
DEFAULT_NAME: Final = "gemini"
DEFAULT_SHELL: Final = "/bin/bash"
OOM_SCORE: Final = 500
"""What the freelancer's processes have at least: where memory ends, they go and the agent stays."""
OOM_DISTANCE: Final = 100
OOM_HIGHEST: Final = 1000
_SYS_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159}.get(os.uname().machine, -1)
"""The system call itself, which is about one thread; the C library's function is about all of them."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The freelancer's user in the sandbox."""

    user_id: int
    group_id: int

    @property
    def name(self) -> str:
        """Its name; `gemini` where /etc/passwd does not know it."""
        return self._account[0]

    @property
    def shell(self) -> str:
        """Its login shell."""
        return self._account[1]

    @property
    def _account(self) -> tuple[str, str]:
        for words in _rows(PASSWD, 7):
            if words[2] == str(self.user_id):
                return words[0], words[6] or DEFAULT_SHELL
        return DEFAULT_NAME, DEFAULT_SHELL

    def groups(self) -> list[int]:
        """Return the supplementary groups, as /etc/group has them now; without it, its own group alone."""
        name = self.name
        member_of = {int(words[2]) for words in _rows(GROUP, 4) if name in words[3].split(",") and words[2].isdecimal()}
        return [self.group_id, *sorted(member_of - {self.group_id})]

    def acting(self, work: Callable[P, T]) -> Callable[P, T]:
        """Return the same work, done with this user's rights on files; for a thread, which it changes alone."""

        def done(*arguments: P.args, **names: P.kwargs) -> T:
            with self.rights():
                return work(*arguments, **names)

        return done

    @contextlib.contextmanager
    def rights(self) -> Iterator[None]:
        """Give the calling thread this user's rights on files, root's power over them taken away meanwhile.

        Raises:
            PermissionError: The kernel refuses.
        """
        before = os.getgroups()
        _set_groups(self.groups())
        LIBC.setfsgid(self.group_id)
        LIBC.setfsuid(self.user_id)
        try:
            # -1 is nobody, so that it changes nothing and tells what is set.
            if LIBC.setfsuid(-1) != self.user_id or LIBC.setfsgid(-1) != self.group_id:
                raise PermissionError("the kernel does not let the agent act as the freelancer's user")
            yield
        finally:
            LIBC.setfsuid(os.geteuid())
            LIBC.setfsgid(os.getegid())
            _set_groups(before)


def oom_score() -> int:
    """Return the score of the freelancer's processes: above the agent's own, and `OOM_SCORE` at least."""
    try:
        own = int(Path("/proc/self/oom_score_adj").read_text(encoding="ascii"))
    except (OSError, ValueError):
        own = 0
    return min(OOM_HIGHEST, max(OOM_SCORE, own + OOM_DISTANCE))


def _set_groups(groups: Sequence[int]) -> None:
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if LIBC.syscall(_SYS_SETGROUPS, len(groups), array) != 0:
        raise PermissionError(ctypes.get_errno(), "the kernel does not let the agent set its groups")


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        words = line.strip().split(":")
        if len(words) == columns:
            yield words
