"""What can go wrong, as one small tree of errors that every room raises and only the edges translate.

A *kind* (`ErrorKind`) decides the gRPC status; a *reason* is the stable word a program may act on; *metadata* holds
every changing word of the message. Messages say what is wrong and what to do, and never name internals.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar


class ErrorKind(enum.Enum):
    """The kinds of failure; `api/grpc/errors.py` maps each to one gRPC status code."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    ABSENT = "absent"
    EXISTS = "exists"
    WRONG_STATE = "wrong_state"
    CONFLICT = "conflict"
    EXHAUSTED = "exhausted"
    OUT_OF_RANGE = "out_of_range"
    UNAVAILABLE = "unavailable"
    TOO_SLOW = "too_slow"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field of a request that breaks a rule."""

    field: str
    """Path of the field, for example `prompt.parts[2].text`."""
    description: str
    """What the rule asks for, in plain words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaViolation:
    """One limit that a request would exceed."""

    subject: str
    """What the limit belongs to, for example `clients/acme`."""
    description: str
    """The limit and the present value, in plain words."""
    quota: str = ""
    """Which limit, for programs, for example `sandboxes`; empty where it has no name."""
    limit: int | None = None
    value: int | None = None
    """What was there before the request."""


class SandboxdError(Exception):
    """Root of every error of ours."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, /, *, retry_after: timedelta | None = None, **metadata: str) -> None:
        """Keep the message for people and the facts for programs.

        Args:
            message: What is wrong and what to do, in plain words.
            retry_after: How long a caller should wait before it tries the same again, where that helps.
            metadata: Every changing word of the message, by name.
        """
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        self.retry_after = retry_after

    def add(self, text: str, /, **metadata: str) -> None:
        """Say what the one who raised it could not know: a sentence more, and its facts."""
        self.message = f"{self.message} {text}"
        self.metadata |= metadata
        self.args = (self.message,)


class InvalidRequestError(SandboxdError):
    """The request breaks rules that do not depend on any state."""

    kind = ErrorKind.INVALID
    reason = "REQUEST_INVALID"

    def __init__(self, message: str, /, *, violations: Sequence[FieldViolation] = (), **metadata: str) -> None:
        super().__init__(message, retry_after=None, **metadata)
        self.violations = tuple(violations)


class RequestIdReusedError(InvalidRequestError):
    """The request id was used before, with another body."""

    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"The request id {request_id} was used for a request with another body. Use a new id for a new request.",
            violations=[FieldViolation(field="request_id", description="must be new for a request with another body")],
            request_id=request_id,
        )


class UnauthenticatedError(SandboxdError):
    """The caller did not prove who it is."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ForbiddenError(SandboxdError):
    """The caller is known and may not do this."""

    kind = ErrorKind.FORBIDDEN
    reason = "FORBIDDEN"


class NotFoundError(SandboxdError):
    """The thing does not exist, or belongs to somebody else."""

    kind = ErrorKind.ABSENT
    reason = "NOT_FOUND"


class SandboxNotFoundError(NotFoundError):
    """No sandbox has this name."""

    reason = "SANDBOX_NOT_FOUND"

    def __init__(self, sandbox: str) -> None:
        super().__init__(f"Sandbox {sandbox} does not exist.", sandbox=sandbox)


class SessionNotFoundError(NotFoundError):
    """No session has this name."""

    reason = "SESSION_NOT_FOUND"

    def __init__(self, session: str) -> None:
        super().__init__(f"Session {session} does not exist.", session=session)


class UsageEventNotFoundError(NotFoundError):
    """No call of the ledger has this id."""

    reason = "USAGE_EVENT_NOT_FOUND"

    def __init__(self, event: str) -> None:
        super().__init__(f"Usage event {event} does not exist.", usage_event=event)


class AlreadyExistsError(SandboxdError):
    """Something with this name is already there."""

    kind = ErrorKind.EXISTS
    reason = "ALREADY_EXISTS"


class WrongStateError(SandboxdError):
    """The thing's present state does not allow the operation."""

    kind = ErrorKind.WRONG_STATE
    reason = "WRONG_STATE"


