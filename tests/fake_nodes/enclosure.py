"""A run in namespaces of its own (processes, mounts, network), so that nothing of it outlives it, however it ends.

The kernel ends every process of a process namespace with its first one, which dies with whoever started the run. In
the network namespace all of 127.0.0.0/8 is this run's alone, ports too: fake pods have addresses there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from devcluster.places import VOLUMES

HOME_VARIABLE: Final = "FAKE_NODES_HOME"
PREFIX: Final = "sandboxd-fake-nodes-"
_OWNER: Final = "owner"
_NAMESPACES: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"),
)
"""`unshare` ignores a request to end, and dies with us; the first process inside dies with it, the others with that."""


def enclosed(module: str, arguments: Sequence[str]) -> Path:
    """Return the home of this run inside its namespaces; outside of them, run the module there and end as it does.

    Raises:
        SystemExit: Outside always; also where we are not root.
    """
    home = os.environ.get(HOME_VARIABLE, "")
    if not home:
        raise SystemExit(_run(module, arguments))
    _furnish()
    return Path(home)


def _run(module: str, arguments: Sequence[str]) -> int:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        raise SystemExit("fake nodes need root on Linux, as the development cluster does")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sweep(Path(tempfile.gettempdir()))
    home = Path(tempfile.mkdtemp(prefix=PREFIX))
    home.chmod(0o755)  # PostgreSQL's folder is below it, and another user's
    (home / _OWNER).write_text(str(os.getpid()))
    inside = subprocess.Popen(
        [*_NAMESPACES, sys.executable, "-m", module, *arguments], env={**os.environ, HOME_VARIABLE: str(home)}
    )
    try:
        return inside.wait()
    finally:
        inside.kill()
        inside.wait()
        shutil.rmtree(home, ignore_errors=True)


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
        if b"fake_nodes" not in command:
            shutil.rmtree(left, ignore_errors=True)
