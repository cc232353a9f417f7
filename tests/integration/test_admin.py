"""What an operator asks: at the edge with a fake installation, and of a real replica on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from sandboxd.gateway.breaker import BreakerPolicy, CircuitState
from sandboxd.manager.administration import Sweep, Swept
from sandboxd.model.errors import DatabaseUnavailableError
from sandboxd.model.usage import GatewayId
from sandboxd.monitor.ports import GatewayReport
from sandboxd.persistence.engine import Database, DatabaseSettings, make_engine
from sandboxd.persistence.installation import PostgresGatewayReports, PostgresInstallation
from sandboxd.persistence.ledger import PostgresUsageLedger
from sandboxd.v1 import admin_pb2 as pb
from sandboxd.v1 import admin_pb2_grpc, sandbox_pb2
from tests.eventually import eventually
from tests.fake_gemini import FakeGemini
from tests.gateway_world import GatewayWorld, config_for
from tests.integration.access_world import CALLERS, OWN, AccessWorld, an_access_world
from tests.integration.api_world import World, a_world, refused

PLATFORM = next(one for one in CALLERS if one.role.value == "platform")
D = "sandboxd.v1.AdminService"


def admin(world: World) -> Any:
    return admin_pb2_grpc.AdminServiceStub(world.channel)


def platform(world: World) -> tuple[tuple[str, str], ...]:
    return world.metadata(role="platform")


async def test_a_status_has_what_the_replica_and_the_database_know(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        status = await admin(world).GetStatus(pb.GetStatusRequest(), metadata=platform(world))

    assert (status.here.id, status.here.open_turns, status.here.database_limit) == ("here", 2, 15)
    assert status.database_answers
    assert [(one.id, one.circuit, one.spooled_settlements) for one in status.gateways] == [
        ("gtw-1", pb.CIRCUIT_STATE_OPEN, 4),
        ("gtw-2", pb.CIRCUIT_STATE_OPEN, 4),
    ]
    assert [(one.state, one.sandboxes) for one in status.sandboxes] == [(sandbox_pb2.SANDBOX_STATE_ACTIVE, 7)]
    assert status.stuck_sandboxes == 1


async def test_a_status_is_answered_while_the_database_is_away(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.installation.down = True

        status = await admin(world).GetStatus(pb.GetStatusRequest(), metadata=platform(world))

    assert (status.here.id, status.database_answers, len(status.replicas)) == ("here", False, 0)


async def test_a_sweep_that_fails_or_hangs_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    async def fail() -> Swept:
        raise DatabaseUnavailableError("away")

    async def find() -> Swept:
        return Swept(names=[f"sandbox_unknown {number}" for number in range(150)])

    async with a_world(tmp_path) as world:
        world.installation.sweeps = {Sweep.RECOVERY: fail, Sweep.ORPHANS: find}
        answer = await admin(world).SweepNow(pb.SweepNowRequest(request_id="r"), metadata=platform(world))
        some = await admin(world).SweepNow(
            pb.SweepNowRequest(request_id="r", sweeps=[pb.SWEEP_USAGE]), metadata=platform(world)
        )

    assert [(one.sweep, one.done, one.found, len(one.names), one.failure) for one in answer.results] == [
        (pb.SWEEP_RECOVERY, 0, 0, 0, "DATABASE_UNAVAILABLE"),
        (pb.SWEEP_ORPHANS, 0, 150, 100, ""),
        (pb.SWEEP_USAGE, 1, 0, 0, ""),
        (pb.SWEEP_RETENTION, 1, 0, 0, ""),
        (pb.SWEEP_LIFECYCLE, 1, 0, 0, ""),
        (pb.SWEEP_IMAGES, 1, 0, 0, ""),
    ]
    assert [one.sweep for one in some.results] == [pb.SWEEP_USAGE]


async def test_a_dry_run_tells_plans_runs_nothing_and_is_for_what_has_plans_alone(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        answer = await admin(world).SweepNow(pb.SweepNowRequest(request_id="r", dry_run=True), metadata=platform(world))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin(world).SweepNow(
                pb.SweepNowRequest(request_id="r", dry_run=True, sweeps=[pb.SWEEP_USAGE]), metadata=platform(world)
            )

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    ((plan,), ()) = [one.plans for one in answer.results]
    ((), (goes, stays)) = [one.images for one in answer.results]
    assert (goes.sandbox, goes.tags, goes.compressed_bytes, goes.stays) == ("sandboxes/sbx-1", ["g000001"], 1500, "")
    assert (stays.sandbox, stays.stays, stays.named_by) == ("", "named", "Pod acme/sbx-1-0")
    assert (plan.sandbox, plan.step, plan.now) == ("sandboxes/sbx-1", sandbox_pb2.LIFECYCLE_STEP_HIBERNATE, "take")
    assert plan.hindrance == "ROOT_UNKNOWN"
    assert world.installation.ran == []


async def test_a_sweep_ends_within_the_caller_s_deadline_and_tells_what_was_done(tmp_path: Path) -> None:
    async def hang() -> Swept:
        await asyncio.Event().wait()
        return Swept()

    async with a_world(tmp_path) as world:
        world.installation.sweeps = {Sweep.ORPHANS: hang}
        answer = await admin(world).SweepNow(pb.SweepNowRequest(request_id="r"), metadata=platform(world), timeout=2)

    assert [(one.done, one.failure) for one in answer.results][:2] == [(1, ""), (0, "DEADLINE_EXCEEDED")]


async def test_a_gateway_that_does_not_live_is_not_found(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        request = pb.ResetCircuitRequest(request_id="r", gateway="gtw-9")
        error = await refused(admin(world).ResetCircuit(request, metadata=platform(world)))
        told = await admin(world).ResetCircuit(pb.ResetCircuitRequest(request_id="r"), metadata=platform(world))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "GATEWAY_NOT_FOUND")
    assert list(told.gateways) == ["gtw-1", "gtw-2"]


async def ask(world: AccessWorld, method: str, request: Any) -> Any:
    answer = await world.ask(f"{D}/{method}", request, PLATFORM)
    assert answer.outcome == ("OK", ""), answer
    return answer.shown


async def test_a_replica_is_drained_and_undrained_and_says_so(tmp_path: Path, postgres_url: str) -> None:
    async with an_access_world(tmp_path, postgres_url) as world:
        target = await world.target(OWN)
        watch = sandbox_pb2.WatchRequest()
        watching = asyncio.create_task(world.ask("sandboxd.v1.SandboxService/Watch", watch, PLATFORM))
        await asyncio.sleep(0)
        before = await ask(world, "GetStatus", pb.GetStatusRequest())

        await ask(world, "DrainReplica", pb.DrainReplicaRequest(request_id="r"))
        drained = await ask(world, "ListReplicas", pb.ListReplicasRequest())
        ended = await asyncio.wait_for(watching, 30)
        late = await world.ask("sandboxd.v1.SandboxService/Watch", watch, PLATFORM)
        plain = await world.ask("sandboxd.v1.SandboxService/Get", _get(target), PLATFORM)
        await ask(world, "UndrainReplica", pb.UndrainReplicaRequest(request_id="r"))
        after = await ask(world, "ListReplicas", pb.ListReplicasRequest())
        again = await world.ask("sandboxd.v1.SandboxService/Watch", watch, PLATFORM, until="SYNCED")
        swept = await ask(world, "SweepNow", pb.SweepNowRequest(request_id="r"))

    assert '"living": true' in before
    assert ('"draining": true' in before, '"draining": true' in drained, '"draining": true' in after) == (0, 1, 0)
    assert ended.outcome[0] == late.outcome[0] == "UNAVAILABLE"
    assert plain.outcome == again.outcome == ("OK", "")
    assert "failure" not in swept
    assert swept.count('"sweep"') == len(Sweep)


def _get(target: Any) -> sandbox_pb2.GetRequest:
    return sandbox_pb2.GetRequest(name=f"sandboxes/{target.sandbox}")


async def test_gateways_report_through_the_database_and_hear_of_resets(postgres_url: str) -> None:
    database = Database(make_engine(DatabaseSettings(url=postgres_url)))
    ledger, reports = PostgresUsageLedger(database), PostgresGatewayReports(database)
    installation, gateway = PostgresInstallation(database), GatewayId("gtw-one")
    report = GatewayReport(version="1", circuit="open", open_calls=3, spooled=2)

    unknown = await reports.report(GatewayId("gtw-never"), report)
    await ledger.beat(gateway)
    first = await reports.report(gateway, report)
    told = await installation.reset_circuits("")
    foreign = await installation.reset_circuits("gtw-never")
    second = await reports.report(gateway, report)
    await ledger.beat(gateway)
    third = await reports.report(gateway, report)
    status = await installation.status()
    await database.close()

    assert (unknown, first) == (None, None)
    assert (told, foreign) == (["gtw-one"], [])
    assert second is not None
    assert second == third
    (shown,) = status.gateways
    assert (shown.circuit, shown.open_calls, shown.spooled, shown.living) == ("open", 3, 2, True)


async def test_a_gateway_closes_its_circuit_when_it_is_asked_to_and_only_once(tmp_path: Path) -> None:
    class Reports:
        asked: Any = None
        heard: GatewayReport | None = None

        def shows(self, state: CircuitState) -> bool:
            return self.heard is not None and self.heard.circuit == state.value

        async def report(self, gateway: GatewayId, report: GatewayReport) -> Any:
            self.heard = report
            return self.asked

    with FakeGemini(key=None) as fake:
        policy = BreakerPolicy(failures=1, rest_seconds=600)
        reports = Reports()
        world = GatewayWorld(fake=fake, config=config_for(fake, tmp_path, breaker=policy), reports=reports)
        async with world.running():
            await world.ask("fake:503(times=1)")
            shut = await world.ask("fake:say(text=hi)")
            await eventually(lambda: reports.shows(CircuitState.OPEN), what="reported")
            reports.asked = 1

            await eventually(lambda: reports.shows(CircuitState.CLOSED), what="reset")
            opened = await world.ask("fake:say(text=hi)")

    assert (shut[0], opened[0]) == (503, 200)


@pytest.mark.parametrize("role", ["client_admin", "freelancer", "auditor"])
async def test_nobody_but_the_platform_operates(tmp_path: Path, role: str) -> None:
    async with a_world(tmp_path) as world:
        error = await refused(admin(world).GetStatus(pb.GetStatusRequest(), metadata=world.metadata(role=role)))

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_FORBIDDEN")
