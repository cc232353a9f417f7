"""Generations of images in memory, as part of a `FakeUnits`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from typing_extensions import override

from sandboxd.manager.image_ports import CommitInProgressError, GenerationRepository, ImageNotFoundError
from sandboxd.model.client import Freelancer
from sandboxd.model.errors import ConflictError
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.image import CommitProgress, CommitTrigger, Generation, GenerationId, GenerationStatus
from sandboxd.model.paging import Page
from sandboxd.persistence.paging import make_token, read_token

_G = GenerationStatus


class _Rows(Protocol):
    freelancers: dict[tuple[ClientId, FreelancerId], Freelancer]
    generations: dict[GenerationId, Generation]


class _Work(Protocol):
    async def read(self) -> _Rows: ...
    async def write(self) -> _Rows: ...


class FakeGenerationRepository(GenerationRepository):
    def __init__(self, work: _Work) -> None:
        self.work = work

    @override
    async def begin(self, generation: Generation) -> Generation:
        rows = await self.work.write()
        assert (generation.client, generation.freelancer) in rows.freelancers, "no such freelancer"
        there = await self.in_flight(generation.sandbox)
        if there is not None:
            raise CommitInProgressError(generation.sandbox, number=there.number)
        owner = (generation.client, generation.freelancer)
        numbers = [one.number for one in rows.generations.values() if (one.client, one.freelancer) == owner]
        made = replace(generation, number=max(numbers, default=0) + 1)
        rows.generations[made.id] = made
        return made

    @override
    async def get(self, generation: GenerationId, *, for_update: bool = False) -> Generation:
        rows = await (self.work.write() if for_update else self.work.read())
        found = rows.generations.get(generation)
        if found is None:
            raise ImageNotFoundError("", generation)
        return found

    @override
    async def numbered(self, sandbox: SandboxId, number: int) -> Generation:
        found = await self._where(lambda one: (one.sandbox, one.number) == (sandbox, number))
        if not found:
            raise ImageNotFoundError(sandbox, f"g{number:06}")
        return found[0]

    @override
    async def asked_for(self, client: ClientId, request_id: RequestId) -> Generation | None:
        found = await self._where(lambda one: (one.client, one.request_id) == (client, request_id))
        return found[0] if found else None

    @override
    async def save(self, generation: Generation) -> None:
        rows = await self.work.write()
        before = rows.generations.get(generation.id)
        if before is None or before.version != generation.version - 1:
            raise ConflictError(f"Image {generation.tag} was changed by somebody else.")
        active = [
            one for one in rows.generations.values() if one.sandbox == generation.sandbox and one.status is _G.ACTIVE
        ]
        assert generation.status is not _G.ACTIVE or all(one.id == generation.id for one in active), "two are active"
        rows.generations[generation.id] = replace(generation, cancelled=before.cancelled, progress=before.progress)

    @override
    async def note_progress(self, generation: GenerationId, progress: CommitProgress, *, at: datetime) -> None:
        rows = await self.work.write()
        found = rows.generations.get(generation)
        if found is not None and found.status.in_flight:
            rows.generations[generation] = replace(found, progress=progress, update_time=at)

    @override
    async def cancel(self, generation: GenerationId) -> None:
        rows = await self.work.write()
        found = rows.generations.get(generation)
        if found is not None and found.status.in_flight:
            rows.generations[generation] = replace(found, cancelled=True)

    @override
    async def in_flight(self, sandbox: SandboxId) -> Generation | None:
        found = await self._where(lambda one: one.sandbox == sandbox and one.status.in_flight)
        return found[0] if found else None

    @override
    async def list(self, sandbox: SandboxId, *, everything: bool, page_size: int, page_token: str) -> Page[Generation]:
        left = (_G.FAILED, _G.DISCARDED, _G.DELETED)
        found = await self._where(lambda one: one.sandbox == sandbox and (everything or one.status not in left))
        found = sorted(found, key=lambda one: (one.create_time, one.id), reverse=True)
        this = f"images of {sandbox} {everything}"
        if page_token:
            place = read_token(page_token, of=this)
            found = [one for one in found if (one.create_time, one.id) < place]
        page = found[:page_size]
        more = len(found) > page_size
        return Page(items=page, next_token=make_token(page[-1].create_time, page[-1].id, of=this) if more else "")

    @override
    async def saved_time(self, sandbox: SandboxId, incarnation: IncarnationId) -> datetime | None:
        def counts(one: Generation) -> bool:
            kept = one.activate_time is not None or (one.unchanged and one.status is _G.DISCARDED)
            own = one.trigger is not CommitTrigger.UPGRADE
            return (one.sandbox, one.incarnation) == (sandbox, incarnation) and kept and own

        found = await self._where(counts)
        return max((one.capture_time for one in found if one.capture_time is not None), default=None)

    @override
    async def followed(self, sandbox: SandboxId, incarnation: IncarnationId) -> Generation | None:
        def goes_on(one: Generation) -> bool:
            beside = one.trigger is CommitTrigger.UPGRADE and one.incarnation == incarnation
            return one.sandbox == sandbox and one.given_up != incarnation and not beside

        return await self._newest(goes_on)

    @override
    async def fallback(self, sandbox: SandboxId) -> Generation | None:
        return await self._newest(lambda one: one.sandbox == sandbox and one.status is _G.SUPERSEDED)

    @override
    async def newest(self, client: ClientId, freelancer: FreelancerId) -> Generation | None:
        owner = (client, freelancer)
        return await self._newest(lambda one: (one.client, one.freelancer) == owner and one.status is _G.ACTIVE)

    @override
    async def unfinished(
        self, *, limit: int, after: GenerationId | None = None, trigger: CommitTrigger | None = None
    ) -> Sequence[Generation]:
        found = await self._where(
            lambda one: one.status.in_flight and one.id > (after or "") and trigger in (None, one.trigger)
        )
        return sorted(found, key=lambda one: one.id)[:limit]

    @override
    async def untold(self, *, limit: int, after: GenerationId | None = None) -> Sequence[Generation]:
        found = await self._where(
            lambda one: one.status is _G.ACTIVE and one.told_time is None and one.id > (after or "")
        )
        return sorted(found, key=lambda one: one.id)[:limit]

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        def forgettable(one: Generation) -> bool:
            gone = one.status in (_G.DISCARDED, _G.DELETED) or (one.status is _G.FAILED and one.push_time is None)
            return gone and one.end_time is not None and one.end_time < before

        rows = await self.work.write()
        found = [one for one in rows.generations.values() if forgettable(one)][:limit]
        for one in found:
            del rows.generations[one.id]
        return len(found)

    @override
    async def owners(
        self, *, limit: int, after: tuple[ClientId, FreelancerId] | None = None
    ) -> Sequence[tuple[ClientId, FreelancerId]]:
        rows = await self.work.read()
        return sorted(owner for owner in rows.freelancers if after is None or owner > after)[:limit]

    @override
    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId, *, numbers: Sequence[int] = ()
    ) -> Sequence[Generation]:
        def wanted(one: Generation) -> bool:
            held = one.status not in (_G.DISCARDED, _G.DELETED) and (one.push_time is not None or one.status.in_flight)
            return (one.client, one.freelancer) == (client, freelancer) and (held or one.number in numbers)

        return sorted(await self._where(wanted), key=lambda one: one.number)

    @override
    async def hold_owner(self, client: ClientId, freelancer: FreelancerId) -> None:
        await self.work.write()

    async def _newest(self, wanted: Callable[[Generation], bool]) -> Generation | None:
        found = [(one.activate_time, one.id, one) for one in await self._where(wanted) if one.activate_time is not None]
        return max(found)[2] if found else None

    async def _where(self, wanted: Callable[[Generation], bool]) -> Sequence[Generation]:
        return [one for one in (await self.work.read()).generations.values() if wanted(one)]
