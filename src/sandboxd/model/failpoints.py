"""Named places in the code where a test can break the process. They do nothing unless a test sets them.

`SANDBOXD_FAILPOINTS` holds `name=action` pairs, separated by commas. Actions: `exit9` (SIGKILL to this process),
`error` (raise `FailpointError`), `sleep:SECONDS` and `hang` (the whole process stands still, like a stalled replica).
`action@N` strikes at the N-th pass only. This is the one place of the model that looks at the process around it.
"""

from __future__ import annotations

import os
import signal
import time
from functools import lru_cache

VARIABLE = "SANDBOXD_FAILPOINTS"
_passes: dict[str, int] = {}


class FailpointError(Exception):
    """A test made this place fail."""


def failpoint(name: str) -> None:
    """Pass a named place; break there if a test asked for it."""
    setting = os.environ.get(VARIABLE)
    if not setting:
        return
    action = _actions(setting).get(name)
    if action is None:
        return
    _passes[name] = _passes.get(name, 0) + 1
    verb, _, at = action.partition("@")
    if at and int(at) != _passes[name]:
        return
    _strike(name, verb)


def _strike(name: str, verb: str) -> None:
    kind, _, argument = verb.partition(":")
    if kind == "exit9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "error":
        raise FailpointError(name)
    elif kind == "sleep":
        time.sleep(float(argument))
    elif kind == "hang":
        while True:
            time.sleep(3600)
    else:
        raise ValueError(f"{VARIABLE}: {name} has no action named {verb}")


@lru_cache(maxsize=4)
def _actions(setting: str) -> dict[str, str]:
    return {name.strip(): action.strip() for name, _, action in (pair.partition("=") for pair in setting.split(","))}
