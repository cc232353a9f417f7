"""What is in use, counted for quotas. Used within one transaction, under the client's lock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from sandboxd.manager.account_ports import QuotaRepository
from sandboxd.model.ids import ClientId, FreelancerId, RequestId, SessionId
from sandboxd.model.quota import SandboxesInUse
from sandboxd.model.sandbox import TIER_RESOURCES, Tier
from sandboxd.persistence.errors import translated
from sandboxd.persistence.liveness import is_living
from sandboxd.persistence.tables.conversations import OPEN_TURN

_SANDBOXES: Final = """
    SELECT tier, count(*) AS number FROM sandboxes
    WHERE client = :client AND state <> 'TERMINATED' AND (CAST(:freelancer AS text) IS NULL OR freelancer = :freelancer)
    GROUP BY tier
"""
# A session whose turn is durable and whose place was not given back yet is one session. The open turns of all clients
# are few, and have an index of their own.
_TURNS: Final = f"""
    SELECT count(*) FROM (
        SELECT t.session FROM turns AS t JOIN sessions AS s ON s.id = t.session
        WHERE t.{OPEN_TURN} AND s.client = :client
            AND (CAST(:freelancer AS text) IS NULL OR s.freelancer = :freelancer)
        UNION
        SELECT session FROM turn_places
        WHERE client = :client AND lease_until > clock_timestamp() AND (replica = '' OR {is_living("replica")})
            AND (CAST(:freelancer AS text) IS NULL OR freelancer = :freelancer)
    ) AS busy WHERE session <> :but
"""  # noqa: S608  constant text
_TAKE: Final = """
    INSERT INTO turn_places (client, request_id, freelancer, session, lease_until, replica)
    VALUES (:client, :request_id, :freelancer, :session, clock_timestamp() + :lease, :replica)
    ON CONFLICT (client, request_id)
        DO UPDATE SET lease_until = excluded.lease_until, replica = excluded.replica
"""
_GIVE_BACK: Final = """
    DELETE FROM turn_places WHERE client = :client AND (request_id = :request_id OR lease_until <= clock_timestamp())
"""


class PostgresQuotaRepository(QuotaRepository):
    """Counts of one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @override
    async def sandboxes(self, client: ClientId, *, freelancer: FreelancerId | None = None) -> SandboxesInUse:
        with translated():
            rows = await self._connection.execute(text(_SANDBOXES), {"client": client, "freelancer": freelancer})
        numbers = {Tier(row.tier): row.number for row in rows}
        return SandboxesInUse(
            count=sum(numbers.values()),
            storage_bytes=sum(TIER_RESOURCES[tier].storage_bytes * number for tier, number in numbers.items()),
        )

    @override
    async def turns(self, client: ClientId, *, freelancer: FreelancerId | None = None, but: SessionId) -> int:
        values = {"client": client, "freelancer": freelancer, "but": but}
        with translated():
            found: int = (await self._connection.execute(text(_TURNS), values)).scalar_one()
        return found

    @override
    async def take_place(
        self,
        client: ClientId,
        request_id: RequestId,
        freelancer: FreelancerId,
        session: SessionId,
        *,
        lease: timedelta,
        replica: str,
    ) -> None:
        await self._execute(
            _TAKE,
            client=client,
            request_id=request_id,
            freelancer=freelancer,
            session=session,
            lease=lease,
            replica=replica,
        )

    @override
    async def give_back(self, client: ClientId, request_id: RequestId) -> None:
        await self._execute(_GIVE_BACK, client=client, request_id=request_id)

    async def _execute(self, statement: str, **values: Any) -> None:  # Any: parameters of any type
        with translated():
            await self._connection.execute(text(statement), values)
