"""Idle sandboxes rest although `serve` is killed in the middle of a step, or does not run at all."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxd.ctl.errors import ApiError
from sandboxd.v1 import sandbox_pb2 as pb
from tests.e2e.service import Service
from tests.eventually import eventually

NEVER = {
    "SANDBOXD_HIBERNATE_AFTER_SECONDS": "0",
    "SANDBOXD_STOP_AFTER_SECONDS": "0",
    "SANDBOXD_TERMINATE_AFTER_SECONDS": "0",
    "SANDBOXD_SWEEP_SECONDS": "0.2",
}


DUE = 4
"""Sandboxes that two sweeps find at once."""


@pytest.fixture
async def service(tmp_path: Path, postgres_url: str) -> AsyncIterator[Service]:
    made = Service(data=tmp_path, database_url=postgres_url)
    async with made.client():  # makes the development key that the service will trust
        pass
    yield made
    if made._process is not None:
        await made.end()


async def states(service: Service) -> list[pb.SandboxState.ValueType]:
    every = [name.removeprefix("SANDBOX_STATE_") for name in pb.SandboxState.keys()[1:]]
    async with service.client() as client:
        return [sandbox.state async for sandbox in client.sandboxes(states=every)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("limit", "point", "rest"),
    [
        ("HIBERNATE", "hibernate.after_commit", pb.SANDBOX_STATE_HIBERNATED),
        ("HIBERNATE", "hibernate.after_freeze", pb.SANDBOX_STATE_HIBERNATED),
        ("STOP", "stop.after_commit", pb.SANDBOX_STATE_STOPPED),
        ("STOP", "stop.after_stop", pb.SANDBOX_STATE_STOPPED),
        ("TERMINATE", "terminate.after_remove", pb.SANDBOX_STATE_TERMINATED),
    ],
)
async def test_a_step_of_the_sweep_is_finished_after_a_kill_and_a_use_brings_it_back(
    service: Service, limit: str, point: str, rest: pb.SandboxState.ValueType
) -> None:
    await service.start(settings=NEVER)
    async with service.client() as client:
        created = await client.create(display_name="one")
    await service.kill()

    await service.start(failpoints=f"{point}=exit9", settings=NEVER | {f"SANDBOXD_{limit}_AFTER_SECONDS": "2"})
    assert await service.wait_end(within=240) == -signal.SIGKILL
    await service.start(settings=NEVER)

    async def rested() -> bool:
        try:
            return await states(service) == [rest]
        except ApiError:  # it is still on its way up
            return False

    await eventually(rested, within=240, every=0.2)
    workspace = service.data / ("kept" if limit == "TERMINATE" else "sandboxes")
    assert (workspace / created.name.removeprefix("sandboxes/") / "workspace").is_dir()


@pytest.mark.timeout(600)
async def test_a_sweep_from_outside_puts_to_rest_what_a_dead_service_left(service: Service) -> None:
    quick = NEVER | {"SANDBOXD_HIBERNATE_AFTER_SECONDS": "2"}
    await service.start(settings=NEVER)
    async with service.client() as client:
        await client.create(display_name="one")
    await service.kill()

    code, printed = await service.sweep("--dry-run", settings=quick)
    plan = json.loads(printed)
    assert code == 0
    assert [one["step"] for one in plan["plans"]] == ["HIBERNATE"]
    steps: dict[str, dict[str, int]] = {}
    for _ in range(8):  # the first one takes a reading, the next one announces
        code, printed = await service.sweep(settings=quick)
        assert code == 0, printed
        steps = json.loads(printed)["steps"]
        if steps:
            break
    assert steps == {"hibernate": {"done": 1}}

    await service.start(settings=NEVER)

    async def rested() -> bool:
        try:
            return await states(service) == [pb.SANDBOX_STATE_HIBERNATED]
        except ApiError:  # it is still on its way up
            return False

    await eventually(rested, within=240, every=0.2)


@pytest.mark.timeout(600)
async def test_sweeps_at_once_put_each_sandbox_to_rest_once(service: Service) -> None:
    """Two from outside at the same moment, again and again, until everything that is due rests."""
    quick = NEVER | {"SANDBOXD_HIBERNATE_AFTER_SECONDS": "2"}
    await service.start(settings=NEVER)
    async with service.client() as client:
        for number in range(DUE):
            await client.create(display_name=f"due {number}")
    await service.kill()

    done: Counter[str] = Counter()
    both = False
    for _ in range(8):  # the first round takes a reading, the next one announces
        answers = await asyncio.gather(service.sweep(settings=quick), service.sweep(settings=quick))
        assert [code for code, _ in answers] == [0, 0], answers
        reports = [json.loads(printed) for _, printed in answers]
        for report in reports:
            done.update({f"{step} {end}": n for step, ends in report["steps"].items() for end, n in ends.items()})
        both = both or all(report["looked"] == DUE for report in reports)
        if done.total() >= DUE:
            break

    assert done["hibernate done"] == DUE, done
    assert both  # or they never met
    await service.start(settings=NEVER)
    await service.wait_ready()
    assert await states(service) == [pb.SANDBOX_STATE_HIBERNATED] * DUE


async def test_a_sweep_that_cannot_reach_the_database_says_so_by_its_exit_code(service: Service) -> None:
    code, printed = await service.sweep(
        "--wait", "1", settings={"SANDBOXD_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
    )

    assert (code, printed) == (3, "")
