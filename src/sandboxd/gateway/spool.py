"""Settlements that the ledger could not take, kept on disk until it can: nothing that was used is forgotten.

One file a settlement, written beside its name, synced, and renamed; a crash leaves either all of it or a draft that is
ignored. Settling is repeat-safe, so a file may be tried any number of times and by more than one gateway.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from sandboxd.model.money import Money
from sandboxd.model.usage import CallError, TokenCounts, UsageEventId, UsageState
from sandboxd.monitor.ports import Settlement

_log = structlog.get_logger()
_SUFFIX: Final = ".settlement"


class SettlementSpool:
    """A bounded directory of settlements, with a copy in memory."""

    def __init__(self, directory: Path, *, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._waiting: dict[UsageEventId, Settlement] = {}
        self._unsaved: set[UsageEventId] = set()
        self._lock = asyncio.Lock()

    @property
    def full(self) -> bool:
        """True where no further call may begin, because its settlement might not find room."""
        return len(self._waiting) >= self._limit

    def __len__(self) -> int:
        """Return how many settlements wait."""
        return len(self._waiting)

    @property
    def oldest(self) -> datetime | None:
        """When the call ended whose settlement waits longest; None where none waits."""
        return min((settlement.end_time for settlement in self._waiting.values()), default=None)

    async def load(self) -> None:
        """Take over what an earlier life left."""
        async with self._lock:
            self._waiting.update(await asyncio.to_thread(_load, self._directory))

    async def keep(self, event: UsageEventId, settlement: Settlement) -> None:
        """Keep one settlement; durable when this returns, unless the disk fails, which is logged and tried again."""
        self._waiting[event] = settlement
        async with self._lock:
            await self._save(event)

    async def waiting(self) -> list[tuple[UsageEventId, Settlement]]:
        """List what waits, oldest first; what could not be saved before is tried again."""
        async with self._lock:
            for event in [*self._unsaved]:
                await self._save(event)
        return sorted(self._waiting.items())

    async def drop(self, event: UsageEventId) -> None:
        """Forget a settlement: the ledger has it."""
        async with self._lock:
            self._waiting.pop(event, None)
            self._unsaved.discard(event)
            await asyncio.to_thread(self._path(event).unlink, missing_ok=True)

    async def _save(self, event: UsageEventId) -> None:
        try:
            await asyncio.to_thread(_write, self._path(event), _encode(self._waiting[event]))
        except OSError as error:
            if event not in self._unsaved:
                _log.error("gateway.settlement_not_saved", usage_event=event, error=type(error).__name__)
            self._unsaved.add(event)
        else:
            self._unsaved.discard(event)

    def _path(self, event: UsageEventId) -> Path:
        return self._directory / f"{event}{_SUFFIX}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(directory: Path) -> dict[UsageEventId, Settlement]:
    found: dict[UsageEventId, Settlement] = {}
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            found[UsageEventId(path.name.removesuffix(_SUFFIX))] = _decode(path.read_bytes())
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("gateway.settlement_unreadable", file=path.name, error=type(error).__name__)
    return found


def _encode(settlement: Settlement) -> bytes:
    tokens = settlement.tokens
    first = settlement.first_byte_time
    return json.dumps(
        {
            "state": settlement.state.value,
            "tokens": [tokens.prompt, tokens.cached, tokens.output, tokens.thoughts, tokens.tool_use, tokens.total],
            "model_version": settlement.model_version,
            "http_status": settlement.http_status,
            "finish_reason": settlement.finish_reason,
            "block_reason": settlement.block_reason,
            "cost": [settlement.cost.micros, settlement.cost.currency] if settlement.cost else None,
            "price_id": settlement.price_id,
            "first_byte_time": first.isoformat() if first else None,
            "end_time": settlement.end_time.isoformat(),
            "error_reason": settlement.error_reason.value if settlement.error_reason else None,
        }
    ).encode()


def _decode(data: bytes) -> Settlement:
    kept = json.loads(data)
    prompt, cached, output, thoughts, tool_use, total = kept["tokens"]
    first, cost, error = kept["first_byte_time"], kept["cost"], kept["error_reason"]
    return Settlement(
        state=UsageState(kept["state"]),
        tokens=TokenCounts(
            prompt=prompt, cached=cached, output=output, thoughts=thoughts, tool_use=tool_use, total=total
        ),
        model_version=kept["model_version"],
        http_status=kept["http_status"],
        finish_reason=kept["finish_reason"],
        block_reason=kept["block_reason"],
        cost=Money(micros=cost[0], currency=cost[1]) if cost else None,
        price_id=kept["price_id"],
        first_byte_time=datetime.fromisoformat(first) if first else None,
        end_time=datetime.fromisoformat(kept["end_time"]),
        error_reason=CallError(error) if error else None,
    )
