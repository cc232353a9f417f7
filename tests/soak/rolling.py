"""Live streams while replicas are killed, restarted one after the other, frozen and thawed.

`python -m tests.soak.rolling --streams 100`. Each client talks in a session of its own and comes back to whichever
replica lives. At the end every client's log is compared with the journal, every prompt with the turns, every turn with
the ledger: each event once and in order, each prompt answered once and paid once, nothing hanging.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from sandboxd.ctl.client import Link, usage_filter
from sandboxd.ctl.session_stream import SessionStream
from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import plain_url
from sandboxd.v1 import stream_pb2
from tests.bench.upstream import upstream
from tests.soak.cluster import PATIENT, Cluster, Role, cluster

MODEL = "gemini-2.5-flash"
CREATE_AT_ONCE = 2
PING_SECONDS, SILENCE_SECONDS = 1.0, 4.0
"""A client that wants to notice a frozen replica soon."""
TURN_SECONDS = 180.0
SETTLE_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does."""

    streams: int = 100
    sandboxes: int = 100
    replicas: int = 3
    lease_seconds: float = 15.0
    freeze_seconds: float = 40.0
    calm_seconds: float = 5.0
    """Between two disturbances, once every stream has moved."""
    short: bool = False
    """One of each kind of disturbance, as CI does."""
    chunks: int = 20
    interval: float = 0.2

    @property
    def prompt(self) -> str:
        return json.dumps({"chunks": self.chunks, "interval": self.interval, "calls": 1})


