"""`python -m tests.bench.commit`: what commits cost on the development cluster, by size and by root file system.

Parts, each a table of its own (`--only sizes,crowd`): `sizes` beside `buildah commit` and containerd's own diff of the
same tree, `inodes`, `neighbour` (whoever works beside a commit), `crowd`, `start` from a large image. It needs root on
the cluster's node, and some GB on its disk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sandboxd.ctl.client import Client
from sandboxd.manager.agents import visit
from sandboxd.model.ids import SandboxId
from sandboxd.model.processes import OutputChunk, OutputStream, ProcessId, ProcessSpec
from sandboxd.v1 import image_pb2 as pb
from sandboxd.v1 import sandbox_pb2
from tests.bench.commit_stage import Peaks, Stage, a_stage, peaks_of, timed
from tests.bench.figures import percentile
from tests.cluster.stack import committed, image_of, sandbox_id

MEGABYTE: Final = 1_000_000
PAUSE_SECONDS: Final = 0.05
"""Between two echoes of a neighbour: a person who types quickly."""
CREATE_AT_ONCE: Final = 4
OVERCOMMIT: Final = {"cpu": "0.01", "memory": "0.05"}
PHASES: Final = ("CAPTURE", "PUSH", "PROBE")


@asynccontextmanager
async def a_sandbox(client: Client) -> AsyncIterator[sandbox_pb2.Sandbox]:
    """A sandbox for a block."""
    sandbox = await client.create(model="gemini-2.5-flash", tier="standard")
    try:
        yield sandbox
    finally:
        await client.terminate(sandbox.name, force=True)


async def measured(client: Client, sandbox: sandbox_pb2.Sandbox, peaks: Peaks) -> tuple[pb.Image, float]:
    """Commit under observation; answers what it came to, and the seconds from the call to the end."""
    with peaks.watched(), timed() as seconds:
        image = await committed(client, sandbox)
    if image.status not in (pb.IMAGE_STATUS_ACTIVE, pb.IMAGE_STATUS_DISCARDED):
        raise RuntimeError(f"the commit failed: {image.failure.message}")
    return image, seconds[0]


def phases(image: pb.Image) -> list[str]:
    """Seconds of the phases that matter, as cells."""
    took = {pb.CommitPhase.Name(one.phase): one.duration.ToTimedelta().total_seconds() for one in image.phases}
    return [f"{took[f'COMMIT_PHASE_{name}']:.1f}" if f"COMMIT_PHASE_{name}" in took else "-" for name in PHASES]


def row(*cells: object) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


def head(*names: str) -> None:
    """Print the head of a table."""
    print(flush=True)
    row(*names)
    row("---", *("---:" for _ in names[1:]))


async def sizes(stage: Stage, options: argparse.Namespace) -> None:
    """Commits by size, and what others take for the same tree."""
    head("New, MB", "Layer, MB", "zstd, MB", "Capture, s", "Push", "Probe", "Total", "serve, MB", "Writer", "Agent",
         "`ctr snapshots diff`, s", "`buildah commit`, s")  # fmt: skip
    for megabytes in map(float, options.megabytes.split(",")):
        async with stage.stack.client() as client, a_sandbox(client) as sandbox:
            await committed(client, sandbox, dry_run=True)  # the base is read
            await stage.fill(sandbox, int(megabytes * MEGABYTE))
            peaks = peaks_of(stage, sandbox)
            image, total = await measured(client, sandbox, peaks)
            diff = await containerd_diff(stage, sandbox)
            built = await buildah(stage, sandbox) if shutil.which("buildah") else "not installed"
        row(f"{megabytes:g}", f"{image.raw_bytes / 1e6:.1f}", f"{image.compressed_bytes / 1e6:.1f}", *phases(image),
            f"{total:.1f}", peaks.cell("serve"), peaks.cell("writer"), peaks.cell("agent"), diff, built)  # fmt: skip


async def containerd_diff(stage: Stage, sandbox: sandbox_pb2.Sandbox) -> str:
    """Seconds of containerd's own difference of the sandbox's container, to a file: nothing is pushed."""
    statuses = stage.stack.pod(sandbox)["status"]["containerStatuses"]
    container = next(one["containerID"] for one in statuses if one["name"] == "sandbox").rpartition("/")[2]
    into = stage.stack.home / "diff"
    with timed() as seconds:
        await stage.run(stage.ctr("snapshots", "diff", container), into=into)
    size = into.stat().st_size
    into.unlink()
    return f"{seconds[0]:.1f} ({size / 1e6:.1f} MB)"


async def buildah(stage: Stage, sandbox: sandbox_pb2.Sandbox, image: str = "") -> str:
    """Seconds of buildah's commit of the same files on the same base, pushed to the same registry."""
    base = (image or stage.stack.installation.images["sandbox"]).partition("/")[2]
    source = f"{stage.registry}/{base.partition('@')[0].partition(':')[0]}@{base.partition('@')[2]}"
    made = (await stage.run(("buildah", "from", "--tls-verify=false", f"docker://{source}"))).strip()
    try:
        mount = Path((await stage.run(("buildah", "mount", made))).strip())
        root = Path(f"/proc/{stage.agent_of(sandbox).pid}/root")
        if (root / "opt" / "bench").exists():
            await stage.run(("cp", "-a", str(root / "opt" / "bench"), str(mount / "opt" / "bench")))
        target = f"docker://{stage.registry}/bench/buildah:{sandbox_id(sandbox)}"
        with timed() as seconds:
            await stage.run(("buildah", "commit", "--quiet", "--tls-verify=false", made, target))
    finally:
        await stage.run(("buildah", "rm", made))
    return f"{seconds[0]:.1f}"


