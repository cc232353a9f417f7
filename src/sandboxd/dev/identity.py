"""The development issuer: one key pair, made at the first start, and the tokens that it signs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from sandboxd.bootstrap.keys import KeyFiles, jwks_entry
from sandboxd.dev.home import write_private
from sandboxd.model.caller import Role
from sandboxd.settings import Settings, SettingsError, load_settings

ALGORITHM = "EdDSA"


class DevIssuer:
    """Signs tokens with the key of a data directory."""

    def __init__(self, *, key: Ed25519PrivateKey, issuer: str, audience: str) -> None:
        self._key = key
        self._issuer = issuer
        self._audience = audience

    @classmethod
    def open(cls, settings: Settings) -> DevIssuer:
        """Read the key of the data directory, or make it with its public key set."""
        files = KeyFiles(home=settings.home)
        if not files.caller_signing_key.exists():
            files.caller_signing_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Ed25519PrivateKey.generate()
            pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_private(files.caller_signing_key, pem.decode())
        return cls._read(files, settings)

    @classmethod
    def _read(cls, files: KeyFiles, settings: Settings) -> DevIssuer:
        key = load_pem_private_key(files.caller_signing_key.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise SettingsError(f"{files.caller_signing_key} is not an Ed25519 key; remove it to get a new one")
        made = cls(key=key, issuer=settings.jwt_issuer, audience=settings.jwt_audience)
        if not files.caller_keys.exists():
            write_private(files.caller_keys, json.dumps({"keys": [made.public_key()]}, indent=2) + "\n")
        return made

    def public_key(self) -> dict[str, str]:
        """Return the public key as an entry of a JWKS file."""
        return jwks_entry(self._key.public_key())

    def mint(self, *, client: str, subject: str, role: str, seconds: float) -> str:
        """Sign a token.

        Args:
            client: Tenant.
            subject: Who it is within the client.
            role: One of `model.caller.Role`.
            seconds: How long it is good.
        """
        now = int(time.time())
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "iat": now,
            "exp": now + int(seconds),
            "sub": subject,
            "client": client,
            "role": Role(role).value,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self.public_key()["kid"]})


def mint_token(*, data_dir: Path | None, client: str, subject: str, role: str, hours: float) -> int:
    """Do `sandboxd token`: print a token, and return the exit code."""
    try:
        settings = load_settings(**({"data_dir": data_dir} if data_dir else {}))
        if not KeyFiles(home=settings.home).caller_signing_key.exists():
            raise SettingsError(f"There is no development key in {settings.home}. Start `sandboxd dev` there first.")
        if role not in {one.value for one in Role}:
            raise SettingsError(f"--role must be one of {', '.join(one.value for one in Role)}.")
        token = DevIssuer.open(settings).mint(client=client, subject=subject, role=role, seconds=hours * 3600)
    except SettingsError as error:
        print(f"sandboxd token: {error}", file=sys.stderr)
        return 2
    print(token)
    return os.EX_OK
