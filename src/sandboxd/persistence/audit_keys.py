"""The audit's signing key and the public keys that are trusted, in files.

The key signs what the database then holds, so it must never be in the database. To rotate it, move its file away: the
next start makes another one, and the old public key stays trusted until its file is removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from typing_extensions import override

from sandboxd.monitor.audit_ports import AuditKeys

log = structlog.get_logger(__name__)

_READ_ONLY: Final = (errno.EROFS, errno.EACCES)


class AuditKeyError(Exception):
    """The key file cannot be used; the text says why."""


class FileAuditKeys(AuditKeys):
    """One private key in a file, public keys in a directory."""

    def __init__(self, *, private_file: Path, public_directory: Path) -> None:
        """Read the key, or make it where there is none; its public half is in the directory after.

        A directory that cannot be written is used as it is: the own key is trusted in any case.

        Raises:
            AuditKeyError: The file cannot be read or written, or holds another kind of key.
        """
        self._directory = public_directory
        try:
            self._key = _open(private_file)
            self._own = self._key.public_key()
            self._key_id = key_id_of(self._own)
            self._publish()
            self._trusted = self._public_keys()
        except (OSError, ValueError) as error:
            raise AuditKeyError(f"the audit key {private_file} cannot be used: {error}") from error

    @property
    @override
    def key_id(self) -> str:
        return self._key_id

    @override
    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @override
    def check(self, key_id: str, message: bytes, signature: bytes) -> bool | None:
        if key_id not in self._trusted:
            self._trusted = self._public_keys()  # another replica's key may have been put there meanwhile
        return check_signature(self._trusted, key_id, message, signature)

    @override
    def public_keys(self) -> Mapping[str, bytes]:
        self._trusted = self._public_keys()
        return {
            key_id: key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            for key_id, key in self._trusted.items()
        }

    def _publish(self) -> None:
        file = self._directory / f"{self._key_id}.pem"
        if file.exists():
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._directory / f".{self._key_id}.{os.getpid()}.new"
            draft.write_bytes(self._own.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
            draft.rename(file)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            log.warning("audit.public_key_unwritten", key_id=self._key_id, message="put it there by hand, for later")

    def _public_keys(self) -> dict[str, Ed25519PublicKey]:
        return _public_keys(self._directory) | {self._key_id: self._own}


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return the id of a public key: the start of its digest."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def check_signature(
    trusted: Mapping[str, Ed25519PublicKey], key_id: str, message: bytes, signature: bytes
) -> bool | None:
    """Tell whether a signature is good; None where the key is not among the trusted ones."""
    key = trusted.get(key_id)
    if key is None:
        return None
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _public_keys(directory: Path) -> dict[str, Ed25519PublicKey]:
    """Public keys by the ids that they have, whatever their files are called."""
    found = {}
    for file in sorted(directory.glob("[!.]*.pem")):
        try:
            key = load_pem_public_key(file.read_bytes())
        except (OSError, ValueError):
            log.warning("audit.public_key_unusable", file=file.name)
            continue
        if isinstance(key, Ed25519PublicKey):
            found[key_id_of(key)] = key
    return found


def _open(file: Path) -> Ed25519PrivateKey:
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        draft = file.with_name(f".{file.name}.{os.getpid()}.new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(pem)
        try:
            os.link(draft, file)  # of two that start at once, one wins, and both use its key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    key = load_pem_private_key(file.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is not an Ed25519 key")  # noqa: TRY004  the file's value is wrong
    return key