async def inodes(stage: Stage, options: argparse.Namespace) -> None:
    """Commits of 1 KB in root file systems of many files."""
    head("Inodes of the base", "First commit, base unread, s", "Capture, s", "Push", "Probe", "Total", "serve, MB",
         "Writer", "Reader", "Agent", "Node has it, s", "`ctr snapshots diff`, s", "`buildah commit`, s")  # fmt: skip
    installation = stage.stack.installation
    async with stage.stack.client() as client, a_sandbox(client) as sandbox:
        present = int(stage.stack.inside(sandbox, "sh", "-c", "find / -xdev | wc -l"))
    for number in map(int, options.inodes.split(",")):
        name = f"{installation.instance}-{number}"
        image = await stage.base_with(max(1, number - present))
        installation.apply_template(name, image=image)
        with timed() as pulled:
            await stage.pull(image)
        stage.stack.settings["SANDBOXD_KUBERNETES_TEMPLATE"] = name
        await stage.stack.restart("serve")
        async with stage.stack.client() as client, a_sandbox(client) as sandbox:
            count = int(stage.stack.inside(sandbox, "sh", "-c", "find / -xdev | wc -l"))
            first, again = peaks_of(stage, sandbox), peaks_of(stage, sandbox)
            _, unread = await measured(client, sandbox, first)
            await stage.fill(sandbox, 1000)
            made, total = await measured(client, sandbox, again)
            diff = await containerd_diff(stage, sandbox)
            built = await buildah(stage, sandbox, image) if shutil.which("buildah") else "not installed"
        row(f"{count:,}", f"{unread:.1f}", *phases(made), f"{total:.1f}", again.cell("serve"), again.cell("writer"),
            first.cell("reader"), again.cell("agent"), f"{pulled[0]:.0f}", diff, built)  # fmt: skip
    del stage.stack.settings["SANDBOXD_KUBERNETES_TEMPLATE"]
    await stage.stack.restart("serve")


