"""The one place where a call becomes a caller: by its token, or by the certificate of its connection."""

from __future__ import annotations

from sandboxd.api.callers.certificates import PlatformCertificates
from sandboxd.api.callers.proof import Proof, Shown
from sandboxd.api.callers.tokens import BearerTokens


class Door:
    """Lets callers in who prove who they are."""

    def __init__(self, *, tokens: BearerTokens, certificates: PlatformCertificates | None = None) -> None:
        self._tokens = tokens
        self._certificates = certificates

    async def check(self, shown: Shown) -> Proof:
        """Return who it is.

        A token counts before a certificate: with a person's token the platform acts as that person, and a bad token
        is never made good by the connection that it came over.

        Raises:
            UnauthenticatedError: Nothing was shown, or nothing that can be trusted.
            KeysUnavailableError: Nobody can tell now.
        """
        if shown.authorization is None and self._certificates is not None:
            proof = self._certificates.check(shown.peer())
            if proof is not None:
                return proof
        return await self._tokens.check(shown.authorization)
