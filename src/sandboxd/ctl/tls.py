"""TLS on this side: whom to trust, what to show, and what a failed handshake means in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc

from sandboxd.ctl.target import TlsOptions


class TlsError(Exception):
    """A file for TLS cannot be used."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def channel_credentials(options: TlsOptions) -> grpc.ChannelCredentials:
    """Read the files.

    Raises:
        TlsError: One cannot be read, or they do not belong together. gRPC itself would only fail to connect.
    """
    roots = _read(options.ca_file, "CA_FILE_UNUSABLE") if options.ca_file else None
    if roots is not None and b"-----BEGIN CERTIFICATE-----" not in roots:
        raise TlsError("CA_FILE_UNUSABLE", f"The file {options.ca_file} holds no PEM certificates.")
    if options.cert_file is None:
        if options.cert_key_file:
            raise TlsError("CERT_FILE_UNUSABLE", "A key (--cert-key) needs its certificate (--cert).")
        return grpc.ssl_channel_credentials(root_certificates=roots)
    key_file = options.cert_key_file or options.cert_file
    chain, key = _read(options.cert_file, "CERT_FILE_UNUSABLE"), _read(key_file, "CERT_FILE_UNUSABLE")
    _check_pair(options.cert_file, key_file)
    return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)


_MEANINGS: Final = (
    (
        "certificate has expired",
        "TLS_CERTIFICATE_EXPIRED",
        "The service's certificate has expired, or this machine's clock is wrong.",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "TLS_NOT_TRUSTED",
        "The service's certificate is not of an authority that is trusted.",
    ),
    ("Hostname Verification Check failed", "TLS_WRONG_NAME", "The service's certificate is for another name."),
    ("not in peer certificate", "TLS_WRONG_NAME", "The service's certificate is for another name."),
    ("WRONG_VERSION_NUMBER", "TLS_NOT_SPOKEN", "The service does not speak TLS at this address."),
)
_CLOSED: Final = "last error: UNAVAILABLE:"


def explain(details: str) -> tuple[str, str] | None:
    """Say what gRPC's words about a connection that was not made mean.

    Returns:
        A reason that begins with `TLS_`, where trying again cannot help, and a message; None where it is not TLS.
    """
    for words, reason, message in _MEANINGS:
        if words in details:
            return reason, message
    if _CLOSED in details and details.endswith("Socket closed"):
        return "CONNECTION_CLOSED", "The service closed the connection before anything was said."
    return None


def _read(path: Path, reason: str) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise TlsError(reason, f"The file {path} cannot be read: {error.strerror}.") from error


def _check_pair(cert_file: Path, key_file: Path) -> None:
    import ssl

    try:
        ssl.create_default_context().load_cert_chain(
            cert_file.expanduser(), key_file.expanduser(), password=lambda: _no_password(key_file)
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        raise TlsError(
            "CERT_FILE_UNUSABLE",
            f"{cert_file} and {key_file} are not a PEM certificate and its own key without a password.",
        ) from error


def _no_password(key_file: Path) -> str:
    raise ValueError(f"{key_file} has a password")