async def neighbour(stage: Stage, options: argparse.Namespace) -> None:
    """What somebody else waits for: an echo of a process in a sandbox, and an answer of the service."""
    head("Meanwhile", "Echoes", "P50, ms", "P99", "max", "Answers of Get", "P50, ms", "P99", "max")
    async with stage.stack.client() as client, a_sandbox(client) as busy, a_sandbox(client) as quiet:
        await committed(client, busy, dry_run=True)
        await stage.fill(busy, options.beside * MEGABYTE)

        async def nothing() -> None:
            await asyncio.sleep(options.rest)

        async def a_commit() -> None:
            await committed(client, busy)

        for name, work in (("nothing", nothing), (f"a commit of {options.beside} MB", a_commit)):
            echoes, answers = await beside(stage, client, quiet, work)
            cells = [
                [f"{percentile(all_, share) * 1000:.1f}" for share in (0.5, 0.99, 1)] for all_ in (echoes, answers)
            ]
            row(name, len(echoes), *cells[0], len(answers), *cells[1])


async def beside(
    stage: Stage, client: Client, sandbox: sandbox_pb2.Sandbox, work: Callable[[], Awaitable[None]]
) -> tuple[Sequence[float], Sequence[float]]:
    """Echo in a sandbox and ask the service until the work is done: seconds of each echo, and of each answer."""
    echoes, answers = list[float](), list[float]()
    async with stage.stack.installation.client() as api:
        backend, connector = stage.stack.installation.backend(api)
        following = asyncio.create_task(backend.run(), name="mirror")
        (life,) = (await backend.observe(SandboxId(sandbox_id(sandbox)))).running
        assert life.endpoint is not None
        async with visit(connector, life.endpoint) as agent:
            cat = ProcessId(f"echo-{time.monotonic_ns()}")
            await agent.start_process(cat, ProcessSpec(argv=["/bin/cat"], environment={"PATH": "/bin:/usr/bin"}))

            async def echo() -> None:
                offset = 0
                positions = {OutputStream.STDOUT: 0}
                async with contextlib.aclosing(agent.attach(cat, epoch=1, positions=positions)) as output:
                    while True:
                        began = time.monotonic()
                        await agent.write(cat, epoch=1, offset=offset, data=b"x")
                        offset += 1
                        async for piece in output:
                            if isinstance(piece, OutputChunk) and piece.offset + len(piece.data) >= offset:
                                break
                        echoes.append(time.monotonic() - began)
                        await asyncio.sleep(PAUSE_SECONDS)

            async def ask() -> None:
                while True:
                    began = time.monotonic()
                    await client.get(sandbox.name)
                    answers.append(time.monotonic() - began)
                    await asyncio.sleep(PAUSE_SECONDS)

            tasks = [asyncio.create_task(one(), name=one.__name__) for one in (echo, ask)]
            await work()
            for task in tasks:
                if task.done():
                    task.result()
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        following.cancel()
    return echoes, answers


async def crowd(stage: Stage, options: argparse.Namespace) -> None:
    """Many commits in the same moment, each of a sandbox of its own."""
    gate = asyncio.Semaphore(CREATE_AT_ONCE)
    # Of the template's own requests nineteen sandboxes fit on two processors.
    stage.stack.installation.apply_template(overcommit=OVERCOMMIT)
    async with stage.stack.client() as client:

        async def made(number: int) -> sandbox_pb2.Sandbox:
            async with gate:
                sandbox = await client.create(model="gemini-2.5-flash", freelancer=f"bench-{number}")
                await stage.fill(sandbox, options.each * MEGABYTE)
                return sandbox

        sandboxes = await asyncio.gather(*(made(number) for number in range(options.crowd)))
        await committed(client, sandboxes[0], dry_run=True)
        peaks, seconds, answers = peaks_of(stage, *sandboxes), list[float](), list[float]()

        async def one(sandbox: sandbox_pb2.Sandbox) -> None:
            with timed() as took:
                image = await committed(client, sandbox)
            if image.status != pb.IMAGE_STATUS_ACTIVE:
                raise RuntimeError(f"the commit failed: {image.failure.message}")
            seconds.extend(took)

        async def ask() -> None:
            while True:
                with timed() as took:
                    await client.get(sandboxes[0].name)
                answers.extend(took)
                await asyncio.sleep(PAUSE_SECONDS)

        with peaks.watched():
            asking = asyncio.create_task(ask(), name="ask")
            await asyncio.gather(*map(one, sandboxes))
            asking.cancel()
        head("At once", "MB each", "First, s", "P50", "Last", "Get P99, ms", "serve, MB", "Writer", "Agent")
        row(options.crowd, options.each, f"{min(seconds):.1f}", f"{statistics.median(seconds):.1f}",
            f"{max(seconds):.1f}", f"{percentile(answers, 0.99) * 1000:.0f}", peaks.cell("serve"),
            peaks.cell("writer"), peaks.cell("agent"))  # fmt: skip
        for sandbox in sandboxes:
            await client.terminate(sandbox.name, force=True)


