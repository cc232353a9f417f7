"""What an answer of the model API says about itself: usage, model, why it stopped.

Read beside the bytes, never in their way, and never trusted: a wrong type is ignored, a long word is cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from sandboxd.gateway.sse import MAX_EVENT, SseReader
from sandboxd.model.usage import MAX_MODEL_NAME, MAX_WORD, TokenCounts, read_usage

MAX_JSON: Final = 32 << 20
"""Largest body without a stream that is looked into."""


class AnswerReader:
    """Collects what one answer reports, from the events of a stream or from one body."""

    def __init__(self, *, max_event: int = MAX_EVENT) -> None:
        self._sse = SseReader(max_event=max_event)
        self.usage: TokenCounts | None = None
        """The last usage reported; figures are cumulative, so the last one counts."""
        self.model_version: str | None = None
        self.finish_reason: str | None = None
        self.block_reason: str | None = None
        self.malformed = 0
        """Events or bodies that could not be read."""
        self.failed = False
        """True where an error came inside a stream that had begun well."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of a stream."""
        for data in self._sse.feed(chunk):
            self._read(data)

    def end(self) -> None:
        """Take the end of a stream, however it came."""
        if (data := self._sse.end()) is not None:
            self._read(data)
        self.malformed += self._sse.skipped

    def read_body(self, body: bytes) -> None:
        """Take a whole body without a stream."""
        if len(body) > MAX_JSON:
            self.malformed += 1
        elif body:
            self._read(body)

    def _read(self, data: bytes) -> None:
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            self.malformed += 1
            return
        if not isinstance(message, Mapping):
            self.malformed += 1
            return
        self.usage = read_usage(message.get("usageMetadata")) or self.usage
        self.model_version = _word(message.get("modelVersion"), MAX_MODEL_NAME) or self.model_version
        feedback = message.get("promptFeedback")
        if isinstance(feedback, Mapping):
            self.block_reason = _word(feedback.get("blockReason"), MAX_WORD) or self.block_reason
        candidates = message.get("candidates")
        if isinstance(candidates, list) and candidates and isinstance(candidates[0], Mapping):
            self.finish_reason = _word(candidates[0].get("finishReason"), MAX_WORD) or self.finish_reason
        self.failed = self.failed or isinstance(message.get("error"), Mapping)


def _word(value: object, limit: int) -> str | None:
    """Keep a word of the API, made safe for a log and a database."""
    if not isinstance(value, str):
        return None
    return "".join(sign for sign in value[:limit] if sign.isascii() and sign.isprintable()) or None
