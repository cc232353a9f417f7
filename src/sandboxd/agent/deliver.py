"""`python -m sandboxd.agent.deliver TARGET`: copy the agent's file system, for clusters that cannot mount an image.

Runs in an init container made of the agent's image, which holds no shell and no `cp`. Standard library alone.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

PARTS = ("lib64", "usr")
"""What there is to an agent's image."""


def deliver(source: Path, target: Path) -> None:
    """Copy the parts; what an earlier, interrupted copy left is overwritten."""
    for part in PARTS:
        shutil.copytree(source / part, target / part, symlinks=True, dirs_exist_ok=True)


if __name__ == "__main__":
    deliver(Path("/"), Path(sys.argv[1]))