async def start(stage: Stage, options: argparse.Namespace) -> None:
    """Starts of a sandbox from the base, and from an image with a large layer that its node has, and has not."""
    head("Starts from", "Times", "P50, s", "max")
    async with stage.stack.client() as client, a_sandbox(client) as sandbox:

        async def resumed() -> float:
            with timed() as seconds:
                await client.resume(sandbox.name)
            return seconds[0]

        async def starts(*, absent: bool) -> list[float]:
            figures = []
            for _ in range(options.times):
                await client.pause(sandbox.name)
                if absent:
                    await forget(stage, image.digest)
                figures.append(await resumed())
            return figures

        figures = await starts(absent=False)
        row("the base, which the node has", len(figures), f"{statistics.median(figures):.1f}", f"{max(figures):.1f}")
        await stage.fill(sandbox, options.large * MEGABYTE)
        image = await committed(client, sandbox)
        for absent, words in ((False, "has"), (True, "has not")):
            figures = await starts(absent=absent)
            assert image_of(stage.stack, sandbox) == image.reference
            name = f"an image with a layer of {image.raw_bytes / 1e6:,.0f} MB, which the node {words}"
            row(name, len(figures), f"{statistics.median(figures):.1f}", f"{max(figures):.1f}")


async def forget(stage: Stage, digest: str) -> None:
    """Let the node have an image no more, under none of its names."""
    listed = (await stage.run(stage.ctr("images", "ls"))).splitlines()
    names = [line.split()[0] for line in listed if digest in line]
    if not names:
        raise RuntimeError(f"the node does not know {digest}")
    await stage.run(stage.ctr("images", "rm", "--sync", *names))


PARTS: Final = {"sizes": sizes, "inodes": inodes, "neighbour": neighbour, "crowd": crowd, "start": start}


async def run(home: Path, options: argparse.Namespace) -> None:
    """Measure the parts that were asked for, one after the other."""
    async with a_stage(home) as stage:
        for name in options.only.split(","):
            began = time.monotonic()
            await PARTS[name](stage, options)
            print(f"\n{name}: {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas (default: %(default)s)")
    parser.add_argument("--megabytes", default="0,0.001,100,1000", help="sizes of `sizes` (default: %(default)s)")
    parser.add_argument("--inodes", default="60000,300000,640000", help="of `inodes` (default: %(default)s)")
    parser.add_argument("--beside", type=int, default=500, help="MB of the commit of `neighbour`")
    parser.add_argument("--rest", type=float, default=20, help="seconds of `neighbour` without a commit")
    parser.add_argument("--crowd", type=int, default=20, help="commits of `crowd`")
    parser.add_argument("--each", type=int, default=10, help="MB of each commit of `crowd`")
    parser.add_argument("--large", type=int, default=1000, help="MB of the layer of `start`")
    parser.add_argument("--times", type=int, default=3, help="starts of each kind")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"no part is named {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="commit-bench-", ignore_cleanup_errors=True) as home:
        asyncio.run(run(Path(home), options))


if __name__ == "__main__":
    main()
