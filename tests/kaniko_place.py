"""The real kaniko on this machine: in a root file system and a mount namespace of its own, as it is in a container."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from typing_extensions import override

from sandboxd.backends.kubernetes.kaniko_builds import AGENT_ROOT, OUTPUTS, BuildPlace, arguments
from sandboxd.dev.node import cache_directory
from sandboxd.images.kaniko import CONTEXT, KanikoBuilds, KanikoOrder
from sandboxd.images.manifests import read_manifest
from sandboxd.images.registry import Registry
from sandboxd.model.errors import UnavailableError
from tools.kaniko import VERSION

EXECUTOR = cache_directory() / "tools" / f"kaniko-{VERSION}" / "executor"
LOADER = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
LIBRARIES = (str(Path(LOADER).parent), f"{sys.base_prefix}/lib", "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu")
PYTHON = (
    f"{AGENT_ROOT}{LOADER}",
    "--library-path",
    ":".join(f"{AGENT_ROOT}{one}" for one in LIBRARIES),
    f"{AGENT_ROOT}{os.path.realpath(sys.executable)}",
    "-I",
    "-S",
)
"""This machine's Python, which has its root where a pod has the agent's."""
_SCRIPT = f"""
set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
mount --bind / "$root{AGENT_ROOT}"
exec chroot "$root" /kaniko/executor "$@"
"""
needs_kaniko = pytest.mark.skipif(
    os.geteuid() != 0 or not EXECUTOR.is_file() or shutil.which("unshare") is None,
    reason="needs root, and kaniko's executor (python -m tools.kaniko builds it)",
)


@dataclass(kw_only=True)
class LocalKanikoBuilds(KanikoBuilds):
    """Runs kaniko as root of this machine, confined to a directory."""

    registry: Registry
    address: str
    """Of a docker-registry on loopback."""
    directory: Path
    said: list[str] = field(default_factory=list)
    more: Sequence[str] = ()
    """Further arguments."""

    @override
    async def run(self, order: KanikoOrder, *, timeout: timedelta) -> str:
        root = Path(tempfile.mkdtemp(dir=self.directory))
        for name in ("proc", "dev", "kaniko/agent", f".{CONTEXT}", f".{OUTPUTS}"):
            (root / name).mkdir(parents=True)
        os.link(EXECUTOR, root / "kaniko/executor") if _same_disk(EXECUTOR, root) else shutil.copy(
            EXECUTOR, root / "kaniko/executor"
        )
        await self._context(order, root / f".{CONTEXT}", timeout)
        place = BuildPlace(
            namespace="", instance="", image="", agent_image="", registry=self.address, plain=True, zstd=False
        )
        given = [*arguments(order, place), *self.more]
        process = await asyncio.create_subprocess_exec(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _SCRIPT, "sh", str(root), *given),
            env={"PATH": os.environ["PATH"], "HOME": "/root", "BUILDER_OUTPUT": OUTPUTS},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), timeout.total_seconds())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        self.said.append(out.decode(errors="replace"))
        outputs = root / f".{OUTPUTS}" / "images"
        text = outputs.read_text() if outputs.is_file() else ""
        await asyncio.to_thread(shutil.rmtree, root)
        found = re.search(r'"digest":"(sha256:[0-9a-f]{64})"', text)
        if process.returncode != 0 or found is None:
            raise UnavailableError(f"kaniko failed: {self.said[-1][-2000:]}")
        return found[1]

    async def _context(self, order: KanikoOrder, into: Path, timeout: timedelta) -> None:
        handed = order.handover
        image = read_manifest(await self.registry.manifest(handed.repository, handed.digest, timeout=timeout))
        (blob,) = image.layers
        stream = self.registry.blob(handed.repository, blob.digest, size=blob.size, timeout=timeout)
        content = b"".join([piece async for piece in stream])
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(into, filter="data")


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
