"""Notes on uploads, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from typing_extensions import override

from sandboxd.images.upload_notes import NOTES, UploadNote, UploadNotes
from sandboxd.model.errors import SandboxdError
from sandboxd.model.image import GenerationId
from sandboxd.model.sources import Clock


@dataclass(kw_only=True)
class FakeUploadNotes(UploadNotes):
    clock: Clock
    most: int = NOTES
    rows: dict[str, UploadNote] = field(default_factory=dict)
    trouble: SandboxdError | None = None

    @override
    async def begun(self, name: str, *, repository: str, location: str, commit: GenerationId, total_bytes: int) -> None:
        self._check()
        now = self.clock.now()
        self.rows[name] = UploadNote(
            id=name,
            repository=repository,
            location=location,
            commit=commit,
            begin_time=now,
            update_time=now,
            total_bytes=total_bytes,
        )
        for one in sorted(self.rows.values(), key=lambda row: row.update_time, reverse=True)[self.most :]:
            del self.rows[one.id]

    @override
    async def moved(self, name: str, *, location: str, sent_bytes: int) -> None:
        self._check()
        if name in self.rows:
            row = self.rows[name]
            self.rows[name] = replace(row, location=location, sent_bytes=sent_bytes, update_time=self.clock.now())

    @override
    async def ended(self, name: str) -> None:
        self._check()
        self.rows.pop(name, None)

    @override
    async def quiet(self, *, for_: timedelta, limit: int) -> Sequence[UploadNote]:
        self._check()
        before = self.clock.now() - for_
        found = [one for one in self.rows.values() if one.update_time < before]
        return sorted(found, key=lambda one: (one.update_time, one.id))[:limit]

    @override
    async def get(self, name: str) -> UploadNote | None:
        self._check()
        return self.rows.get(name)

    def _check(self) -> None:
        if self.trouble is not None:
            raise self.trouble
