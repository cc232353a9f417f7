"""The rows of images' generations. Used within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select, true, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.image_ports import CommitInProgressError, GenerationRepository, ImageNotFoundError
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.errors import ConflictError, ErrorKind
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, RequestId, SandboxId
from sandboxd.model.image import (
    IN_FLIGHT,
    CommitPhase,
    CommitProgress,
    CommitTrigger,
    Failure,
    Generation,
    GenerationId,
    GenerationStatus,
    ImageContent,
    LeftOutPaths,
)
from sandboxd.model.paging import Page
from sandboxd.model.replay import ReplayPolicy
from sandboxd.persistence.errors import translated
from sandboxd.persistence.newer import read_many, read_one
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import FreelancerRow, ImageGenerationRow
from sandboxd.persistence.tables.base import table

_GENERATIONS: Final = table(ImageGenerationRow)
_FREELANCERS: Final = table(FreelancerRow)
_IN_FLIGHT: Final = tuple(sorted(status.value for status in IN_FLIGHT))
_WITHOUT_IMAGE: Final = (
    GenerationStatus.FAILED.value,
    GenerationStatus.DISCARDED.value,
    GenerationStatus.DELETED.value,
)


class PostgresGenerationRepository(GenerationRepository):
    """Generations of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def begin(self, generation: Generation) -> Generation:
        c, f = _GENERATIONS.c, _FREELANCERS.c
        owner = select(f.id).where(f.client == generation.client, f.id == generation.freelancer)
        last = select(func.coalesce(func.max(c.number), 0)).where(
            c.client == generation.client, c.freelancer == generation.freelancer
        )
        with translated():
            # Numbers are given one after the other; of the kind that does not hold up rows that refer to it.
            await self._connection.execute(owner.with_for_update(key_share=True))
            number: int = (await self._connection.execute(last)).scalar_one() + 1
            values = _values(generation) | {"number": number}
            statement = insert(_GENERATIONS).values(values).on_conflict_do_nothing()
            made = (await self._connection.execute(statement)).rowcount
        if not made:
            there = await self.in_flight(generation.sandbox)
            if there is None:
                raise ConflictError(f"Another commit of sandbox {generation.sandbox} has just ended. Try again.")
            raise CommitInProgressError(generation.sandbox, number=there.number)
        return await self.get(generation.id)

    @override
    async def get(self, generation: GenerationId, *, for_update: bool = False) -> Generation:
        statement = select(_GENERATIONS).where(_GENERATIONS.c.id == generation)
        if for_update:
            statement = statement.with_for_update()
        found = await self._one(statement)
        if found is None:
            raise ImageNotFoundError("", generation)
        return found

    @override
    async def numbered(self, sandbox: SandboxId, number: int) -> Generation:
        c = _GENERATIONS.c
        found = await self._one(select(_GENERATIONS).where(c.sandbox == sandbox, c.number == number))
        if found is None:
            raise ImageNotFoundError(sandbox, f"g{number:06}")
        return found

    @override
    async def asked_for(self, client: ClientId, request_id: RequestId) -> Generation | None:
        c = _GENERATIONS.c
        return await self._one(select(_GENERATIONS).where(c.client == client, c.request_id == request_id))

    @override
    async def save(self, generation: Generation) -> None:
        c = _GENERATIONS.c
        values = _values(generation)
        for noted in ("cancelled", *_progress_values(generation.progress)):  # by others, or since it was read
            del values[noted]
        statement = update(_GENERATIONS).values(values)
        statement = statement.where(c.id == generation.id, c.version == generation.version - 1)
        with translated():
            changed = (await self._connection.execute(statement)).rowcount
        if not changed:
            raise ConflictError(
                f"Image {generation.tag} of sandbox {generation.sandbox} was changed by somebody else. Try again.",
                sandbox=generation.sandbox,
                image=generation.tag,
            )

    @override
    async def note_progress(self, generation: GenerationId, progress: CommitProgress, *, at: datetime) -> None:
        values = _progress_values(progress) | {"update_time": at}
        await self._change_in_flight(generation, values)

    @override
    async def cancel(self, generation: GenerationId) -> None:
        await self._change_in_flight(generation, {"cancelled": True})

    @override
    async def in_flight(self, sandbox: SandboxId) -> Generation | None:
        c = _GENERATIONS.c
        return await self._one(select(_GENERATIONS).where(c.sandbox == sandbox, c.status.in_(_IN_FLIGHT)))

    @override
    async def list(self, sandbox: SandboxId, *, everything: bool, page_size: int, page_token: str) -> Page[Generation]:
        c = _GENERATIONS.c
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        this = f"images of {sandbox} {everything}"
        statement = select(_GENERATIONS).where(c.sandbox == sandbox)
        if not everything:
            statement = statement.where(c.status.not_in(_WITHOUT_IMAGE))
        if page_token:
            statement = statement.where(tuple_(c.create_time, c.id) < tuple_(*read_token(page_token, of=this)))
        rows = await self._rows(statement.order_by(c.create_time.desc(), c.id.desc()).limit(size + 1))
        token = make_token(rows[size - 1]["create_time"], rows[size - 1]["id"], of=this) if len(rows) > size else ""
        return Page(items=read_many(rows[:size], _read), next_token=token)

    @override
    async def saved_time(self, sandbox: SandboxId, incarnation: IncarnationId) -> datetime | None:
        c = _GENERATIONS.c
        statement = select(func.max(c.capture_time)).where(
            c.sandbox == sandbox,
            c.incarnation == incarnation,
            c.trigger != CommitTrigger.UPGRADE.value,
            or_(c.activate_time.is_not(None), and_(c.unchanged, c.status == GenerationStatus.DISCARDED.value)),
        )
        with translated():
            found: datetime | None = (await self._connection.execute(statement)).scalar_one()
        return found

    @override
    async def followed(self, sandbox: SandboxId, incarnation: IncarnationId) -> Generation | None:
        c = _GENERATIONS.c
        statement = select(_GENERATIONS).where(
            c.sandbox == sandbox,
            c.activate_time.is_not(None),
            c.given_up.is_distinct_from(incarnation),
            or_(c.trigger != CommitTrigger.UPGRADE.value, c.incarnation != incarnation),
        )
        return await self._one(statement.order_by(c.activate_time.desc(), c.id.desc()).limit(1))

    @override
    async def fallback(self, sandbox: SandboxId) -> Generation | None:
        c = _GENERATIONS.c
        statement = select(_GENERATIONS).where(
            c.sandbox == sandbox, c.status == GenerationStatus.SUPERSEDED.value, c.activate_time.is_not(None)
        )
        return await self._one(statement.order_by(c.activate_time.desc(), c.id.desc()).limit(1))

    @override
    async def newest(self, client: ClientId, freelancer: FreelancerId) -> Generation | None:
        c = _GENERATIONS.c
        statement = select(_GENERATIONS).where(
            c.client == client, c.freelancer == freelancer, c.status == GenerationStatus.ACTIVE.value
        )
        return await self._one(statement.order_by(c.activate_time.desc(), c.id.desc()).limit(1))

    @override
    async def unfinished(
        self, *, limit: int, after: GenerationId | None = None, trigger: CommitTrigger | None = None
    ) -> Sequence[Generation]:
        of_it = true() if trigger is None else _GENERATIONS.c.trigger == trigger.value
        return await self._page(and_(_GENERATIONS.c.status.in_(_IN_FLIGHT), of_it), limit=limit, after=after)

    @override
    async def untold(self, *, limit: int, after: GenerationId | None = None) -> Sequence[Generation]:
        c = _GENERATIONS.c
        where = and_(c.status == GenerationStatus.ACTIVE.value, c.told_time.is_(None))
        return await self._page(where, limit=limit, after=after)

    @override
    async def forget(self, *, before: datetime, limit: int) -> int:
        c = _GENERATIONS.c
        left = or_(
            c.status.in_((GenerationStatus.DISCARDED.value, GenerationStatus.DELETED.value)),
            and_(c.status == GenerationStatus.FAILED.value, c.push_time.is_(None)),
        )
        old = select(c.id).where(left, c.end_time < before).limit(limit).with_for_update(skip_locked=True)
        with translated():
            return (await self._connection.execute(delete(_GENERATIONS).where(c.id.in_(old)))).rowcount

    @override
    async def owners(
        self, *, limit: int, after: tuple[ClientId, FreelancerId] | None = None
    ) -> Sequence[tuple[ClientId, FreelancerId]]:
        f = _FREELANCERS.c
        statement = select(f.client, f.id).order_by(f.client, f.id).limit(limit)
        if after is not None:
            statement = statement.where(tuple_(f.client, f.id) > tuple_(*after))
        with translated():
            return [
                (ClientId(client), FreelancerId(freelancer))
                for client, freelancer in await self._connection.execute(statement)
            ]

    @override
    async def of_owner(
        self, client: ClientId, freelancer: FreelancerId, *, numbers: Sequence[int] = ()
    ) -> Sequence[Generation]:
        c = _GENERATIONS.c
        gone = (GenerationStatus.DISCARDED.value, GenerationStatus.DELETED.value)
        held = and_(c.status.not_in(gone), or_(c.push_time.is_not(None), c.status.in_(_IN_FLIGHT)))
        statement = select(_GENERATIONS).where(
            c.client == client, c.freelancer == freelancer, or_(held, c.number == func.any([*numbers]))
        )
        return await self._many(statement.order_by(c.number))

    @override
    async def hold_owner(self, client: ClientId, freelancer: FreelancerId) -> None:
        f = _FREELANCERS.c
        owner = select(f.id).where(f.client == client, f.id == freelancer)
        with translated():
            await self._connection.execute(owner.with_for_update(key_share=True))

    async def _change_in_flight(self, generation: GenerationId, values: Values) -> None:
        c = _GENERATIONS.c
        statement = update(_GENERATIONS).values(values).where(c.id == generation, c.status.in_(_IN_FLIGHT))
        with translated():
            await self._connection.execute(statement)

    async def _page(
        self, where: ColumnElement[bool], *, limit: int, after: GenerationId | None
    ) -> Sequence[Generation]:
        c = _GENERATIONS.c
        statement = select(_GENERATIONS).where(where, c.id > (after or "")).order_by(c.id).limit(limit)
        return read_many(await self._rows(statement), _read)

    async def _one(self, statement: Select[Any]) -> Generation | None:  # Any: rows of any shape
        found = await self._many(statement)
        return found[0] if found else None

    async def _many(self, statement: Select[Any]) -> Sequence[Generation]:  # Any: rows of any shape
        return [read_one(row, _read) for row in await self._rows(statement)]

    async def _rows(self, statement: Select[Any]) -> Sequence[Row]:  # Any: rows of any shape
        with translated():
            rows: Sequence[Row] = (await self._connection.execute(statement)).mappings().all()
        return rows


