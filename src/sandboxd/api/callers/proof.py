"""What a call shows of its caller, what that proves, and the words of a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import (
    FieldViolation,
    ForbiddenError,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)
from sandboxd.model.ids import ClientId, is_name

CLIENT_METADATA: Final = "x-sandboxd-client"
"""Metadata in which a platform caller that is bound to no client says for which one it acts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What came with a call."""

    authorization: str | None
    peer: Callable[[], Mapping[str, Iterable[bytes]]] = dict
    """What TLS has proved of the peer, by gRPC's names; asked only where no token came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Who it is, and for how long that is proven."""

    caller: Caller
    ends: float | None = None
    """Moment on the monotonic clock, so that a stepped wall clock ends nobody's stream; None for never."""
    expired: Callable[[], UnauthenticatedError]
    """Makes the error of a call that outlived it."""


class TokenMissingError(UnauthenticatedError):
    """No token came."""

    reason = "TOKEN_MISSING"


class TokenExpiredError(UnauthenticatedError):
    """The token was good once."""

    reason = "TOKEN_EXPIRED"


class TokenNotYetValidError(UnauthenticatedError):
    """The token will be good later."""

    reason = "TOKEN_NOT_YET_VALID"


class TokenInvalidError(UnauthenticatedError):
    """The token cannot be trusted: its form, its algorithm or its signature is wrong."""

    reason = "TOKEN_INVALID"


class TokenKeyUnknownError(UnauthenticatedError):
    """The token names a key that its issuer does not publish."""

    reason = "TOKEN_KEY_UNKNOWN"

    def __init__(self, *, retry_after: timedelta | None = None) -> None:
        super().__init__(
            "The token is signed with a key that its issuer does not publish. Get another one; if it is of a new key, "
            "try again in a few seconds.",
            retry_after=retry_after,
        )


class TokenIssuerError(UnauthenticatedError):
    """The token is genuine, and of another issuer."""

    reason = "TOKEN_ISSUER_UNKNOWN"


class TokenAudienceError(UnauthenticatedError):
    """The token is genuine, and for another service."""

    reason = "TOKEN_AUDIENCE_WRONG"


class TokenClaimError(UnauthenticatedError):
    """The token is genuine, and a claim is missing or makes no sense here."""

    reason = "TOKEN_CLAIM_INVALID"

    def __init__(self, claim: str, *, rule: str) -> None:
        super().__init__(f"The token's claim `{claim}` {rule}. Ask its issuer for another one.", claim=claim)


class KeysUnavailableError(UnavailableError):
    """The issuer's keys cannot be had now, so nobody can tell whether the token is good."""

    reason = "KEYS_UNAVAILABLE"

    def __init__(self, *, retry_after: timedelta) -> None:
        super().__init__(
            "The keys of the token's issuer cannot be fetched now. Try again soon.", retry_after=retry_after
        )


class CertificateRefusedError(UnauthenticatedError):
    """The client certificate is of a trusted authority, and not one of the platform's."""

    reason = "CERTIFICATE_REFUSED"


class CertificateExpiredError(UnauthenticatedError):
    """The client certificate was good when the connection was made."""

    reason = "CERTIFICATE_EXPIRED"


class ClientMismatchError(ForbiddenError):
    """The caller belongs to one client and asks to act for another."""

    reason = "CLIENT_MISMATCH"


def acting_for(caller: Caller, wanted: str | None) -> Caller:
    """Return the caller, acting for the client that its call names.

    Raises:
        InvalidRequestError: What it names is no name.
        ClientMismatchError: It belongs to another client.
    """
    if wanted is None or (wanted == caller.client and wanted):
        return caller
    if not is_name(wanted):
        raise InvalidRequestError(
            f"Metadata `{CLIENT_METADATA}` must be the name of one client.",
            violations=[
                FieldViolation(field=f"metadata.{CLIENT_METADATA}", description="must be the name of a client")
            ],
        )
    if caller.role is Role.PLATFORM and not caller.client:
        return replace(caller, client=ClientId(wanted))
    raise ClientMismatchError(
        f"This call's token is for the client {caller.client}; metadata `{CLIENT_METADATA}` names {wanted}. "
        "Leave it out, or use a token of that client, or one of the platform without a client.",
        client=caller.client,
        wanted=wanted,
    )
