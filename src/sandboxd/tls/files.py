"""Certificate files that change: looked at with each handshake, and kept as they were while the new ones are broken.

Whoever renews certificates writes a certificate and its key one after the other. Between the two they do not belong
together; then, and when a file is half written, missing or expired, the old ones go on being used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

log = structlog.get_logger("sandboxd.tls")

LOOK_EVERY: Final = timedelta(seconds=1)
"""How often the files are looked at, at most."""


class TlsFilesError(Exception):
    """The files cannot be used; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where a server's certificate is."""

    certificate: Path
    """PEM, the server's own first, then those that lead to its authority."""
    key: Path
    """PEM, without a password."""
    client_authority: Path | None = None
    """Peers must have a certificate of one of these authorities, where it is set."""

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file that matters."""
        return (self.certificate, self.key, *((self.client_authority,) if self.client_authority else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the files hold, proven to belong together."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_authority: bytes | None
    expire_time: datetime


LoadedT = TypeVar("LoadedT")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class Reloaded(Generic[LoadedT]):
    """What was made of the files the last time that they were good. Any thread may ask."""

    def __init__(
        self,
        files: TlsFiles,
        load: Callable[[TlsFiles], LoadedT],
        *,
        look_every: timedelta = LOOK_EVERY,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load them for the first time.

        Raises:
            TlsFilesError: They cannot be used.
        """
        self._files = files
        self._load = load
        self._look_every = look_every.total_seconds()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._good = self._told = self._stamp()
        self._loaded = load(files)
        self._looked = monotonic()

    def get(self) -> LoadedT:
        """Return the newest good one."""
        with self._lock:
            if self._monotonic() - self._looked >= self._look_every:
                self._looked = self._monotonic()
                self._look()
            return self._loaded

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp == self._good:
            return
        try:
            self._loaded = self._load(self._files)
        except TlsFilesError as error:
            # Tried again each time, as a file may be finished within the same tick of its clock; told once.
            if stamp != self._told:
                log.warning("tls.files_refused", certificate=str(self._files.certificate), error=str(error))
        else:
            self._good = stamp
            log.info("tls.files_reloaded", certificate=str(self._files.certificate))
        self._told = stamp

    def _stamp(self) -> _Stamp:
        return tuple(_stamp(path) for path in self._files.all)


def read_material(files: TlsFiles) -> Material:
    """Read the files and prove that they can be used together.

    Raises:
        TlsFilesError: They cannot.
    """
    certificate, key = _read(files.certificate), _read(files.key)
    authority = _read(files.client_authority) if files.client_authority else None
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsFilesError(f"{files.certificate} and {files.key} are not a PEM chain and its PEM key") from error
    if chain[0].public_key() != private.public_key():
        raise TlsFilesError(f"the key in {files.key} is not that of the certificate in {files.certificate}")
    if chain[0].not_valid_after_utc <= datetime.now(UTC):
        raise TlsFilesError(f"the certificate in {files.certificate} has expired")
    if authority is not None:
        try:
            x509.load_pem_x509_certificates(authority)
        except ValueError as error:
            raise TlsFilesError(f"{files.client_authority} holds no PEM certificates") from error
    return Material(
        certificate=certificate, key=key, client_authority=authority, expire_time=chain[0].not_valid_after_utc
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesError(f"{path} cannot be read ({error.strerror})") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
