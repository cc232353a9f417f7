"""Where commits are measured: the development cluster with a service of its own, and a look at who uses how much."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import secrets
import subprocess
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final, cast

import psutil

from devcluster.places import Places
from sandboxd.backends.registry.client import OciRegistry
from sandboxd.images.registry import OCI_MANIFEST, Manifest, digest_of
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.v1 import sandbox_pb2
from tests.bench.baseline import paths
from tests.cluster.stack import ClusterStack, a_keeping_stack, sandbox_id
from tests.installation import ClusterInstallation, built_images
from tests.kube import define_resources, find_cluster

PATIENCE: Final = timedelta(minutes=10)
PARTS: Final = {"serve": "sandboxd serve", "writer": "layer_worker", "reader": "baseline_worker"}
"""Words of command lines: the service, and its processes for layers and for base images."""
EVERY_SECONDS: Final = 0.05
_FILE: Final = 16 << 20
_CONTENT: Final = r"""
mkdir -p /opt/bench; left=$1; number=0
while [ "$left" -gt 0 ]; do
  size=$((left < $2 ? left : $2))
  { head -c $((size / 2)) /dev/urandom; head -c $((size / 4)) /dev/urandom | base64 -w 76; } \
    | head -c "$size" > /opt/bench/file-$number
  tr -c a-e '\n' < /dev/zero | head -c $((size - $(stat -c %s /opt/bench/file-$number))) >> /opt/bench/file-$number
  left=$((left - size)); number=$((number + 1))
done
"""
"""Half of each file packs not at all, a third to three quarters, the rest to nothing: as libraries do on the whole."""


@dataclass(kw_only=True)
class Stage:
    """What the parts of the bench work with."""

    stack: ClusterStack
    places: Places

    @property
    def registry(self) -> str:
        """Address of the cluster's registry."""
        return self.stack.installation.cluster.registry

    async def fill(self, sandbox: sandbox_pb2.Sandbox, size: int) -> None:
        """Write so many bytes below /opt/bench of a sandbox, in files of 16 MB."""
        command = ("exec", f"{sandbox_id(sandbox)}-0", "-c", "sandbox", "--", "sh", "-c", _CONTENT, "sh")
        await self.run(self.kubectl(*command, str(size), str(_FILE)))

    def kubectl(self, *arguments: str) -> Sequence[str]:
        """A command line of kubectl in the client's namespace."""
        cluster = self.stack.installation.cluster
        return (cluster.kubectl_binary, f"--kubeconfig={cluster.kubeconfig}", "-n", self.stack.namespace, *arguments)

    def ctr(self, *arguments: str) -> Sequence[str]:
        """A command line of containerd's client."""
        return (str(self.places.bin / "ctr"), "--address", str(self.places.socket), "-n", "k8s.io", *arguments)

    async def pull(self, image: str) -> None:
        """Let the node have an image, unpacked: how long that takes is no part of a start that is measured."""
        await self.run(self.ctr("images", "pull", "--plain-http", image))

    async def run(self, command: Sequence[str], *, into: Path | None = None) -> str:
        """Run a command, and return what it printed, or write that to a file.

        Raises:
            CalledProcessError: It failed; what it said is printed before.
        """

        def work() -> str:
            with contextlib.ExitStack() as stack:
                out = subprocess.PIPE if into is None else stack.enter_context(into.open("wb"))
                done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False)
            if done.returncode:
                print(done.stderr.decode(errors="replace")[-2000:], flush=True)
            done.check_returncode()
            return "" if into is not None else done.stdout.decode(errors="replace")

        return await asyncio.to_thread(work)

    def agent_of(self, sandbox: sandbox_pb2.Sandbox) -> psutil.Process:
        """The agent of a sandbox, as a process of this node."""
        uid = self.stack.pod(sandbox)["metadata"]["uid"]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                group = Path(f"/proc/{process.pid}/cgroup").read_text()
                if f"pod{uid}" in group and "sandboxd.agent" in " ".join(process.cmdline()):
                    return process
        raise RuntimeError(f"no process of this node is the agent of {sandbox.name}")

    async def base_with(self, entries: int) -> str:
        """Push the sandboxes' base with so many more empty files and directories; answers it by digest."""
        name, _, digest = self.stack.installation.images["sandbox"].partition("/")[2].rpartition("@")
        name = name.partition(":")[0]
        file = self.stack.home / f"base-{entries}.tar.gz"
        diff_id = await asyncio.to_thread(_layer, file, entries)
        layer = f"sha256:{await asyncio.to_thread(_hash, file)}"
        async with OciRegistry(self.registry, plain=True) as registry:
            manifest = json.loads((await registry.manifest(name, digest, timeout=PATIENCE)).content)
            described = manifest["config"]
            blob = registry.blob(name, described["digest"], size=described["size"], timeout=PATIENCE)
            config = json.loads(b"".join([piece async for piece in blob]))
            config["rootfs"]["diff_ids"].append(diff_id)
            config.pop("history", None)
            made = json.dumps(config).encode()
            kind = "application/vnd.oci.image.layer.v1.tar+gzip"
            manifest["layers"].append({"mediaType": kind, "digest": layer, "size": file.stat().st_size})
            manifest["config"] = {**described, "digest": digest_of(made), "size": len(made)}
            await registry.upload(name, file, digest=layer, timeout=PATIENCE)
            await registry.upload(name, made, digest=digest_of(made), timeout=PATIENCE)
            image = Manifest(media_type=manifest.get("mediaType", OCI_MANIFEST), content=json.dumps(manifest).encode())
            await registry.push(name, image.digest, image, timeout=PATIENCE)
        file.unlink()
        return f"localhost:{self.registry.rpartition(':')[2]}/{name}@{image.digest}"


