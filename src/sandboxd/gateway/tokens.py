"""Sandbox tokens: EdDSA JWTs of minutes, made by the service and checked by the gateway.

The signer holds the private key and lives in the service; the verifier needs public keys alone. Keys rotate by id: the
new public key is put beside the old one first, then the signer changes, and the old one is removed when its last token
has expired. Only the algorithm EdDSA is ever accepted, whatever a token's header says.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sandboxd.gateway.ports import Clock
from sandboxd.gateway.refusals import RefusalReason, refuse
from sandboxd.model.ids import ClientId, FreelancerId, IncarnationId, SandboxId
from sandboxd.model.tokens import SANDBOX_TOKEN_LIFETIME, SandboxIdentity, SandboxToken, SandboxTokenClaims

AUDIENCE: Final = "sandboxd-gateway"
ISSUER: Final = "sandboxd"
_ALGORITHM: Final = "EdDSA"
_MAX_TOKEN: Final = 4096
_MAX_LIFETIME: Final = timedelta(hours=1)
"""A token that claims to live longer is refused, whoever signed it: a leaked one must die soon."""
_LEEWAY: Final = timedelta(seconds=5)
"""How far the clocks of service and gateway may differ."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REQUIRED: Final = ["iss", "aud", "iat", "exp", "jti", "client", "freelancer", "sandbox", "incarnation"]


class VerifyingKeys(Protocol):
    """The public keys that are valid now."""

    def find(self, key_id: str) -> Ed25519PublicKey | None:
        """Return the key of that id."""
        ...


class SandboxTokenSigner:
    """Makes tokens. One for the life of the service's signing key."""

    def __init__(
        self, *, key: Ed25519PrivateKey, key_id: str, clock: Clock, lifetime: timedelta = SANDBOX_TOKEN_LIFETIME
    ) -> None:
        self._key = key
        self._key_id = key_id
        self._clock = clock
        self._lifetime = lifetime

    def mint(self, identity: SandboxIdentity) -> SandboxToken:
        """Make a token for one life of one sandbox."""
        now = int(self._clock.now().timestamp())
        expire = now + int(self._lifetime.total_seconds())
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now,
            "exp": expire,
            "jti": secrets.token_hex(16),
            "client": identity.client,
            "freelancer": identity.freelancer,
            "sandbox": identity.sandbox,
            "incarnation": identity.incarnation,
        }
        text = jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"kid": self._key_id})
        return SandboxToken(text=text, expire_time=datetime.fromtimestamp(expire, tz=UTC))


class SandboxTokenVerifier:
    """Checks tokens. Pure computing: whether the incarnation still lives is the ledger's to say."""

    def __init__(self, *, keys: VerifyingKeys, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def verify(self, text: str) -> SandboxTokenClaims:
        """Check a token and return what it says.

        Raises:
            RefusedError: It is forged, foreign, expired or not a token at all.
        """
        try:
            claims = self._decode(text)
            issue = datetime.fromtimestamp(_seconds(claims["iat"]), tz=UTC)
            expire = datetime.fromtimestamp(_seconds(claims["exp"]), tz=UTC)
            identity = SandboxIdentity(
                client=ClientId(_name(claims["client"])),
                freelancer=FreelancerId(_name(claims["freelancer"])),
                sandbox=SandboxId(_name(claims["sandbox"])),
                incarnation=IncarnationId(_name(claims["incarnation"])),
            )
            token_id = _name(claims["jti"])
        except (jwt.PyJWTError, ValueError, OverflowError, OSError, KeyError, TypeError) as error:
            raise refuse(RefusalReason.TOKEN_INVALID) from error
        now = self._clock.now()
        if expire + _LEEWAY <= now:
            raise refuse(RefusalReason.TOKEN_EXPIRED)
        if issue - _LEEWAY > now or expire - issue > _MAX_LIFETIME:
            raise refuse(RefusalReason.TOKEN_INVALID)
        return SandboxTokenClaims(identity=identity, token_id=token_id, issue_time=issue, expire_time=expire)

    def _decode(self, text: str) -> dict[str, object]:
        if len(text) > _MAX_TOKEN:
            raise ValueError("longer than any token of ours")
        header = jwt.get_unverified_header(text)
        key_id = header.get("kid")
        key = self._keys.find(key_id) if isinstance(key_id, str) and _NAME.fullmatch(key_id) else None
        if key is None or header.get("alg") != _ALGORITHM:
            raise ValueError("not signed by a key of ours")
        options: jwt.types.Options = {
            "require": _REQUIRED,
            # Time is checked against our own clock, not the library's.
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        }
        claims: dict[str, object] = jwt.decode(
            text, key, algorithms=[_ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=options
        )
        return claims


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a claim is not a name")
    return value


def _seconds(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a moment is not a whole number of seconds")
    return value
