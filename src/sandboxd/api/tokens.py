"""Who calls: checks the bearer tokens of the platform's callers against a file of public keys.

A token is a JWT with `iss`, `aud`, `exp`, `sub`, `client` and `role`. What is wrong with a refused one is said in the
coarsest words that still help an honest caller. Must not log a token, nor any part of one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import jwt
from jwt import PyJWK

from sandboxd.model.caller import Caller, Role
from sandboxd.model.errors import UnauthenticatedError
from sandboxd.model.ids import ClientId

ALGORITHMS: Final = ("EdDSA", "RS256")
MAX_TOKEN_CHARS: Final = 8192
"""Longest header that is looked at."""
MIN_RSA_BITS: Final = 2048
LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of an issuer and ours may differ."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9_.@]{0,61}[a-z0-9])?")
_RELOAD_SECONDS: Final = 2.0


class TokenMissingError(UnauthenticatedError):
    """No token came."""

    reason = "TOKEN_MISSING"


class TokenExpiredError(UnauthenticatedError):
    """The token was good once."""

    reason = "TOKEN_EXPIRED"


class TokenInvalidError(UnauthenticatedError):
    """The token cannot be trusted."""

    reason = "TOKEN_INVALID"


class KeySetError(Exception):
    """The key set file cannot be used; the text says why."""


class KeySet:
    """The public keys of the issuers, from a JWKS file; a changed file is read again within seconds."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            KeySetError: It is not there, or holds no usable key.
        """
        self._path = path
        self._keys = _read(path)
        self._stamp = _stamp(path)
        self._looked = time.monotonic()

    def find(self, key_id: str | None) -> PyJWK | None:
        """Return the key of an id; without an id, the only key."""
        self._refresh()
        if key_id is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(key_id)

    def _refresh(self) -> None:
        if time.monotonic() - self._looked < _RELOAD_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            if (stamp := _stamp(self._path)) != self._stamp:
                self._keys, self._stamp = _read(self._path), stamp
        except (KeySetError, OSError):
            # A file in the middle of being replaced, or gone: the keys that were good stay good.
            return


class BearerTokens:
    """Checks `authorization: Bearer …`."""

    def __init__(self, *, keys: KeySet, issuer: str, audience: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience

    def check(self, header: str | None) -> Caller:
        """Return who a header stands for.

        Raises:
            UnauthenticatedError: There is none, it has expired, or it cannot be trusted.
        """
        scheme, _, token = (header or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise TokenMissingError("This call needs metadata `authorization: Bearer <token>`.")
        if len(token) > MAX_TOKEN_CHARS:
            raise _invalid()
        try:
            return _caller(self._claims(token.strip()))
        except jwt.ExpiredSignatureError as error:
            raise TokenExpiredError("The token has expired. Get a new one.") from error
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise _invalid() from error

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        key = self._keys.find(header.get("kid"))
        # The algorithm is the key's, never the token's: neither `none` nor HMAC over a public key can pass.
        if key is None or header.get("alg") != key.algorithm_name:
            raise _invalid()
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm_name],
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
        )
        return claims


def _caller(claims: Mapping[str, Any]) -> Caller:
    client, subject, role = claims["client"], claims["sub"], claims["role"]
    for name in (client, subject):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError("client and sub must be names")
    return Caller(client=ClientId(client), subject=subject, role=Role(role))


def _invalid() -> TokenInvalidError:
    return TokenInvalidError(
        "The token is not valid here: its signature, issuer, audience or claims are wrong. Get another one."
    )


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, PyJWK]:
    try:
        entries = json.loads(path.read_bytes())["keys"]
        keys = {str(entry["kid"]): PyJWK(entry) for entry in entries}
    except FileNotFoundError as error:
        raise KeySetError(f"the key set {path} does not exist") from error
    except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise KeySetError(f"the key set {path} is not a JWKS file whose keys have a `kid`") from error
    for key_id, key in keys.items():
        if key.algorithm_name not in ALGORITHMS:
            raise KeySetError(f"key {key_id} in {path} is for {key.algorithm_name}; use one of {', '.join(ALGORITHMS)}")
        if key.key_type == "RSA" and key.key.key_size < MIN_RSA_BITS:
            raise KeySetError(f"RSA key {key_id} in {path} is shorter than {MIN_RSA_BITS} bits")
    if not keys:
        raise KeySetError(f"the key set {path} holds no key")
    return keys
