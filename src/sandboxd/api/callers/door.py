"""The one place where a call becomes a caller: by its token, or by the certificate of its connection."""

from __future__ import annotations

from sandboxd.api.callers.proof import Proof, Shown
from sandboxd.api.callers.tokens import BearerTokens


class Door:
    """Lets callers in who prove who they are."""

    def __init__(self, *, tokens: BearerTokens) -> None:
        self._tokens = tokens

    async def check(self, shown: Shown) -> Proof:
        """Return who it is.

        Raises:
            UnauthenticatedError: Nothing was shown, or nothing that can be trusted.
            KeysUnavailableError: Nobody can tell now.
        """
        return await self._tokens.check(shown.authorization)