class InvalidTransitionError(WrongStateError):
    """The sandbox's state does not allow the operation."""

    reason = "SANDBOX_STATE_INVALID"

    def __init__(self, sandbox: str, *, state: str, wanted: str, hint: str = "") -> None:
        text = f"Sandbox {sandbox} is {state} and cannot become {wanted}."
        super().__init__(f"{text} {hint}".strip(), sandbox=sandbox, state=state, wanted=wanted)


class SandboxPausedError(WrongStateError):
    """The sandbox was paused by its owner; no use wakes it."""

    reason = "SANDBOX_PAUSED"

    def __init__(self, sandbox: str) -> None:
        super().__init__(f"Sandbox {sandbox} is paused. Call Resume first.", sandbox=sandbox)


class TurnInProgressError(WrongStateError):
    """The session has an open turn; one turn at a time."""

    reason = "TURN_IN_PROGRESS"

    def __init__(self, session: str, *, turn: str) -> None:
        super().__init__(
            f"Session {session} is working on turn {turn}. Wait for its turn_completed event, or cancel it.",
            session=session,
            turn=turn,
        )


class OpenTurnsError(WrongStateError):
    """The sandbox has open turns, and its compute was to be taken away."""

    reason = "TURN_IN_PROGRESS"

    def __init__(self, sandbox: str, *, turns: int) -> None:
        super().__init__(
            f"Sandbox {sandbox} is working on {turns} open turn(s). Wait for them, cancel them, or ask with force.",
            sandbox=sandbox,
            turns=str(turns),
        )


class PermissionNotOpenError(WrongStateError):
    """The permission request is unknown or was answered already."""

    reason = "PERMISSION_NOT_OPEN"

    def __init__(self, permission: str) -> None:
        super().__init__(
            f"Permission request {permission} is not open: it was answered, or its turn has ended.",
            permission=permission,
        )


class ConflictError(SandboxdError):
    """Somebody else is at it; the same call may succeed later."""

    kind = ErrorKind.CONFLICT
    reason = "CONFLICT"


class StaleEtagError(ConflictError):
    """The caller has seen an older version of the sandbox."""

    reason = "ETAG_STALE"

    def __init__(self, sandbox: str) -> None:
        super().__init__(f"Sandbox {sandbox} was changed by somebody else. Get it again.", sandbox=sandbox)


class StaleOwnerError(ConflictError):
    """Another replica, or a later life of this one, owns the conversation now."""

    reason = "STALE_OWNER"


class ExhaustedError(SandboxdError):
    """A quota or a capacity is spent."""

    kind = ErrorKind.EXHAUSTED
    reason = "EXHAUSTED"

    def __init__(
        self,
        message: str,
        /,
        *,
        violations: Sequence[QuotaViolation] = (),
        retry_after: timedelta | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message, retry_after=retry_after, **metadata)
        self.violations = tuple(violations)


class OutOfRangeError(SandboxdError):
    """An offset or sequence number lies outside what exists."""

    kind = ErrorKind.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class UnavailableError(SandboxdError):
    """Something that this needs does not answer now; try again."""

    kind = ErrorKind.UNAVAILABLE
    reason = "UNAVAILABLE"


class AgentUnavailableError(UnavailableError):
    """The agent in the sandbox does not answer."""

    reason = "AGENT_UNAVAILABLE"


class DatabaseUnavailableError(UnavailableError):
    """PostgreSQL does not answer."""

    reason = "DATABASE_UNAVAILABLE"


class NewerVersionError(UnavailableError):
    """A newer version of the service works on it, in a way that this replica does not know: another one answers."""

    reason = "NEWER_VERSION"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is in the hands of a newer version of the service. Try again: another replica answers.",
            name=name,
            retry_after=timedelta(seconds=1),
        )


class ReplicaCutOffError(UnavailableError):
    """This replica has lost the database for so long that others have taken over what it did: connect anew."""

    reason = "REPLICA_CUT_OFF"


class DeadlineError(SandboxdError):
    """The work did not finish in the time that was given."""

    kind = ErrorKind.TOO_SLOW
    reason = "DEADLINE_EXCEEDED"


class NotImplementedYetError(SandboxdError):
    """The contract names it; this version does not have it."""

    kind = ErrorKind.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"


class InternalError(SandboxdError):
    """A bug of ours."""

    kind = ErrorKind.INTERNAL
    reason = "INTERNAL"
