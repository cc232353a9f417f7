"""`python -m tests.bench.hundred`: many sandboxes with a live session each on one node, and what each part keeps there.

A real installation on the development cluster: operator, `serve` and gateway are processes of the node, sandboxes are
pods. The first `--real` of them run the pinned Gemini CLI, the other `--stand-in` a recorded one: the image is the
sandbox's with one layer above it, in which the CLI's entry gives its process to the stand-in where a file asks for it.
Requests are far below what a tier asks for (`OVERCOMMIT`), or the scheduler would end it at nineteen on 2 processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from sandboxd.backends.kubernetes.pod_place import POD_PLACE
from sandboxd.dev.gemini_cli import ensure_gemini_cli
from sandboxd.model.cluster import CONTAINER, SANDBOX_LABEL, pod_of
from sandboxd.model.ids import SandboxId
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from tests.bench.driver import Client, Plan, Samples
from tests.bench.figures import PARTS, Parts, Use, percentile
from tests.bench.pod_memory import PodMemory, available, measure
from tests.bench.upstream import upstream
from tests.cluster.images import push_on_top
from tests.cluster.stack import ClusterStack, cluster_settings
from tests.fake_gemini import FakeGemini
from tests.installation import ClusterInstallation, built_images
from tests.kube import define_resources, find_cluster

OVERCOMMIT: Final = {"cpu": "0.01", "memory": "0.05"}
MARK: Final = "/home/gemini/.stand-in"
STAND_IN: Final = "/opt/stand-in/recorded_cli.py"
ENTRY: Final = f"""#!/usr/bin/env node
import {{ existsSync }} from "node:fs";
if (existsSync("{MARK}")) process.execve("/usr/bin/python3", ["python3", "{STAND_IN}"], process.env);
await import("./gemini-itself.js");
"""
BEGIN_AT_ONCE: Final = 2
"""CLIs that are started at a time: as many as there are processors."""
MEBIBYTE: Final = 1 << 20
SERVICE: Final = {part: word for part, word in PARTS.items() if part in ("serve", "gateway", "PostgreSQL")} | {
    "operator": "sandboxd operator",
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was seen."""

    created: Sequence[float] = ()
    """Seconds of each Create, a few at a time."""
    begun: float = 0.0
    """Seconds until each sandbox had its CLI and a first turn."""
    samples: Samples = field(default_factory=Samples)
    memory: PodMemory = field(default_factory=PodMemory)
    """While every session was live, after its turns."""
    taken: int = 0
    """Bytes by which what the machine could still give became less, with everything of everybody in it."""
    left: int = 0
    """Bytes that the machine could still give."""
    service: Mapping[str, Use] = field(default_factory=dict)


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


async def push_image(registry: str, sandbox_image: str) -> str:
    """Push the sandbox's image with the stand-in above it; answers its name in pods."""
    entry = Path(POD_PLACE.entry.removeprefix("/"))
    itself = ensure_gemini_cli(lambda _: None).entry.read_bytes()
    recorded = (Path(__file__).parent / "recorded_cli.py").read_bytes()
    files = {
        str(entry): ENTRY.encode(),
        str(entry.with_name("gemini-itself.js")): itself,
        STAND_IN.removeprefix("/"): recorded,
    }
    return await push_on_top(registry, sandbox_image, files)


