"""A run: a real stack, some clients, and somebody who breaks it; then everything is healed, read, and checked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import grpc
import grpc.aio

from sandboxd.persistence import migrations
from sandboxd.persistence.embedded import EmbeddedPostgres
from sandboxd.persistence.engine import plain_url
from sandboxd.v1 import sandbox_pb2 as pb
from sandboxd.v1 import sandbox_pb2_grpc
from tests.bench.recorded_cli import __file__ as stand_in
from tests.bench.stack import make_shim
from tests.e2e.stack import Stack
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.fault_proxy import FaultProxy, before_postgres, before_tcp, url_through
from tests.history.check import check
from tests.history.client import CALL_SECONDS, CHANNEL, Worker, read_log, watch
from tests.history.record import History, Outcome, Row
from tests.history.upstream import Upstream, upstream

QUIET_SECONDS: Final = 120.0
"""How long everything may take to come to rest; a dead gateway's calls are settled after 30 s of silence."""
_TRANSIENT: Final = frozenset({"CREATING", "PAUSING", "RESUMING", "TERMINATING", "STARTING", "STOPPING"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to."""

    history: History
    wrong: Sequence[str]
    logs: str
    """The end of what the services wrote."""

    @property
    def summary(self) -> str:
        """The run in a few lines."""
        ops = self.history.operations
        counts = {outcome.value: sum(one.outcome is outcome for one in ops) for outcome in Outcome}
        events = sum(len(log) for log in self.history.logs.values())
        seen = sum(len(log) for log in self.history.seen.values())
        faults = ", ".join(f"{at:.0f}s {what}" for at, what in self.history.faults)
        return (
            f"{len(ops)} operations ({counts}), {len(self.history.sandboxes)} sandboxes, "
            f"{len(self.history.logs)} sessions, {events} events of which observers saw "
            f"{seen}, {len(self.history.calls)} model calls, "
            f"{len(self.history.rows)} ledger rows; faults: {faults or 'none'}"
        )


async def run(*, seconds: float, seed: int, clients: int = 3, gateway_kills_until: float = 8.0) -> Result:
    """Run once.

    Args:
        seconds: How long clients work and things break.
        seed: Decides what clients do and what breaks when; not how the machine interleaves them.
        clients: How many work at the same time.
        gateway_kills_until: After this time the gateway is left alive, so that the end need not wait for its silence.
    """
    home = Path(tempfile.mkdtemp(prefix="sandboxd-history-"))
    postgres = EmbeddedPostgres(home / "postgres", durable=False)
    try:
        await migrations.upgrade(await postgres.start())
        async with before_postgres(postgres.url()).running() as database, upstream() as model:
            data = home / "data"
            data.mkdir()
            stack = Stack(home=data, database_url=url_through(database, postgres.url()), model=FakeGemini())
            stack.settings |= {
                "SANDBOXD_GEMINI_URL": model.url,
                "SANDBOXD_NODE": str(make_shim(data)),
                "SANDBOXD_GEMINI_CLI": str(Path(stand_in)),
            }
            try:
                await asyncio.gather(*(stack.start(role, ready=False) for role in ("gateway", "serve")))
                async with before_tcp("127.0.0.1", stack.ports["grpc"]).running() as front:
                    world = _Run(stack=stack, postgres=postgres, database=database, front=front, model=model, seed=seed)
                    await asyncio.gather(world.up("gateway"), world.up("serve"))
                    world.began = time.monotonic()
                    return await world.play(seconds, clients=clients, gateway_kills_until=gateway_kills_until)
            finally:
                await stack.stop()
                with contextlib.suppress(AssertionError):
                    stack.kill_pids("recorded_cli.py")
    finally:
        await postgres.stop()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(kw_only=True)
class _Run:
    stack: Stack
    postgres: EmbeddedPostgres
    database: FaultProxy
    front: FaultProxy
    model: Upstream
    seed: int
    history: History = field(default_factory=History)
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return time.monotonic() - self.began

    async def play(self, seconds: float, *, clients: int, gateway_kills_until: float) -> Result:
        async with contextlib.AsyncExitStack() as cleanup:
            known: list[str] = []
            workers = []
            for number in range(clients):
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.front.port}", options=CHANNEL)
                cleanup.push_async_callback(channel.close)
                workers.append(
                    Worker(
                        name=f"c{number}", channel=channel, token=self.stack.token, history=self.history,
                        began=self.began, chance=random.Random(self.seed * 1000 + number), known=known,
                    )
                )  # fmt: skip
            watching = [asyncio.create_task(watch(one, f"w-{one.name}"), name=f"w-{one.name}") for one in workers]
            breaking = asyncio.create_task(self.break_things(seconds, gateway_kills_until), name="faults")
            try:
                async with asyncio.TaskGroup() as working:
                    for worker in workers:
                        working.create_task(worker.work(until=seconds), name=worker.name)
                    # A fault that fails is the run's failure, and not a quiet afternoon.
                    working.create_task(asyncio.wait_for(asyncio.shield(breaking), None), name="faults-end")
                wrong = await self.heal(workers)
            finally:
                for task in (breaking, *watching):
                    task.cancel()
                await asyncio.gather(breaking, *watching, return_exceptions=True)
            try:
                await self.read(workers[0].channel)
                wrong = [*wrong, *check(self.history)]
            except grpc.aio.AioRpcError as error:  # with what was found wrong so far, and with the logs
                wrong = [*wrong, f"healed: it cannot be read: {error.code().name} {error.details()}"]
        logs = "\n".join(f"--- {role}\n{self.stack.log(role)}" for role in ("serve", "gateway"))
        return Result(history=self.history, wrong=wrong, logs=logs)

    # ------------------------------------------------------------------ faults

    async def break_things(self, seconds: float, gateway_kills_until: float) -> None:
        chance = random.Random(self.seed)
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "serve killed": self._kill_serve,
            "gateway killed": self._kill_gateway,
            "PostgreSQL restarted": self._restart_postgres,
            "PostgreSQL silent": self._silence_postgres,
            "PostgreSQL cut": self._cut_postgres,
            "clients cut": self._cut_clients,
            "serve frozen": self._freeze_serve,
        }
        await asyncio.sleep(2)
        bag: list[str] = []
        while self.now() < seconds:
            if not bag:  # each of them in every round, in another order
                bag = sorted(faults)
                chance.shuffle(bag)
                if "gateway killed" in bag and len(self.history.faults) == 0:
                    bag.append(bag.pop(bag.index("gateway killed")))  # the first, because it takes longest to heal
            name = bag.pop()
            if name == "gateway killed" and self.now() > gateway_kills_until:
                continue
            if name.startswith("serve") and not await self._is_up("serve"):
                continue  # a machine that is busy needs a moment to start it: what is not up cannot be killed
            self.history.faults.append((self.now(), name))
            await faults[name]()
            await asyncio.sleep(chance.uniform(0.3, 2.5))

    async def _kill_serve(self) -> None:
        await self.stack.kill("serve")
        await self.stack.start("serve", ready=False)

    async def _kill_gateway(self) -> None:
        await self.stack.kill("gateway")
        await self.stack.start("gateway", ready=False)

    async def _restart_postgres(self) -> None:
        await self.postgres.stop()
        await self.postgres.start()

    async def _silence_postgres(self) -> None:
        self.database.silent = True
        await asyncio.sleep(1.5)
        self.database.silent = False

    async def _cut_postgres(self) -> None:
        self.database.cut()

    async def _cut_clients(self) -> None:
        self.front.cut()

    async def _freeze_serve(self) -> None:
        process = self.stack.processes["serve"]
        if process.returncode is None:
            os.kill(process.pid, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            os.kill(process.pid, signal.SIGCONT)

    # ------------------------------------------------------------------ the end

    async def heal(self, workers: Sequence[Worker]) -> list[str]:
        """Nothing is broken any more: everybody can work, and everything comes to rest."""
        wrong = []
        for role in ("serve", "gateway"):
            try:
                await self.up(role)
            except AssertionError as error:
                return [f"healed: {error}"]
        for worker in workers:
            if not worker.sandbox:
                await worker.create()
            if not worker.sandbox:
                wrong.append(f"healed: {worker.name} cannot create a sandbox any more")
                continue
            with contextlib.suppress(AssertionError):
                await eventually(lambda: self._settled(worker.sandbox), within=QUIET_SECONDS, every=0.2)  # noqa: B023
            if (await self._state(worker.sandbox)) in ("PAUSED", "FAILED"):
                await worker.resume(give_up=0)
            if (stop := await worker.prompt()) != "END_TURN":
                wrong.append(f"healed: a prompt of {worker.name} to {worker.sandbox} ended with {stop or 'nothing'}")
        try:
            await eventually(self._quiet, within=QUIET_SECONDS, every=0.3)
        except AssertionError as error:
            wrong.append(f"healed: not quiet: {error}")
        return wrong

    async def up(self, role: str) -> None:
        """Wait until a role is ready; on a busy machine its start may take a minute."""
        process = self.stack.processes[role]

        async def ready() -> bool:
            assert process.returncode is None, f"{role} ended with {process.returncode}"
            return await self._is_up(role)

        try:
            await eventually(ready, within=QUIET_SECONDS, every=0.2, what=f"{role} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.stack.log(role)}") from error

    async def _is_up(self, role: str) -> bool:
        port = self.stack.ports["web" if role == "serve" else "gateway_web"]
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http,
                http.get(f"http://127.0.0.1:{port}/readyz") as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _query(self, statement: str) -> list[Any]:  # Any: asyncpg's records
        connection = await asyncpg.connect(plain_url(self.postgres.url()), timeout=10)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    async def _state(self, sandbox: str) -> str:
        states = {
            f"sandboxes/{row['id']}": row["state"] for row in await self._query("SELECT id, state FROM sandboxes")
        }
        return str(states.get(sandbox, ""))

    async def _settled(self, sandbox: str) -> bool:
        return await self._state(sandbox) not in _TRANSIENT

    async def _quiet(self) -> bool:
        for statement in (
            "SELECT id FROM usage_events WHERE state = 'OPEN'",
            "SELECT id FROM turns WHERE state NOT IN ('COMPLETED', 'FAILED')",
            "SELECT id, state FROM sandboxes WHERE state LIKE '%ING'",
        ):
            left = await self._query(statement)
            assert not left, f"{statement}: {left[:3]}"
        return True

    async def read(self, channel: grpc.aio.Channel) -> None:
        """Write down what is there at the end."""
        metadata = (("authorization", f"Bearer {self.stack.token}"),)
        stub: Any = sandbox_pb2_grpc.SandboxServiceStub(channel)  # Any: gRPC's stubs
        states = [value for value in pb.SandboxState.values() if value]
        request = pb.ListRequest(filter=pb.SandboxFilter(states=states), page_size=200)
        found: dict[str, tuple[str, str]] = {}
        while True:
            page = await stub.List(request, metadata=metadata, timeout=CALL_SECONDS)
            for one in page.sandboxes:
                found[one.name] = (one.display_name, pb.SandboxState.Name(one.state).removeprefix("SANDBOX_STATE_"))
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        self.history.sandboxes = found
        rows = await self._query("SELECT id, sandbox FROM sessions WHERE delete_time IS NULL")
        sessions = [f"sandboxes/{row['sandbox']}/sessions/{row['id']}" for row in rows]
        self.history.logs = {name: await read_log(channel, self.stack.token, name) for name in sessions}
        # Clients know a turn by its resource name, the table by the id at its end.
        turns = {event.turn for log in self.history.logs.values() for event in log if event.turn}
        self.history.rows = [
            Row(
                id=row["id"],
                turn=next((name for name in turns if name.endswith(row["turn"] or "-")), row["turn"] or ""),
                state=row["state"],
                tokens=row["total_tokens"],
                error=row["error_reason"] or "",
            )
            for row in await self._query("SELECT id, turn, state, total_tokens, error_reason FROM usage_events")
        ]
        self.history.calls = list(self.model.calls)
