"""An API key of a client as everybody but the gateway knows it: that it is there, and since when. Never its text."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sandboxd.model.ids import ClientId

GEMINI: Final = "gemini"
"""The upstream that this version has keys for; the last part of a key's name."""


class ApiKeyState(enum.Enum):
    """Whether calls are made with a key."""

    SETTING = "SETTING"
    """It is on its way to where the gateway finds it."""
    ACTIVE = "ACTIVE"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of a key."""

    client: ClientId
    state: ApiKeyState
    fingerprint: str
    """Beginning of a keyed hash: tells two keys apart, and says nothing about either."""
    previous_fingerprint: str = ""
    """Of the key before, while it may still stand in; empty where there is none."""
    previous_expire_time: datetime | None = None
    generation: int = 1
    """Grows with every change; the place where keys are kept refuses an older one."""
    set_time: datetime
    """When the present key was given."""
    rotate_time: datetime | None = None
    """When one key followed another last."""
    revoke_time: datetime | None = None
    last_use_time: datetime | None = None
    """Of the client's last call since the key was set; read from the ledger, never written."""

    @property
    def name(self) -> str:
        """Resource name."""
        return f"clients/{self.client}/keys/{GEMINI}"
