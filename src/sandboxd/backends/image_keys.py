"""Keys that sign images, from PEM files: ECDSA on P-256 as cosign makes them, or Ed25519."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from typing_extensions import override

from sandboxd.images.signing import SigningKey, TrustedKeys

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = EllipticCurvePublicKey | Ed25519PublicKey
_WANTED: Final = "an ECDSA key on P-256 or an Ed25519 key, in PEM and without a password"


class KeyFileError(ValueError):
    """A file holds no key that can be used; the message names the file and what it should hold."""


class PemSigningKey(SigningKey):
    """One private key."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, file: Path) -> PemSigningKey:
        """Read a file.

        Raises:
            KeyFileError: It holds no such key, or cannot be read.
        """
        try:
            key = load_pem_private_key(file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFileError(f"{file} must hold {_WANTED}: {type(error).__name__}") from error
        if not isinstance(key, PrivateKey) or not _fits(key.public_key()):
            raise KeyFileError(f"{file} must hold {_WANTED}")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return self._key.public_key()

    @override
    def sign(self, document: bytes) -> bytes:
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(document)
        return self._key.sign(document, ECDSA(SHA256(), deterministic_signing=True))  # RFC 6979


class PemTrustedKeys(TrustedKeys):
    """Some public keys."""

    def __init__(self, keys: Sequence[PublicKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def read(cls, directory: Path | None, *, own: PemSigningKey | None = None) -> PemTrustedKeys:
        """Read every `*.pem` of a directory, and take our own key's public half as well.

        Raises:
            KeyFileError: One of them is no such key, or the directory cannot be read.
        """
        keys = [] if own is None else [own.public]
        try:
            files = [] if directory is None else sorted(one for one in directory.iterdir() if one.suffix == ".pem")
        except OSError as error:
            raise KeyFileError(f"{directory} must be a directory of public keys: {type(error).__name__}") from error
        return cls([*keys, *map(_read_public, files)])

    @override
    def verifies(self, document: bytes, signature: bytes) -> bool:
        return any(_verifies(key, document, signature) for key in self._keys)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)


def _read_public(file: Path) -> PublicKey:
    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{file} must hold the public half of {_WANTED}: {type(error).__name__}") from error
    if not isinstance(key, PublicKey) or not _fits(key):
        raise KeyFileError(f"{file} must hold the public half of {_WANTED}")
    return key


def _fits(key: PublicKey) -> bool:
    return isinstance(key, Ed25519PublicKey) or isinstance(key.curve, SECP256R1)


def _verifies(key: PublicKey, document: bytes, signature: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, document)
        else:
            key.verify(signature, document, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
