"""The cluster's processes: found by what /proc says of them, never by a number in a file.

A pid file survives a kill and may name somebody else; a command line with our directories in it is ours.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devcluster.places import NODE_RUN, NODE_STATE, Places
from devcluster.trouble import say

DIGEST_VARIABLE = "SANDBOXD_DEVCLUSTER_DIGEST"
STOP_SECONDS = 10.0
SHIM = "containerd-shim-runc-v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A process that runs."""

    pid: int
    command: tuple[str, ...]

    @property
    def program(self) -> str:
        """Name of its program."""
        return Path(self.command[0]).name

    @property
    def digest(self) -> str:
        """What it was started with, by `Component.digest`; empty when it does not tell."""
        try:
            environment = Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return ""
        pairs = (one.partition("=") for one in environment.decode(errors="replace").split("\0"))
        return next((value for name, _, value in pairs if name == DIGEST_VARIABLE), "")


def running() -> Iterator[Found]:
    """Every process of this machine that has a command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if command and state not in "ZX":
            yield Found(pid=int(entry.name), command=tuple(command.split("\0")))


def ours(places: Places) -> list[Found]:
    """The processes that have our directories in their command line, and are one of our programs."""
    roots = (f"{places.home}/", f"{NODE_RUN}/", f"{NODE_STATE}/")
    programs = {"kubelab", "containerd", SHIM, "docker-registry", "coredns"}
    return [
        found
        for found in running()
        if found.program in programs and any(root in part for part in found.command for root in roots)
    ]


def name_of(found: Found) -> str:
    """Name of the component that a process of ours is; empty for a shim."""
    if found.program == "kubelab":
        return found.command[1] if len(found.command) > 1 else ""
    return {"docker-registry": "registry", "containerd": "containerd", "coredns": "coredns"}.get(found.program, "")


def stop(found: list[Found], *, gently: bool = True) -> None:
    """End these very processes, and wait until they have gone."""
    descriptors: dict[int, Found] = {}
    for one in found:
        try:
            descriptor = os.pidfd_open(one.pid)
        except ProcessLookupError:
            continue
        if _command(one.pid) != one.command:  # the number is another's by now
            os.close(descriptor)
            continue
        descriptors[descriptor] = one
    for how in (signal.SIGTERM, signal.SIGKILL) if gently else (signal.SIGKILL,):
        for descriptor in descriptors:
            _send(descriptor, how)
        deadline = time.monotonic() + STOP_SECONDS
        while living := [one for one in descriptors if not _has_ended(one)]:
            if time.monotonic() > deadline:
                break
            select.select(living, [], [], 0.2)
        if not living:
            break
    for descriptor in descriptors:
        os.close(descriptor)


def _send(descriptor: int, how: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(descriptor, how)
    except ProcessLookupError:
        return


def _has_ended(descriptor: int) -> bool:
    """Tell whether a process has let go of everything, its ports too; its command line is gone before that."""
    return bool(select.select([descriptor], [], [], 0)[0])


def _command(pid: int) -> tuple[str, ...]:
    return next((found.command for found in _one(pid)), ())


def _one(pid: int) -> Iterator[Found]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return
    if text and state not in "ZX":
        yield Found(pid=pid, command=tuple(text.split("\0")))


def start(name: str, command: tuple[str, ...], *, digest: str, log: Path, path: str) -> None:
    """Start a component as a daemon of its own session, its output in a log that begins anew above 32 MB."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > 32 << 20:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        subprocess.Popen(
            command,
            env={**os.environ, DIGEST_VARIABLE: digest, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    say(f"started {name}")


def listener(port: int) -> tuple[int, str] | None:
    """Who listens on a TCP port: pid and command, (0, "") where that cannot be seen; None when nobody does."""
    told = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=False).stdout
    if not told.strip():
        return None
    pid = int(told.partition("pid=")[2].partition(",")[0] or 0)
    return pid, " ".join(_command(pid)) if pid else ""
