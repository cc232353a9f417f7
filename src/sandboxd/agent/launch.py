"""Starting a program: pipes or a terminal, a session of its own, limits, and death together with the agent.

The child must not outlive the agent (`PR_SET_PDEATHSIG`), needs a controlling terminal, and has its limits set before
it runs its first instruction. All that happens between fork and exec, in `prepare`. The agent has threads (gRPC's), so
`prepare` only calls functions that were looked up before, takes no lock and imports nothing; gRPC's own fork handlers
are off (see `__main__`).
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandboxd.agent.niceness import spread_niceness
from sandboxd.agent.reaper import LIBC, PR_SET_PDEATHSIG
from sandboxd.agent.user import User, oom_score
from sandboxd.model.processes import ProcessLimits, ProcessSpec, TerminalSize
from sandboxd.stream.agent_port import ProcessStartError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The limit that the agent was started with. It raises its own; a process that asks for none gets this one."""
IUTF8 = 0o40000
"""Input flag of a terminal: erase whole characters of UTF-8. The standard library has no name for it in 3.11."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A process that runs, and our ends of its streams. All descriptors are not blocking."""

    popen: subprocess.Popen[bytes]
    """Must be kept until the process was reaped, or its collection would wait for the child."""
    stdin: int
    stdout: int
    stderr: int
    """-1 when it is merged."""
    terminal: int
    """The terminal's controlling side, then also `stdin` and `stdout`; else -1."""


def launch(spec: ProcessSpec, *, directory: str, environment: Mapping[str, str], user: User | None = None) -> Launched:
    """Start a program.

    Args:
        spec: What to run.
        directory: Its working directory.
        environment: Its whole environment.
        user: Who runs it; None is the agent's own user.

    Raises:
        ProcessStartError: The kernel refuses to run it.
    """
    ours: list[int] = []
    theirs: list[int] = []
    try:
        if spec.terminal is not None:
            controlling, terminal = os.openpty()
            ours.append(controlling)
            theirs.append(terminal)
            if user is not None:
                os.fchown(terminal, user.user_id, user.group_id)
            set_terminal_size(controlling, spec.terminal)
            _accept_utf8(terminal)
            child = (terminal, terminal, terminal)
            mine = (controlling, controlling, -1)
        else:
            child, mine = _make_pipes(ours, theirs, merge=spec.merge_stderr)
        for descriptor in ours:
            os.set_blocking(descriptor, False)
        popen = subprocess.Popen(
            list(spec.argv),
            stdin=child[0],
            stdout=child[1],
            stderr=child[2],
            cwd=directory,
            env=dict(environment),
            close_fds=True,
            start_new_session=True,
            preexec_fn=_prepare(spec.limits, terminal=spec.terminal is not None, user=user),  # noqa: PLW1509 - see above
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        for descriptor in ours:
            os.close(descriptor)
        raise _start_error(spec, directory, error) from error
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    spread_niceness(popen.pid)
    return Launched(
        popen=popen,
        stdin=mine[0],
        stdout=mine[1],
        stderr=mine[2],
        terminal=mine[0] if spec.terminal is not None else -1,
    )


def set_terminal_size(terminal: int, size: TerminalSize) -> None:
    """Set a terminal's size; the kernel tells its foreground group."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _make_pipes(
    ours: list[int], theirs: list[int], *, merge: bool
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    def pipe() -> tuple[int, int]:
        read, write = os.pipe2(os.O_CLOEXEC)
        return read, write

    stdin_read, stdin_write = pipe()
    theirs.append(stdin_read)
    ours.append(stdin_write)
    stdout_read, stdout_write = pipe()
    theirs.append(stdout_write)
    ours.append(stdout_read)
    if merge:
        return (stdin_read, stdout_write, stdout_write), (stdin_write, stdout_read, -1)
    stderr_read, stderr_write = pipe()
    theirs.append(stderr_write)
    ours.append(stderr_read)
    return (stdin_read, stdout_write, stderr_write), (stdin_write, stdout_read, stderr_read)


def _accept_utf8(terminal: int) -> None:
    attributes = termios.tcgetattr(terminal)
    attributes[0] |= IUTF8
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)


def _prepare(limits: ProcessLimits, *, terminal: bool, user: User | None) -> Callable[[], None]:
    agent = os.getpid()
    wanted = [
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_CORE, limits.core_bytes or 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_AS, limits.address_space_bytes),
    ]
    pairs = [(kind, (value, value)) for kind, value in wanted if value is not None]
    open_files = limits.open_files
    pairs.append((resource.RLIMIT_NOFILE, OPEN_FILES if open_files is None else (open_files, open_files)))
    setrlimit, ioctl, getppid, exit_now = resource.setrlimit, fcntl.ioctl, os.getppid, os._exit
    prctl, mask, no_signals = LIBC.prctl, signal.pthread_sigmask, frozenset[int]()
    restore, default, ignored = signal.signal, signal.SIG_DFL, (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    become = _becoming(user) if user is not None else None

    def prepare() -> None:
        if become is not None:
            become()  # before the next line: a change of user takes back what it asks for
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if getppid() != agent:  # it died before the line above
            exit_now(1)
        for number in ignored:
            restore(number, default)
        mask(signal.SIG_SETMASK, no_signals)
        if terminal:
            ioctl(0, termios.TIOCSCTTY, 0)
        for kind, pair in pairs:
            setrlimit(kind, pair)

    return prepare


def _becoming(user: User) -> Callable[[], None]:
    """Return what turns a child into a process of the user; for between fork and exec, as `_prepare` is."""
    groups, score = user.groups(), str(oom_score()).encode("ascii")
    user_id, group_id = user.user_id, user.group_id
    opened, write, close, writing = os.open, os.write, os.close, os.O_WRONLY
    set_groups, set_group, set_user, umask = os.setgroups, os.setresgid, os.setresuid, os.umask

    def become() -> None:
        try:
            file = opened("/proc/self/oom_score_adj", writing)
            write(file, score)
            close(file)
        except OSError:  # not permitted: then the kernel chooses without our hint
            pass
        set_groups(groups)
        set_group(group_id, group_id, group_id)
        set_user(user_id, user_id, user_id)
        umask(0o022)

    return become


def _start_error(spec: ProcessSpec, directory: str, error: Exception) -> ProcessStartError:
    program = spec.argv[0] if spec.argv else ""
    match error:
        case FileNotFoundError() if error.filename == directory or not os.path.isdir(directory):  # noqa: PTH112
            text = f"The working directory {directory} does not exist."
        case FileNotFoundError():
            text = f"The program {program} does not exist."
        case PermissionError():
            text = f"The program {program} may not be executed."
        case subprocess.SubprocessError():
            text = f"The program {program} could not be given its limits; they may be above what is allowed."
        case OSError():
            text = f"The program {program} could not be started: {error.strerror or error}."
        case _:
            text = f"The program {program} could not be started: {error}."
    return ProcessStartError(text, program=program, directory=directory)
