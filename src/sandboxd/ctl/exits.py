"""What the exit codes mean. They are part of the contract with scripts: docs/sandboxctl.md lists them."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of sandboxctl."""

    OK = 0
    FAILED = 1
    """The operation or the turn failed."""
    USAGE = 2
    """A wrong command line, or an argument that the service does not accept."""
    NOT_FOUND = 3
    """The sandbox or session does not exist, or is somebody else's."""
    AUTH = 4
    """No token, a token that is not accepted, or one that may not do this."""
    UNAVAILABLE = 5
    """The service does not answer, or not in time."""
    WRONG_STATE = 6
    """The present state does not allow it, or somebody else is at it."""
    REFUSED = 7
    """A permission was refused, or the model refused to answer."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE = 141
    """Who read the output went away."""


_BY_CODE = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "OUT_OF_RANGE": Exit.USAGE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "UNAUTHENTICATED": Exit.AUTH,
    "PERMISSION_DENIED": Exit.AUTH,
    "UNAVAILABLE": Exit.UNAVAILABLE,
    "DEADLINE_EXCEEDED": Exit.UNAVAILABLE,
    "FAILED_PRECONDITION": Exit.WRONG_STATE,
    "ABORTED": Exit.WRONG_STATE,
    "ALREADY_EXISTS": Exit.WRONG_STATE,
}

_BY_STOP_REASON = {
    "STOP_REASON_END_TURN": Exit.OK,
    "STOP_REASON_REFUSAL": Exit.REFUSED,
}


def of_status(code: str) -> Exit:
    """Return the exit code of a gRPC status, by its name."""
    return _BY_CODE.get(code, Exit.FAILED)


def of_stop_reason(reason: str) -> Exit:
    """Return the exit code of a turn, by the name of its stop reason."""
    return _BY_STOP_REASON.get(reason, Exit.FAILED)