@dataclass(kw_only=True)
class Talker:
    """One client: it prompts, reads until the turn is over, and prompts again, until it is told to stop."""

    stream: SessionStream
    sandbox: str
    plan: Plan
    events: list[stream_pb2.StreamResponse] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    """When each event came."""
    refusals: list[str] = field(default_factory=list)
    prompts: int = 0
    turns: int = 0
    cuts: int = 0

    def link(self, link: Link) -> None:
        self.cuts += link is Link.LOST

    async def talk(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.stream.prompt(self.plan.prompt)
            self.prompts += 1
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn()

    async def _turn(self) -> None:
        async for event in self.stream:
            if event.sequence:
                self.events.append(event)
                self.moments.append(time.monotonic())
            if event.HasField("command_failed"):
                self.refusals.append(event.command_failed.reason)
                return
            if event.HasField("turn_completed"):
                self.turns += 1
                return

    def silence(self, since: float, until: float) -> float:
        """The longest time without an event between two moments."""
        inside = [since, *(moment for moment in self.moments if since < moment <= until)]
        return max(after - before for before, after in zip(inside, [*inside[1:], until], strict=True))


@dataclass(kw_only=True)
class Disturbance:
    """One thing that was done to the cluster, and how long each stream was silent after it."""

    name: str
    silences: Sequence[float]

    def line(self) -> str:
        ordered = sorted(self.silences)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        return f"| {self.name} | {statistics.median(ordered):.2f} | {p99:.2f} | {ordered[-1]:.2f} |"


@dataclass(kw_only=True)
class Outcome:
    """What a run found."""

    disturbances: list[Disturbance] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    events: int = 0
    turns: int = 0
    cuts: int = 0
    seconds: float = 0.0

    def report(self, plan: Plan) -> str:
        head = (
            f"{plan.streams} streams in {plan.sandboxes} sandboxes on {plan.replicas} replicas, lease "
            f"{plan.lease_seconds:g} s: {self.events} events, {self.turns} turns, {self.cuts} cuts, "
            f"{self.seconds:.0f} s\n\n| Longest silence of a stream, seconds | P50 | P99 | max |\n"
            "| --- | --- | --- | --- |"
        )
        problems = "\n".join(self.problems[:20]) or "every event once and in order, every prompt answered and paid once"
        return "\n".join([head, *(one.line() for one in self.disturbances), "", problems])


class Run:
    """One run on a cluster."""

    def __init__(self, cluster_: Cluster, plan: Plan, *, say: bool = False) -> None:
        self.cluster = cluster_
        self.plan = plan
        self.outcome = Outcome()
        self.talkers: list[Talker] = []
        self._say = say

    async def run(self) -> Outcome:
        """Make the sandboxes, talk, disturb, compare."""
        connections = [self.cluster.connection() for _ in range(self.plan.streams)]
        try:
            names = await self._create()
            stop = asyncio.Event()
            for number, connection in enumerate(connections):
                stream = SessionStream(
                    connection,
                    stream_pb2.Open(sandbox=names[number % len(names)]),
                    retry=PATIENT,
                    reconnect=PATIENT,
                    on_link=lambda link, number=number: self.talkers[number].link(link),  # type: ignore[misc]  # bound
                    ping_seconds=PING_SECONDS,
                    silence_seconds=SILENCE_SECONDS,
                )
                self.talkers.append(Talker(stream=stream, sandbox=names[number % len(names)], plan=self.plan))
            began = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                for number, talker in enumerate(self.talkers):
                    tasks.create_task(talker.talk(stop), name=f"talker-{number}")
                await self._disturb()
                stop.set()
            self.outcome.seconds = time.monotonic() - began
            await self._compare()
            for talker in self.talkers:
                await talker.stream.close()
        finally:
            for connection in connections:
                await connection.close()
        return self.outcome

    def note(self, text: str) -> None:
        if self._say:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    async def _create(self) -> list[str]:
        gate = asyncio.Semaphore(CREATE_AT_ONCE)
        connection = self.cluster.connection()
        client = self.cluster.client(connection)

        async def one(number: int) -> str:
            async with gate:
                return (await client.create(freelancer=f"soak-{number}", model=MODEL)).name

        try:
            names = await asyncio.gather(*map(one, range(self.plan.sandboxes)))
        finally:
            await connection.close()
        self.note(f"{len(names)} sandboxes")
        return list(names)

    # ------------------------------------------------------------------ what is done to it

    async def _disturb(self) -> None:
        await self._all_move()
        await asyncio.sleep(self.plan.calm_seconds)
        first, second, third = (self.cluster.replicas * 3)[:3]
        if self.plan.short:
            await self._measured("kill -9 of one", self._kill(first))
            await self._measured("SIGTERM of one", self._restart(second))
            await self._measured("SIGSTOP of one", self._freeze(third))
            await self._measured("one cut from the database", self._cut_off(second))
            return
        await self._measured("nothing", self._calm())
        await self._measured("kill -9 of one", self._kill(first))
        for role in self.cluster.replicas:
            await self._measured(f"SIGTERM of {role.name}", self._restart(role))
        await self._measured(f"SIGSTOP of one for {self.plan.freeze_seconds:g} s", self._freeze(second))
        await self._measured("one cut from the database until all streams move", self._cut_off(third))
        await self._measured("SIGTERM of one while another comes up", self._both(third, first))

    async def _measured(self, name: str, doing: object) -> None:
        began = time.monotonic()
        self.note(name)
        await doing  # type: ignore[misc]  # a coroutine of ours
        await self._all_move()
        await asyncio.sleep(self.plan.calm_seconds)
        until = time.monotonic()
        silences = [talker.silence(began, until) for talker in self.talkers]
        self.outcome.disturbances.append(Disturbance(name=name, silences=silences))
        self.note(self.outcome.disturbances[-1].line())

    async def _all_move(self) -> None:
        """Wait until every stream has got an event."""
        before = [len(talker.events) for talker in self.talkers]
        deadline = time.monotonic() + SETTLE_SECONDS
        while still := [number for number, talker in enumerate(self.talkers) if len(talker.events) <= before[number]]:
            if time.monotonic() > deadline:
                raise AssertionError(f"streams {still} hang")
            await asyncio.sleep(0.05)

    async def _calm(self) -> None:
        await asyncio.sleep(self.plan.calm_seconds)

    async def _kill(self, role: Role) -> None:
        await self.cluster.kill(role)
        await self.cluster.start(role)

    async def _restart(self, role: Role) -> None:
        code = await self.cluster.stop(role)
        if code:
            self.outcome.problems.append(f"{role.name} ended with {code} after SIGTERM")
        await self.cluster.start(role)

    async def _freeze(self, role: Role) -> None:
        self.cluster.freeze(role)
        try:
            await asyncio.sleep(self.plan.freeze_seconds)
        finally:
            self.cluster.thaw(role)

    async def _cut_off(self, role: Role) -> None:
        """Everybody must hear something while it is still cut off, not only when the database is back."""
        self.cluster.cut_off(role, cut=True)
        try:
            await asyncio.sleep(1)  # what was under way has come
            await self._all_move()
        finally:
            self.cluster.cut_off(role, cut=False)

    async def _both(self, going: Role, coming: Role) -> None:
        await self.cluster.kill(coming)
        await asyncio.gather(self.cluster.start(coming), self._restart(going))

    # ------------------------------------------------------------------ what must be true in the end

    async def _compare(self) -> None:
        problems = self.outcome.problems
        connection = self.cluster.connection()
        client = self.cluster.client(connection)
        database = await asyncpg.connect(plain_url(self.cluster.database_url))
        try:
            for number, talker in enumerate(self.talkers):
                name = talker.stream.session
                log = [event async for event in client.history(name)]
                self.outcome.events += len(talker.events)
                self.outcome.turns += talker.turns
                self.outcome.cuts += talker.cuts
                if [event.sequence for event in log] != list(range(1, len(log) + 1)):
                    problems.append(f"stream {number}: the journal has gaps")
                if log != talker.events:
                    seen = Counter(event.sequence for event in talker.events)
                    twice = [sequence for sequence, count in seen.items() if count > 1]
                    missing = [event.sequence for event in log if event.sequence not in seen]
                    problems.append(f"stream {number}: missing {missing[:5]}, twice {twice[:5]}, or different")
                if talker.refusals or talker.turns != talker.prompts:
                    problems.append(
                        f"stream {number}: {talker.prompts} prompts, {talker.turns} turns, refused {talker.refusals}"
                    )
                wrong = [event.turn_completed.stop_reason for event in log if event.HasField("turn_completed")]
                if any(reason != stream_pb2.STOP_REASON_END_TURN for reason in wrong):
                    problems.append(f"stream {number}: turns ended by {Counter(map(str, wrong))}")
                session = name.rpartition("/")[2]
                turns = await database.fetchval("SELECT count(*) FROM turns WHERE session = $1", session)
                if turns != talker.prompts:
                    problems.append(f"stream {number}: {talker.prompts} prompts made {turns} turns")
                paid = await database.fetch(
                    "SELECT t.id, count(u.id) AS calls FROM turns AS t LEFT JOIN usage_events AS u ON u.turn = t.id"
                    " WHERE t.session = $1 GROUP BY t.id HAVING count(u.id) <> 1",
                    session,
                )
                if paid:
                    problems.append(f"stream {number}: turns paid other than once: {[row['calls'] for row in paid]}")
            ledger = [row async for row in client.usage_events(usage_filter())]
            if len(ledger) != sum(talker.prompts for talker in self.talkers):
                problems.append(f"{len(ledger)} calls in the ledger, {sum(t.prompts for t in self.talkers)} prompts")
        finally:
            await database.close()
            await connection.close()


async def main() -> int:
    """Run with an embedded PostgreSQL and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.rolling", description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--sandboxes", type=int, default=0, help="default: one for each stream")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--lease", type=float, default=15.0, help="seconds (default %(default)s)")
    parser.add_argument("--freeze", type=float, default=40.0, help="seconds of SIGSTOP (default %(default)s)")
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between chunks (default %(default)s)")
    parser.add_argument("--keep", type=Path, help="keep everything in this directory")
    given = parser.parse_args()
    plan = Plan(
        streams=given.streams,
        sandboxes=given.sandboxes or given.streams,
        replicas=given.replicas,
        lease_seconds=given.lease,
        freeze_seconds=given.freeze,
        interval=given.interval,
    )
    with suppress(asyncio.CancelledError), tempfile.TemporaryDirectory(prefix="sandboxd-soak-") as directory:
        home = given.keep or Path(directory)
        home.mkdir(parents=True, exist_ok=True)
        postgres = EmbeddedPostgres(home / "postgres", durable=True)
        url = await postgres.start()
        try:
            await migrations.upgrade(url)
            async with (
                upstream() as api,
                cluster(
                    home / "data",
                    database_url=url,
                    upstream=api,
                    replicas=plan.replicas,
                    lease_seconds=plan.lease_seconds,
                ) as running,
            ):
                outcome = await Run(running, plan, say=True).run()
        finally:
            await postgres.stop()
        print(outcome.report(plan))
        return 1 if outcome.problems else 0
    return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
