"""Errors on the wire between service and agent: one table for both directions.

The agent sends a status with a google.rpc.ErrorInfo of our domain; the client turns it back into the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from sandboxd.model.errors import (
    AgentUnavailableError,
    DeadlineError,
    ErrorKind,
    ExhaustedError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    NotImplementedYetError,
    OutOfRangeError,
    SandboxdError,
    UnavailableError,
    WrongStateError,
)
from sandboxd.model.image_errors import (
    CaptureRunningError,
    CaptureUnsupportedError,
    PackageManagerBusyError,
    PackagesInterruptedError,
)
from sandboxd.stream import agent_port as port

DOMAIN: Final = "agent.sandboxd.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"
INTERNAL_TEXT: Final = "The agent has failed inside. Its log says more."

CODES: Final[Mapping[ErrorKind, grpc.StatusCode]] = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.ABSENT: grpc.StatusCode.NOT_FOUND,
    ErrorKind.EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorKind.WRONG_STATE: grpc.StatusCode.FAILED_PRECONDITION,
    # A stale epoch does not pass by trying again, so the contract says FAILED_PRECONDITION and not ABORTED.
    ErrorKind.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.OUT_OF_RANGE: grpc.StatusCode.OUT_OF_RANGE,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.TOO_SLOW: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}

_PLAIN: Final[tuple[type[SandboxdError], ...]] = (
    CaptureRunningError,
    CaptureUnsupportedError,
    InvalidRequestError,
    PackageManagerBusyError,
    PackagesInterruptedError,
    port.AgentFrozenError,
    port.AgentStoppingError,
    port.ArchiveInvalidError,
    port.CopyLimitError,
    port.DiskFullError,
    port.FreezeIncompleteError,
    port.NoTerminalError,
    port.PathEscapesError,
    port.PathNotFoundError,
    port.PeerRefusedError,
    port.ProcessExitedError,
    port.ProcessNotFoundError,
    port.ProcessRunningError,
    port.ProcessSpecDiffersError,
    port.ProcessStartError,
    port.StdinClosedError,
    port.TooManyProcessesError,
)
_BY_REASON: Final = {kind.reason: kind for kind in _PLAIN}
_BY_CODE: Final[Mapping[grpc.StatusCode, type[SandboxdError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedYetError,
}


def to_status(error: SandboxdError) -> Status:
    """Write an error as a status; an internal one gets a fixed text."""
    internal = error.kind is ErrorKind.INTERNAL
    info = ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={} if internal else error.metadata)
    packed = AnyMessage()
    packed.Pack(info)
    code: int = CODES[error.kind].value[0]
    return Status(code=code, message=INTERNAL_TEXT if internal else error.message, details=[packed])


def from_rpc_error(error: Exception) -> SandboxdError:
    """Read what a call to an agent ended with."""
    if isinstance(error, grpc.aio.UsageError):
        return AgentUnavailableError("The connection to the agent is closed.")
    if not isinstance(error, grpc.aio.AioRpcError):
        return InternalError("The call to the agent ended in an unknown way.")
    text = error.details() or "The agent gave no reason."
    info = _error_info(error)
    if info is not None:
        return _from_info(text, info, error.code())
    match error.code():
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError("The agent did not answer in time.")
        case (
            grpc.StatusCode.UNAVAILABLE
            | grpc.StatusCode.CANCELLED
            | grpc.StatusCode.UNKNOWN
            | grpc.StatusCode.INTERNAL  # gRPC's own ("Internal error from Core"): the agent's says its reason
        ):
            return AgentUnavailableError(f"The agent does not answer: {text}", retry_after=timedelta(seconds=1))
        case code if code in _BY_CODE:
            return _BY_CODE[code](text)
        case _:
            return InternalError(text)


def _from_info(text: str, info: ErrorInfo, code: grpc.StatusCode) -> SandboxdError:
    metadata = dict(info.metadata)
    match info.reason:
        case port.StaleEpochError.reason:
            return port.StaleEpochError(text, highest_epoch=_number(metadata, "highest_epoch"))
        case port.StdinGapError.reason:
            return port.StdinGapError(text, stdin_length=_number(metadata, "stdin_length"))
        case port.OutputBeyondEndError.reason:
            return port.OutputBeyondEndError(text, end_offset=_number(metadata, "end_offset"))
        case reason if reason in _BY_REASON:
            return _BY_REASON[reason](text, **metadata)
        case _:  # a newer agent's reason: the code still tells the kind
            kind = UnavailableError if code is grpc.StatusCode.UNAVAILABLE else _BY_CODE.get(code, InternalError)
            return kind(text, **metadata)


def _number(metadata: Mapping[str, str], name: str) -> int:
    value = metadata.get(name, "")
    return int(value) if value.isdigit() else 0


def _error_info(error: grpc.aio.AioRpcError) -> ErrorInfo | None:
    for key, value in error.trailing_metadata() or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        info = ErrorInfo()
        for detail in Status.FromString(value).details:
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    return None
