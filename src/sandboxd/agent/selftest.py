"""`python -m sandboxd.agent.selftest JSON`: whether a sandbox could work in the image that this container is made of.

Runs as PID 1 and root of a container that is made like a sandbox's, without its owner's volumes and without a network.
Everything that it starts is the image's and may do what it likes: it is given little time, and its words are kept to
their last few.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sandboxd.agent.user import GROUP, PASSWD, User
from sandboxd.model.boot_step import BootStep
from sandboxd.model.legible import legible

BROKEN: Final = 10
"""Exit status where the image is broken; 0 where it is not. Any other means that nothing is known of it."""
UNUSABLE: Final = 2
"""Exit status where the argument is none."""
REPORT: Final = Path("/dev/termination-log")
"""Where the kubelet takes a container's last words from; at most 4096 bytes of it."""
STEP_SECONDS: Final = 10.0
CLI_SECONDS: Final = 40.0
"""`gemini --version` takes one to two seconds of a processor, and the pod may have a share of one."""
LONGEST: Final = 3
"""How many times its time a step may take where it waits for a processor: a busy node says nothing of an image."""
OUTPUT_BYTES: Final = 2048
OUTPUT_CHARACTERS: Final = 600
SHELL: Final = "/bin/sh"
SUDO: Final = "/usr/bin/sudo"
DPKG: Final = "/usr/bin/dpkg"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a sandbox needs of its image."""

    user: str
    user_id: int
    group_id: int
    home: str
    directories: Sequence[str]
    """Must be there: home and workspace, over which volumes are mounted."""
    mounts: Sequence[str] = ()
    """May be absent, and must be nothing else than directories."""
    cli: Sequence[str] = ()
    """Starts the CLI and ends it at once."""
    root: Path = field(default=Path("/"))

    @classmethod
    def read(cls, text: str) -> Expected:
        """Read the argument.

        Raises:
            ValueError, TypeError, KeyError: It is none.
        """
        given = json.loads(text)
        return cls(
            user=str(given["user"]),
            user_id=int(given["user_id"]),
            group_id=int(given["group_id"]),
            home=str(given["home"]),
            directories=[str(one) for one in given["directories"]],
            mounts=[str(one) for one in given.get("mounts", ())],
            cli=[str(one) for one in given.get("cli", ())],
        )


class BrokenError(Exception):
    """The image is broken."""

    def __init__(self, step: BootStep, text: str) -> None:
        super().__init__(text)
        self.step = step


def check(expected: Expected) -> None:
    """Do all checks, in their order.

    Raises:
        BrokenError: The first that failed.
    """
    steps: Sequence[Callable[[Expected], None]] = (_user, _mounts, _shell, _packages, _cli, _sudo)
    for step in steps:
        step(expected)


def _user(expected: Expected) -> None:
    for path in (PASSWD, GROUP):
        if not (expected.root / path.relative_to("/")).is_file():
            raise BrokenError(BootStep.USER, f"{path} is no file.")
    accounts = _rows(expected.root / PASSWD.relative_to("/"), 7)
    found = next((words for words in accounts if words[0] == expected.user), None)
    if found is None:
        raise BrokenError(BootStep.USER, f"/etc/passwd has no user {expected.user}.")
    ids = (expected.user_id, expected.group_id)
    if found[2:4] != [str(one) for one in ids]:
        text = f"{expected.user} is {found[2]}:{found[3]} in /etc/passwd and must be {ids[0]}:{ids[1]}."
        raise BrokenError(BootStep.USER, text)
    if found[5] != expected.home:
        raise BrokenError(BootStep.USER, f"The home of {expected.user} is {found[5]} and must be {expected.home}.")


def _mounts(expected: Expected) -> None:
    for name in (*expected.directories, *expected.mounts):
        path = expected.root / name.lstrip("/")
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            if name in expected.directories:
                raise BrokenError(BootStep.MOUNTS, f"{name} is not there.") from None
            continue
        except OSError as error:  # one above it is no directory
            raise BrokenError(BootStep.MOUNTS, f"{name}: {error.strerror}.") from error
        if not stat.S_ISDIR(mode):
            raise BrokenError(BootStep.MOUNTS, f"{name} is no directory.")


def _shell(expected: Expected) -> None:
    for user in (None, expected):
        _run(BootStep.SHELL, [SHELL, "-c", "exit 0"], user=user)


def _packages(_: Expected) -> None:
    if not os.path.lexists(DPKG):
        return
    said = _run(BootStep.PACKAGES, [DPKG, "--audit"])
    if said.strip():
        raise BrokenError(BootStep.PACKAGES, f"dpkg --audit: {said}")


def _cli(expected: Expected) -> None:
    if expected.cli:
        _run(BootStep.CLI, expected.cli, user=expected, seconds=CLI_SECONDS)


def _sudo(expected: Expected) -> None:
    if os.path.lexists(SUDO):
        _run(BootStep.SUDO, [SUDO, "-n", "true"], user=expected)


def waited(process_id: int) -> float:
    """Seconds that a process was ready and had no processor; 0 where it has gone, or the kernel does not count them."""
    try:
        return int(Path(f"/proc/{process_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _run(
    step: BootStep,
    argv: Sequence[str],
    *,
    user: Expected | None = None,
    seconds: float = STEP_SECONDS,
    waits: Callable[[int], float] = waited,
) -> str:
    """Run a program of the image and return its last words.

    Args:
        step: What fails where it does.
        argv: The program.
        user: Who runs it; else root.
        seconds: Its time, without what it waits for a processor.
        waits: Seconds of that.

    Raises:
        BrokenError: It does not start, fails, or does not end in time.
    """
    identity = {}
    home = "/root"
    if user is not None:
        account = User(user_id=user.user_id, group_id=user.group_id)
        identity = {"user": user.user_id, "group": user.group_id, "extra_groups": account.groups()}
        home = user.home
    shown = " ".join(argv)
    try:
        process = subprocess.Popen(  # type: ignore[call-overload]  # its overloads take no mapping
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": PATH, "HOME": home, "LANG": "C.UTF-8"},
            start_new_session=True,
            **identity,
        )
    except OSError as error:
        raise BrokenError(step, f"{shown} does not start: {error.strerror}.") from error
    words = _last_words(process, seconds, waits)
    if process.returncode is None:
        _kill(process)
        raise BrokenError(step, f"{shown} did not end within {seconds:.0f} s. {words}")
    if process.returncode != 0:
        how = f"exit status {process.returncode}"
        if process.returncode < 0:
            how = f"signal {-process.returncode}"
        raise BrokenError(step, f"{shown}: {how}. {words}")
    return words


def _last_words(process: subprocess.Popen[bytes], seconds: float, waits: Callable[[int], float]) -> str:
    """Read until the program ends or its time is over; what it leaves running may hold the pipe open."""
    assert process.stdout is not None
    pipe, kept, began = process.stdout.fileno(), b"", time.monotonic()
    os.set_blocking(pipe, False)

    def left() -> float:
        most = min(seconds * LONGEST, seconds + waits(process.pid))
        return began + most - time.monotonic()

    while left() > 0:
        ended = process.poll() is not None
        readable, _, _ = select.select([pipe], [], [], 0 if ended else 0.05)
        piece = os.read(pipe, 65536) if readable else b""
        kept = (kept + piece)[-OUTPUT_BYTES:]
        if ended and not piece:
            break
        if readable and not piece:  # closed: nothing more to hear
            while process.poll() is None and (more := left()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(more, 0.05))
            break
    return legible(kept.decode(errors="replace"), limit=OUTPUT_CHARACTERS)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(STEP_SECONDS)


def _rows(path: Path, columns: int) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.strip().split(":")
        if len(words) == columns:
            yield words


def main(arguments: Sequence[str], *, report: Path = REPORT) -> int:
    """Check, and write down what is broken.

    Returns:
        0, `BROKEN` or `UNUSABLE`.
    """
    try:
        (text,) = arguments
        expected = Expected.read(text)
    except (ValueError, TypeError, KeyError) as error:
        sys.stderr.write(f"sandboxd selftest: the argument is none: {error!r}\n")
        return UNUSABLE
    try:
        check(expected)
    except BrokenError as error:
        told = json.dumps({"step": error.step.value, "message": legible(str(error), limit=2 * OUTPUT_CHARACTERS)})
        sys.stderr.write(f"{told}\n")
        report.write_text(told, encoding="ascii")
        return BROKEN
    sys.stderr.write("The image boots.\n")
    return 0


if __name__ == "__main__":
    # The kernel keeps a signal from a PID 1 that handles none.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(UNUSABLE))
    sys.exit(main(sys.argv[1:]))
