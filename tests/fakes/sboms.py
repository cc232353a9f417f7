"""What is known of the packages in images in memory, as part of a `FakeUnits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.image_ports import SbomRepository
from sandboxd.model.image import Generation, GenerationId, GenerationStatus
from sandboxd.model.image_sbom import ImageSbom

_KEPT = (GenerationStatus.VERIFIED, GenerationStatus.ACTIVE, GenerationStatus.SUPERSEDED)


class _Rows(Protocol):
    generations: dict[GenerationId, Generation]
    sboms: dict[GenerationId, ImageSbom]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeSbomRepository(SbomRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def add(self, sbom: ImageSbom) -> None:
        rows = await self.work.write()
        assert sbom.generation in rows.generations, "no such generation"
        rows.sboms[sbom.generation] = sbom

    @override
    async def get(self, generation: GenerationId) -> ImageSbom | None:
        rows = await self.work.read()
        return rows.sboms.get(generation) if generation in rows.generations else None

    @override
    async def note(self, sbom: ImageSbom) -> None:
        rows = await self.work.write()
        there = rows.sboms.get(sbom.generation)
        if there is not None:
            rows.sboms[sbom.generation] = replace(sbom, packages=there.packages, complete=there.complete)

    @override
    async def claim(self, *, at: datetime, until: datetime, limit: int) -> Sequence[ImageSbom]:
        rows = await self.work.write()
        due = sorted((one for one in _waiting(rows) if one.next_time <= at), key=lambda one: one.next_time)[:limit]
        taken = [replace(one, next_time=until, attempts=one.attempts + 1) for one in due]
        rows.sboms |= {one.generation: one for one in taken}
        return sorted((replace(one, packages=()) for one in taken), key=lambda one: one.generation)

    @override
    async def pending(self) -> int:
        return len(_waiting(await self.work.read()))


def _waiting(rows: _Rows) -> list[ImageSbom]:
    return [
        one
        for one in rows.sboms.values()
        if one.attached is None
        and one.generation in rows.generations
        and rows.generations[one.generation].status in _KEPT
    ]
