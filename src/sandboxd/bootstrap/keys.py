"""Where a data directory keeps the keys of one installation, all of them mode 0600 in a directory of mode 0700."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """Names below the data directory."""

    home: Path

    @property
    def agent_authority(self) -> Path:
        """The certificate authority of agents and of the service."""
        return self.home / "pki"

    @property
    def sandbox_token_key(self) -> Path:
        """Signs sandbox tokens; `serve` reads it."""
        return self.home / "keys" / "sandbox-tokens.pem"

    @property
    def sandbox_token_public(self) -> Path:
        """Directory of the public keys that the gateway trusts."""
        return self.home / "keys" / "sandbox-tokens"

    @property
    def gemini_keys(self) -> Path:
        """Directory of the clients' API keys, where no other one is set; `serve` writes it, the gateway reads it."""
        return self.home / "keys" / "gemini"

    @property
    def key_hash_secret(self) -> Path:
        """Secret of the hashes that tell API keys apart."""
        return self.home / "keys" / "key-hashes.secret"

    @property
    def proof_key(self) -> Path:
        """Signs proofs of erasure; `serve` reads it."""
        return self.home / "keys" / "erasure-proofs.pem"

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
        """Signs the heads of the audit's chains, where no other file is set."""
        return self.home / "keys" / "audit.pem"

    @property
    def audit_public(self) -> Path:
        """Directory of the public keys whose signatures under audit heads are trusted."""
        return self.home / "keys" / "audit"
