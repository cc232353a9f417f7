"""The audit of one `serve` process: trail, signed heads, keys."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog
from prometheus_client import CollectorRegistry

from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.model.sources import Clock, IdSource
from sandboxd.monitor.audit_desk import AuditDesk
from sandboxd.monitor.audit_heads import HeadSigner
from sandboxd.monitor.audit_trail import GroupedAuditTrail
from sandboxd.monitor.audit_writer import AuditMetrics
from sandboxd.persistence.audit_head_files import DirectoryHeadExport
from sandboxd.persistence.audit_keys import AuditKeyError, FileAuditKeys
from sandboxd.persistence.audit_reading import PostgresAuditReader
from sandboxd.persistence.audit_store import PostgresAuditStore
from sandboxd.persistence.engine import Database
from sandboxd.persistence.roles import bypasses
from sandboxd.settings import Settings, SettingsError

log = structlog.get_logger("sandboxd.bootstrap")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRoom:
    """What the audit of a process is made of."""

    trail: GroupedAuditTrail
    signer: HeadSigner
    desk: AuditDesk

    async def run(self) -> None:
        """Write, sweep and sign until cancelled; owned by the service's task group."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.trail.run(), name="audit-trail")
            tasks.create_task(self.signer.run(), name="audit-heads")

    async def close(self, *, timeout: timedelta) -> None:
        """Write what waits within the time, and sign where the chains are then."""
        await self.trail.close(timeout=timeout)
        await self.signer.sign_quietly()


def make_audit(
    settings: Settings, database: Database, *, clock: Clock, ids: IdSource, replica: str, registry: CollectorRegistry
) -> AuditRoom:
    """Put the audit together.

    Raises:
        SettingsError: Its key cannot be used.
    """
    files = KeyFiles.of(settings)
    try:
        keys = FileAuditKeys(private_file=files.audit_key, public_directory=files.audit_public)
    except AuditKeyError as error:
        raise SettingsError(f"The settings cannot be used:\n  SANDBOXD_AUDIT_KEY_FILE: {error}") from error
    trail = GroupedAuditTrail(
        PostgresAuditStore(database), clock=clock, ids=ids, replica=replica, metrics=AuditMetrics(registry)
    )
    reader = PostgresAuditReader(database)
    outside = DirectoryHeadExport(settings.audit_heads_dir or settings.home / "audit-heads")
    signer = HeadSigner(
        reader=reader,
        keys=keys,
        export=outside,
        clock=clock,
        interval=timedelta(seconds=settings.audit_head_seconds),
    )
    desk = AuditDesk(reader=reader, trail=trail, keys=keys, outside=outside, clock=clock)
    return AuditRoom(trail=trail, signer=signer, desk=desk)


async def warn_of_bypass(database: Database) -> None:
    """Say where this process's role could change what is on record: a database that is set up for trying things out."""
    if way := await bypasses(database):
        log.warning("audit.unprotected", message=f"this role could change audit entries: {way} (docs/audit.md)")
