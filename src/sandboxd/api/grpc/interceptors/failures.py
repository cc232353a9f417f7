"""Ends every RPC that raised: our errors by their kind, anything else as INTERNAL with a fixed text and an id."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2
from grpc_status import rpc_status
from typing_extensions import override

from sandboxd.api.grpc.errors import status_of, status_of_bug
from sandboxd.api.grpc.rpc import CallInterceptor, ClientGoneError, Rpc
from sandboxd.model.errors import SandboxdError, UnavailableError

log = structlog.get_logger("sandboxd.api")

END_SECONDS = 5.0
"""How long a call's end waits until its client has taken what was written before."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class FailureInterceptor(CallInterceptor):
    """Turns what is raised into a status."""

    @override
    @asynccontextmanager
    async def around(self, rpc: Rpc) -> AsyncIterator[None]:
        """Run the call, and end it with a status where it raised."""
        try:
            yield
        except asyncio.CancelledError:
            if not _is_cancelled():
                await _end_interrupted(rpc)
            rpc.code, rpc.reason = grpc.StatusCode.CANCELLED, "CANCELLED"
            raise
        except grpc.aio.AbortError:
            raise
        except SandboxdError as error:
            await _end(rpc, status_of(error, request_id=request_id_of(rpc)), error.reason)
        except ClientGoneError:
            _client_gone(rpc)
        except BaseExceptionGroup as group:
            ours, rest = group.split(SandboxdError)
            if group.subgroup(ClientGoneError) is not None:
                _client_gone(rpc)
            elif ours is not None and rest is None:
                first = first_of(ours)
                await _end(rpc, status_of(first, request_id=request_id_of(rpc)), first.reason)
            else:
                await _end_bug(rpc, group)
        except Exception as error:  # noqa: BLE001  one of the three places: whatever it is, the caller gets a status
            await _end_bug(rpc, error)


def first_of(group: BaseExceptionGroup[SandboxdError]) -> SandboxdError:
    """Return the first error of a group of ours: tasks of one call fail together, and the first is the cause."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, SandboxdError):
        raise TypeError("the group holds errors that are not ours")
    return found


def request_id_of(rpc: Rpc) -> str:
    """Return the caller's request id, where the call has one."""
    given = getattr(rpc.request, "request_id", "")
    return given if isinstance(given, str) else ""


def make_error_id() -> str:
    """Make an id by which a bug is found in the log."""
    return f"err-{secrets.token_hex(8)}"


def _client_gone(rpc: Rpc) -> NoReturn:
    """End a call that nobody waits for, as grpc.aio itself does when it notices first."""
    rpc.code, rpc.reason = grpc.StatusCode.CANCELLED, "CLIENT_GONE"
    raise asyncio.CancelledError


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _end_interrupted(rpc: Rpc) -> None:
    """End a call that nobody cancelled, but that waited for something that was.

    grpc.aio would send no status for it, and its caller would wait for ever.
    """
    log.warning("rpc.interrupted", method=rpc.method)
    error = UnavailableError("The server ended this work before it was done. Repeat the call with its request id.")
    await _end(rpc, status_of(error, request_id=request_id_of(rpc)), error.reason)


async def _end_bug(rpc: Rpc, error: BaseException) -> None:
    error_id = make_error_id()
    log.error("rpc.failed_unexpectedly", method=rpc.method, error_id=error_id, exc_info=error)
    rpc.facts["error_id"] = error_id
    await _end(rpc, status_of_bug(error_id=error_id, request_id=request_id_of(rpc)), "INTERNAL")


async def _end(rpc: Rpc, status: status_pb2.Status, reason: str) -> None:
    rpc.code, rpc.reason = _CODES[status.code], reason
    try:
        async with asyncio.timeout(END_SECONDS):
            await rpc.context.abort_with_status(rpc_status.to_status(status))
    except TimeoutError:
        # The client reads nothing. gRPC has the status, behind what it could not send yet; nobody waits for that.
        raise asyncio.CancelledError from None
