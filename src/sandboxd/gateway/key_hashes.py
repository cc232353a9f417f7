"""Keyed hashes of API keys. The secret is made at the first start and stays on this installation's disk."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from typing_extensions import override

from sandboxd.manager.key_ports import KeyHashes

SECRET_BYTES: Final = 32
FINGERPRINT_CHARS: Final = 12


class HmacKeyHashes(KeyHashes):
    """HMAC-SHA256 with one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @override
    def digest(self, key: str) -> bytes:
        return self._mac(b"request", key)

    @override
    def fingerprint(self, key: str) -> str:
        return self._mac(b"fingerprint", key).hex()[:FINGERPRINT_CHARS]

    def _mac(self, purpose: bytes, key: str) -> bytes:
        return hmac.new(self._secret, purpose + b"\0" + key.encode(), hashlib.sha256).digest()


def ensure_secret(file: Path) -> bytes:
    """Return the secret in a file, made at the first start with mode 0600.

    Raises:
        ValueError: The file holds something else.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        draft = file.with_name(f".{file.name}.{os.getpid()}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
            made.write(secrets.token_bytes(SECRET_BYTES))
        try:
            os.link(draft, file)  # of two that start at once, one wins, and both use its secret
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    found = file.read_bytes()
    if len(found) != SECRET_BYTES:
        raise ValueError(f"{file} does not hold {SECRET_BYTES} bytes")
    return found
