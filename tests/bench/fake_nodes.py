"""`python -m tests.bench.fake_nodes`: thousands of sandboxes on fake nodes: filling pools, resting, claiming.

A control plane of its own (`tests/fake_nodes`): real etcd, API server, controller manager and scheduler, kwok for the
nodes, one process for all agents; `serve`, operator and PostgreSQL are the real ones. Nothing outlives a run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import grpc

from tests.bench.figures import Parts, Use, percentile
from tests.fake_nodes.control_plane import PARTS, PROGRAM
from tests.fake_nodes.enclosure import enclosed
from tests.fake_nodes.world import Claimed, World, a_world

WORDS: Final = {
    "serve": "sandboxd serve",
    "operator": "sandboxd operator",
    "PostgreSQL": "postgres",
    "API server": f"{PROGRAM} kube-apiserver",
    "etcd": f"{PROGRAM} etcd",
    "controller manager": f"{PROGRAM} kube-controller-manager",
    "scheduler": f"{PROGRAM} kube-scheduler",
    "kwok": "/kwok ",
    "agents, simulated": "tests.fake_nodes.agents",
}
IN_OPEN_LOOP: Final = 0.5
"""Share of the members that are claimed in the open loop."""
RESTED: Final = 0.1
"""Of a core: what `serve` uses at most when it has nothing to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What was used while something happened."""

    name: str
    seconds: float
    uses: Mapping[str, Use]


class Watched:
    """Notes phases."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.phases: list[Phase] = []

    def begin(self) -> Parts:
        """Look for the first time."""
        return Parts(WORDS, within=str(self._home))

    async def until_rested(self) -> None:
        """Wait until `serve` has little to do, or for a minute."""
        for _ in range(60):
            parts = self.begin()
            await asyncio.sleep(1.0)
            if parts.used(1.0)["serve"].cores < RESTED:
                return

    def end(self, name: str, parts: Parts, seconds: float) -> None:
        """Look again."""
        phase = Phase(name=name, seconds=seconds, uses=parts.used(seconds))
        self.phases.append(phase)
        # At once: filling takes minutes, and what comes after it may fail.
        uses = (f"{word} {use.cores * seconds:.1f} s {use.memory / 1e6:.0f} MB" for word, use in phase.uses.items())
        print(f"{name}: {seconds:.1f} s; {', '.join(uses)}", file=sys.stderr, flush=True)


async def open_loop(world: World, channel: grpc.aio.Channel, *, rate: float, number: int) -> Sequence[Claimed]:
    """Creates that come when they come, whatever became of those before."""
    chance, turns, tasks = random.Random(7), world.turns(), list[asyncio.Task[Claimed]]()
    began, until = time.monotonic(), 0.0
    for _ in range(number):
        until += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, began + until - time.monotonic()))
        tasks.append(asyncio.create_task(world.claim(channel, next(turns))))
    return await asyncio.gather(*tasks)


async def closed_loop(world: World, channel: grpc.aio.Channel, *, callers: int, number: int) -> Sequence[Claimed]:
    """So many callers, each of whom begins again at once."""
    turns, left, made = world.turns(), number, list[Claimed]()

    async def work_off() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            made.append(await world.claim(channel, next(turns)))

    async with asyncio.TaskGroup() as tasks:
        for caller in range(callers):
            tasks.create_task(work_off(), name=f"caller-{caller}")
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a loop came to."""

    how: str
    number: int
    warm: int
    again: int
    """Calls that were answered UNAVAILABLE and sent again; their time counts from the first."""
    rate: float
    """Answered a second."""
    p50: float
    p99: float
    """Seconds."""

    @classmethod
    def of(cls, how: str, made: Sequence[Claimed], seconds: float) -> Claims:
        """Sum it up."""
        times = [one.seconds for one in made]
        return cls(
            how=how,
            number=len(made),
            warm=sum(one.warm for one in made),
            again=sum(one.again for one in made),
            rate=len(made) / seconds,
            p50=percentile(times, 0.5),
            p99=percentile(times, 0.99),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was measured."""

    members: int
    phases: Sequence[Phase]
    rest_seconds: float
    asked_filling: Mapping[str, int]
    """Requests of our parts until all members were ready, as `part verb resource`."""
    asked: Mapping[str, int]
    """Those while everything rested."""
    everybody: float
    """Requests of everybody in that time: controllers, scheduler, kwok and the simulated agents, too."""
    claims: Sequence[Claims]


def _tell(seconds: float, ready: int) -> None:
    print(f"{seconds:5.0f} s, {ready} members are ready", file=sys.stderr, flush=True)


