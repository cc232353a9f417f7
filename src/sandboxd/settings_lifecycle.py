"""Settings of rest by policy: when sandboxes hibernate, stop and terminate whose clients do not wish otherwise."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from sandboxd.model.lifecycle import LONGEST, LifecyclePolicy

MAX_LIMIT: Final = LONGEST.total_seconds()


class LifecycleSettings(BaseSettings):
    """The limits of rest, and the sweep's pace. A part of `Settings`."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    hibernate_after_seconds: float = Field(default=900, ge=0, le=MAX_LIMIT)
    """A sandbox that is idle for so long is frozen in place; any use wakes it. 0 is never. Clients and sandboxes may
    wish otherwise, here and below."""
    stop_after_seconds: float = Field(default=3600, ge=0, le=MAX_LIMIT)
    """One that is idle for so long gives its compute back; any use starts it. 0 is never."""
    terminate_after_seconds: float = Field(default=86_400, ge=0, le=MAX_LIMIT)
    """One that is idle for so long is terminated; its files are kept. 0 is never."""
    terminate_paused_after_seconds: float = Field(default=2_592_000, ge=0, le=MAX_LIMIT)
    """One that was paused so long ago is terminated; its files are kept. 0 is never."""
    announce_seconds: float = Field(default=60, ge=0, le=3600)
    """How long before it such a step is announced on open streams; a quarter of its limit where that is shorter."""
    sweep_seconds: float = Field(default=10, ge=0, le=3600)
    """How often one replica of `serve` looks for sandboxes whose time has come. 0 leaves it to `sandboxd sweep`."""

    @property
    def lifecycle(self) -> LifecyclePolicy:
        """When sandboxes rest whose clients do not wish otherwise."""

        def limit(seconds: float) -> timedelta | None:
            return timedelta(seconds=seconds) if seconds else None

        return LifecyclePolicy(
            hibernate_after=limit(self.hibernate_after_seconds),
            stop_after=limit(self.stop_after_seconds),
            terminate_after=limit(self.terminate_after_seconds),
            terminate_paused_after=limit(self.terminate_paused_after_seconds),
            lead=timedelta(seconds=self.announce_seconds),
        )
