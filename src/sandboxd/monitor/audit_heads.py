"""Signs where the chains are, now and then, and keeps that inside and outside the database.

A chain alone cannot show that its end was cut off. A signed head that somebody else keeps can.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.model.audit import SignedHead
from sandboxd.model.errors import UnavailableError
from sandboxd.model.sources import Clock
from sandboxd.monitor.audit_ports import AuditKeys, AuditReader, ChainHead, HeadExport

log = structlog.get_logger(__name__)

BATCH: Final = 500


class HeadSigner:
    """Signs the ends of chains that have moved."""

    def __init__(
        self, *, reader: AuditReader, keys: AuditKeys, export: HeadExport, clock: Clock, interval: timedelta
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._export = export
        self._clock = clock
        self._interval = interval

    async def run(self) -> None:
        """Sign for ever; owned by the service's task group."""
        while True:
            await self.sign_quietly()
            await asyncio.sleep(self._interval.total_seconds())

    async def sign_quietly(self) -> None:
        """Sign, and log where that is not possible now."""
        try:
            await self.sign()
        except (UnavailableError, OSError) as error:
            log.error("audit.heads_not_signed", error=str(error))  # noqa: TRY400  a cause that is known

    async def sign(self) -> int:
        """Sign every chain that has moved since; answers how many.

        Raises:
            DatabaseUnavailableError: The chains cannot be read, or the heads not be written.
            OSError: The export cannot be written.
        """
        signed = 0
        while found := await self._reader.unsigned(self._keys.key_id, limit=BATCH):
            heads = [self._sign(head) for head in found]
            # Outside first: a head that only the database has proves nothing against the database.
            await self._export.append(heads)
            await self._reader.add_heads(heads)
            signed += len(heads)
            if len(found) < BATCH:
                break
        return signed

    def _sign(self, head: ChainHead) -> SignedHead:
        return sign_head(head, keys=self._keys, clock=self._clock)


def sign_head(head: ChainHead, *, keys: AuditKeys, clock: Clock) -> SignedHead:
    """Sign the end of a chain."""
    unsigned = SignedHead(
        chain=head.chain,
        sequence=head.sequence,
        hash=head.hash,
        time=clock.now(),
        key_id=keys.key_id,
        signature=b"",
    )
    return replace(unsigned, signature=keys.sign(unsigned.message()))
