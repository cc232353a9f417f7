"""What the rows of images' packages promise, held by the fake and by PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sandboxd.model.image import Generation, GenerationId, GenerationStatus
from sandboxd.model.image_sbom import AttachedSbom, ImageSbom
from sandboxd.model.packages import Package, PackageKey, PackageManager, PackagePlace
from tests.contract.test_generations import given, made, save
from tests.contract.units_world import NOON, UnitsWorld

G = GenerationStatus
LATER = NOON + timedelta(minutes=5)
ATTACHED = AttachedSbom(manifest="sha256:1", document="sha256:2", size=5_000_000_000, attach_time=LATER)


def a_package(name: str, version: str = "1.0") -> Package:
    key = PackageKey(manager=PackageManager.DPKG, name=name, directory="/var/lib/dpkg")
    return Package(
        key=key, version=version, place=PackagePlace.ROOT, requested=name != "libc6", initial=name == "libc6"
    )


def an_sbom(generation: Generation, *names: str) -> ImageSbom:
    packages = tuple(a_package(name) for name in sorted(names))
    return ImageSbom(generation=generation.id, packages=packages, complete=True, next_time=NOON)


async def add(world: UnitsWorld, *sboms: ImageSbom) -> None:
    async with world.units.begin() as work:
        for sbom in sboms:
            await work.sboms.add(sbom)
        await work.commit()


async def get(world: UnitsWorld, generation: GenerationId) -> ImageSbom | None:
    async with world.units.begin() as work:
        return await work.sboms.get(generation)


async def claim(world: UnitsWorld, *, limit: int = 10, minutes: int = 0) -> list[ImageSbom]:
    at = NOON + timedelta(minutes=minutes)
    async with world.units.begin() as work:
        taken = await work.sboms.claim(at=at, until=at + timedelta(minutes=5), limit=limit)
        await work.commit()
    return list(taken)


async def test_everything_of_a_list_is_kept_and_a_second_try_takes_its_place(world: UnitsWorld) -> None:
    generation = await made(world, await given(world), G.ACTIVE)
    first, second = an_sbom(generation, "jq"), replace(an_sbom(generation, "jq", "libc6"), complete=False)

    await add(world, first)
    assert await get(world, generation.id) == first
    await add(world, second)
    async with world.units.begin() as work:
        await work.sboms.note(replace(second, packages=(), attached=ATTACHED, attempts=3, next_time=LATER))
        await work.commit()

    assert await get(world, generation.id) == replace(second, attached=ATTACHED, attempts=3, next_time=LATER)


async def test_of_what_is_unknown_nothing_is_answered_and_nothing_noted(world: UnitsWorld) -> None:
    unknown = ImageSbom(generation=GenerationId("gen-unknown"), packages=(), complete=True, next_time=NOON)

    async with world.units.begin() as work:
        await work.sboms.note(unknown)
        await work.commit()

    assert await get(world, unknown.generation) is None


@pytest.mark.parametrize(
    ("status", "due"),
    [(G.PUSHED, False), (G.VERIFIED, True), (G.ACTIVE, True), (G.SUPERSEDED, True), (G.FAILED, False)],
)
async def test_only_lists_of_images_that_are_kept_are_due(
    world: UnitsWorld, status: GenerationStatus, due: bool
) -> None:
    generation = await made(world, await given(world), status)
    await add(world, an_sbom(generation, "jq"))

    async with world.units.begin() as work:
        assert await work.sboms.pending() == int(due)
    assert [one.generation for one in await claim(world)] == [generation.id] * due


async def test_what_is_taken_is_left_alone_until_its_time_and_counts_its_attempts(world: UnitsWorld) -> None:
    generations = [await made(world, await given(world, freelancer=name), G.ACTIVE) for name in ("ada", "bob", "eve")]
    await add(world, *(an_sbom(one, "jq") for one in generations))

    taken = [*await claim(world, limit=2), *await claim(world, limit=2)]
    assert sorted(one.generation for one in taken) == sorted(one.id for one in generations)
    assert all((one.packages, one.attempts) == ((), 1) for one in taken)
    assert await claim(world, minutes=4) == []
    async with world.units.begin() as work:
        await work.sboms.note(replace(taken[0], attached=ATTACHED))
        await work.sboms.note(taken[1].failed("503", at=NOON))
        await work.commit()
    again = await claim(world, minutes=1)
    assert [(one.generation, one.attempts, one.failure) for one in again] == [(taken[1].generation, 2, "503")]
    assert [one.generation for one in await claim(world, minutes=5)] == [taken[2].generation]


async def test_a_list_goes_with_its_generation(world: UnitsWorld) -> None:
    generation = await made(world, await given(world), G.PUSHED)
    await add(world, an_sbom(generation, "jq"))
    failed = replace(generation.enter(G.FAILED, at=NOON), push_time=None)
    await save(world, failed)

    async with world.units.begin() as work:
        assert await work.generations.forget(before=LATER, limit=10) == 1
        await work.commit()

    assert await get(world, generation.id) is None