async def measure(world: World, given: argparse.Namespace) -> Report:
    """Fill, rest, claim."""
    watched, claims = Watched(world.home), list[Claims]()
    async with world.serving(refill=True) as channel:
        size, parts = world.plane.audit_log.stat().st_size, watched.begin()
        watched.end("filling", parts, await world.fill(channel, within=60 + world.members, told=_tell))
        asked_filling = world.plane.asked(since=size)
        await asyncio.sleep(min(given.rest, 30.0))  # what follows the last start is no rest
        before, size, parts = await world.plane.requests(), world.plane.audit_log.stat().st_size, watched.begin()
        await asyncio.sleep(given.rest)
        watched.end("at rest", parts, given.rest)
        asked, everybody = world.plane.asked(since=size), await world.plane.requests() - before
    first = int(world.members * IN_OPEN_LOOP)
    rest = world.members - first - 1  # the refill may have begun to replace one
    loops = {
        f"open loop, {given.rate:g}/s": partial(open_loop, rate=given.rate, number=first),
        f"{given.callers} callers, closed loop": partial(closed_loop, callers=given.callers, number=rest),
    }
    async with world.serving(refill=given.refill) as channel:
        await watched.until_rested()  # a `serve` that has just started gives every agent its token
        for how, loop in loops.items():
            parts, began = watched.begin(), time.monotonic()
            made = await loop(world, channel)
            seconds = time.monotonic() - began
            watched.end(f"{len(made)} claims, {how}", parts, seconds)
            claims.append(Claims.of(how, made, seconds))
            parts = watched.begin()
            watched.end(f"their adoptions, {how}", parts, max(0.1, await world.adopted(within=60 + world.members)))
    return Report(
        members=world.members,
        phases=watched.phases,
        rest_seconds=given.rest,
        asked_filling=_named(asked_filling),
        asked=_named(asked),
        everybody=everybody,
        claims=claims,
    )


def _named(asked: Counter[tuple[str, str, str]]) -> Mapping[str, int]:
    return {" ".join(key): number for key, number in asked.most_common()}


def show(report: Report) -> str:
    """The figures as Markdown."""
    names = [*WORDS, "this bench"]
    lines = [
        f"{report.members} sandboxes. Processor seconds of each part, with its memory (PSS) at the end of the phase:",
        "",
        f"| Phase | Seconds | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
    ]
    for phase in report.phases:
        cells = [
            f"{phase.uses[name].cores * phase.seconds:.1f} s, {phase.uses[name].memory / 1e6:.0f} MB" for name in names
        ]
        lines.append(f"| {phase.name} | {phase.seconds:.1f} | {' | '.join(cells)} |")
    hours = report.rest_seconds / 3600 * report.members
    lines += ["", "| At rest | requests | of a sandbox and hour |", "| --- | ---: | ---: |"]
    for part in PARTS:
        of_part = sum(number for key, number in report.asked.items() if key.startswith(f"{part} "))
        lines.append(f"| {part} | {of_part} | {of_part / hours:.2f} |")
    lines.append(f"| everybody | {report.everybody:.0f} | {report.everybody / hours:.2f} |")
    lines += ["", f"Ours in these {report.rest_seconds:.0f} s: {dict(report.asked)}"]
    each = {key: round(number / report.members, 1) for key, number in report.asked_filling.items()}
    lines += ["", f"Ours for each sandbox that was made: { ({key: n for key, n in each.items() if n}) }", ""]
    lines += ["| Claims | warm | sent again | a second | P50 | P99 |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for one in report.claims:
        times = f"{one.p50 * 1000:.0f} ms | {one.p99 * 1000:.0f} ms"
        lines.append(f"| {one.how} | {one.warm} of {one.number} | {one.again} | {one.rate:.1f} | {times} |")
    return "\n".join(lines)


async def run(home: Path, given: argparse.Namespace) -> None:
    """Measure and print."""
    async with a_world(home, members=given.members) as world:
        report = await measure(world, given)
    print(show(report))
    if given.output:
        given.output.write_text(json.dumps(asdict(report)))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=75.0, help="claims a second in the open loop")
    parser.add_argument("--callers", type=int, default=16, help="at once in the closed loop")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds of rest that are measured")
    parser.add_argument("--refill", action="store_true", help="let the pools be refilled while they are claimed")
    parser.add_argument("--logs", type=Path, help="keep the logs of everything in this directory, which is made")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    given = parser.parse_args()
    home = enclosed("tests.bench.fake_nodes", sys.argv[1:])
    try:
        asyncio.run(run(home, given))
    finally:
        if given.logs:
            shutil.copytree(home, given.logs, ignore=lambda _, names: [n for n in names if not n.endswith(".log")])


if __name__ == "__main__":
    main()
