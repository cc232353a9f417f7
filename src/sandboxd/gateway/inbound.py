"""Reads a request's body within bounds, and what the reservation needs from it.

The body is held in memory until it is sent on: the ledger row comes before the call, and the row needs its size. What
all calls together may hold is bounded; beyond it the gateway says "busy" instead of growing.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from sandboxd.gateway.refusals import RefusalReason, refuse
from sandboxd.model.usage import MAX_TOKENS

_PARSED_WHOLE: Final = 1 << 20
"""Bodies up to this are parsed; the CLI's are about 50 KB. Larger ones are searched, which costs no memory."""
_MAX_OUTPUT: Final = re.compile(rb'"max_?[oO]utput_?[tT]okens"\s*:\s*(\d{1,12})')


class BodyMemory:
    """Counts the bytes of bodies that are held, over all calls."""

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Count more bytes.

        Raises:
            RefusedError: All calls together hold too much.
        """
        if self.held + size > self._limit:
            raise refuse(RefusalReason.GATEWAY_BUSY)
        self.held += size

    def give_back(self, size: int) -> None:
        """Count bytes that are no longer held."""
        self.held -= size


class InboundBody:
    """One request's body, while it is held."""

    def __init__(self, *, memory: BodyMemory, limit: int) -> None:
        self._memory = memory
        self._limit = limit
        self._taken = 0
        self.data = b""

    async def read(self, request: web.Request, *, timeout_seconds: float) -> None:
        """Read the whole body.

        Raises:
            RefusedError: It is too large, too slow, or coded; or too many bodies are held.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise refuse(RefusalReason.BODY_INVALID, message="A coded request body is not accepted.")
        if (request.content_length or 0) > self._limit:
            raise refuse(RefusalReason.BODY_TOO_LARGE)
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(timeout_seconds):
                async for piece in request.content.iter_any():
                    self._memory.take(len(piece))
                    self._taken += len(piece)
                    if self._taken > self._limit:
                        raise refuse(RefusalReason.BODY_TOO_LARGE)
                    pieces.append(piece)
        except TimeoutError as error:
            raise refuse(RefusalReason.BODY_TOO_SLOW) from error
        except web.RequestPayloadError as error:
            raise refuse(RefusalReason.BODY_INVALID) from error
        self.data = b"".join(pieces)

    def max_output_tokens(self) -> int | None:
        """Find the wished limit of the output.

        Raises:
            RefusedError: The body is not a JSON object, as far as it was looked at.
        """
        if len(self.data) > _PARSED_WHOLE:
            if not self.data.lstrip(b" \t\r\n").startswith(b"{"):
                raise refuse(RefusalReason.BODY_INVALID)
            # A key cannot occur inside a JSON text value, its quotes would be escaped. The largest of several counts.
            return max((int(found) for found in _MAX_OUTPUT.findall(self.data)), default=None)
        try:
            message = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise refuse(RefusalReason.BODY_INVALID) from error
        if not isinstance(message, Mapping):
            raise refuse(RefusalReason.BODY_INVALID)
        config = message.get("generationConfig") or message.get("generation_config")
        if not isinstance(config, Mapping):
            return None
        wished = config.get("maxOutputTokens", config.get("max_output_tokens"))
        return min(wished, MAX_TOKENS) if isinstance(wished, int) and not isinstance(wished, bool) else None

    def release(self) -> None:
        """Let the bytes go."""
        self.data = b""
        self._memory.give_back(self._taken)
        self._taken = 0


@contextmanager
def held_body(*, memory: BodyMemory, limit: int) -> Iterator[InboundBody]:
    """Hold a body for the time of a block."""
    body = InboundBody(memory=memory, limit=limit)
    try:
        yield body
    finally:
        body.release()
