"""Issuers of callers' tokens, for tests: a key pair of any kind, its entry of a JWKS, and what it signs."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Key: TypeAlias = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

ISSUER, AUDIENCE = "https://issuer.test", "sandboxd"


def a_key(algorithm: str) -> Key:
    match algorithm:
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "RS256":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case _:
            raise ValueError(algorithm)


def jwk_of(key: Any) -> dict[str, Any]:
    """The public or private key as an entry of a JWKS. Any: of every kind that PyJWT takes."""
    made: Any  # text or a dict, as the library's overloads have it
    if isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        made = RSAAlgorithm.to_jwk(key)
    elif isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        made = ECAlgorithm.to_jwk(key)
    else:
        made = OKPAlgorithm.to_jwk(key)
    found: dict[str, Any] = json.loads(made) if isinstance(made, str) else made
    return found


@dataclass(kw_only=True)
class TokenIssuer:
    """Signs with one key."""

    algorithm: str = "EdDSA"
    key_id: str = "one"
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        self.key = a_key(self.algorithm)

    @property
    def jwk(self) -> dict[str, Any]:
        return jwk_of(self.key.public_key()) | {"kid": self.key_id, "alg": self.algorithm, "use": "sig"}

    def sign(self, claims: dict[str, Any], **headers: Any) -> str:
        # Not by `jwt.encode`: that refuses to sign much of what a check must survive.
        payload = json.dumps(claims).encode()
        return jwt.api_jws.encode(
            payload, self.key, self.algorithm, headers={"typ": "JWT", "kid": self.key_id} | headers
        )


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def part(content: object) -> str:
    """One part of a token."""
    return jwt.utils.base64url_encode(json.dumps(content).encode()).decode()


def signed_by_hmac(secret: bytes, claims: dict[str, Any], **headers: Any) -> str:
    text = f"{part({'alg': 'HS256', 'typ': 'JWT'} | headers)}.{part(claims)}"
    signature = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{jwt.utils.base64url_encode(signature).decode()}"
