"""Erasures: their rows, and the deleting itself. Used within one transaction, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.erasure_ports import ErasureRepository
from sandboxd.manager.ports import MAX_PAGE_SIZE
from sandboxd.model.client_errors import ErasureNotFoundError
from sandboxd.model.erasure import ERASED_MARK, Erasure, ErasureId, ErasureItem, PendingFiles, Signature
from sandboxd.model.ids import ClientId, FreelancerId, SandboxId
from sandboxd.model.paging import Page
from sandboxd.persistence.errors import translated
from sandboxd.persistence.paging import make_token, read_token
from sandboxd.persistence.sandbox_rows import Row, Values
from sandboxd.persistence.tables import ErasureRow
from sandboxd.persistence.tables.base import table

_ERASURES: Final = table(ErasureRow)
_OURS: Final = "client = :client AND (CAST(:freelancer AS text) IS NULL OR freelancer = :freelancer)"
_SESSIONS: Final = f"SELECT id FROM sessions WHERE {_OURS}"  # noqa: S608  constant text
_SANDBOXES: Final = f"SELECT id FROM sandboxes WHERE {_OURS}"  # noqa: S608  constant text
# Requests of the erasures themselves stay: a repeated deletion is answered from them, and they hold no text.
_REQUESTS: Final = f"""
    (CAST(:freelancer AS text) IS NULL AND client = :client
        OR CAST(:freelancer AS text) IS NULL AND (sandbox = :account OR starts_with(sandbox, :account || '/'))
        OR client = :client AND subject = :freelancer
        OR sandbox = :account
        OR sandbox IN ({_SANDBOXES}))
    AND NOT starts_with(sandbox, 'clients/' || :client || '/erasures/')
