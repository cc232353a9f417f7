"""Keys in files: the clients' API keys, and the key pair of sandbox tokens.

Files are read again when they change, so that rotation needs no restart.

A Kubernetes Secret that is mounted as a directory has one file an entry; updating it swaps a symbolic link, which the
files' identity (device, inode, time, size) shows.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sandboxd.gateway.secret import Secret
from sandboxd.model.api_key import PREVIOUS, STANDARD_KEY, UNTIL, KeyMark, key_entry_name
from sandboxd.model.ids import ClientId

_log = structlog.get_logger()
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_FILE: Final = 8192
_RESCAN: Final = 1.0
"""Seconds between two looks at the directory of public keys, also when unknown key ids pour in."""
_Identity = tuple[int, int, int, int]


class StaticApiKeys:
    """One key for every client: a development set-up, from `GEMINI_API_KEY`."""

    def __init__(self, key: Secret | None) -> None:
        self._key = key

    def key_for(self, client: ClientId) -> Secret | None:  # noqa: ARG002 - the port's
        """Return the one key."""
        return self._key

    def fallback_for(self, client: ClientId) -> Secret | None:  # noqa: ARG002 - the port's
        """Return None: no other key stands in."""
        return None


class LayeredApiKeys:
    """The clients' own keys from a directory, and something else for clients that have none there."""

    def __init__(self, own: DirectoryApiKeys, *, rest: StaticApiKeys) -> None:
        self._own = own
        self._rest = rest

    def key_for(self, client: ClientId) -> Secret | None:
        """Return the client's own key, or what the rest gets."""
        return self._own.key_for(client) or self._rest.key_for(client)

    def fallback_for(self, client: ClientId) -> Secret | None:
        """Return the client's own key of before, while it may stand in."""
        return self._own.fallback_for(client)


class DirectoryApiKeys:
    """A directory with a file for each client, named like the client, and `default` for the rest.

    A file that others can read or that the group can write is not used, and the log says so: the key would not be ours
    alone. Use mode 0600, or 0440 for a mounted Secret.
    """

    def __init__(self, directory: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._directory = directory
        self._now = now
        self._known: dict[str, tuple[_Identity, Secret | None]] = {}

    def key_for(self, client: ClientId) -> Secret | None:
        """Return the client's key, or the default one; None where neither is usable."""
        name = key_entry_name(client)
        if not _FILE_NAME.fullmatch(name):
            return None
        return self._read(name) or self._read(STANDARD_KEY)

    def fallback_for(self, client: ClientId) -> Secret | None:
        """Return the key that the client had before, while it may stand in for the present one."""
        name = key_entry_name(client)
        if not _FILE_NAME.fullmatch(name) or (previous := self._read(f"{name}{PREVIOUS}")) is None:
            return None
        try:
            until = KeyMark.load((self._directory / f"{name}{UNTIL}").read_bytes()[:_MAX_FILE]).until
        except OSError:
            return None
        return previous if until is not None and self._now() < until else None

    def _read(self, name: str) -> Secret | None:
        path = self._directory / name
        try:
            seen = path.stat()
        except OSError:
            self._known.pop(name, None)
            return None
        identity = (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_mode)
        known = self._known.get(name)
        if known is None or known[0] != identity:
            known = self._known[name] = (identity, _load_api_key(path, seen.st_mode))
        return known[1]


class DirectoryVerifyingKeys:
    """A directory of public keys, `<key id>.pem`. Removing a file ends the trust in it within a second."""

    def __init__(self, directory: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._monotonic = monotonic
        self._scanned = -_RESCAN
        self._identities: dict[str, _Identity] = {}
        self._keys: dict[str, Ed25519PublicKey] = {}

    def find(self, key_id: str) -> Ed25519PublicKey | None:
        """Return the key of that id, as the directory has it now (at most a second old)."""
        if self._monotonic() - self._scanned >= _RESCAN:
            self._scan()
        return self._keys.get(key_id)

    @property
    def usable(self) -> bool:
        """True while there is at least one key."""
        self.find("")
        return bool(self._keys)

    def _scan(self) -> None:
        self._scanned = self._monotonic()
        found: dict[str, _Identity] = {}
        for path in _pem_files(self._directory):
            try:
                seen = path.stat()
            except OSError:
                continue
            found[path.stem] = (seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size)
            if found[path.stem] != self._identities.get(path.stem):
                self._load(path)
        for gone in self._keys.keys() - found.keys():
            del self._keys[gone]
        self._identities = found

    def _load(self, path: Path) -> None:
        self._keys.pop(path.stem, None)
        try:
            key = load_pem_public_key(path.read_bytes()[:_MAX_FILE])
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            _log.error("gateway.verifying_key_unusable", key_id=path.stem, error=type(error).__name__)
            return
        if isinstance(key, Ed25519PublicKey):
            self._keys[path.stem] = key
        else:
            _log.error("gateway.verifying_key_unusable", key_id=path.stem, error="not an Ed25519 key")


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return the id of a public key: the start of its digest, so that two keys never share one."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def ensure_token_keys(*, private_file: Path, public_directory: Path) -> tuple[Ed25519PrivateKey, str]:
    """Return the service's signing key and its id, made at the first start; its public half is in the directory after.

    Args:
        private_file: PEM file, readable by its owner alone.
        public_directory: Where the gateway looks for public keys.

    Raises:
        ValueError: The file holds another kind of key.
    """
    private_file.parent.mkdir(parents=True, exist_ok=True)
    public_directory.mkdir(parents=True, exist_ok=True)
    if not private_file.exists():
        made = Ed25519PrivateKey.generate()
        pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        draft = private_file.with_name(f"{private_file.name}.{os.getpid()}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        try:
            os.link(draft, private_file)  # of two that start at once, one wins, and both use its key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    key = load_pem_private_key(private_file.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{private_file} does not hold an Ed25519 key")  # noqa: TRY004 - the file's value is wrong
    key_id = key_id_of(key.public_key())
    public_file = public_directory / f"{key_id}.pem"
    if not public_file.exists():
        draft = public_directory / f".{key_id}.{os.getpid()}.new"
        draft.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        draft.rename(public_file)
    return key, key_id


def _load_api_key(path: Path, mode: int) -> Secret | None:
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        _log.error("gateway.api_key_file_refused", file=path.name, mode=oct(mode & 0o777), wanted="0600 or 0440")
        return None
    try:
        text = path.read_bytes()[: _MAX_FILE + 1].decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        _log.error("gateway.api_key_file_unusable", file=path.name, error=type(error).__name__)
        return None
    if not text or len(text) > _MAX_FILE or not text.isprintable() or " " in text:
        _log.error("gateway.api_key_file_unusable", file=path.name, error="not one printable word")
        return None
    return Secret(text)


def _pem_files(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if path.suffix == ".pem" and _FILE_NAME.fullmatch(path.name)]
    except OSError:
        return []
