"""Waiting for a condition instead of sleeping for a fixed time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast, overload

T = TypeVar("T")


@overload
async def eventually(
    check: Callable[[], Awaitable[T]], *, within: float = 5.0, every: float = 0.01, what: str = ""
) -> T: ...
@overload
async def eventually(check: Callable[[], T], *, within: float = 5.0, every: float = 0.01, what: str = "") -> T: ...


async def eventually(
    check: Callable[[], T | Awaitable[T]], *, within: float = 5.0, every: float = 0.01, what: str = ""
) -> T:
    """Return the first truthy result of `check`, asked again until the time is up.

    An assertion that fails inside `check` counts as "not yet", and is what the test shows at the end.

    Raises:
        AssertionError: It did not happen within that many seconds.
    """
    deadline = time.monotonic() + within
    while True:
        failure: AssertionError | None = None
        try:
            result = check()
            if inspect.isawaitable(result):
                result = await result
            if result:
                return cast("T", result)
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within:g} s: {what or inspect.getsource(check).strip()}") from failure
        await asyncio.sleep(every)
