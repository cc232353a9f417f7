"""Where the model endpoint forwards to, and what may travel there: URL, token, headers. Pure, and no I/O.

The CLI's environment holds nothing of worth, so whatever credentials a request carries are dropped: the sandbox token
replaces them. One thing is kept: the placeholder key by which the service tells sessions of one CLI apart.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import unquote, urlsplit

from sandboxd.model.errors import InvalidRequestError

Headers = list[tuple[bytes, bytes]]

SESSION_HEADER: Final = b"x-sandboxd-session"
ELAPSED_HEADER: Final = b"x-sandboxd-agent-elapsed"
"""Microseconds from the request's head until it goes to the gateway, which reports the agent's part of a trace: this
process has no memory to spare for a library of traces."""
SESSION_PLACEHOLDER: Final = re.compile(rb"sbxd-(ses-[0-9a-z]{26})")

_CREDENTIALS: Final = frozenset(
    {
        b"authorization",
        b"cookie",
        b"proxy-authorization",
        b"x-gemini-api-privileged-user-id",
        b"x-goog-api-key",
        b"x-goog-iam-authorization-token",
        b"x-goog-user-project",
    }
)
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_CREDENTIAL_PARAMETERS: Final = frozenset({"key", "access_token"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayTarget:
    """The gateway, and what to show there."""

    base_url: str
    host: str
    port: int
    prefix: str
    """Path of the base URL without a slash at its end."""
    tls: ssl.SSLContext | None = field(compare=False)
    """None for plain http."""
    ca_pem: bytes = field(repr=False)
    token: str = field(repr=False)
    """The sandbox token. In memory only."""
    expire_time: datetime | None

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 80 if self.tls is None else 443
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")

    def same_place(self, other: GatewayTarget) -> bool:
        """Tell whether connections to one may be used for the other."""
        return (self.host, self.port, self.tls is None, self.ca_pem) == (
            other.host,
            other.port,
            other.tls is None,
            other.ca_pem,
        )


def make_target(
    *, base_url: str, token: str, expire_time: datetime | None, ca_pem: bytes, before: GatewayTarget | None
) -> GatewayTarget:
    """Check what the service has set, and make it usable.

    Args:
        base_url: http or https; a path is kept as a prefix.
        token: The sandbox token.
        expire_time: When it stops working, if that is known.
        ca_pem: Authorities to trust; empty for the system's.
        before: The present target, whose TLS context is kept when nothing about it has changed.

    Raises:
        InvalidRequestError: Something in it cannot be used.
    """
    try:
        parts = urlsplit(base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("ascii").decode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise InvalidRequestError("The gateway's base URL is not a URL.") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise InvalidRequestError("The gateway's base URL must begin with http:// or https:// and name a host.")
    if parts.query or parts.fragment or parts.username is not None or not base_url.isascii():
        raise InvalidRequestError("The gateway's base URL has only a host, a port and a path.")
    if not token or not re.fullmatch(r"[!-~]+", token):
        raise InvalidRequestError("The token must be printable ASCII without spaces, and not empty.")
    tls: ssl.SSLContext | None = None
    if parts.scheme == "https":
        if before is not None and before.tls is not None and before.ca_pem == ca_pem:
            tls = before.tls
        else:
            tls = _tls_context(ca_pem)
    return GatewayTarget(
        base_url=base_url,
        host=host,
        port=port,
        prefix=parts.path.rstrip("/"),
        tls=tls,
        ca_pem=ca_pem,
        token=token,
        expire_time=expire_time,
    )


def request_target(target: GatewayTarget, given: bytes) -> bytes:
    """Return the path to ask the gateway for, without credentials in its query."""
    path, mark, query = given.partition(b"?")
    kept = b"&".join(word for word in query.split(b"&") if not _is_credential(word))
    return target.prefix.encode("ascii") + path + (mark + kept if kept else b"")


def request_headers(target: GatewayTarget, given: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers to send to the gateway: without credentials, with the sandbox token."""
    given = [(name.lower(), value) for name, value in given]
    dropped = _CREDENTIALS | _HOP_BY_HOP | _connection_words(given)
    headers: Headers = [(b"host", target.authority)]
    headers += [(n, v) for n, v in given if n not in dropped and not n.startswith(b"x-sandboxd-")]
    headers.append((b"authorization", b"Bearer " + target.token.encode("ascii")))
    for name, value in given:
        if name == b"x-goog-api-key" and (session := SESSION_PLACEHOLDER.fullmatch(value)):
            headers.append((SESSION_HEADER, session[1]))
            break
    return headers


def response_headers(given: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers to hand to the CLI: those of the gateway that are meant for the end."""
    given = [(name.lower(), value) for name, value in given]
    dropped = _HOP_BY_HOP | _connection_words(given)
    return [(name, value) for name, value in given if name not in dropped]


def _connection_words(headers: Headers) -> frozenset[bytes]:
    words = (word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b","))
    return frozenset(words) - {b"content-length"}


def _is_credential(word: bytes) -> bool:
    name = unquote(word.partition(b"=")[0].decode("latin-1").replace("+", " "))
    return name.strip().lower() in _CREDENTIAL_PARAMETERS


def _tls_context(ca_pem: bytes) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cadata=ca_pem.decode("ascii") if ca_pem else None)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidRequestError("The gateway's authorities are not PEM certificates.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
