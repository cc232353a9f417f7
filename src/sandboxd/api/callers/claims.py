"""What a genuine token says: its claims, checked against our clock and our names.

Only tokens whose signature was verified come here, so that a refusal may say what is wrong: it tells a forger nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sandboxd.api.callers.proof import (
    TokenAudienceError,
    TokenClaimError,
    TokenExpiredError,
    TokenIssuerError,
    TokenNotYetValidError,
)
from sandboxd.model.caller import Caller, Role
from sandboxd.model.ids import ClientId, is_name

LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of an issuer and ours may differ."""
_LATEST: Final = 253402300799.0
"""The last second of the year 9999: larger moments are mistakes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRules:
    """What claims must say, and under which names ours stand."""

    issuer: str
    audience: str
    client_claim: str = "client"
    role_claim: str = "role"

    def read(self, claims: Mapping[str, Any], *, now: float) -> tuple[Caller, float]:
        """Return who a token stands for, and the moment of its end.

        Args:
            claims: The token's payload. Any: it is JSON of somebody else.
            now: The present moment, in seconds since 1970.

        Raises:
            UnauthenticatedError: A leaf that says what is wrong.
        """
        end = _moment(claims, "exp", required=True) or 0.0
        if claims.get("iss") != self.issuer:
            raise TokenIssuerError(f"The token is not of the issuer {self.issuer}.", issuer=self.issuer)
        audience = claims.get("aud")
        if self.audience not in (audience if isinstance(audience, list) else [audience]):
            raise TokenAudienceError(
                f"The token is not for this service: its `aud` must hold {self.audience}.", audience=self.audience
            )
        leeway = LEEWAY.total_seconds()
        if now >= end + leeway:
            raise TokenExpiredError("The token has expired. Get a new one.")
        for claim in ("nbf", "iat"):
            moment = _moment(claims, claim)
            if moment is not None and now < moment - leeway:
                raise TokenNotYetValidError(
                    f"The token is not valid yet (`{claim}`). Are the clocks of its issuer and of this service right?",
                    claim=claim,
                )
        return self._caller(claims), end

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        subject, client, role = claims.get("sub"), claims.get(self.client_claim), claims.get(self.role_claim)
        known = {one.value: one for one in Role}
        if not isinstance(role, str) or role not in known:
            raise TokenClaimError(self.role_claim, rule=f"must be one of {', '.join(known)}")
        if not isinstance(subject, str) or not is_name(subject):
            raise TokenClaimError("sub", rule="must be a name: 1 to 63 of a-z, 0-9 and -_.@, no sign at its ends")
        if client is None and known[role] is Role.PLATFORM:
            client = ""  # for no client, or for the one that each call names
        elif not isinstance(client, str) or not is_name(client):
            raise TokenClaimError(
                self.client_claim,
                rule="must be the name of a client: 1 to 63 of a-z, 0-9 and -_.@, no sign at its ends",
            )
        return Caller(client=ClientId(client), subject=subject, role=known[role])


def _moment(claims: Mapping[str, Any], name: str, *, required: bool = False) -> float | None:
    value = claims.get(name)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST or math.isnan(value):
        raise TokenClaimError(name, rule="must be a moment, in seconds since 1970")
    return float(value)
