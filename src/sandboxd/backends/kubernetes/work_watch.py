"""What a resource that asks the operator for work was last seen to say: a probe of an image, a backup."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from sandboxd.kubeapi.ports import Json
from sandboxd.kubeapi.reflector import Key


class WorkStatus(Protocol):
    """The status of such a resource."""

    @property
    def reason(self) -> str:
        """Why it is not done yet; empty where there is nothing to say."""
        ...


_Status = TypeVar("_Status", bound=WorkStatus)


class WorkWatch(Generic[_Status]):
    """What was last seen of a piece of work, and since when it is in trouble."""

    def __init__(
        self,
        status: _Status,
        *,
        read: Callable[[Mapping[str, Any]], _Status],
        patience: Callable[[_Status], timedelta | None],
    ) -> None:
        """Begin with nothing seen.

        Args:
            status: What holds before anything is seen.
            read: Reads a status; KeyError and ValueError are a newer operator's, and nothing is seen.
            patience: How long what it says may last; None where it is no trouble.
        """
        self.status = status
        self.gone = False
        self.changed = asyncio.Event()
        self._read = read
        self._patience = patience
        self._until: float | None = None
        self._trouble = ""

    def take(self, _: Key, obj: Json | None) -> None:
        """Note a change."""
        self.gone = obj is None
        if obj is not None:
            with suppress(KeyError, ValueError):
                self.status = self._read(obj.get("status") or {})
        self.changed.set()
        self.changed = asyncio.Event()

    def over(self, now: float) -> bool:
        """Tell whether trouble lasts for longer than it may."""
        patience = self._patience(self.status)
        if patience is None:
            self._until, self._trouble = None, ""
            return False
        if self._until is None or self._trouble != self.status.reason:
            self._until, self._trouble = now + patience.total_seconds(), self.status.reason
        return now >= self._until

    def left(self, now: float) -> float | None:
        """Seconds until it is over; None where there is no trouble."""
        return None if self._until is None else max(0.0, self._until - now) + 0.01
