"""The agent's log: one JSON object a line on standard error, with the standard library alone."""

from __future__ import annotations

import json
import logging

from typing_extensions import override

from sandboxd.agent.clock import now
from sandboxd.monitor.tracebacks import render


class JsonFormatter(logging.Formatter):
    """Writes a record with the pairs given as `extra={"fields": {...}}`."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": now().isoformat(), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = render(record.exc_info[1])
        return json.dumps(line, default=str)


def configure_logs() -> None:
    """Send everything from `info` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