"""
_KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "events": ("events", f"session IN ({_SESSIONS})"),
    "attachments": (
        "turn_attachments",
        f"turn IN (SELECT id FROM turns WHERE session IN ({_SESSIONS}))",  # noqa: S608  constant text
    ),
    "turns": ("turns", f"session IN ({_SESSIONS})"),
    "commands": (
        "commands",
        f"session IN ({_SESSIONS}) OR CAST(:freelancer AS text) IS NULL AND client = :client",
    ),
    "stdin_records": ("stdin_records", f"sandbox IN ({_SANDBOXES})"),
    "conversations": ("conversations", f"sandbox IN ({_SANDBOXES})"),
    "sessions": ("sessions", _OURS),
    "image_generations": ("image_generations", _OURS),
    "backup_sets": ("backup_sets", _OURS),
    "restore_drills": ("restore_drills", _OURS),
    "package_changes": ("package_changes", f"sandbox IN ({_SANDBOXES})"),
    "sandbox_packages": ("sandbox_packages", f"sandbox IN ({_SANDBOXES})"),
    "turn_places": ("turn_places", _OURS),
    "requests": ("request_ids", _REQUESTS),
}  # fmt: skip
"""Kind of data: its table, and which rows. In this order, because rows refer to each other."""
_KEPT: Final[Mapping[str, tuple[str, str]]] = {
    "usage_events": (
        f"SELECT count(*) FROM usage_events WHERE {_OURS}",  # noqa: S608  constant text
        "The ledger of model calls is kept for the law of billing. It holds counts, prices, times and ids.",
    ),
    "sandbox_records": (
        f"SELECT count(*) FROM sandboxes WHERE {_OURS}",  # noqa: S608  constant text
        "The ledger names sandboxes: their ids, tiers and times are kept; their names and labels are erased.",
    ),
    "usage_intervals": (
        f"SELECT count(*) FROM usage_intervals WHERE sandbox IN ({_SANDBOXES})",  # noqa: S608  constant text
        "How long which resources were taken is kept for the law of billing.",
    ),
    "budgets": (
        f"SELECT count(*) FROM budgets WHERE {_OURS} OR sandbox IN ({_SANDBOXES})",  # noqa: S608  constant text
        "What a budget allowed explains the ledger. It holds limits and ids.",
    ),
    "budget_notices": (
        f"SELECT count(*) FROM budget_notices WHERE {_OURS}",  # noqa: S608  constant text
        "Why a call was refused explains the ledger. It holds counts, times and ids.",
    ),
    "incarnation_records": (
        f"SELECT count(*) FROM incarnations WHERE sandbox IN ({_SANDBOXES})",  # noqa: S608  constant text
        "When a sandbox ran is kept for the law of billing.",
    ),
}


class PostgresErasureRepository(ErasureRepository):
    """Erasures of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def add(self, erasure: Erasure) -> None:
        with translated():
            await self._connection.execute(insert(_ERASURES).values(_values(erasure)))

    @override
    async def get(self, erasure: ErasureId, *, for_update: bool = False) -> Erasure:
        statement = select(_ERASURES).where(_ERASURES.c.id == erasure)
        if for_update:
            statement = statement.with_for_update()
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
        if row is None:
            raise ErasureNotFoundError(erasure)
        return _read(row)

    @override
    async def save(self, erasure: Erasure) -> None:
        statement = update(_ERASURES).values(_values(erasure)).where(_ERASURES.c.id == erasure.id)
        with translated():
            await self._connection.execute(statement)

    @override
    async def list(self, client: ClientId, *, page_size: int, page_token: str) -> Page[Erasure]:
        c = _ERASURES.c
        size = max(1, min(page_size, MAX_PAGE_SIZE))
        this = f"erasures of {client}"
        statement = select(_ERASURES).where(c.client == client)
        if page_token:
            statement = statement.where(tuple_(c.begin_time, c.id) > tuple_(*read_token(page_token, of=this)))
        with translated():
            rows = (await self._connection.execute(statement.order_by(c.begin_time, c.id).limit(size + 1))).mappings()
            items = [_read(row) for row in rows]
        more = len(items) > size
        items = items[:size]
        token = make_token(items[-1].begin_time, items[-1].id, of=this) if more else ""
        return Page(items=items, next_token=token)

    @override
    async def unfinished(self, *, limit: int) -> Sequence[Erasure]:
        c = _ERASURES.c
        statement = select(_ERASURES).where(c.end_time.is_(None)).order_by(c.begin_time, c.id).limit(limit)
        with translated():
            return [_read(row) for row in (await self._connection.execute(statement)).mappings()]

    @override
    async def sandboxes(self, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> Sequence[SandboxId]:
        statement = f"{_SANDBOXES} AND state_reason <> :mark ORDER BY id LIMIT :limit"
        rows = await self._fetch(statement, client=client, freelancer=freelancer, mark=ERASED_MARK, limit=limit)
        return [SandboxId(row.id) for row in rows]

    @override
    async def erase_sandbox(self, sandbox: SandboxId) -> None:
        statement = """
            UPDATE sandboxes SET display_name = '', labels = '{}', state_reason = :mark,
                image_generation = NULL, image_number = NULL, image_reference = NULL, version = version + 1
            WHERE id = :sandbox
        """
        await self._fetch(statement, sandbox=sandbox, mark=ERASED_MARK)

    @override
    def kinds(self) -> Sequence[str]:
        return tuple(_KINDS)

    @override
    async def erase(self, kind: str, client: ClientId, freelancer: FreelancerId | None, *, limit: int) -> int:
        name, condition = _KINDS[kind]
        statement = (
            f"DELETE FROM {name} WHERE ctid = ANY(ARRAY("  # noqa: S608  constant text
            f"SELECT ctid FROM {name} WHERE {condition} LIMIT :limit FOR UPDATE))"
        )
        account = f"clients/{client}" + (f"/freelancers/{freelancer}" if freelancer else "")
        values = {"client": client, "freelancer": freelancer, "limit": limit, "account": account}
        used = {name: value for name, value in values.items() if f":{name}" in statement}
        with translated():
            return (await self._connection.execute(text(statement), used)).rowcount

    @override
    async def kept(self, client: ClientId, freelancer: FreelancerId | None) -> Sequence[tuple[str, int, str]]:
        return [
            (kind, (await self._fetch(statement, client=client, freelancer=freelancer))[0][0], why)
            for kind, (statement, why) in _KEPT.items()
        ]

    @override
    async def close_freelancers(self, client: ClientId, *, at: datetime) -> int:
        statement = """
            UPDATE freelancers SET state = 'DELETED', state_reason = '', display_name = '', quotas = NULL,
                delete_time = :at, update_time = :at, version = version + 1
            WHERE client = :client AND state <> 'DELETED'
        """
        with translated():
            return (await self._connection.execute(text(statement), {"client": client, "at": at})).rowcount

    async def _fetch(self, statement: str, **values: Any) -> Sequence[Any]:  # Any: parameters and rows of any type
        with translated():
            found = await self._connection.execute(text(statement), values)
            return found.all() if found.returns_rows else ()


def _values(erasure: Erasure) -> Values:
    signature = erasure.signature
    return {
        "id": erasure.id,
        "client": erasure.client,
        "freelancer": erasure.freelancer,
        "begin_time": erasure.begin_time,
        "end_time": erasure.end_time,
        "items": {kind: asdict(item) for kind, item in erasure.items.items()},
        "pending": None if erasure.pending is None else asdict(erasure.pending),
        "document": erasure.document or None,
        "signature": signature.signature if signature else None,
        "key_id": signature.key_id if signature else None,
        "public_key": signature.public_key if signature else None,
    }


def _read(row: Row) -> Erasure:
    pending = row["pending"]
    return Erasure(
        id=ErasureId(row["id"]),
        client=ClientId(row["client"]),
        freelancer=FreelancerId(row["freelancer"]) if row["freelancer"] else None,
        begin_time=row["begin_time"],
        end_time=row["end_time"],
        items={kind: ErasureItem(**item) for kind, item in row["items"].items()},
        pending=None if pending is None else PendingFiles(**pending),
        document=bytes(row["document"]) if row["document"] else b"",
        signature=None
        if row["signature"] is None
        else Signature(key_id=row["key_id"], signature=bytes(row["signature"]), public_key=row["public_key"]),
    )
