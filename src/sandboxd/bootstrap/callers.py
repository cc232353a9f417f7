"""Who may call `serve`, and with which certificate it answers: the edge's trust, from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from sandboxd.api.callers.certificates import PlatformCertificates
from sandboxd.api.callers.claims import ClaimRules
from sandboxd.api.callers.door import Door
from sandboxd.api.callers.key_set import FileKeys, KeySetError
from sandboxd.api.callers.key_url import UrlKeys
from sandboxd.api.callers.tokens import BearerTokens
from sandboxd.api.grpc.server import ApiServer
from sandboxd.bootstrap.keys import KeyFiles
from sandboxd.bootstrap.sources import SystemClock
from sandboxd.settings import Settings, SettingsError
from sandboxd.settings_rules import is_loopback
from sandboxd.tls.files import TlsFiles, TlsFilesError

UNUSABLE: Final = "The settings cannot be used:\n  SANDBOXD_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """How callers are told apart."""

    door: Door
    issuer_keys: UrlKeys | None
    """Its `run` must be somebody's task."""


def make_callers(settings: Settings, keys: KeyFiles, *, clock: SystemClock, registry: CollectorRegistry) -> Callers:
    """Trust the issuers and certificates that the settings name.

    Raises:
        SettingsError: A file cannot be used.
    """
    rules = ClaimRules(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        client_claim=settings.jwt_client_claim,
        role_claim=settings.jwt_role_claim,
    )
    names = settings.platform_names
    certificates = PlatformCertificates(names=names, clock=clock) if settings.tls_client_authority_file else None
    if settings.jwt_jwks_url is None:
        found = _file_keys(settings.jwt_keys_file or keys.caller_keys)
        tokens = BearerTokens(keys=found, rules=rules, clock=clock)
        return Callers(door=Door(tokens=tokens, certificates=certificates), issuer_keys=None)
    try:
        issuer_keys = UrlKeys(
            settings.jwt_jwks_url,
            registry=registry,
            authority=settings.jwt_jwks_authority_file,
            monotonic=clock.monotonic,
        )
    except KeySetError as error:
        raise SettingsError(f"{UNUSABLE}JWT_JWKS_AUTHORITY_FILE: {error}") from error
    tokens = BearerTokens(keys=issuer_keys, rules=rules, clock=clock)
    return Callers(door=Door(tokens=tokens, certificates=certificates), issuer_keys=issuer_keys)


def listen(api: ApiServer, settings: Settings) -> None:
    """Bind the API's addresses.

    Raises:
        OSError: One is taken, or not of this machine.
        SettingsError: The certificate cannot be used.
    """
    authority = settings.tls_client_authority_file
    try:
        if settings.grpc_platform_listen is None:
            api.listen(settings.grpc_listen, tls=_tls(settings, authority=authority))
        else:
            # One listener that asks for certificates without demanding them is beyond gRPC for Python (ADR 0016).
            api.listen(settings.grpc_listen, tls=_tls(settings, authority=None))
            api.listen(settings.grpc_platform_listen, tls=_tls(settings, authority=authority))
    except TlsFilesError as error:
        raise SettingsError(f"{UNUSABLE}TLS_CERTIFICATE_FILE: {error}") from error


def web_tls(settings: Settings) -> TlsFiles | None:
    """Say with which certificate the operators' address answers; None where only this machine reaches it."""
    return None if is_loopback(settings.web_listen) else _tls(settings, authority=None)


def _tls(settings: Settings, *, authority: Path | None) -> TlsFiles | None:
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return TlsFiles(certificate=settings.tls_certificate_file, key=settings.tls_key_file, client_authority=authority)


def _file_keys(file: Path) -> FileKeys:
    try:
        return FileKeys(file)
    except KeySetError as error:
        raise SettingsError(f"{UNUSABLE}JWT_KEYS_FILE: {error}") from error