async def run(stack: ClusterStack, *, real: int, stand_in: int, plan: Plan, turns: int) -> Outcome:
    """Create, begin, let everybody take turns, and look."""
    outcome, total = Outcome(), real + stand_in
    before = available()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.ports['grpc']}") as channel:
        client = Client(channel, token=stack.token)
        names, outcome.created = await _create(client, total)
        await _mark(stack, names[real:])
        began, ready, gate = time.monotonic(), asyncio.Barrier(total + 1), asyncio.Semaphore(BEGIN_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for name in names:
                work = client.converse(name, plan, turns=turns, samples=outcome.samples, ready=ready, gate=gate)
                group.create_task(work, name=name)
            await ready.wait()
            outcome.begun = time.monotonic() - began
            say(f"{total} sessions are live after {outcome.begun:.0f} s; {turns} turns each follow")
            parts, watched = Parts(SERVICE, within=str(stack.home)), time.monotonic()
            await ready.wait()
            outcome.service = parts.used(time.monotonic() - watched)
            say(f"{outcome.samples.turns} turns are through")
        # A stream that has ended leaves its session and CLI as they are.
        outcome.memory = await asyncio.to_thread(measure, _uids(stack))
        outcome.left = available()
        outcome.taken = before - outcome.left
    return outcome


async def _create(client: Client, total: int) -> tuple[list[str], list[float]]:
    names, seconds, step = list[str](), list[float](), 10
    for first in range(0, total, step):
        began, count = time.monotonic(), min(step, total - first)
        names += await client.create(count)
        seconds.append((time.monotonic() - began) / count)
        say(f"{len(names)} sandboxes, {seconds[-1]:.2f} s each, {available() / MEBIBYTE:.0f} MB left")
    return names, seconds


async def _mark(stack: ClusterStack, names: Sequence[str]) -> None:
    """Let these run the stand-in, before their CLI is started."""
    for name in names:
        pod = pod_of(SandboxId(name.rpartition("/")[2]))
        await asyncio.to_thread(stack.kubectl, "exec", pod, "-c", CONTAINER, "--", "touch", MARK)


def _uids(stack: ClusterStack) -> set[str]:
    pods = json.loads(stack.kubectl("get", "pods", "-l", SANDBOX_LABEL, "-o", "json"))["items"]
    return {pod["metadata"]["uid"] for pod in pods}


def table(outcome: Outcome, *, real: int, stand_in: int) -> str:
    """The figures as Markdown."""
    total, samples = real + stand_in, outcome.samples
    head = (
        f"{real} real CLIs and {stand_in} stand-ins: {samples.turns} turns, {len(samples.failures)} failures, "
        f"{samples.resent} prompts sent again; event P50 {percentile(samples.event, 0.5):.0f}, "
        f"P99 {percentile(samples.event, 0.99):.0f} ms. Created in {sum(outcome.created) / len(outcome.created):.2f} s "
        f"each, first turns of all within {outcome.begun:.0f} s."
    )
    lines = [
        head,
        "",
        "| Part | Processes | PSS, all (MB) | PSS each (MB) | Private each (MB) | Largest (MB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, part in sorted(outcome.memory.parts.items(), key=lambda one: -one[1].proportional):
        sizes = (part.proportional, part.proportional / part.processes, part.private / part.processes, part.largest)
        cells = " | ".join(f"{size / MEBIBYTE:.1f}" for size in sizes)
        lines.append(f"| {name} | {part.processes} | {cells} |")
    charged = sum(outcome.memory.groups)
    groups = max(1, len(outcome.memory.groups))
    whole = (
        f"Charged to the {groups} pods' control groups: {charged / MEBIBYTE:.0f} MB, {charged / MEBIBYTE / groups:.1f} "
        f"each (with page cache and kernel). The machine could give {outcome.taken / MEBIBYTE:.0f} MB less than "
        f"before, {outcome.taken / MEBIBYTE / total:.1f} a sandbox, everything of everybody in it; "
        f"{outcome.left / MEBIBYTE:.0f} MB are left."
    )
    lines += ["", whole, "", "| Service, while turns ran | Cores | Memory (MB, PSS) |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {use.cores:.2f} | {use.memory / MEBIBYTE:.0f} |"
        for name, use in outcome.service.items()
        if use.processes
    ]
    return "\n".join(lines)


@asynccontextmanager
async def running_stack(installation: ClusterInstallation, url: str, model_url: str) -> AsyncIterator[ClusterStack]:
    """`serve` and gateway as a test has them, with this model API."""
    with FakeGemini(key=None) as unused:
        settings = cluster_settings(installation) | {"SANDBOXD_GEMINI_URL": model_url, "SANDBOXD_LOG_LEVEL": "warning"}
        stack = ClusterStack(
            installation=installation, home=installation.home, database_url=url, model=unused, settings=settings
        )
        try:
            await asyncio.gather(stack.start("gateway"), stack.start("serve"))
            yield stack
        finally:
            for role in stack.processes:
                say(f"the end of {role}'s log: {stack.log(role)[-500:]}")
            await stack.stop()


async def bench(installation: ClusterInstallation, given: argparse.Namespace) -> Outcome:
    """Measure on an installation whose operator runs."""
    plan = Plan(chunks=given.chunks, interval=1 / given.rate, calls=given.calls)
    postgres = EmbeddedPostgres(installation.home / "postgres", durable=False)
    url = await postgres.start()
    try:
        await migrations.upgrade(url)
        async with upstream() as model, running_stack(installation, url, model) as stack:
            return await run(stack, real=given.real, stand_in=given.stand_in, plan=plan, turns=given.turns)
    finally:
        await postgres.stop()


def main() -> int:
    """Measure, and print the tables; a turn that did not complete is a failure of the run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.hundred", description=__doc__)
    parser.add_argument("--real", type=int, default=40, help="sandboxes with the real CLI (default %(default)s)")
    parser.add_argument("--stand-in", type=int, default=60, help="sandboxes with the stand-in (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each session (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=20, help="text chunks of a turn (default %(default)s)")
    parser.add_argument("--rate", type=float, default=2.0, help="chunks a second of a session (default %(default)s)")
    parser.add_argument("--calls", type=int, default=1, help="model calls of a stand-in's turn (default %(default)s)")
    given = parser.parse_args()
    for ending in (signal.SIGINT, signal.SIGTERM):  # ignored, or without a clean-up, where a shell starts it behind
        signal.signal(ending, signal.default_int_handler)
    total = given.real + given.stand_in
    if total < 1:
        parser.error("there is nothing to measure")
    cluster = find_cluster()
    if cluster is None or cluster.places is None:
        raise SystemExit("this needs the development cluster, as it looks into its node: make cluster-up")
    define_resources(cluster)
    images = dict(built_images(cluster))
    images["sandbox"] = asyncio.run(push_image(cluster.registry, images["sandbox"]))
    with tempfile.TemporaryDirectory(prefix="sandboxd-hundred-", ignore_cleanup_errors=True) as home:
        installation = ClusterInstallation(
            cluster=cluster, instance=f"b-{secrets.token_hex(4)}", home=Path(home), images=images
        )
        try:
            installation.prepare()
            installation.apply_template(overcommit=OVERCOMMIT)
            installation.start_operator()
            outcome = asyncio.run(bench(installation, given))
        finally:
            installation.clean()
            installation.stop_operator()
    print(f"{os.cpu_count()} processors\n\n{table(outcome, real=given.real, stand_in=given.stand_in)}", flush=True)
    for failure in sorted(set(outcome.samples.failures)):
        print(f"failure: {failure} ({outcome.samples.failures.count(failure)} times)", flush=True)
    return 0 if not outcome.samples.failures and outcome.samples.turns == total * given.turns else 1


if __name__ == "__main__":
    sys.exit(main())
