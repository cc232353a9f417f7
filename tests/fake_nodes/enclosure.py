"""A run in namespaces of its own (processes, mounts, network), so that nothing of it outlives it, however it ends.

The kernel ends every process of a process namespace with its first one, which `unshare --kill-child` ties to whoever
was started. In the network namespace all of 127.0.0.0/8 is this run's alone, ports too: fake pods have addresses there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from devcluster.places import VOLUMES

HOME_VARIABLE: Final = "FAKE_NODES_HOME"
PREFIX: Final = "sandboxd-fake-nodes-"
_OWNER: Final = "owner"
_NAMESPACES: Final = ("--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")


def enclosed(module: str, arguments: Sequence[str]) -> Path:
    """Return the home of this run inside its namespaces; outside of them, become that run.

    Raises:
        SystemExit: We are not root, or there is no `unshare`.
    """
    home = os.environ.get(HOME_VARIABLE, "")
    if not home:
        _enclose(module, arguments)
    _furnish()
    return Path(home)


def _enclose(module: str, arguments: Sequence[str]) -> NoReturn:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise SystemExit("fake nodes need root on Linux, as the development cluster does")
    sweep(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=PREFIX))
    made.chmod(0o755)  # PostgreSQL's folder is below it, and another user's
    (made / _OWNER).write_text(str(os.getpid()))
    os.environ[HOME_VARIABLE] = str(made)
    os.execvp("unshare", ["unshare", *_NAMESPACES, sys.executable, "-m", module, *arguments])


def _furnish() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # The controller manager's host-path provisioner has no option for another place; these volumes are nobody else's.
    VOLUMES.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "fake-nodes", str(VOLUMES)], check=True)


def sweep(folder: Path) -> None:
    """Remove the homes of runs that were killed."""
    for left in folder.glob(f"{PREFIX}*"):
        try:
            owner = (left / _OWNER).read_text()
            command = Path(f"/proc/{owner}/cmdline").read_bytes()
        except OSError:
            command = b""
        if b"unshare" not in command:
            shutil.rmtree(left, ignore_errors=True)
