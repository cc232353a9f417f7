"""What is known of the packages in images. Used within one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.image_ports import SbomRepository
from sandboxd.model.image import GenerationId, GenerationStatus
from sandboxd.model.image_sbom import AttachedSbom, ImageSbom
from sandboxd.model.package_history import KnownPackage
from sandboxd.model.packages import Package
from sandboxd.persistence.errors import translated
from sandboxd.persistence.package_rows import pack, unpack
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import ImageGenerationRow, ImageSbomRow
from sandboxd.persistence.tables.base import table

_SBOMS: Final = table(ImageSbomRow)
_GENERATIONS: Final = table(ImageGenerationRow)
_KEPT: Final = tuple(
    status.value for status in (GenerationStatus.VERIFIED, GenerationStatus.ACTIVE, GenerationStatus.SUPERSEDED)
)


class PostgresSbomRepository(SbomRepository):
    """Lists of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def add(self, sbom: ImageSbom) -> None:
        # In a thread: 20,000 packages take half a second.
        packed = await asyncio.to_thread(pack, [KnownPackage(package=one) for one in sbom.packages])
        values = _state(sbom) | {"generation": sbom.generation, "packages": packed, "complete": sbom.complete}
        statement = insert(_SBOMS).values(values)
        statement = statement.on_conflict_do_update(index_elements=["generation"], set_=values)
        with translated():
            await self._connection.execute(statement)

    @override
    async def get(self, generation: GenerationId) -> ImageSbom | None:
        statement = select(_SBOMS).where(_SBOMS.c.generation == generation)
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        known = await asyncio.to_thread(unpack, bytes(row["packages"]))
        return _read(row, tuple(one.package for _, one in sorted(known.items())))

    @override
    async def note(self, sbom: ImageSbom) -> None:
        statement = update(_SBOMS).values(_state(sbom)).where(_SBOMS.c.generation == sbom.generation)
        with translated():
            await self._connection.execute(statement)

    @override
    async def claim(self, *, at: datetime, until: datetime, limit: int) -> Sequence[ImageSbom]:
        c, g = _SBOMS.c, _GENERATIONS.c
        due = (
            select(c.generation)
            .join(_GENERATIONS, g.id == c.generation)
            .where(c.attach_time.is_(None), c.next_time <= at, g.status.in_(_KEPT))
            .order_by(c.next_time, c.generation)
            .limit(limit)
            .with_for_update(of=_SBOMS, skip_locked=True)
        )
        statement = (
            update(_SBOMS)
            .values(next_time=until, attempts=c.attempts + 1)
            .where(c.generation.in_(due.scalar_subquery()))
            .returning(*[column for column in c if column.name != "packages"])
        )
        with translated():
            rows = (await self._connection.execute(statement)).mappings().all()
        return sorted((_read(row, ()) for row in rows), key=lambda one: one.generation)

    @override
    async def pending(self) -> int:
        c, g = _SBOMS.c, _GENERATIONS.c
        statement = select(func.count()).select_from(_SBOMS).join(_GENERATIONS, g.id == c.generation)
        with translated():
            found: int = (
                await self._connection.execute(statement.where(c.attach_time.is_(None), g.status.in_(_KEPT)))
            ).scalar_one()
        return found


def _state(sbom: ImageSbom) -> Values:
    attached = sbom.attached
    return {
        "manifest_digest": None if attached is None else attached.manifest,
        "document_digest": None if attached is None else attached.document,
        "document_bytes": None if attached is None else attached.size,
        "attach_time": None if attached is None else attached.attach_time,
        "attempts": sbom.attempts,
        "failure": sbom.failure,
        "next_time": sbom.next_time,
    }


def _read(row: Row, packages: Sequence[Package]) -> ImageSbom:
    attached = None
    if row["attach_time"] is not None:
        attached = AttachedSbom(
            manifest=row["manifest_digest"],
            document=row["document_digest"],
            size=row["document_bytes"],
            attach_time=row["attach_time"],
        )
    return ImageSbom(
        generation=GenerationId(row["generation"]),
        packages=packages,
        complete=row["complete"],
        attached=attached,
        attempts=row["attempts"],
        failure=row["failure"],
        next_time=row["next_time"],
    )
