"""Client certificates that speak for the platform. gRPC has verified them against our authority before we see one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from cryptography import x509

from sandboxd.api.callers.proof import CertificateExpiredError, CertificateRefusedError, Proof
from sandboxd.model.caller import Caller, Role
from sandboxd.model.ids import ClientId
from sandboxd.model.sources import Clock

MAX_REMEMBERED: Final = 256
"""Certificates whose end is remembered."""


class PlatformCertificates:
    """Knows the names that the platform's certificates carry."""

    def __init__(self, *, names: Iterable[str], clock: Clock) -> None:
        self._names = frozenset(names)
        self._clock = clock
        self._ends: OrderedDict[bytes, datetime] = OrderedDict()

    def check(self, peer: Mapping[str, Iterable[bytes]]) -> Proof | None:
        """Return the platform, as the peer's certificate proves it; None where the peer has none.

        Args:
            peer: gRPC's properties of the connection.

        Raises:
            CertificateRefusedError: It carries none of the platform's names.
            CertificateExpiredError: It was good when the connection was made, and is not any more.
        """
        pem = next(iter(peer.get("x509_pem_cert", ())), None)
        if pem is None:
            return None
        names = _names(peer)
        name = next((one for one in names if one in self._names), None)
        if name is None:
            raise CertificateRefusedError(
                "The client certificate of this connection is not one of the platform's. Show a token, or a "
                "certificate with a name that this service accepts.",
                names=", ".join(names)[:500],
            )
        left = (self._end(pem) - self._clock.now()).total_seconds()
        if left <= 0:
            raise _expired()
        return Proof(
            caller=Caller(client=ClientId(""), subject=name, role=Role.PLATFORM),
            ends=self._clock.monotonic() + left,
            expired=_expired,
        )

    def _end(self, pem: bytes) -> datetime:
        if pem not in self._ends:
            self._ends[pem] = x509.load_pem_x509_certificate(pem).not_valid_after_utc
            if len(self._ends) > MAX_REMEMBERED:
                self._ends.popitem(last=False)
        return self._ends[pem]


def _names(peer: Mapping[str, Iterable[bytes]]) -> list[str]:
    """Return the names of a certificate: its URIs and DNS names; its common name only where it has neither."""
    found = [*peer.get("peer_uri", ()), *peer.get("peer_dns", ())] or [*peer.get("x509_common_name", ())]
    return [name.decode("utf-8", "replace") for name in found]


def _expired() -> CertificateExpiredError:
    return CertificateExpiredError(
        "The client certificate of this connection has expired. Nothing is lost: connect again with a new one, "
        "a stream after the last sequence number that you saw."
    )
