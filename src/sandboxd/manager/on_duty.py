"""Passes that one replica makes at a time: again and again where it has the duty, whatever one of them comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

import structlog

from sandboxd.manager.lifecycle_ports import Duties
from sandboxd.model.errors import SandboxdError

SHORTEST_LEASE: Final = timedelta(minutes=10)

log = structlog.get_logger(__name__)


async def pass_on_duty(
    duties: Duties,
    duty: str,
    once: Callable[[], Awaitable[object]],
    *,
    pause: timedelta,
    name: str,
    off_duty: Callable[[], None] = lambda: None,
) -> None:
    """Pass again and again where this replica has the duty, until cancelled; not at all where there is no pause.

    Args:
        duties: Who has which.
        duty: The one that is needed.
        once: One pass.
        pause: Between two.
        name: Of a pass in the log: `<name>_failed` and `<name>_broken` say of one that did not come to its end.
        off_duty: Told in place of a pass where another replica has the duty.
    """
    failed, broken = f"{name}_failed", f"{name}_broken"
    while pause:
        try:
            if await duties.take(duty, lease=max(SHORTEST_LEASE, 2 * pause)) is not None:
                await once()
            else:
                off_duty()
        except SandboxdError as error:
            log.warning(failed, error=error.message, reason=error.reason)
        except Exception:  # a loop: one bad pass must not end all that follow
            log.exception(broken)
        await asyncio.sleep(pause.total_seconds())
