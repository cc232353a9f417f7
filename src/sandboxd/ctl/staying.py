"""One long answer over as many calls as it takes: the service restarts, the watch stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import grpc

from sandboxd.ctl.backoff import Backoff, RetryPolicy
from sandboxd.ctl.errors import ApiError, from_rpc_error

_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


async def stay(
    call_again: Callable[[], grpc.aio.UnaryStreamCall[_Request, _Response]],
    *,
    arrived: Callable[[_Response], bool],
    patience: RetryPolicy,
) -> AsyncGenerator[_Response, None]:
    """Yield the answers of one call after the other.

    Args:
        call_again: Makes a call that goes on where the one before ended.
        arrived: Whether an answer shows that the service is there: it ends a series of failures, and only after the
            first one is there anybody to be patient for. A wrong address is told at once.
        patience: How long the service may stay away.

    Raises:
        ApiError: The service refused, or stayed away for longer than patience lasts.
    """
    backoff, first = Backoff(patience), True
    while True:
        call = call_again()
        try:
            async for response in call:
                yield response
                if arrived(response):
                    first = False
                    backoff.reset()
            error = ApiError(code=grpc.StatusCode.UNAVAILABLE, message="The service ended the watch.")
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # grpc.aio tells in this way, too, of a call that the service cancelled.
            error = ApiError(code=grpc.StatusCode.CANCELLED, message="The service cancelled the watch.")
        finally:
            call.cancel()
        delay = backoff.next_delay(at_least=error.retry_after) if error.code in _AWAY and not first else None
        if delay is None:
            raise error
        await asyncio.sleep(delay)
