"""What keys an installation in a cluster has, Secret by Secret: each maker says what a Secret still lacks. No I/O."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sandboxd.backends.certificates import AUTHORITY_CERTIFICATE, AUTHORITY_KEY, CertificateAuthority, make_authority
from sandboxd.bootstrap.keys import jwks_entry
from sandboxd.gateway.key_files import key_id_of
from sandboxd.gateway.key_hashes import SECRET_BYTES
from sandboxd.model.sources import Clock

CERTIFICATE_LIFETIME: Final = timedelta(days=1095)
"""Of servers' certificates: they are renewed by upgrades alone, so it must outlast the time between two of those."""
DATABASE: Final = "sandboxd"

Entries = Mapping[str, bytes]
"""Of a Secret."""


class Maker(Protocol):
    """Knows one Secret."""

    type: str

    def missing(self, there: Entries) -> Entries:
        """Return the entries to write, made anew; empty where the Secret is whole."""
        ...


class AgentAuthority:
    """The authority of agents, of `serve` towards them, and of replicas among themselves."""

    type = "Opaque"
    common_name = "sandboxd agents"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def missing(self, there: Entries) -> Entries:
        """Both files, or nothing: one of them alone is of no use."""
        if AUTHORITY_KEY in there and AUTHORITY_CERTIFICATE in there:
            return {}
        certificate, key = make_authority(self.common_name, self._clock.now())
        return {AUTHORITY_CERTIFICATE: certificate, AUTHORITY_KEY: key}


class ServerAuthority(AgentAuthority):
    """The authority of the servers' certificates: callers and agents trust it; mounted by nobody."""

    common_name = "sandboxd servers"


class SigningKeys:
    """What `serve` signs with."""

    type = "Opaque"

    def missing(self, there: Entries) -> Entries:
        """Each key that is not there."""
        made = {name: _private_pem() for name in ("sandbox-tokens.pem", "erasure-proofs.pem", "audit.pem")}
        made["key-hashes.secret"] = secrets.token_bytes(SECRET_BYTES)
        return {name: value for name, value in made.items() if name not in there}


class Trust:
    """The public halves that are trusted; those of former keys stay until somebody removes them."""

    type = "Opaque"

    def __init__(self, private: bytes) -> None:
        self._private = private

    def missing(self, there: Entries) -> Entries:
        """The present key's."""
        public = _load(self._private).public_key()
        name = f"{key_id_of(public)}.pem"
        return {} if name in there else {name: public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)}


class EmptySecret:
    """What `serve` writes into: the clients' API keys, or what their images are pulled with. Nothing at first."""

    type = "Opaque"

    def missing(self, there: Entries) -> Entries:  # noqa: ARG002  the protocol's
        """Nothing."""
        return {}


class CallerKeys:
    """An issuer of callers' tokens for trying out: `sandboxd token` signs with the one, `serve` trusts the other."""

    type = "Opaque"

    def missing(self, there: Entries) -> Entries:
        """The key where there is none, and its public half."""
        private = there.get("callers.pem") or _private_pem()
        public = json.dumps({"keys": [jwks_entry(_load(private).public_key())]}, indent=2).encode()
        made = {"callers.pem": private, "callers.json": public}
        return {name: value for name, value in made.items() if name not in there}


class Certificate:
    """A server's certificate by the installation's own authority."""

    type = "kubernetes.io/tls"

    def __init__(self, authority: Entries, *, names: Sequence[str], clock: Clock) -> None:
        self._authority = authority
        self._names = names
        self._clock = clock

    def missing(self, there: Entries) -> Entries:
        """A new one, unless the present one has the names, our authority's signature, and a third of its life left."""
        authority = self._authority[AUTHORITY_CERTIFICATE]
        if there.get("ca.crt") == authority and self._lasts(there.get("tls.crt", b"")) and "tls.key" in there:
            return {}
        signer = CertificateAuthority.load(certificate=authority, key=self._authority[AUTHORITY_KEY], clock=self._clock)
        made = signer.issue_server(self._names, lifetime=CERTIFICATE_LIFETIME)
        return {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": authority}

    def _lasts(self, pem: bytes) -> bool:
        try:
            found = x509.load_pem_x509_certificate(pem)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return False
        has = names.get_values_for_type(x509.DNSName)
        left = found.not_valid_after_utc - self._clock.now()
        return set(has) >= set(self._names) and left > CERTIFICATE_LIFETIME / 3


class DatabasePasswords:
    """The bundled PostgreSQL's two users, and the addresses with them. Hexadecimal: they need no quoting anywhere."""

    type = "Opaque"

    def __init__(self, *, host: str) -> None:
        self._host = host

    def missing(self, there: Entries) -> Entries:
        """Everything that depends on a password that is not there."""
        made: dict[str, bytes] = {}
        for entry, user, address in (
            ("owner-password", "sandboxd_owner", "owner-url"),
            ("service-password", "sandboxd_service", "url"),
        ):
            password = there.get(entry) or secrets.token_hex(24).encode()
            url = f"postgresql://{user}:{password.decode()}@{self._host}:5432/{DATABASE}"
            made |= {entry: password, address: url.encode()}
        return {name: value for name, value in made.items() if there.get(name) != value}


def _private_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load(pem: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is not an Ed25519 key")  # noqa: TRY004  the entry's value is wrong
    return key
