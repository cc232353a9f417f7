"""The authority that proves agents, the service and its replicas to each other, in files of one directory.

An agent's certificate names its incarnation and can only serve; the service's can only call; a replica's does both, and
only among replicas. Nothing else trusts this authority, and it trusts nobody else. Several services may open the
directory at once: a lock lets one make the keys.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sandboxd.model.ids import IncarnationId
from sandboxd.model.sources import Clock

SERVICE_NAME: Final = "service.sandboxd.internal"
"""DNS name in the service's certificate; agents accept no other."""
REPLICA_NAME: Final = "replica.sandboxd.internal"
"""DNS name in a replica's certificate; replicas accept no other of each other."""
AUTHORITY_KEY: Final = "authority.key"
AUTHORITY_CERTIFICATE: Final = "authority.pem"
AUTHORITY_LIFETIME: Final = timedelta(days=3650)
SERVICE_LIFETIME: Final = timedelta(days=365)
AGENT_LIFETIME: Final = timedelta(days=365)
"""An agent reads its certificate once, and must stay reachable for as long as its incarnation may live."""
BACKDATED: Final = timedelta(hours=1)
"""Clocks of two machines may differ by so much, and a clock may be set back after a certificate was made."""


def agent_name(incarnation: IncarnationId) -> str:
    """DNS name in the certificate of an incarnation's agent."""
    return f"{incarnation}.agent.sandboxd.internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A certificate chain with its key, PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


class CertificateAuthority:
    """Signs agents' and the service's certificates."""

    def __init__(self, *, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock

    @classmethod
    def open(cls, directory: Path, *, clock: Clock) -> CertificateAuthority:
        """Read the authority of a directory, which may be read-only then; make it where there is none.

        Raises:
            ValueError: The files are there and cannot be read.
        """
        key_file, certificate_file = directory / AUTHORITY_KEY, directory / AUTHORITY_CERTIFICATE
        if not certificate_file.exists():  # written last
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(directory):
                if not certificate_file.exists():
                    made, key = make_authority("sandboxd agents", clock.now())
                    write_private(key_file, key)
                    write_private(certificate_file, made)
        try:
            return cls.load(certificate=certificate_file.read_bytes(), key=key_file.read_bytes(), clock=clock)
        except ValueError as error:
            raise ValueError(f"the authority in {directory} cannot be used: {error}") from error

    @classmethod
    def load(cls, *, certificate: bytes, key: bytes, clock: Clock) -> CertificateAuthority:
        """Take an authority from PEM.

        Raises:
            ValueError: They are not the certificate and the key of one authority.
        """
        read = x509.load_pem_x509_certificate(certificate)
        loaded = serialization.load_pem_private_key(key, password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != read.public_key():
            raise ValueError("they are not the key and certificate of one authority")
        return cls(certificate=read, key=loaded, clock=clock)

    @property
    def certificate(self) -> bytes:
        """The authority's own certificate, PEM: what a peer must trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue_agent(self, incarnation: IncarnationId) -> Identity:
        """A fresh identity for the agent of an incarnation."""
        return self._issue(agent_name(incarnation), [ExtendedKeyUsageOID.SERVER_AUTH], AGENT_LIFETIME)

    def issue_service(self) -> Identity:
        """A fresh identity for a service. Each process takes its own at start, and keeps it in memory."""
        return self._issue(SERVICE_NAME, [ExtendedKeyUsageOID.CLIENT_AUTH], SERVICE_LIFETIME)

    def issue_replica(self) -> Identity:
        """A fresh identity for a replica among replicas; agents accept it as little as replicas accept an agent's."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(REPLICA_NAME, usages, SERVICE_LIFETIME)

    def issue_server(self, names: Sequence[str], *, lifetime: timedelta) -> Identity:
        """A fresh identity for a server that has these DNS names, for those who trust this authority."""
        return self._issue(names[0], [ExtendedKeyUsageOID.SERVER_AUTH], lifetime, more=names[1:])

    def _issue(
        self, name: str, usages: Sequence[x509.ObjectIdentifier], lifetime: timedelta, *, more: Sequence[str] = ()
    ) -> Identity:
        key, now = ec.generate_private_key(ec.SECP256R1()), self._clock.now()
        signer = self._certificate
        made = (
            x509.CertificateBuilder()
            # A common name holds at most 64 characters, and nobody may rely on it: the DNS name counts.
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
            .issuer_name(signer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(min(now + lifetime, signer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in (name, *more)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Identity(certificate=made.public_bytes(serialization.Encoding.PEM), key=_pem(key))


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, in one step: it is there whole, or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make_authority(common_name: str, now: datetime) -> tuple[bytes, bytes]:
    """Make an authority that signs nothing but certificates of servers and callers; answers it and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM), _pem(key)


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
