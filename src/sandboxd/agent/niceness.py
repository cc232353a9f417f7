"""A session's share of the processors, where the kernel groups processes by session.

With `kernel.sched_autogroup_enabled`, niceness counts only between the processes of one session; between sessions the
group's own counts, and that begins at 0 whatever the session's first process has (sched(7), "The autogroup feature").
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def spread_niceness(pid: int) -> None:
    """Give the session that `pid` leads the niceness of this process, where that is above 0.

    Best effort: kernels without the feature have no such file, and one takes at most ten such wishes a second from
    all that are not root.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness <= 0:
        return
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")
