"""Lifecycle wishes and the sweep's looks: from what the database holds to the model, and back. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sandboxd.model.lifecycle import NO_OVERRIDES, LifecycleOverrides, Limit

_LIMITS: Final = ("hibernate_after", "stop_after", "terminate_after", "terminate_paused_after")
_NEVER: Final = "never"


def overrides_json(overrides: LifecycleOverrides) -> dict[str, Any]:
    """Wishes as JSON: seconds, or `never`; what nobody wished is left out. Any: JSON."""
    written: dict[str, Any] = {}
    for name in _LIMITS:
        limit: Limit | None = getattr(overrides, name)
        if limit is not None:
            written[name] = _NEVER if limit.after is None else limit.after.total_seconds()
    if overrides.discard_root_changes is not None:
        written["discard_root_changes"] = overrides.discard_root_changes
    return written


def read_overrides(written: Mapping[str, Any] | None) -> LifecycleOverrides:
    """Wishes from their JSON. Any: JSON."""
    if not written:
        return NO_OVERRIDES
    limits = {name: _limit(written[name]) for name in _LIMITS if name in written}
    return LifecycleOverrides(**limits, discard_root_changes=written.get("discard_root_changes"))


def _limit(value: str | float) -> Limit:
    return Limit(after=None if isinstance(value, str) else timedelta(seconds=value))
