"""What is known of the clients' API keys. Used within one transaction."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.key_ports import KeyRepository
from sandboxd.model.api_key import ApiKey, ApiKeyState
from sandboxd.model.ids import ClientId
from sandboxd.persistence.errors import translated
from sandboxd.persistence.tables import ApiKeyRow, UsageEventRow
from sandboxd.persistence.tables.base import table

_KEYS: Final = table(ApiKeyRow)
_CALLS: Final = table(UsageEventRow)


class PostgresKeyRepository(KeyRepository):
    """Rows about keys of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def find(self, client: ClientId, *, for_update: bool = False) -> ApiKey | None:
        statement = select(_KEYS).where(_KEYS.c.client == client)
        if for_update:
            statement = statement.with_for_update()
        with translated():
            row = (await self._connection.execute(statement)).mappings().one_or_none()
            if row is None:
                return None
            calls = select(func.max(_CALLS.c.start_time)).where(
                _CALLS.c.client == client, _CALLS.c.start_time >= row["set_time"]
            )
            last_use = (await self._connection.execute(calls)).scalar_one()
        return ApiKey(
            client=client,
            state=ApiKeyState(row["state"]),
            fingerprint=row["fingerprint"],
            previous_fingerprint=row["previous_fingerprint"],
            previous_expire_time=row["previous_expire_time"],
            generation=row["generation"],
            set_time=row["set_time"],
            rotate_time=row["rotate_time"],
            revoke_time=row["revoke_time"],
            last_use_time=last_use,
        )

    @override
    async def save(self, key: ApiKey) -> None:
        values = {
            "client": key.client,
            "state": key.state.value,
            "fingerprint": key.fingerprint,
            "previous_fingerprint": key.previous_fingerprint,
            "previous_expire_time": key.previous_expire_time,
            "generation": key.generation,
            "set_time": key.set_time,
            "rotate_time": key.rotate_time,
            "revoke_time": key.revoke_time,
        }
        statement = insert(_KEYS).values(values).on_conflict_do_update(index_elements=["client"], set_=values)
        with translated():
            await self._connection.execute(statement)