def _progress_values(progress: CommitProgress) -> Values:
    return {
        "phase": progress.phase.value,
        "progress_entries": progress.entries,
        "progress_bytes": progress.bytes,
        "progress_total_bytes": progress.total_bytes,
    }


def _values(generation: Generation) -> Values:
    content = generation.content or ImageContent(digest="")
    failure = generation.failure
    return {
        "id": generation.id,
        "sandbox": generation.sandbox,
        "client": generation.client,
        "freelancer": generation.freelancer,
        "number": generation.number,
        "incarnation": generation.incarnation,
        "trigger": generation.trigger.value,
        "replay_policy": None if generation.replay_policy is None else generation.replay_policy.value,
        "dry_run": generation.dry_run,
        "request_id": generation.request_id,
        "registry_host": generation.registry,
        "repository": generation.repository,
        "base": generation.base,
        "parent": generation.parent,
        "given_up": generation.given_up,
        "status": generation.status.value,
        **_progress_values(generation.progress),
        "cancelled": generation.cancelled,
        "digest": None if generation.content is None else content.digest,
        "layer_digest": content.layer_digest,
        "diff_id": content.diff_id,
        "raw_bytes": content.raw_bytes,
        "compressed_bytes": content.compressed_bytes,
        "image_bytes": content.image_bytes,
        "layers": content.layers,
        "entries": content.entries,
        "largest": [list(one) for one in content.largest],
        "left_out": [{"reason": one.reason, "count": one.count, "paths": list(one.paths)} for one in content.left_out],
        "unchanged": generation.unchanged,
        "seconds": dict(generation.seconds),
        "failure": None
        if failure is None
        else {
            "kind": failure.kind.value,
            "reason": failure.reason,
            "message": failure.message,
            "metadata": dict(failure.metadata),
        },
        "attempts": generation.attempts,
        "create_time": generation.create_time,
        "update_time": generation.update_time,
        "capture_time": generation.capture_time,
        "push_time": generation.push_time,
        "verify_time": generation.verify_time,
        "activate_time": generation.activate_time,
        "told_time": generation.told_time,
        "end_time": generation.end_time,
        "version": generation.version,
    }


