"""What a request came to: how its error is kept, and how a kept error is raised again."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxd.manager.ports import ErrorRecord
from sandboxd.model.errors import SandboxdError


def record_error(error: SandboxdError) -> ErrorRecord:
    """Note an error so that a repeated request can be answered with it."""
    return ErrorRecord(
        kind=error.kind,
        reason=error.reason,
        message=error.message,
        metadata=dict(error.metadata),
        retry_after=error.retry_after,
    )


def restore_error(record: ErrorRecord) -> SandboxdError:
    """Build the error that was noted: of its own class where that still exists, else one with its kind and reason."""
    leaf = next((c for c in _descendants(SandboxdError) if (c.kind, c.reason) == (record.kind, record.reason)), None)
    if leaf is None:
        leaf = type("RecordedError", (SandboxdError,), {"kind": record.kind, "reason": record.reason})
    error = leaf.__new__(leaf, record.message)
    # The leaf's own constructor builds the message from parts that are not kept apart; the root's takes it as it is.
    SandboxdError.__init__(error, record.message, retry_after=record.retry_after, **record.metadata)
    for name in ("violations",):  # what some kinds carry beside it, empty here
        if not hasattr(error, name):
            setattr(error, name, ())
    return error


def _descendants(root: type[SandboxdError]) -> Iterator[type[SandboxdError]]:
    for child in root.__subclasses__():
        yield child
        yield from _descendants(child)
