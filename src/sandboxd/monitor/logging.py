"""How every role logs: structlog, one JSON object a line for machines, coloured lines for people.

The standard library's records (grpc, aiohttp, SQLAlchemy) go through the same renderer. Values under names that hold
secrets are blanked whatever their value is; no room should log them in the first place.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TextIO

import structlog

from sandboxd.model.trace import NO_TRACES, TraceContext
from sandboxd.monitor.tracebacks import ExcInfo, render

BLANKED: Final = frozenset({"authorization", "token", "api_key", "key", "password", "secret", "x-goog-api-key"})
"""Names of pairs whose values are never shown."""

log = structlog.get_logger("sandboxd.monitor")


def configure_logging(*, role: str, style: str, level: str, stream: TextIO | None = None) -> None:
    """Set up logging for this process. Call it once, before the first line.

    Args:
        role: What this process is; a pair of every line.
        style: `json` or `console`.
        level: Least level that is shown.
        stream: Where the lines go; standard error if None, so that standard output stays the program's own.
    """
    target = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _RoleAdder(role),
        _add_place,
        _blank,
    ]
    if style == "json":
        render: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(_render),
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        # Never structlog's own formatter: where rich is installed it prints local variables.
        render = [
            structlog.processors.ExceptionRenderer(_render),
            structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback),
        ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What libraries say at debug level is theirs to choose, headers and parameters too: only ours is shown.
    logging.getLogger("sandboxd").setLevel(level.upper())
    root.setLevel(max(logging.WARNING, logging.getLogger("sandboxd").level))


def log_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what an event loop found that nobody awaited. Its own handler writes the error's text.

    Any: asyncio's own signature.
    """
    error = context.get("exception")
    facts = {} if error is None else {"exc_info": error}
    task = context.get("task") or context.get("future")
    name = task.get_name() if isinstance(task, asyncio.Task) else ""
    log.error("loop.unhandled", what=str(context.get("message", "")), task=name, **facts)


def log_places(current: Callable[[], TraceContext | None]) -> None:
    """Add `trace_id` and `span_id` to every line that is written where something is traced."""
    _Places.current = staticmethod(current)


class _Places:
    """Like the configuration of logging itself, of the whole process."""

    current: Callable[[], TraceContext | None] = staticmethod(NO_TRACES.current)


def _add_place(_logger: Any, _method: str, pairs: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # Any: structlog's own signature.
    place = _Places.current()
    if place is not None:
        pairs.setdefault("trace_id", place.trace_id)
        pairs.setdefault("span_id", place.span_id)
    return pairs


def _render(exc_info: ExcInfo) -> str:
    return render(exc_info[1]) if exc_info[1] is not None else ""


class _RoleAdder:
    def __init__(self, role: str) -> None:
        self._role = role

    def __call__(self, _logger: Any, _method: str, pairs: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # Any: structlog's own signature.
        pairs.setdefault("role", self._role)
        return pairs


def _blank(_logger: Any, _method: str, pairs: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # Any: structlog's own signature.
    for name in pairs:
        if name.lower() in BLANKED:
            pairs[name] = "(blanked)"
    return pairs
