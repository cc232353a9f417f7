"""The installation as its database knows it: replicas with their locks, gateways with what they reported."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from typing_extensions import override

from sandboxd.manager.administration import GatewayStatus, Installation, InstallationStatus, ReplicaStatus
from sandboxd.model.usage import GatewayId
from sandboxd.monitor.ports import GatewayReport, GatewayReports
from sandboxd.monitor.sweep import GATEWAY_SILENCE
from sandboxd.persistence.census import count_sandboxes
from sandboxd.persistence.engine import Database
from sandboxd.persistence.liveness import is_living
from sandboxd.persistence.push_holds import PostgresPushHolds

_REPLICAS: Final = f"""
    SELECT r.id, r.address, r.draining, r.start_time, {is_living("r.id")} AS living,
        (SELECT count(*) FROM conversations AS c WHERE c.owner = r.id) AS conversations
    FROM replicas AS r ORDER BY r.start_time, r.id
"""  # noqa: S608  constant text
_GATEWAYS: Final = """
    SELECT id, version, circuit, open_calls, spooled, clock_timestamp() - beat_time AS silence
    FROM gateways WHERE beat_time > clock_timestamp() - interval '1 hour' ORDER BY beat_time DESC LIMIT 100
"""
_MARK: Final = "UPDATE replicas SET draining = $2 WHERE id = $1"
_RESET: Final = """
    UPDATE gateways SET reset_time = clock_timestamp()
    WHERE beat_time > clock_timestamp() - $1::interval AND ($2 = '' OR id = $2) RETURNING id
"""
_REPORT: Final = """
    UPDATE gateways SET version = $2, circuit = $3, open_calls = $4, spooled = $5 WHERE id = $1 RETURNING reset_time
"""


class PostgresInstallation(Installation):
    """For `serve`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def status(self) -> InstallationStatus:
        census = await count_sandboxes(self._database)
        gateways = await self._database.fetch(_GATEWAYS)
        return InstallationStatus(
            replicas=await self.replicas(),
            gateways=[
                GatewayStatus(
                    id=row["id"],
                    version=row["version"],
                    living=row["silence"] < GATEWAY_SILENCE,
                    silence=row["silence"],
                    circuit=row["circuit"],
                    open_calls=row["open_calls"],
                    spooled=row["spooled"],
                )
                for row in gateways
            ],
            sandboxes=census.states,
            stuck=census.stuck,
            push_hold=await PostgresPushHolds(self._database).present(),
        )

    @override
    async def replicas(self) -> Sequence[ReplicaStatus]:
        return [
            ReplicaStatus(
                id=row["id"],
                address=row["address"],
                living=row["living"],
                draining=row["draining"],
                conversations=row["conversations"],
                start_time=row["start_time"],
            )
            for row in await self._database.fetch(_REPLICAS)
        ]

    @override
    async def mark_draining(self, replica: str, *, draining: bool) -> None:
        async with self._database.raw() as connection:
            await connection.execute(_MARK, replica, draining)

    @override
    async def reset_circuits(self, gateway: str) -> Sequence[str]:
        async with self._database.raw() as connection:
            rows = await connection.fetch(_RESET, GATEWAY_SILENCE, gateway)
        return sorted(row["id"] for row in rows)


class PostgresGatewayReports(GatewayReports):
    """For the gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    async def report(self, gateway: GatewayId, report: GatewayReport) -> datetime | None:
        async with self._database.raw() as connection:
            reset: datetime | None = await connection.fetchval(
                _REPORT, gateway, report.version, report.circuit, report.open_calls, report.spooled
            )
        return reset
