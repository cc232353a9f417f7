"""Open streams hear what policy is about to do with their sandbox, that it will not, and that it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandboxd.manager.announcing import RestNotice
from sandboxd.model.sandbox import Sandbox, SandboxState
from tests.eventually import eventually
from tests.manager_world import SOON, ManagerWorld
from tests.unit.test_sweep import MINUTE, passes


@asynccontextmanager
async def listening(world: ManagerWorld, sandbox: Sandbox) -> AsyncIterator[list[RestNotice]]:
    heard: list[RestNotice] = []

    async def listen() -> None:
        async for notice in world.manager.rest_notices(sandbox.id):
            heard.append(notice)  # noqa: PERF401  it never ends

    tasks = [asyncio.create_task(listen()), asyncio.create_task(world.core.announcements.run())]
    for _ in range(10):
        await asyncio.sleep(0)
    try:
        yield heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_stream_hears_of_the_announcement_and_then_of_the_step() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    async with listening(world, sandbox) as heard:
        await passes(world, 14 * MINUTE)
        await eventually(lambda: len(heard) == 1)
        await passes(world, 2 * MINUTE)
        await eventually(lambda: len(heard) == 2)

    assert [notice.code for notice in heard] == ["HIBERNATE_SOON", "HIBERNATED"]
    assert heard[0].due_time is not None
    assert (heard[0].due_time - sandbox.last_use_time).total_seconds() == 15 * MINUTE


async def test_a_use_calls_it_off_and_the_stream_hears_that_without_a_sweep() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    async with listening(world, sandbox) as heard:
        await passes(world, 14 * MINUTE)
        await eventually(lambda: len(heard) == 1)
        await world.use.touch(sandbox.id)
        await eventually(lambda: len(heard) == 2)

    assert heard[1].code == "REST_CALLED_OFF"
    assert world.row(sandbox.id).state is SandboxState.ACTIVE


async def test_a_stream_that_opens_after_the_announcement_hears_it_too() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 14 * MINUTE)

    async with listening(world, sandbox) as first, listening(world, sandbox) as second:
        await eventually(lambda: bool(first and second))

    assert [first[0].code, second[0].code] == ["HIBERNATE_SOON"] * 2


async def test_waking_tells_nothing_and_the_next_step_is_announced_anew() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()
    await passes(world, 17 * MINUTE)

    async with listening(world, sandbox) as heard:
        await world.use.use(sandbox.id, timeout=SOON)
        await passes(world, 14 * MINUTE)
        await eventually(lambda: bool(heard))

    assert [notice.code for notice in heard] == ["HIBERNATE_SOON"]


async def test_nothing_is_kept_of_streams_that_went_away() -> None:
    world = ManagerWorld()
    sandbox = await world.given_active()

    async with listening(world, sandbox) as heard:
        await passes(world, 14 * MINUTE)
        await eventually(lambda: bool(heard))

    assert not world.core.announcements._followers
    assert not world.core.announcements._told
