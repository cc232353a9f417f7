"""Errors between replicas: a status as the edge would send it, and back to an error of the same kind and reason."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from sandboxd.api.grpc.errors import CODES, INTERNAL_MESSAGE
from sandboxd.model.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineError,
    ErrorKind,
    ExhaustedError,
    FieldViolation,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    NotImplementedYetError,
    OutOfRangeError,
    QuotaViolation,
    SandboxdError,
    UnauthenticatedError,
    UnavailableError,
    WrongStateError,
)
from sandboxd.stream.moves import PeerUnavailableError

PEER_DOMAIN: Final = "replica.sandboxd.dev"
NOT_OWNER: Final = "NOT_OWNER"
_DETAILS: Final = "grpc-status-details-bin"
_KINDS: Final[dict[ErrorKind, type[SandboxdError]]] = {
    ErrorKind.INVALID: InvalidRequestError,
    ErrorKind.UNAUTHENTICATED: UnauthenticatedError,
    ErrorKind.FORBIDDEN: ForbiddenError,
    ErrorKind.ABSENT: NotFoundError,
    ErrorKind.EXISTS: AlreadyExistsError,
    ErrorKind.WRONG_STATE: WrongStateError,
    ErrorKind.CONFLICT: ConflictError,
    ErrorKind.EXHAUSTED: ExhaustedError,
    ErrorKind.OUT_OF_RANGE: OutOfRangeError,
    ErrorKind.UNAVAILABLE: UnavailableError,
    ErrorKind.TOO_SLOW: DeadlineError,
    ErrorKind.UNIMPLEMENTED: NotImplementedYetError,
    ErrorKind.INTERNAL: InternalError,
}
_BY_NUMBER: Final = {CODES[kind].value[0]: made for kind, made in _KINDS.items()}


def not_owner_status() -> status_pb2.Status:
    """Say that the conversation is not ours: the asker looks for its owner again."""
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason=NOT_OWNER, domain=PEER_DOMAIN))
    number: int = grpc.StatusCode.ABORTED.value[0]
    return status_pb2.Status(code=number, message="This replica does not hold the conversation.", details=[packed])


def error_of(failure: grpc.aio.AioRpcError) -> SandboxdError | None:
    """Read what a call to a replica ended with; None where the replica says that it is not the owner.

    What carries no details of ours did not come from an errand: the replica was not reached, or not understood.
    """
    status = _status_of(failure)
    details = [] if status is None else status.details
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in details):
        return PeerUnavailableError()
    if info.domain == PEER_DOMAIN:
        return None if info.reason == NOT_OWNER else PeerUnavailableError()
    error = _made(status.code, info.reason)(status.message or INTERNAL_MESSAGE)
    error.metadata = dict(info.metadata)
    for detail in details:
        _add(error, detail)
    return error


def _add(error: SandboxdError, detail: AnyMessage) -> None:
    bad, quota = error_details_pb2.BadRequest(), error_details_pb2.QuotaFailure()
    retry = error_details_pb2.RetryInfo()
    if isinstance(error, InvalidRequestError) and detail.Unpack(bad):
        error.violations = tuple(
            FieldViolation(field=one.field, description=one.description) for one in bad.field_violations
        )
    elif isinstance(error, ExhaustedError) and detail.Unpack(quota):
        error.violations = tuple(
            QuotaViolation(subject=one.subject, description=one.description) for one in quota.violations
        )
    elif detail.Unpack(retry):
        error.retry_after = retry.retry_delay.ToTimedelta()


@lru_cache(maxsize=256)
def _made(code: int, reason: str) -> type[SandboxdError]:
    """A class of that kind with that reason: reasons are what callers act on, and a newer replica may have new ones."""
    kind = _BY_NUMBER.get(code, InternalError)
    return kind if kind.reason == reason else type(f"Forwarded{kind.__name__}", (kind,), {"reason": reason})


def _status_of(failure: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None
