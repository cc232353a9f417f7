"""What the HTTP library complains of, in a log that stays small: one line in a while, with a number and a kind.

Its own lines hold raw bytes of the request and a traceback: ten thousand garbage requests would write 30 MB, and a
secret that somebody sent to the wrong port would be kept.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import structlog
from typing_extensions import override

log = structlog.get_logger("sandboxd.web")

EVERY_SECONDS: Final = 10.0


class Complaints(logging.Handler):
    """Counts complaints, and says so now and then."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._count = 0
        self._said = float("-inf")

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        now = time.monotonic()
        if now - self._said >= EVERY_SECONDS:
            error = record.exc_info[1] if record.exc_info else None
            log.warning("web.request_refused", error=type(error).__name__ if error else "", count=self._count)
            self._count, self._said = 0, now


def http_logger() -> logging.Logger:
    """Make a logger for an HTTP server: of its own, outside the tree, so that nobody writes what it says."""
    logger = logging.Logger("sandboxd.web.http")  # noqa: LOG001
    logger.addHandler(Complaints())
    return logger
