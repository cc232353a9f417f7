"""Why an errand could not be done here and now, although nothing is wrong with it: the conversation is somewhere else.

The router (`routing.py`) meets these and tries again; a caller sees one only when its patience is over.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from sandboxd.model.errors import UnavailableError
from sandboxd.model.ids import SandboxId

RETRY_AFTER: Final = timedelta(seconds=1)


class OwnedElsewhereError(UnavailableError):
    """Another replica holds the conversation, or this one lets go of it."""

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(
            "Another server owns this conversation. Send the same request again.",
            retry_after=RETRY_AFTER,
            sandbox=sandbox,
        )


class StoppingError(UnavailableError):
    """This replica takes on no conversation any more."""

    def __init__(self) -> None:
        super().__init__("This server is stopping. Send the same request again.", retry_after=RETRY_AFTER)


class MovedError(UnavailableError):
    """The conversation left this replica while the errand waited; whether it was done is not known."""

    def __init__(self, sandbox: SandboxId) -> None:
        super().__init__(
            "The conversation is moving to another server. Send the same request again.",
            retry_after=RETRY_AFTER / 2,
            sandbox=sandbox,
        )


class PeerUnavailableError(UnavailableError):
    """Another replica does not answer; what became of the errand is not known."""

    def __init__(self, message: str = "The server that owns this conversation does not answer.") -> None:
        super().__init__(message, retry_after=RETRY_AFTER)
