"""A new sandbox, its first incarnation if it has one yet, and the request that makes it: one statement.

The client's row is locked meanwhile, and with it the other Creates of the client: each round trip saved counts for all.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import CTE, BindParameter, Select, Table, bindparam, exists, literal, select
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from sandboxd.manager.ports import RequestRecord
from sandboxd.model.sandbox import Incarnation, Sandbox
from sandboxd.persistence.sandbox_rows import incarnation_values, request_values, sandbox_values
from sandboxd.persistence.tables import IncarnationRow, RequestRow, SandboxRow
from sandboxd.persistence.tables.base import table

_KEY = ("client", "request_id")


async def insert_new(
    connection: AsyncConnection, sandbox: Sandbox, incarnation: Incarnation | None, record: RequestRecord
) -> tuple[bool, bool]:
    """Insert all there is; tells whether the request could be claimed, and whether the rest is there then."""
    parts = {"r": request_values(record), "s": sandbox_values(sandbox)}
    if incarnation is not None:
        parts["i"] = incarnation_values(incarnation)
    statement = _statement(*(tuple(part) for part in parts.values()))
    values = {f"{prefix}_{name}": value for prefix, part in parts.items() for name, value in part.items()}
    claimed, made = (await connection.execute(statement, values)).one()
    return claimed, made


def claiming(request: dict[str, Any]) -> Insert:  # Any: values of any type, or their parameters
    """Insert a remembered request, over one of the same key that has expired; else nothing.

    It waits for a transaction that has inserted the same key and has not ended.
    """
    requests = table(RequestRow)
    statement = insert(requests).values(request)
    return statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: statement.excluded[name] for name in request if name not in _KEY},
        where=requests.c.expire_time <= statement.excluded.create_time,
    )


@cache
def _statement(
    request: tuple[str, ...], sandbox: tuple[str, ...], incarnation: tuple[str, ...] = ()
) -> Select[bool, bool]:
    """Made once: SQLAlchemy takes longer to put it together than PostgreSQL to carry it out."""
    claim = claiming(_parameters("r", request, table(RequestRow))).returning(literal(1).label("done")).cte("claim")
    made = _insert_after(claim, "s", sandbox, table(SandboxRow))
    last = _insert_after(made, "i", incarnation, table(IncarnationRow)) if incarnation else made
    return select(exists().select_from(claim), exists().select_from(last))


def _insert_after(before: CTE, prefix: str, names: tuple[str, ...], into: Table) -> CTE:
    row = select(*_parameters(prefix, names, into).values()).where(exists().select_from(before))
    statement = insert(into).from_select(list(names), row).on_conflict_do_nothing()
    return statement.returning(literal(1).label("done")).cte(f"new_{into.name}")


def _parameters(prefix: str, names: tuple[str, ...], of: Table) -> dict[str, BindParameter[Any]]:
    return {name: bindparam(f"{prefix}_{name}", type_=of.c[name].type) for name in names}
