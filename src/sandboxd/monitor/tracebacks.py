"""Tracebacks that can be shown: where and of what kind an error is, and never what it held.

The text of a foreign error repeats data: PostgreSQL quotes the failing row, a parser its input, `KeyError` the key. So
of errors that are not ours only those of Python's own kinds that speak of code are shown with their text. Local
variables are never shown.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from sandboxd.model.errors import SandboxdError

MAX_CHAIN: Final = 8
"""Causes that are followed, one below the other."""
MAX_GROUP: Final = 5
"""Errors of a group that are shown."""
_OF_CODE: Final = (AttributeError, ImportError, NameError, NotImplementedError, RecursionError, TypeError)

ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def render(error: BaseException) -> str:
    """Write an error with its causes, the first cause first."""
    return "".join(_lines(error, depth=0)).rstrip("\n")


def shown(error: BaseException) -> str:
    """Write one error: its kind, and its text where that can hold no data."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, SandboxdError):
        return f"{kind}: {error.message}"
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and error.strerror:
        return f"{kind}: [Errno {error.errno}] {error.strerror}"
    if type(error) in _OF_CODE:
        return f"{kind}: {error}"
    state = getattr(error, "sqlstate", None)
    return f"{kind}: SQLSTATE {state}" if isinstance(state, str) else kind


def _lines(error: BaseException, *, depth: int) -> Iterator[str]:
    if depth >= MAX_CHAIN:
        yield "...\n"
        return
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _lines(cause, depth=depth + 1)
        yield "\nwhich led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{shown(error)}\n"
    if isinstance(error, BaseExceptionGroup):
        for number, one in enumerate(error.exceptions[:MAX_GROUP], start=1):
            yield f"  --- {number} of {len(error.exceptions)} ---\n"
            for line in _lines(one, depth=depth + 1):
                yield "".join(f"  {part}" for part in line.splitlines(keepends=True))
