"""Where the keys of one installation are: where the settings say, else in the data directory (0600, in one of 0700).

What a setting names may be read-only, a mounted Secret for example; it must be whole then. In the data directory a role
makes what is missing.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sandboxd.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """Their names."""

    home: Path
    given_token_key: Path | None = None
    given_token_trust: Path | None = None
    given_proof_key: Path | None = None
    given_hash_secret: Path | None = None
    given_audit_key: Path | None = None
    given_audit_trust: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Where the settings have them."""
        return cls(
            home=settings.home,
            given_token_key=settings.sandbox_token_key_file,
            given_token_trust=settings.sandbox_token_trust_dir,
            given_proof_key=settings.erasure_key_file,
            given_hash_secret=settings.key_hash_file,
            given_audit_key=settings.audit_key_file,
            given_audit_trust=settings.audit_trust_dir,
        )

    @property
    def agent_authority(self) -> Path:
        """The certificate authority of agents and of the service."""
        return self.home / "pki"

    @property
    def sandbox_token_key(self) -> Path:
        """Signs sandbox tokens; `serve` reads it."""
        return self.given_token_key or self.home / "keys" / "sandbox-tokens.pem"

    @property
    def sandbox_token_public(self) -> Path:
        """Directory of the public keys that the gateway trusts."""
        return self.given_token_trust or self.home / "keys" / "sandbox-tokens"

    @property
    def gemini_keys(self) -> Path:
        """Directory of the clients' API keys, where no other one is set; `serve` writes it, the gateway reads it."""
        return self.home / "keys" / "gemini"

    @property
    def key_hash_secret(self) -> Path:
        """Secret of the hashes that tell API keys apart."""
        return self.given_hash_secret or self.home / "keys" / "key-hashes.secret"

    @property
    def proof_key(self) -> Path:
        """Signs proofs of erasure; `serve` reads it."""
        return self.given_proof_key or self.home / "keys" / "erasure-proofs.pem"

    @property
    def proof_public(self) -> Path:
        """Directory of the public keys that check proofs of erasure."""
        return self.home / "keys" / "erasure-proofs"

    @property
    def caller_keys(self) -> Path:
        """JWKS of those who issue callers' tokens, where no other file is set."""
        return self.home / "keys" / "callers.json"

    @property
    def caller_signing_key(self) -> Path:
        """Signs callers' tokens in development; made by `sandboxd dev`."""
        return self.home / "keys" / "callers.pem"

    @property
    def audit_key(self) -> Path:
        """Signs the heads of the audit's chains."""
        return self.given_audit_key or self.home / "keys" / "audit.pem"

    @property
    def audit_public(self) -> Path:
        """Directory of the public keys whose signatures under audit heads are trusted."""
        return self.given_audit_trust or self.home / "keys" / "audit"


def jwks_entry(key: Ed25519PublicKey) -> dict[str, str]:
    """Return a public key of callers' tokens as an entry of a JWKS file: the issuer is us, for trying out."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    kid, x = f"dev-{hashlib.sha256(raw).hexdigest()[:12]}", base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x}
