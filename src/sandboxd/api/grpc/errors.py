"""From our errors to gRPC statuses with google.rpc details. The only place that knows which kind is which code."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from sandboxd.model.errors import (
    ErrorKind,
    ExhaustedError,
    ForbiddenError,
    InvalidRequestError,
    SandboxdError,
    UnavailableError,
)

DOMAIN: Final = "sandboxd.dev"
"""Domain of every ErrorInfo."""

CODES: Final[Mapping[ErrorKind, grpc.StatusCode]] = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.ABSENT: grpc.StatusCode.NOT_FOUND,
    ErrorKind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorKind.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.CONFLICT: grpc.StatusCode.ABORTED,
    ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.OUT_OF_RANGE: grpc.StatusCode.OUT_OF_RANGE,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""Kind of error to gRPC code. Every kind is here; a test holds that."""

INTERNAL_MESSAGE: Final = "Something went wrong inside sandboxd. Quote the error id when you report it."
"""All that a caller learns of a bug of ours."""


class ServerDrainingError(UnavailableError):
    """This server is about to stop; another one, or its next life, goes on."""

    reason = "SERVER_DRAINING"


class ReaderTooSlowError(UnavailableError):
    """The client takes nothing of its stream; nothing is kept for it, and it can come back."""

    reason = "READER_TOO_SLOW"

    def __init__(self, waited: timedelta) -> None:
        super().__init__(
            "You have read nothing of this stream for too long. Nothing is lost: open it again after the last event "
            "that you saw.",
            retry_after=timedelta(seconds=1),
            seconds=f"{waited.total_seconds():g}",
        )


class WatchOnlyError(ForbiddenError):
    """The call was opened to watch only."""

    reason = "WATCH_ONLY"


def status_of(error: SandboxdError, *, request_id: str = "") -> status_pb2.Status:
    """Build the status that a caller gets for an error: its code, its text, and the details for programs."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
    ]
    if isinstance(error, InvalidRequestError) and error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=one.field, description=one.description)
                    for one in error.violations
                ]
            )
        )
    if isinstance(error, ExhaustedError) and error.violations:
        details.append(
            error_details_pb2.QuotaFailure(
                violations=[
                    error_details_pb2.QuotaFailure.Violation(
                        subject=one.subject,
                        description=one.description,
                        quota_metric=one.quota,
                        quota_value=one.limit or 0,
                    )
                    for one in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return _status(CODES[error.kind], error.message, details)


def status_of_bug(*, error_id: str, request_id: str = "") -> status_pb2.Status:
    """Build the status of an unexpected exception: a fixed text, and an id that finds it in the log."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id}),
    ]
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    return _status(grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE, details)


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    number: int = code.value[0]
    return status_pb2.Status(code=number, message=message, details=packed)