def _layer(file: Path, entries: int) -> str:
    """Write a layer below /opt/many; answers the digest of what is packed."""
    hashed = hashlib.sha256()

    class Hashing:
        def write(self, data: bytes) -> int:
            hashed.update(data)
            return packed.write(data)

    with (
        gzip.open(file, "wb", compresslevel=1) as packed,
        tarfile.open(fileobj=cast("BinaryIO", Hashing()), mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path, directory in paths(entries):
            member = tarfile.TarInfo(f"opt/many/{path}")
            member.type = tarfile.DIRTYPE if directory else tarfile.REGTYPE
            member.mode = 0o755 if directory else 0o644
            archive.addfile(member)
    return f"sha256:{hashed.hexdigest()}"


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass(kw_only=True)
class Peaks:
    """Looks at resident memory twenty times a second, from a thread of its own, for a block."""

    serve: psutil.Process
    agents: Sequence[psutil.Process] = ()
    most: dict[str, float] = field(default_factory=dict)
    """Megabytes of the largest process, by part."""
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look for as long as the block lasts."""
        thread = threading.Thread(target=self._look, name="memory")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _look(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._note("serve", self.serve)
            for agent in self.agents:
                self._note("agent", agent)
            with contextlib.suppress(psutil.Error):
                for child in self.serve.children():
                    with contextlib.suppress(psutil.Error):
                        line = " ".join(child.cmdline())
                        for part in ("writer", "reader"):
                            if PARTS[part] in line:
                                self._note(part, child)

    def _note(self, part: str, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            self.most[part] = max(self.most.get(part, 0.0), process.memory_info().rss / 1e6)

    def cell(self, part: str) -> str:
        """Megabytes as a cell of a table; a dash where nothing of it was seen."""
        return f"{self.most[part]:.0f}" if part in self.most else "-"


@asynccontextmanager
async def a_stage(home: Path) -> AsyncIterator[Stage]:
    """Start an installation and its service; what was made in the cluster is gone afterwards.

    Raises:
        SystemExit: The development cluster is not up.
    """
    cluster = find_cluster()
    if cluster is None or cluster.places is None:
        raise SystemExit("the development cluster is not up: make cluster-up")
    define_resources(cluster)
    installation = ClusterInstallation(
        cluster=cluster,
        instance=f"b-{secrets.token_hex(4)}",
        home=home / "installation",
        images=await asyncio.to_thread(built_images, cluster),
    )
    installation.home.mkdir(parents=True)
    postgres = EmbeddedPostgres(home / "postgres", durable=True)
    url = await postgres.start()
    try:
        await migrations.upgrade(url)
        await asyncio.to_thread(_prepare, installation)
        settings = {
            "SANDBOXD_HIBERNATE_AFTER_SECONDS": "0",
            "SANDBOXD_STOP_AFTER_SECONDS": "0",
            "SANDBOXD_TERMINATE_AFTER_SECONDS": "0",
            "SANDBOXD_IMAGES_LAYER_ENTRIES": "1000000",
        }
        prefix = f"bench-{installation.instance}"
        async with a_keeping_stack(installation, url, prefix=prefix, settings=settings) as stack:
            yield Stage(stack=stack, places=cluster.places)
    finally:
        await asyncio.to_thread(installation.clean)
        await asyncio.to_thread(installation.stop_operator)
        await postgres.stop()


def _prepare(installation: ClusterInstallation) -> None:
    installation.prepare()
    installation.start_operator()


def peaks_of(stage: Stage, *sandboxes: sandbox_pb2.Sandbox) -> Peaks:
    """What looks at the service, and at the agents of these sandboxes."""
    agents = [stage.agent_of(sandbox) for sandbox in sandboxes]
    return Peaks(serve=psutil.Process(stage.stack.processes["serve"].pid), agents=agents)


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Append the seconds that a block took."""
    seconds, began = list[float](), time.monotonic()
    yield seconds
    seconds.append(time.monotonic() - began)
