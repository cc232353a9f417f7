"""Small duties that run beside the API."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId
from sandboxd.model.package_history import HISTORY_KEPT_FOR
from sandboxd.persistence.engine import Database
from sandboxd.persistence.retention import forget_commands, forget_notices, forget_package_changes
from sandboxd.stream.billing import TurnBills
from sandboxd.stream.ports import Wakeups

log = structlog.get_logger("sandboxd.bootstrap")

_HINT_RETRY_SECONDS: Final = 1.0
RETENTION_SECONDS: Final = 3600.0
"""How often request ids of streams that are older than their 30 days are forgotten."""
RETENTION_BATCH: Final = 1000


async def usage_hints(wakeups: Wakeups, bills: TurnBills) -> None:
    """Tell the turns about calls that the gateway wrote, until cancelled."""
    while True:
        try:
            async for sandbox in wakeups.listen("usage"):
                bills.hint(SandboxId(sandbox))
        except UnavailableError as error:
            log.warning("usage.hints_interrupted", error=error.message)
        await asyncio.sleep(_HINT_RETRY_SECONDS)


async def forget_old_commands(database: Database) -> None:
    """Forget what nobody asks for any more, now and then, until cancelled."""
    while True:
        try:
            while await forget_commands(database, limit=RETENTION_BATCH) == RETENTION_BATCH:
                await asyncio.sleep(0)
            while await forget_notices(database, limit=RETENTION_BATCH) == RETENTION_BATCH:
                await asyncio.sleep(0)
            while (
                await forget_package_changes(database, kept_for=HISTORY_KEPT_FOR, limit=RETENTION_BATCH)
                == RETENTION_BATCH
            ):
                await asyncio.sleep(0)
        except UnavailableError as error:
            log.warning("retention.interrupted", error=error.message)
        await asyncio.sleep(RETENTION_SECONDS)
