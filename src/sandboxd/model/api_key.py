"""An API key of a client as everybody but the gateway knows it: that it is there, and since when. Never its text."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sandboxd.model.ids import ClientId

GEMINI: Final = "gemini"
"""The upstream that this version has keys for; the last part of a key's name."""
STANDARD_KEY: Final = "default"
"""Name of the entry with the key for clients that have none of their own."""
PREVIOUS: Final = ".PREVIOUS"
"""End of the name of the entry with the key that a client had before."""
UNTIL: Final = ".UNTIL"
"""End of the name of the entry with a client's `KeyMark`."""


def key_entry_name(client: ClientId) -> str:
    """Name of a client's entry, a file or a key of a Secret: its id, with what such a name cannot hold spelt out.

    Ids of clients have no capital letters, so no name of one is the name of another.
    """
    return STANDARD_KEY.upper() if client == STANDARD_KEY else client.replace("@", "AT")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMark:
    """What stands beside a client's keys: which change was the last one, and until when the key before may be used."""

    generation: int = 0
    """0 before the first change."""
    until: datetime | None = None

    def dump(self) -> str:
        """As text for the entry."""
        until = None if self.until is None else self.until.astimezone(UTC).isoformat()
        return json.dumps({"generation": self.generation, "until": until})

    @classmethod
    def load(cls, text: str | bytes) -> KeyMark:
        """From the entry; what cannot be read counts as before the first change."""
        try:
            found = json.loads(text)
            until = found["until"]
            return cls(
                generation=int(found["generation"]), until=None if until is None else datetime.fromisoformat(until)
            )
        except (ValueError, KeyError, TypeError):
            return cls()


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
