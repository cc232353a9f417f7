"""Kubeconfigs of the plain kind: one file, certificates or a token. Anything else is not read here."""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_CLUSTER: Final = frozenset({"server", "certificate-authority", "certificate-authority-data"})
_USER: Final = frozenset(
    {"client-certificate", "client-certificate-data", "client-key", "client-key-data", "token", "tokenFile"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainConfig:
    """What is current in a kubeconfig."""

    directory: Path
    """Paths in it are relative to this."""
    cluster: Mapping[str, Any]  # Any: YAML
    user: Mapping[str, Any] = field(repr=False)

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self.cluster["server"]).rstrip("/")

    def ssl_context(self) -> ssl.SSLContext:
        """Trust the cluster's authority, and prove oneself.

        Raises:
            OSError, ValueError: A certificate or key cannot be used.
        """
        authority = self._content(self.cluster, "certificate-authority")
        if authority is not None and not authority.strip():
            raise ValueError("the file of the cluster's authority is empty")  # Python would trust the system's instead
        context = ssl.create_default_context(cadata=None if authority is None else authority.decode())
        # Authorities made by older tools lack what Python 3.13 demands; they are trusted by the person's own choice.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        certificate, key = self._content(self.user, "client-certificate"), self._content(self.user, "client-key")
        if certificate is not None:
            # OpenSSL takes them from a file alone.
            with tempfile.NamedTemporaryFile(prefix="sandboxd-", suffix=".pem") as file:
                file.write(certificate + b"\n" + (key or b""))
                file.flush()
                context.load_cert_chain(file.name)
        return context

    def bearer(self) -> str:
        """The token to show now; empty where there is none. A file is read each time, as it is renewed."""
        if path := self.user.get("tokenFile"):
            return (self.directory / str(path)).read_text().strip()
        return str(self.user.get("token") or "")

    def _content(self, part: Mapping[str, Any], name: str) -> bytes | None:
        if data := part.get(f"{name}-data"):
            return base64.b64decode(data, validate=True)
        if path := part.get(name):
            return (self.directory / str(path)).read_bytes()
        return None


def read_plain(kubeconfig: Path | None) -> PlainConfig | None:
    """Read a kubeconfig, or the one of KUBECONFIG or the default place; None where it is not of the plain kind."""
    named = str(kubeconfig or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    if kubeconfig is None and os.pathsep in named:
        return None  # several, to be merged
    path = Path(named).expanduser()
    yaml = import_module("yaml")  # a role on another backend needs none
    try:
        content = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        context = _named(content["contexts"], content["current-context"])["context"]
        cluster = _named(content["clusters"], context["cluster"])["cluster"]
        user = _named(content["users"], context["user"])["user"] or {}
        plain = cluster.keys() <= _CLUSTER and user.keys() <= _USER and str(cluster["server"]).startswith("https://")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, yaml.YAMLError):
        return None
    return PlainConfig(directory=path.parent, cluster=cluster, user=user) if plain else None


def _named(entries: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)
