"""Errors of the API as one typed exception, decoded from google.rpc details.

What a person should do about one is `advice.py`'s business; this module only decodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import grpc
from google.protobuf.any_pb2 import Any as PackedDetail
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from sandboxd.ctl.tls import explain
from sandboxd.model.errors import ErrorKind, SandboxdError
from sandboxd.v1 import stream_pb2

DETAILS_KEY = "grpc-status-details-bin"

_CODES = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One field of the request that breaks a rule, or one limit that it would exceed."""

    field: str
    """Path of the field, or what the limit belongs to."""
    description: str
    """What the rule asks for, in plain words."""


class ApiError(Exception):
    """A call, or a command of a stream, was refused or failed."""

    def __init__(
        self,
        *,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        """Keep everything that the service said.

        Args:
            code: Status code; for a refused command the one that a call with the same reason would have.
            message: What is wrong, for people.
            reason: Constant word, for example `SANDBOX_NOT_FOUND`; empty where the service gave none.
            violations: Fields or limits, all of them.
            metadata: The facts of the message.
            retry_after: How long to wait before the same is tried again, where that helps.
        """
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after


def from_rpc_error(error: grpc.aio.AioRpcError) -> ApiError:
    """Decode the status of a failed call; without details, code and message are all there is."""
    reason, violations, metadata, retry_after = "", list[Violation](), dict[str, str](), None
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations += [Violation(field=each.field, description=each.description) for each in bad.field_violations]
        elif detail.Is(error_details_pb2.QuotaFailure.DESCRIPTOR):
            quota = error_details_pb2.QuotaFailure()
            detail.Unpack(quota)
            violations += [Violation(field=each.subject, description=each.description) for each in quota.violations]
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToTimedelta()
    message = error.details() or f"The call ended with {error.code().name}."
    if error.code() is grpc.StatusCode.UNAVAILABLE and not reason:
        reason, message = explain(message) or (reason, message)
    return ApiError(
        code=error.code(),
        message=message,
        reason=reason,
        violations=violations,
        metadata=metadata,
        retry_after=retry_after,
    )


def from_command_failed(failed: stream_pb2.CommandFailed) -> ApiError:
    """Make the error that a call refused for the same reason would raise."""
    violations = [Violation(field=each.field, description=each.description) for each in failed.violations]
    kind = ErrorKind.INVALID if violations else _kinds().get(failed.reason, ErrorKind.WRONG_STATE)
    return ApiError(
        code=_CODES[kind],
        message=failed.message,
        reason=failed.reason,
        violations=violations,
        metadata=dict(failed.metadata),
    )


def _details(error: grpc.aio.AioRpcError) -> Sequence[PackedDetail]:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return ()
    return ()


@cache
def _kinds() -> dict[str, ErrorKind]:
    return {kind.reason: kind.kind for kind in _leaves(SandboxdError)}


def _leaves(root: type[SandboxdError]) -> Iterator[type[SandboxdError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _leaves(kind)