def _read(row: Row) -> Generation:
    content = None
    if row["digest"] is not None:
        content = ImageContent(
            digest=row["digest"],
            layer_digest=row["layer_digest"],
            diff_id=row["diff_id"],
            raw_bytes=row["raw_bytes"],
            compressed_bytes=row["compressed_bytes"],
            image_bytes=row["image_bytes"],
            layers=row["layers"],
            entries=row["entries"],
            largest=tuple((path, size) for path, size in row["largest"]),
            left_out=tuple(
                LeftOutPaths(reason=one["reason"], count=one["count"], paths=tuple(one["paths"]))
                for one in row["left_out"]
            ),
        )
    failure = None
    if row["failure"] is not None:
        said = row["failure"]
        failure = Failure(
            kind=ErrorKind(said["kind"]), reason=said["reason"], message=said["message"], metadata=said["metadata"]
        )
    return Generation(
        id=GenerationId(row["id"]),
        sandbox=SandboxId(row["sandbox"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]),
        number=row["number"],
        incarnation=IncarnationId(row["incarnation"]),
        trigger=CommitTrigger(row["trigger"]),
        replay_policy=None if row["replay_policy"] is None else ReplayPolicy(row["replay_policy"]),
        dry_run=row["dry_run"],
        request_id=None if row["request_id"] is None else RequestId(row["request_id"]),
        registry=row["registry_host"],
        repository=row["repository"],
        base=row["base"],
        parent=None if row["parent"] is None else GenerationId(row["parent"]),
        given_up=None if row["given_up"] is None else IncarnationId(row["given_up"]),
        status=GenerationStatus(row["status"]),
        progress=CommitProgress(
            phase=CommitPhase(row["phase"]),
            entries=row["progress_entries"],
            bytes=row["progress_bytes"],
            total_bytes=row["progress_total_bytes"],
        ),
        cancelled=row["cancelled"],
        content=content,
        unchanged=row["unchanged"],
        seconds=row["seconds"],
        failure=failure,
        attempts=row["attempts"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        capture_time=row["capture_time"],
        push_time=row["push_time"],
        verify_time=row["verify_time"],
        activate_time=row["activate_time"],
        told_time=row["told_time"],
        end_time=row["end_time"],
        version=row["version"],
    )
